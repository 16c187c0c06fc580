"""A step of adamas.torch.AdamW beside torch's own fused AdamW, by turns in one process.

    python bench/host_torch.py [--threads N] [--seconds S]      N: 2 by default, S: 0.05 per sample

Each line is the median of samples that take turns, in microseconds a step, for each tensor, and as
a ratio of neighbouring samples. The second table is adamas alone: what changing options and missing
gradients cost beside the plain step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import workloads
from adamas.torch import AdamW

ROUNDS = 15
LISTS: dict[str, list[tuple[int, ...]]] = {
    "1 x 1000": [(1000,)],
    "35 x 1000": [(1000,)] * 35,
    "160 x 1000": [(1000,)] * 160,
    "1000 x 1000": [(1000,)] * 1000,
    "10000 x 100": [(100,)] * 10000,
    "ResNet-50": [tuple(shape) for shape in workloads.CONFIGS["resnet50"].shapes],
}
Step = Callable[[], object]


def tensors(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Return parameters with gradients."""
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in made:
        param.grad = torch.randn_like(param)
    return made


def sample(step: Step, seconds: float) -> float:
    """Return the time of a step in seconds."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds or count == 0:
        step()
        count += 1
    return (time.perf_counter() - began) / count


def by_turns(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Return the samples of each, of which those at one place were taken one after the other."""
    for step in steps.values():
        for _ in range(3):
            step()
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            samples[name].append(sample(step, seconds))
    return samples


def ratio(samples: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median ratio of two that were measured by turns."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[to], strict=True))


def variants(shapes: list[tuple[int, ...]]) -> dict[str, Step]:
    """Return steps of adamas that differ in what happens around them."""
    plain, half, betas, cycle = (AdamW(tensors(shapes)) for _ in range(4))
    uphill = AdamW(tensors(shapes), maximize=True)
    for param in half.param_groups[0]["params"][::2]:
        param.grad = None
    count = [0]

    def with_other_betas() -> None:
        count[0] += 1
        betas.param_groups[0]["betas"] = (0.9 - 1e-6 * (count[0] % 1000), 0.999)
        betas.step()

    scheduler = torch.optim.lr_scheduler.OneCycleLR(cycle, max_lr=1e-3, total_steps=10**8)

    def with_scheduler() -> None:
        cycle.step()
        scheduler.step()

    only = AdamW(tensors([(1,)]))
    idle = torch.optim.lr_scheduler.OneCycleLR(only, max_lr=1e-3, total_steps=10**8)
    return {
        "plain": plain.step,
        "half of the gradients None": half.step,
        "maximize": uphill.step,
        "betas that change": with_other_betas,
        "OneCycleLR, with its own step": with_scheduler,
        "OneCycleLR's own step alone": idle.step,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--lists", nargs="*", default=list(LISTS), choices=list(LISTS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads; microseconds a step")
    print("| list | adamas | torch fused | torch / adamas | adamas, a tensor |")
    print("|---|---|---|---|---|")
    for name in given.lists:
        shapes = LISTS[name]
        ours, theirs = AdamW(tensors(shapes)), torch.optim.AdamW(tensors(shapes), fused=True)
        samples = by_turns({"adamas": ours.step, "torch": theirs.step}, given.seconds)
        mine, other = (1e6 * statistics.median(samples[peer]) for peer in ("adamas", "torch"))
        gain = ratio(samples, "torch", "adamas")
        print(f"| {name} | {mine:.1f} | {other:.1f} | {gain:.2f} | {mine / len(shapes):.2f} |")
    print()
    print("| adamas, to its plain step | " + " | ".join(given.lists) + " |")
    print("|---" * (1 + len(given.lists)) + "|")
    rows: dict[str, list[str]] = {}
    for name in given.lists:
        samples = by_turns(variants(LISTS[name]), given.seconds / 2)
        for variant in samples:
            rows.setdefault(variant, []).append(f"{ratio(samples, variant, 'plain'):.2f}")
    for variant, cells in rows.items():
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
