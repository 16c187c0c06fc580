"""Whole trainings whose bits are known: a change that alters any bit fails here first.

Each trajectory is a few steps over a few parameters, made from integers alone, so that its bits do
not depend on a library's random numbers. `trajectories.json` holds the SHA-256 of what each ends
with. After a change of bits that was meant (CHANGELOG.md and docs/NUMERICS.md say so then), write
it anew by `python tests/test_trajectories.py`.
"""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import adamas
from helpers import Falling, Rising, states_of
from rules import STATE_DTYPES

KNOWN = Path(__file__).with_name("trajectories.json")
SHAPES = ((5, 3, 3), (33, 16), (9,), (0, 4), (40000,))
TABLE = (64, 16)

F16, BF16 = np.float16, ml_dtypes.bfloat16

# name: (element type, options)
DENSE = {
    "plain": (np.float32, {}),
    "float64": (np.float64, {"weight_decay": 0.01}),
    "nesterov_l2": (np.float32, {"use_nesterov": True, "weight_decay": 0.01}),
    "amsgrad_decoupled": (
        np.float32,
        {"use_amsgrad": True, "decoupled_weight_decay": True, "weight_decay": 0.01},
    ),
    "amsgrad_nesterov": (np.float32, {"use_amsgrad": True, "use_nesterov": True}),
    "centralized": (np.float32, {"centralize": True, "weight_decay": 0.01}),
    "mindspore": (np.float32, {"numerics": "mindspore", "weight_decay": 0.01, "eps": 1e-3}),
    "mindspore_amsgrad_centralized": (
        np.float32,
        {"numerics": "mindspore", "use_amsgrad": True, "use_nesterov": True, "centralize": True},
    ),
    "loss_scale_clip": (np.float32, {"loss_scale": 1000.0, "max_grad_norm": 0.5}),
    "schedules": (np.float32, {"learning_rate": Falling(), "weight_decay": Rising()}),
    "float16": (F16, {"loss_scale": 128.0}),
    "float16_master": (F16, {"master_weights": True, "use_amsgrad": True}),
    "bfloat16_nesterov": (BF16, {"use_nesterov": True}),
    **{f"state_{name}": (np.float32, {"state_dtype": name, "seed": 7}) for name in STATE_DTYPES},
    "state_int8": (np.float32, {"state_dtype": "int8", "seed": 7, "weight_decay": 0.01}),
}
SPARSE = {
    "sparse_exact": {"weight_decay": 0.01},
    "sparse_lazy": {"row_policy": "lazy", "weight_decay": 0.01},
    "sparse_catch_up": {"row_policy": "catch_up"},
    "sparse_mindspore": {"numerics": "mindspore", "weight_decay": 0.01},
    "sparse_lazy_bfloat16": {"row_policy": "lazy", "state_dtype": "bfloat16", "max_grad_norm": 3.0},
}


def numbers(shape, seed):
    """Return numbers in (-1, 1) of many magnitudes, as float64."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1000003 * seed + 1)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
    fraction = mixed.astype(np.float64) / 2.0**31 - 0.5
    return (np.ldexp(fraction, -(mixed % np.uint64(12)).astype(np.int32))).reshape(shape)


def dense_trajectory(dtype, options):
    options = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.97, "eps": 1e-6, **options}
    centralize = options.pop("centralize", False)
    params = [
        adamas.Parameter(numbers(shape, k).astype(dtype), f"weight{k}", key=k)
        for k, shape in enumerate(SHAPES)
    ]
    optimizer = adamas.Adam(
        [{"params": params[:2], "grad_centralization": centralize}, {"params": params[2:]}],
        **options,
    )
    for step in range(7):
        grads = [
            numbers(shape, 10 * step + k + 100).astype(dtype) for k, shape in enumerate(SHAPES)
        ]
        optimizer(grads)
    return optimizer


def sparse_trajectory(options):
    options = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.97, "eps": 1e-6, **options}
    table = numbers(TABLE, 1).astype(np.float32)
    bias = numbers((16,), 2).astype(np.float32)
    optimizer = adamas.Adam(
        [adamas.Parameter(table, "table", key=0), adamas.Parameter(bias, "bias", key=1)], **options
    )
    for step in range(7):
        rows = (np.arange(40) ** 2 * (step + 3) % 50).astype(np.int64)  # some repeat
        values = numbers((40, 16), step + 100).astype(np.float32)
        optimizer(
            (
                adamas.RowTensor(rows, values, TABLE),
                numbers((16,), step + 200).astype(np.float32),
            )
        )
    return optimizer


def digest(optimizer):
    """Return the SHA-256 of all arrays that the steps have changed, and of the norm."""
    told = hashlib.sha256(repr(optimizer.last_grad_norm).encode())
    for kind, arrays in states_of(optimizer).items():
        told.update(kind.encode())
        for array in arrays:
            told.update(array.tobytes())
    return told.hexdigest()


def digest_of(name):
    if name in DENSE:
        return digest(dense_trajectory(*DENSE[name]))
    return digest(sparse_trajectory(SPARSE[name]))


@pytest.mark.parametrize("name", [*DENSE, *SPARSE])
def test_the_bits_of_a_training_are_known(name):
    assert digest_of(name) == json.loads(KNOWN.read_text())[name]


def test_every_known_training_is_made():
    assert json.loads(KNOWN.read_text()).keys() == {*DENSE, *SPARSE}


if __name__ == "__main__":
    digests = {name: digest_of(name) for name in [*DENSE, *SPARSE]}
    KNOWN.write_text(json.dumps(digests, indent=2) + "\n")
