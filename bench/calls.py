"""What a step costs besides its arithmetic: calls with and without an optimizer, and what changes.

    python bench/calls.py             1, 35 and 1000 tensors of 1000 float32 elements, 1 thread

Each line is the median over repeats that take turns, so that all see the same machine; the last
column is the time beyond that of `Adam`, for each tensor. torch is left out where it is missing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import adamas
from adamas import functional

ELEMENTS = 1000
REPEATS = 41
Step = Callable[[], object]


class Lists:
    """Parameters, gradients and state of some tensors."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.count = count
        self.params, self.grads, self.moment1, self.moment2 = (
            [np.zeros(ELEMENTS, np.float32) for _ in range(count)] for _ in range(4)
        )
        for grad in self.grads:
            grad[...] = rng.standard_normal(ELEMENTS)

    def adam(self, **options: Any) -> adamas.Adam:
        """Return an optimizer."""
        named = {f"weight{i}": param for i, param in enumerate(self.params)}
        return adamas.Adam(named, num_threads=1, **options)


def with_optimizer(count: int) -> dict[str, Step]:
    """Return steps of `Adam`, whose options stay or change."""
    plain, scheduled, set_rate, set_beta = (Lists(count) for _ in range(4))
    constant, setting, changing = plain.adam(), set_rate.adam(), set_beta.adam()
    schedule = scheduled.adam(learning_rate=adamas.CosineDecayLR(1e-5, 1e-3, 10**6))
    rates, betas = [1e-3, 2e-3], [0.9, 0.95]
    steps = [0, 0]

    def set_a_rate() -> None:
        steps[0] ^= 1
        setting.groups[0].lr = rates[steps[0]]
        setting(set_rate.grads)

    def set_a_beta() -> None:
        steps[1] ^= 1
        changing.groups[0].beta1 = betas[steps[1]]
        changing(set_beta.grads)

    return {
        "Adam": lambda: constant(plain.grads),
        "Adam, schedule": lambda: schedule(scheduled.grads),
        "Adam, rate set before each step": set_a_rate,
        "Adam, beta1 set before each step": set_a_beta,
    }


def without_optimizer(count: int) -> dict[str, Step]:
    """Return steps of `functional.adam`, over the list and one by one."""
    whole, single = Lists(count), Lists(count)
    steps = np.zeros(count, np.int64)
    tensors = [
        ([param], [grad], [moment1], [moment2], np.zeros(1, np.int64))
        for param, grad, moment1, moment2 in zip(
            single.params, single.grads, single.moment1, single.moment2, strict=True
        )
    ]

    def all_at_once() -> object:
        return functional.adam(
            whole.params,
            whole.grads,
            whole.moment1,
            whole.moment2,
            steps=steps,
            learning_rate=1e-3,
            num_threads=1,
        )

    def one_by_one() -> None:
        for param, grad, moment1, moment2, step in tensors:
            functional.adam(
                param, grad, moment1, moment2, steps=step, learning_rate=1e-3, num_threads=1
            )

    return {"functional, one call": all_at_once, "functional, a call for each": one_by_one}


def with_torch(count: int) -> dict[str, Step]:
    """Return steps over torch tensors: torch's own fused Adam, and ours."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)

    def tensors() -> list[Any]:
        made = [torch.zeros(ELEMENTS, requires_grad=True) for _ in range(count)]
        for tensor in made:
            tensor.grad = torch.randn(ELEMENTS)
        return made

    theirs, ours = tensors(), tensors()
    fused = torch.optim.Adam(theirs, fused=True)
    optimizer = adamas.Adam(ours, num_threads=1)
    return {
        "torch fused": fused.step,
        "Adam, torch tensors": lambda: optimizer([tensor.grad for tensor in ours]),
    }


def measure(steps: dict[str, Step], count: int) -> dict[str, float]:
    """Return the median of the time of each step, in microseconds."""
    calls = max(1, 2000 // count)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            for _ in range(calls):
                step()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    print(f"{'':36}{'us':>10}{'x Adam':>8}{'ns a tensor more':>18}")
    for count in (1, 35, 1000):
        steps = {**with_optimizer(count), **without_optimizer(count), **with_torch(count)}
        found = measure(steps, count)
        usual = found["Adam"]
        print(f"{count} x {ELEMENTS}")
        for name, time_of in found.items():
            more = (time_of - usual) / count * 1e3
            print(f"  {name:34}{time_of:10.2f}{time_of / usual:8.2f}{more:18.0f}")


if __name__ == "__main__":
    main()
