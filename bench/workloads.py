"""What is measured: lists of tensor shapes and batches of sparse rows, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
_POOL = 1 << 20  # distinct random numbers; larger arrays repeat them, which fills 1e8 quickly


def _filled(shape: Shape, pool: np.ndarray) -> np.ndarray:
    """Return a new array that repeats `pool`."""
    array = np.empty(math.prod(shape), np.float32)
    for start in range(0, array.size, pool.size):
        part = array[start : start + pool.size]
        part[:] = pool[: part.size]
    return array.reshape(shape)


@dataclass(frozen=True)
class Dense:
    """A list of float32 tensors that one step updates."""

    shapes: tuple[Shape, ...]
    warm_up = 3  # steps before the first sample

    @property
    def elements(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def memory(self) -> float:
        """Bytes that a peer may need: four float32 arrays and half as much again."""
        return 24.0 * self.elements + 3e8

    def arrays(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return new parameters and gradients, each an array of its own."""
        pool = np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)
        small, reverse = pool * np.float32(0.02), pool[::-1] * np.float32(1e-3)
        return (
            [_filled(shape, small) for shape in self.shapes],
            [_filled(shape, reverse) for shape in self.shapes],
        )


@dataclass(frozen=True)
class Sparse:
    """A float32 table of which one step updates some rows.

    Steps cycle through `sets` batches of indices, so that rows come from memory and not from the
    cache of the step before.
    """

    rows: int
    width: int
    count: int  # rows in the gradient, repetitions included
    zipf: bool  # skewed with repetitions; otherwise uniform without
    sets = 32
    warm_up = 32

    @property
    def elements(self) -> int:
        """Elements of the gradient."""
        return self.count * self.width

    @property
    def memory(self) -> float:
        """Bytes that a peer may need."""
        return 16.0 * self.rows * self.width + 3e8

    def table(self) -> np.ndarray:
        """Return a new table."""
        return Dense(((self.rows, self.width),)).arrays()[0][0]

    def grads(self) -> np.ndarray:
        """Return the values of a gradient, the same for all batches."""
        rng = np.random.default_rng(2)
        values = rng.standard_normal((self.count, self.width), dtype=np.float32)
        return values * np.float32(1e-3)

    def batches(self) -> list[np.ndarray]:
        """Return the int64 indices of each batch; in Zipf batches the same rows are hot."""
        hot = np.random.default_rng(0).permutation(self.rows)
        return [self._batch(np.random.default_rng(seed), hot) for seed in range(1, self.sets + 1)]

    def _batch(self, rng: np.random.Generator, hot: np.ndarray) -> np.ndarray:
        if not self.zipf:
            return rng.choice(self.rows, self.count, replace=False).astype(np.int64)
        ranks = rng.zipf(1.2, 4 * self.count)
        return hot[ranks[ranks <= self.rows][: self.count] - 1].astype(np.int64)


def _resnet50() -> Iterator[Shape]:
    """Yield the 161 shapes of ResNet-50: 25.56 M elements."""
    yield from ((64, 3, 7, 7), (64,), (64,))
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from ((width, channels, 1, 1), (width,), (width,))
            yield from ((width, width, 3, 3), (width,), (width,))
            yield from ((4 * width, width, 1, 1), (4 * width,), (4 * width,))
            if block == 0:
                yield from ((4 * width, channels, 1, 1), (4 * width,), (4 * width,))
            channels = 4 * width
    yield from ((1000, 2048), (1000,))


def _gpt2() -> Iterator[Shape]:
    """Yield the 148 shapes of GPT-2: 124.44 M elements."""
    width = 768
    yield from ((50257, width), (1024, width))
    for _ in range(12):
        yield from ((width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,))
        yield from ((width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width))
        yield (width,)
    yield from ((width,), (width,))


CONFIGS: dict[str, Dense | Sparse] = {
    **{f"n1e{power}": Dense(((10**power,),)) for power in range(3, 9)},
    "1000x1000": Dense(((1000,),) * 1000),
    "10000x100": Dense(((100,),) * 10000),
    "resnet50": Dense(tuple(_resnet50())),
    "gpt2": Dense(tuple(_gpt2())),
    "uniq4096": Sparse(rows=1_000_000, width=64, count=4096, zipf=False),
    "zipf65536": Sparse(rows=1_000_000, width=64, count=65536, zipf=True),
}
BUSY = "n1e5"  # the workload that is measured beside a busy core
