"""Every combination of the options that decide the formula, made from Python, for programs in other
languages to be compared with: tests/consumer/combinations.cpp is the same in C++.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

import adamas

# Centralized in both numerics, in one of them, and in none.
SHAPES = ((3, 16, 2), (4, 3, 5), (4, 16), (5,))
STEPS = 3
BETAS = (0.8, 0.95)  # neither these nor eps, the learning rate and the decay are float32 numbers
EPS = 1e-6
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.1
# Of mindspore with amsgrad, where nesterov changes nothing: 2 x 3 x 3 pairs are the same.
DIFFERENT = 144 - 18


@dataclass(frozen=True)
class Combination:
    numerics: str
    use_nesterov: bool
    use_amsgrad: bool
    centralize: bool
    loss_scale: float
    decay: str  # "none", "l2", "decoupled"

    @property
    def weight_decay(self):
        return 0.0 if self.decay == "none" else WEIGHT_DECAY

    @property
    def is_decoupled(self):
        return self.decay == "decoupled"


FLAGS = (False, True)
COMBINATIONS = [
    Combination(*chosen)
    for chosen in product(
        ("standard", "mindspore"),
        FLAGS,
        FLAGS,
        FLAGS,
        (1.0, 12.0, 1024.0),
        ("none", "l2", "decoupled"),
    )
]


def make_values():
    """Return float32 numbers: a row of all parameters, then one of all gradients for each step."""
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    return np.random.default_rng(11).standard_normal((STEPS + 1, size)).astype(np.float32)


def split(row):
    """Return copies of the arrays of a row of values."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES])
    parts = np.split(row, ends[:-1])
    return [part.reshape(shape).copy() for part, shape in zip(parts, SHAPES, strict=True)]


def by_python(chosen, values):
    """Return the bytes of all parameters, then of all moment1, moment2 and vhat."""
    arrays = split(values[0])
    params = [adamas.Parameter(array, f"weight{i}") for i, array in enumerate(arrays)]
    optimizer = adamas.Adam(
        [{"params": params, "grad_centralization": chosen.centralize}],
        LEARNING_RATE,
        *BETAS,
        EPS,
        numerics=chosen.numerics,
        use_nesterov=chosen.use_nesterov,
        use_amsgrad=chosen.use_amsgrad,
        loss_scale=chosen.loss_scale,
        weight_decay=chosen.weight_decay,
        decoupled_weight_decay=chosen.is_decoupled,
    )
    for row in values[1:]:
        optimizer(split(row))
    results = [*arrays, *optimizer.moment1, *optimizer.moment2, *optimizer.vhat]
    return b"".join(array.tobytes() for array in results)
