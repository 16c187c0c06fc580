"""Processes that are killed while they save: the file is a complete state each time (promise P6).

A child loads the file, makes steps and saves after each. It is killed with SIGKILL some saves and a
random part of one later, whatever time a save takes here; then the file must load and be the state
of some step, no earlier than the last one that the child has reported as saved. The summary of the
run prints what came of the kills.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import adamas
from rules import long

SIZE = 400_000


def training():
    """Return an optimizer whose state is a function of its step."""
    param = adamas.Parameter(np.full(SIZE, 0.5, np.float32), "weight")
    optimizer = adamas.Adam([param], learning_rate=0.01, use_amsgrad=True, state_dtype="bfloat16")
    return optimizer, adamas.DynamicLossScaleManager(2.0, scale_window=3)


def advance(optimizer, manager):
    optimizer((np.full(SIZE, np.cos(optimizer.global_step), np.float32),))
    manager.update_loss_scale(False)


def save_in_a_loop(path):
    optimizer, manager = training()
    if path.exists():
        adamas.load_checkpoint(path, optimizer, loss_scale_manager=manager)
    while True:
        print(optimizer.global_step, flush=True)
        advance(optimizer, manager)
        adamas.save_checkpoint(path, optimizer, loss_scale_manager=manager)


def life_and_death(path, saves, part):
    """Kill a child that saves, in the middle of a save; return the last step that it reported."""
    home = str(Path(adamas.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "PYTHONPATH": home},
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        start = time.perf_counter()
        for _ in range(saves):
            step = int(child.stdout.readline())
        time.sleep(part * (time.perf_counter() - start) / saves)
        child.kill()
        assert child.wait() == -9
    return step


def content(optimizer, manager):
    state = optimizer.state_dict(parameters=True)
    arrays = state["parameters"]["weight"]
    return manager.state_dict(), {
        kind: array.tobytes() for kind, array in arrays.items() if isinstance(array, np.ndarray)
    }


@pytest.mark.parametrize("count", [20, long(300)])
def test_a_killed_process_leaves_a_complete_file(count, tmp_path, kills):
    path = tmp_path / "run.safetensors"
    moments = random.Random(1)
    reference, reference_manager = training()
    for _ in range(count):
        saved = life_and_death(path, moments.randint(1, 3), moments.random())
        kills.made += 1
        leftovers = list(tmp_path.glob(".adamas-*.tmp"))
        kills.in_a_write += len(leftovers) > 0
        for leftover in leftovers:
            leftover.unlink()
        optimizer, manager = training()
        try:
            adamas.load_checkpoint(path, optimizer, loss_scale_manager=manager)
        except ValueError:
            kills.torn += 1
            raise
        assert optimizer.global_step >= saved > reference.global_step
        while reference.global_step < optimizer.global_step:
            advance(reference, reference_manager)
        same = content(optimizer, manager) == content(reference, reference_manager)
        kills.torn += not same
        assert same
    assert kills.in_a_write > 0 or count < 100


if __name__ == "__main__":
    save_in_a_loop(Path(sys.argv[1]))
