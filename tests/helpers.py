"""What several test files use: awkward values, bits, refusals, sparse rows."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import adamas
from adamas import _core

LINE = 64
ISAS = tuple(_core.isas_supported())
KINDS = ("mild", "huge", "any")
PATIENCE = 600  # seconds until a thread or a process counts as stuck, on any machine


def bits(array):
    """Return the bits, those of all NaNs made equal."""
    copy = np.array(array)
    with np.errstate(invalid="ignore"):  # signalling ones of bfloat16
        copy[np.isnan(copy)] = np.nan
    return copy.view(f"u{copy.itemsize}")


def special_values(dtype, kind):
    """Return values at which arithmetic goes wrong first: "any" adds infinity and NaN to "huge"."""
    limits = np.finfo(dtype)
    chosen = [0.0, limits.smallest_subnormal, 12345 * limits.smallest_subnormal]
    chosen += [limits.smallest_normal, limits.eps, 1.0, 1e-18]
    if kind != "mild":
        chosen += [limits.max, limits.max / 3, np.sqrt(limits.max), 1e18]
    if kind == "any":
        chosen += [np.inf, np.nan]
    positive = np.array(chosen, dtype)
    return np.concatenate([positive, -positive])


def values(rng, dtype, size, kind):
    """Return numbers of many magnitudes, one in eight of them special."""
    array = np.array(rng.standard_normal(size) * 10 ** rng.uniform(-9, 4, size), dtype)
    chosen = np.asarray(rng.random(size) < 0.125)
    array[chosen] = rng.choice(special_values(dtype, kind), int(chosen.sum()))
    return array


class Arena:
    """Copies of arrays in one buffer, each ``offset`` bytes behind the start of a cache line."""

    def __init__(self, arrays, offset):
        starts, end = [], 0
        for array in arrays:
            starts.append(end + offset)
            end += -(-(array.nbytes + offset) // LINE) * LINE
        buffer = np.zeros(end + LINE, np.uint8)
        to_line = -buffer.ctypes.data % LINE
        self.views = [
            buffer[to_line + start :][: array.nbytes].view(array.dtype).reshape(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]
        for view, array in zip(self.views, arrays, strict=True):
            view[...] = array


def parameters(arrays):
    return [adamas.Parameter(a, f"weight{i}") for i, a in enumerate(arrays)]


def replaced(items, position, item):
    return [item if i == position else old for i, old in enumerate(items)]


def states_of(optimizer):
    """Return {kind: arrays} of everything that a step changes but the counters."""
    kinds = {
        "param": [np.asarray(param) for param in optimizer.parameters],
        "moment1": optimizer.moment1,
        "moment2": optimizer.moment2,
        "vhat": [vhat for vhat in optimizer.vhat if vhat is not None],
        "ema": optimizer.ema,
        "master": [master for master in optimizer.master_weights if master is not None],
    }
    return {kind: arrays for kind, arrays in kinds.items() if arrays}


def everything(optimizer):
    """Return the bits of all that a call may change."""
    states = [array.tobytes() for arrays in states_of(optimizer).values() for array in arrays]
    counters = (
        optimizer.global_step,
        optimizer.skipped_steps,
        optimizer.last_step_skipped,
        repr(optimizer.last_grad_norm),
        optimizer.loss_scale,
        optimizer.steps,
    )
    return states, counters


def check_refused(optimizer, call, error, *fragments):
    """A call raises, says what is wrong and changes nothing."""
    before = everything(optimizer)
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert everything(optimizer) == before


def check_same_states(optimizer, other, what=""):
    """Two optimizers have the same bits everywhere; NaN counts as NaN."""
    ours, theirs = states_of(optimizer), states_of(other)
    assert ours.keys() == theirs.keys()
    for kind, arrays in ours.items():
        for i, (mine, wanted) in enumerate(zip(arrays, theirs[kind], strict=True)):
            np.testing.assert_array_equal(
                bits(mine), bits(wanted), err_msg=f"{kind} of parameter {i} {what}"
            )
    assert optimizer.global_step == other.global_step
    assert optimizer.steps == other.steps


# Rates that change with the step


class Falling(adamas.LearningRateSchedule):
    def __call__(self, step):
        return 0.02 / (1 + step)


class Rising(adamas.WeightDecaySchedule):
    def __call__(self, step):
        return 0.01 * step


# Sparse rows


def no_rows(rng, rows):
    return np.zeros(0, np.int64)


def one_row(rng, rows):
    return rng.integers(0, rows, 1)


def all_rows(rng, rows):
    return rng.permutation(rows)


def some_rows(rng, rows):
    return rng.choice(rows, max(1, rows // 3), replace=False)


def repeated_rows(rng, rows):
    return rng.integers(0, rows, rows + 3)


def a_few_rows_often(rng, rows):
    return rng.choice(rng.integers(0, rows, 2), 40)


def first_and_last_row(rng, rows):
    return np.array([rows - 1, 0, rows - 1])


ROW_SETS = (
    no_rows,
    one_row,
    all_rows,
    some_rows,
    repeated_rows,
    a_few_rows_often,
    first_and_last_row,
)


def row_tensor(rng, shape, indices, dtype, kind="mild"):
    """Return a sparse gradient with these rows."""
    entries = values(rng, dtype, (len(indices), *shape[1:]), kind)
    return adamas.RowTensor(indices, entries, shape)


def half_values(rng, dtype, shape, *, finite):
    """Return 16-bit numbers, one in eight of them of any bits, or if `finite` below 1e4."""
    dtype = np.dtype(dtype)
    array = (rng.standard_normal(shape) * 10 ** rng.uniform(-4, 1, shape)).astype(dtype)
    patterns = rng.integers(0, 2**16, shape).astype(np.uint16).view(dtype)
    chosen = rng.random(shape) < 0.125
    if finite:
        chosen &= abs(widened(patterns)) < 1e4
    return np.where(chosen, patterns, array).astype(dtype)


def widened(array):
    """Return 16-bit values as float32, which is exact; a signalling NaN is no reason to warn."""
    with np.errstate(invalid="ignore"):
        return array.astype(np.float32)


# Threads and processes


def run_threads(*functions):
    """Start all at the same moment; fail if one raises or is stuck."""
    failures = []
    barrier = threading.Barrier(len(functions))

    def guarded(function):
        try:
            barrier.wait(PATIENCE)
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if failures:
        raise failures[0]


def once(folder, make):
    """Call make() in the first process of a run of the tests; the others wait until it is done."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "made_by").open("a+") as made_by:
        fcntl.flock(made_by, fcntl.LOCK_EX)
        made_by.seek(0)
        if made_by.read() != run:
            make()
            made_by.truncate(0)
            made_by.write(run)


def run_python(*arguments, timeout=PATIENCE, **environment):
    """Run Python in a new process that finds the same adamas; return the finished process."""
    home = str(Path(adamas.__file__).parent.parent)
    path = os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    inherited = {key: value for key, value in os.environ.items() if key != "ADAMAS_ISA"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
