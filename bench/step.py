"""Time one optimizer step against PyTorch's fused Adam and plain NumPy, interleaved in one run.

    python bench/step.py --sizes 100000 10000000 --threads 1 2

Prints for each size and thread count the median time of a whole step, from the call in Python to
its return, in nanoseconds per element, and the median of the ratios to adamas taken round by round
(above 1: slower than adamas). A peer that is not installed is left out; NumPy uses one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import adamas

Step = Callable[[], object]
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


def arrays(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a parameter and a gradient."""
    rng = np.random.default_rng(0)
    param = rng.standard_normal(size, dtype=np.float32)
    return param, rng.standard_normal(size, dtype=np.float32) * np.float32(1e-3)


def adamas_step(size: int, threads: int) -> Step:
    """adamas.Adam over one array."""
    param, grad = arrays(size)
    optimizer = adamas.Adam([adamas.Parameter(param)], LR, BETA1, BETA2, EPS, num_threads=threads)
    return lambda: optimizer((grad,))


def torch_step(size: int, threads: int) -> Step:
    """torch.optim.Adam(fused=True) over one tensor."""
    import torch

    torch.set_num_threads(threads)
    param, grad = arrays(size)
    tensor = torch.nn.Parameter(torch.from_numpy(param).clone())
    tensor.grad = torch.from_numpy(grad).clone()
    return torch.optim.Adam([tensor], LR, (BETA1, BETA2), EPS, fused=True).step


def numpy_step(size: int, _threads: int) -> Step:
    """The formula written with NumPy, in place, with two scratch arrays."""
    param, grad = arrays(size)
    moment1, moment2 = np.zeros_like(param), np.zeros_like(param)
    x, y = np.empty_like(param), np.empty_like(param)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        np.multiply(moment1, np.float32(BETA1), out=moment1)
        np.multiply(grad, np.float32(1 - BETA1), out=x)
        np.add(moment1, x, out=moment1)
        np.multiply(moment2, np.float32(BETA2), out=moment2)
        np.multiply(grad, grad, out=x)
        np.multiply(x, np.float32(1 - BETA2), out=x)
        np.add(moment2, x, out=moment2)
        np.sqrt(moment2, out=x)
        np.multiply(x, np.float32((1 - BETA2**steps) ** -0.5), out=x)
        np.add(x, np.float32(EPS), out=x)
        np.divide(moment1, x, out=y)
        np.multiply(y, np.float32(LR / (1 - BETA1**steps)), out=y)
        np.subtract(param, y, out=param)

    return step


PEERS = {"adamas": adamas_step, "torch fused": torch_step, "numpy": numpy_step}


def sample(step: Step, seconds: float) -> float:
    """Return the mean time of a step over about this many seconds, at least one step."""
    start = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - start < seconds:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def compare(size: int, threads: int, rounds: int) -> None:
    """Print the table of one size and thread count."""
    steps: dict[str, Step] = {}
    for name, make in PEERS.items():
        try:
            steps[name] = make(size, threads)
        except ImportError:
            print(f"{name}: not installed")
    for step in steps.values():
        step()  # faults the memory in and wakes the threads
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(sample(step, 0.02))
    print(f"{size} float32 elements, {threads} thread(s)")
    for name, values in times.items():
        ratio = statistics.median(
            value / ours for value, ours in zip(values, times["adamas"], strict=True)
        )
        print(
            f"  {name:12} {statistics.median(values) / size * 1e9:8.3f} ns/element {ratio:7.2f} x"
        )


def main() -> None:
    """Read the command line and print one table per size and thread count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 10_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for threads in options.threads:
        for size in options.sizes:
            compare(size, threads, options.rounds)


if __name__ == "__main__":
    main()
