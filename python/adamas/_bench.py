"""``python -m adamas bench``: one minute on the user's machine, one table.

It needs neither a compiler nor another package; PyTorch's fused Adam is measured beside if it is
installed. bench/ in the source tree measures more, and against more.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from . import _core
from ._adam import Adam
from ._arrays import FloatArray
from ._parameter import Parameter
from .typing import StateDtype

SIZES = (10**3, 10**5, 10**6, 10**7, 10**8)
STATES: tuple[StateDtype, ...] = get_args(StateDtype)
LIMIT, TORCH = "limit", "torch fused"
IN_MEMORY = 10**7  # elements from which on no cache holds a step, and calls cost next to nothing
BYTES = 48  # per element, of all that is measured together
PARTS = 6  # of the limit for each thread
SAMPLE = 0.003  # seconds that a sample takes at least
SETTLE = 0.001  # seconds in which the threads of the one before come to rest
ROUNDS = (3, 50)  # at least, at most

Step = Callable[[], object]
Samples = dict[str, list[float]]


class Limit:
    """The memory traffic of a float32 step without its arithmetic: 28 bytes per element.

    Parameter, gradient and moments are read, all but the gradient are written, with the bits that
    they had. The caller and ``threads - 1`` others share the work.
    """

    def __init__(
        self, param: FloatArray, moment1: FloatArray, moment2: FloatArray, threads: int
    ) -> None:
        arrays = [array.view(np.uint32) for array in (param, moment1, moment2)]
        arrays.append(np.zeros_like(arrays[0]))
        # Several parts for each thread, so that one whose core is busy holds up nobody.
        count = 1 if threads == 1 else PARTS * threads
        cut = [np.array_split(array, count) for array in arrays]
        self._parts = list(zip(*cut, strict=True))
        self._helpers = ThreadPoolExecutor(threads)
        self._threads = threads

    def __call__(self) -> None:
        """Move the bytes of one step."""
        parts = iter(self._parts)
        others = [self._helpers.submit(self._sweep, parts) for _ in range(self._threads - 1)]
        self._sweep(parts)
        for other in others:
            other.result()

    @staticmethod
    def _sweep(parts: Iterator[Any]) -> None:
        for param, moment1, moment2, zeros in parts:
            np.bitwise_or(param, zeros, out=param)
            np.bitwise_or(moment1, 0, out=moment1)
            np.bitwise_or(moment2, 0, out=moment2)


def torch_step(param: FloatArray, grad: FloatArray, threads: int) -> Step | None:
    """Return the step of PyTorch's fused Adam, or None without PyTorch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    tensor = torch.nn.Parameter(torch.from_numpy(param.copy()))
    tensor.grad = torch.from_numpy(grad.copy())
    step: Step = torch.optim.Adam([tensor], lr=1e-3, fused=True).step
    return step


def contestants(size: int, threads: int) -> dict[str, Step]:
    """Make ready all that is measured for one line of the table."""
    rng = np.random.default_rng(0)
    param, grad = (np.resize(rng.standard_normal(1000, np.float32), size) for _ in range(2))
    steps: dict[str, Step] = {}
    for state in STATES:
        # They share the parameter: its values do not matter here.
        opt = Adam([Parameter(param)], num_threads=threads, state_dtype=state)
        steps[state] = lambda opt=opt: opt((grad,))  # type: ignore[misc]
        if state == "float32" and size >= IN_MEMORY:
            steps[LIMIT] = Limit(param, opt.moment1[0], opt.moment2[0], threads)
    from_torch = torch_step(param, grad, threads)
    if from_torch is not None:
        steps[TORCH] = from_torch
    return steps


def seconds_of(step: Step, times: int) -> float:
    """Return the seconds of one step, of so many in a row."""
    time.sleep(SETTLE)
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


def measure(steps: dict[str, Step], seconds: float) -> Samples:
    """Sample all in turn for so long: neighbours in time can be compared."""
    deadline = time.perf_counter() + seconds
    times = {}
    for name, step in steps.items():
        step()  # touches the memory and wakes the threads
        times[name] = max(1, round(SAMPLE / max(seconds_of(step, 3), 1e-9)))
    samples: Samples = {name: [] for name in steps}
    for i in range(ROUNDS[1]):
        if i >= ROUNDS[0] and time.perf_counter() > deadline:
            break
        for name, step in steps.items():
            samples[name].append(seconds_of(step, times[name]))
    return samples


def ratio(samples: Samples, name: str, other: str) -> float:
    """Return how many times as long as ``other`` it takes."""
    return median(a / b for a, b in zip(samples[name], samples[other], strict=True))


def shown(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    factor, unit = next(
        (pair for pair in ((1.0, "s"), (1e3, "ms")) if seconds * pair[0] >= 1), (1e6, "us")
    )
    return f"{seconds * factor:#.3g} {unit}".replace(". ", " ")


def cell(samples: Samples, name: str) -> str:
    """Return a time, and how many times the limit it is where there is one."""
    if name not in samples:
        return "-"
    text = shown(median(samples[name]))
    if LIMIT in samples and name != LIMIT:
        text += f" {ratio(samples, name, LIMIT):.2f}x"
    return text


def available_memory() -> float:
    """Return the bytes that may be used, as far as the system tells."""
    available = float("inf")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        available = float(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # of a container; "max" without a limit
        group = Path("/sys/fs/cgroup")
        most = float((group / "memory.max").read_text())
        available = min(available, most - float((group / "memory.current").read_text()))
    return available


def table(sizes: Sequence[int], seconds: float) -> Iterator[str]:
    """Measure, and yield the lines of the table as they come."""
    columns = (LIMIT, *STATES, TORCH)
    yield f"{'elements':>8} {'threads':>7}" + "".join(f"{name:>16}" for name in columns)
    threads = sorted({1, _core.available_threads()})
    for size in sizes:
        for count in threads:
            samples = measure(contestants(size, count), seconds / (len(sizes) * len(threads)))
            cells = "".join(f"{cell(samples, name):>16}" for name in columns)
            line = f"{size:>8.0e} {count:>7}{cells}"
            if TORCH in samples:
                line += f"  ({ratio(samples, TORCH, 'float32'):.2f} x adamas)"
            yield line


def heading() -> Iterator[str]:
    """Yield what the table means."""
    yield f"adamas {_core.__version__}, {_core.isa_in_use()}, {_core.available_threads()} threads"
    yield ""
    yield "The time of a step over one float32 array, its moments in float32, bfloat16 or int8;"
    yield f"1.05x: 1.05 times the limit (from {IN_MEMORY:.0e} elements on): NumPy moves the bytes"
    yield "of a float32 step, 28 per element, without its arithmetic. Medians, taken in turn."
    yield ""


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m adamas bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=50.0, help="about how long to measure")
    parser.add_argument("--max-elements", type=float, default=float(SIZES[-1]))
    options = parser.parse_args(arguments)
    most = min(options.max_elements, available_memory() / 2 / BYTES)
    sizes = [size for size in SIZES if size <= most]
    if not sizes:
        parser.error(f"--max-elements, or half the memory, must allow for {SIZES[0]} elements")
    for line in chain(heading(), table(sizes, options.seconds)):
        print(line, flush=True)
