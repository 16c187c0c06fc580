"""A step of adamas.mindspore.Adam beside one of mindspore.nn.Adam.

    python bench/host_mindspore.py            times: one tensor, LeNet-5, lists of 160 and more
    python bench/host_mindspore.py --lenet    300 steps of LeNet-5: the worst relative differences

PyNative mode on the CPU. Both optimizers take turns, step by step, with the same gradients; a step
ends when its parameters can be read. Times are medians in microseconds, of arrays in the cache
where they fit. "new addresses" gives each step gradients where none were before, the worst case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

import adamas.mindspore
from workloads import CONFIGS

LENET = [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84)]
WORK = {
    "one tensor of 1000": [(1000,)],
    "LeNet-5, 10 tensors": [*LENET, (10,)],
    "160 tensors of 1000": [(1000,)] * 160,
    "160 tensors of 64 x 64": [(64, 64)] * 160,
    "ResNet-50, 161 tensors": list(CONFIGS["resnet50"].shapes),
    "one tensor of 1e6": [(1000, 1000)],
}


def tensors(rng: np.random.Generator, shapes: list[tuple[int, ...]]) -> tuple[Any, ...]:
    """Return normal numbers in new memory."""
    return tuple(Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)


def optimizers(shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Return both, over parameters of their own with the same values."""

    def parameters() -> list[Any]:
        values = tensors(np.random.default_rng(0), shapes)
        return [Parameter(value, name=f"weight{i}") for i, value in enumerate(values)]

    return {
        "nn.Adam": nn.Adam(parameters(), weight_decay=0.01),
        "adamas": adamas.mindspore.Adam(parameters(), weight_decay=0.01),
    }


def measured(pair: dict[str, Any], grads: Callable[[int], Any], repeats: int) -> dict[str, float]:
    """Return the medians of steps that take turns."""
    times: dict[str, list[float]] = {name: [] for name in pair}
    for repeat in range(repeats + 3):
        given = grads(repeat)
        for name, optimizer in pair.items():
            last = optimizer.parameters[-1]
            start = time.perf_counter()
            optimizer(given)
            last.asnumpy()  # waits for MindSpore's queue
            if repeat >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(all_of) * 1e6 for name, all_of in times.items()}


def compare_times() -> None:
    """Print a line for each list of tensors."""
    print(f"{'':32}{'nn.Adam':>10}{'adamas':>10}{'ratio':>8}")
    for work, shapes in WORK.items():
        repeats = 21 if work.startswith("ResNet") else 201
        rng = np.random.default_rng(1)
        same = tensors(rng, shapes)
        lines = {work: measured(optimizers(shapes), lambda _, same=same: same, repeats)}
        if len(shapes) < 160 or shapes[0] == (1000,):
            kept: list[Any] = []

            def new(_: int, rng: Any = rng, shapes: Any = shapes, kept: Any = kept) -> Any:
                kept.append(tensors(rng, shapes))
                return kept[-1]

            lines["  new addresses"] = measured(optimizers(shapes), new, repeats)
        for name, times in lines.items():
            host, own = times["nn.Adam"], times["adamas"]
            print(f"{name:32}{host:10.1f}{own:10.1f}{host / own:7.1f}x", flush=True)


class LeNet5(nn.Cell):  # type: ignore[misc]
    """LeCun et al., 1998."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, pad_mode="valid", has_bias=True)
        self.conv2 = nn.Conv2d(6, 16, 5, pad_mode="valid", has_bias=True)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Dense(400, 120)
        self.fc2 = nn.Dense(120, 84)
        self.fc3 = nn.Dense(84, 10)

    def construct(self, x: Any) -> Any:
        """Return logits."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(self.flatten(x)))
        return self.fc3(self.relu(self.fc2(x)))


def lenet() -> Any:
    """Return one with the same weights each time."""
    net = LeNet5()
    rng = np.random.default_rng(5)
    for param in net.trainable_params():
        scale = 1 / np.sqrt(np.prod(param.shape[1:], initial=1))
        param.set_data(Tensor(rng.uniform(-scale, scale, param.shape).astype(np.float32)))
    return net


