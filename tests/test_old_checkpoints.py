"""Files that earlier versions have written load, and go on with the bits that those versions gave.

`tests/old_checkpoints` holds, by version and case, the file after 3 steps and the one after 6. With
that version installed, ``python tests/test_old_checkpoints.py VERSION`` has written them.
"""

import json
import pickle
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import adamas
from helpers import check_refused, everything

FOLDER = Path(__file__).resolve().parent / "old_checkpoints"
VERSIONS = ("0.1.0",)


def exact_values(shape, dtype, seed):
    """Return numbers that are the same on every machine and in every version of NumPy."""
    numbers = np.arange(int(np.prod(shape))) * 37 + seed * 11
    return ((numbers % 101 - 50) / 64).astype(dtype).reshape(shape)


def groups_of_all_kinds():
    """AMSGrad in groups, with centralization, clipping and an order of its own."""
    kernel = adamas.Parameter(exact_values((4, 3, 5), np.float32, 1), name="conv.weight")
    scale = adamas.Parameter(exact_values((7,), np.float64, 2), name="norm.gamma")
    bias = adamas.Parameter(exact_values((), np.float32, 3), name="bias")
    groups = [
        {"params": [kernel], "grad_centralization": True, "lr": adamas.CosineDecayLR(0.0, 0.1, 9)},
        {"params": [scale], "weight_decay": 0.01},
        {"params": [bias], "lr": [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]},
        {"order_params": [bias, kernel, scale]},
    ]
    options = {"use_amsgrad": True, "decoupled_weight_decay": True, "max_grad_norm": 2.0}
    return adamas.Adam(groups, 0.05, 0.8, 0.95, **options)


def int8_moments():
    """8-bit moments, rounded by random bits that depend on the position, and master weights."""
    params = [
        adamas.Parameter(exact_values((9, 70), ml_dtypes.bfloat16, 4), name="table"),
        adamas.Parameter(exact_values((300,), np.float32, 5)),
    ]
    return adamas.Adam(
        params, 0.02, state_dtype="int8", master_weights=True, seed=5, loss_scale=4.0
    )


def mindspore_catch_up():
    """Rows with a step of their own."""
    table = adamas.Parameter(exact_values((6, 4), np.float32, 6), name="table")
    options = {"numerics": "mindspore", "row_policy": "catch_up", "use_nesterov": True}
    return adamas.Adam([table], 0.05, weight_decay=0.03, **options)


def no_bias_correction():
    params = [adamas.Parameter(exact_values((11,), np.float16, 7), name="weight")]
    return adamas.AdamWeightDecay(params, 0.05, weight_decay=0.02)


CASES = (groups_of_all_kinds, int8_moments, mindspore_catch_up, no_bias_correction)


def gradients(optimizer):
    """Return those of the next step; of tables with row policies only some rows."""
    step = optimizer.global_step
    grads = []
    for i, parameter in enumerate(optimizer.parameters):
        grad = exact_values(parameter.shape, np.float32, 20 + 5 * step + i)
        if parameter.shape == (6, 4):
            rows = np.array([step % 6, 2, step % 6])
            grad = adamas.RowTensor(rows, grad[:3], parameter.shape)
        elif parameter.dtype == np.float64:
            grad = grad.astype(np.float64)
        grads.append(grad)
    return grads


def path(version, case, steps):
    return FOLDER / f"{version}-{case.__name__}-{steps}.safetensors"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_an_old_file_goes_on_to_the_bit(case, version):
    resumed, finished = case(), case()
    adamas.load_checkpoint(path(version, case, 3), resumed)
    assert resumed.global_step == 3
    for _ in range(3):
        resumed(gradients(resumed))
    adamas.load_checkpoint(path(version, case, 6), finished)
    assert everything(resumed) == everything(finished)
    ours, theirs = (one.state_dict()["parameters"] for one in (resumed, finished))
    assert pickle.dumps(ours) == pickle.dumps(theirs)


def options_of_0_1_0():
    with safe_open(path("0.1.0", no_bias_correction, 3), "np") as file:
        return json.loads(file.metadata()["adamas"])["state"]["options"]


def version_1(optimizer):
    """Return a state as 0.1.0 has written it, of an optimizer that 0.1.0 could have made."""
    state = optimizer.state_dict()
    (group,) = state.pop("groups")
    options = {**group, **state["options"]}
    for entry in state["parameters"].values():
        del entry["step"]
    return {**state, "version": 1, "options": {name: options[name] for name in options_of_0_1_0()}}


def some_steps(count, **options):
    param = adamas.Parameter(exact_values((9,), np.float32, 1), "weight")
    optimizer = adamas.Adam([param], 0.1, beta1=0.8, **options)
    for _ in range(count):
        optimizer(gradients(optimizer))
    return optimizer


REFUSED = {
    "another option": ({"beta1": 0.7}, {}, ["beta1", "0.8", "0.7"]),
    "an option that is missing": ({"eps": None}, {}, ["options", "eps"]),
    "an option that it could not have": ({"maximize": False}, {}, ["options", "maximize"]),
    "an optimizer with a new option": ({}, {"maximize": True}, ["maximize"]),
    "with another place of eps": ({}, {"epsilon_placement": "inside"}, ["epsilon_placement"]),
    "with averages": ({}, {"ema_decay": 0.9}, ["ema"]),
}


@pytest.mark.parametrize(("changes", "options", "fragments"), REFUSED.values(), ids=REFUSED)
def test_an_old_state_that_does_not_fit(changes, options, fragments):
    state = version_1(some_steps(3))
    for name, value in changes.items():
        state["options"].pop(name, None)
        if value is not None:
            state["options"][name] = value
    optimizer = some_steps(1, **options)
    check_refused(optimizer, lambda: optimizer.load_state_dict(state), ValueError, *fragments)
    fits = some_steps(1)
    fits.load_state_dict(version_1(some_steps(3)))
    assert (fits.global_step, fits.steps) == (3, [3])


def write(version):
    assert adamas.__version__ == version
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        optimizer = case()
        for _ in range(6):
            optimizer(gradients(optimizer))
            if optimizer.global_step % 3 == 0:
                adamas.save_checkpoint(path(version, case, optimizer.global_step), optimizer)


if __name__ == "__main__":
    write(sys.argv[1])