def digits(count: int, batch: int) -> Iterator[tuple[Any, Any]]:
    """Yield images with a bright stripe, whose place is the class."""
    rng = np.random.default_rng(6)
    for _ in range(count):
        labels = rng.integers(0, 10, batch).astype(np.int32)
        images = rng.standard_normal((batch, 1, 32, 32)).astype(np.float32) * 0.3
        for image, label in zip(images, labels, strict=True):
            image[0, 3 * label : 3 * label + 2] += 1
        yield Tensor(images), Tensor(labels)


class Worst:
    """The largest differences so far between the parameters of two optimizers."""

    def __init__(self) -> None:
        self.of_elements = self.of_scales = self.of_tolerance = 0.0

    def see(self, own: Any, host: Any, rate: float) -> None:
        """Compare the parameters after a step."""
        for mine, theirs in zip(own, host, strict=True):
            wanted = theirs.asnumpy().astype(np.float64)
            difference = np.abs(mine.asnumpy() - wanted)
            size = np.abs(wanted)
            scale = np.median(size) + rate
            relative = difference / np.maximum(size, 1e-30)
            self.of_elements = max(self.of_elements, relative[size >= 1e-3 * scale].max())
            self.of_scales = max(self.of_scales, float((difference / scale).max()))
            allowed = 1e-5 * size + 1e-6 * scale
            self.of_tolerance = max(self.of_tolerance, float((difference / allowed).max()))


def compare_lenet(steps: int, batch: int, rate: float) -> None:
    """Print the worst differences over a training run, and the time of its parts."""
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    nets = [lenet() for _ in range(3)]
    host = nn.Adam(nets[0].trainable_params(), rate)
    given, alone = (adamas.mindspore.Adam(net.trainable_params(), rate) for net in nets[1:])
    gradients = [
        ms.value_and_grad(lambda x, y, net=net: loss(net(x), y), None, optimizer.parameters)
        for net, optimizer in ((nets[0], host), (nets[2], alone))
    ]
    same, apart = Worst(), Worst()
    times: dict[str, list[float]] = {"gradients": [], "nn.Adam": [], "adamas": []}
    for images, labels in digits(steps, batch):
        start = time.perf_counter()
        value, grads = gradients[0](images, labels)
        grads[0].asnumpy()
        parts = [time.perf_counter()]
        host(grads)
        host.parameters[0].asnumpy()
        parts.append(time.perf_counter())
        given(grads)
        parts.append(time.perf_counter())
        for name, first, last in zip(times, [start, *parts], parts, strict=False):
            times[name].append(last - first)
        same.see(given.parameters, host.parameters, rate)
        own_value, own_grads = gradients[1](images, labels)
        alone(own_grads)
        apart.see(alone.parameters, host.parameters, rate)
    print(f"LeNet-5, {steps} steps of {batch} images, parameters after each step")
    for what, worst in (("the host's gradients", same), ("gradients of its own", apart)):
        print(
            f"  {what}: worst relative difference {worst.of_elements:.1e} of an element, "
            f"{worst.of_scales:.1e} of what is usual in its array; {worst.of_tolerance:.2f} x "
            "the tolerance of the recorded runs"
        )
    print(f"  last losses {value.asnumpy().item():.6f} and {own_value.asnumpy().item():.6f}")
    medians = {name: statistics.median(all_of) * 1e3 for name, all_of in times.items()}
    print("  ms in a step: " + ", ".join(f"{name} {t:.2f}" for name, t in medians.items()))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lenet", action="store_true", help="compare trained parameters")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    print(f"MindSpore {ms.__version__}, adamas {adamas.__version__}, NumPy {np.__version__}")
    if options.lenet:
        ms.set_context(pynative_synchronize=True)  # its queue waits by spinning
        compare_lenet(options.steps, options.batch, 1e-3)
    else:
        compare_times()


if __name__ == "__main__":
    main()
