"""adamas.mindspore against the recorded runs of MindSpore: its parameters, rates and gradients."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed")

from mindspore import nn  # noqa: E402

import adamas.mindspore  # noqa: E402
import golden  # noqa: E402
from test_golden_optimizer import (  # noqa: E402
    ADAM_ARGUMENTS,
    ADAM_WEIGHT_DECAY_ARGUMENTS,
    SWITCHES,
    make_groups,
)

STATES = {"Adam": ("moment1", "moment2"), "AdamWeightDecay": ("moments1", "moments2")}


@pytest.fixture(autouse=True)
def _pynative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves files where it works
    ms.set_context(mode=ms.PYNATIVE_MODE)


class LinearWD(nn.Cell):
    def __init__(self, a, b):
        super().__init__()
        self.a = a
        self.b = b

    def construct(self, step):
        return self.a + self.b * step


class ScheduleWD(nn.Cell):
    def __init__(self, schedule):
        super().__init__()
        self.schedule = rate_of(schedule)

    def construct(self, step):
        return self.schedule(step)


def rate_of(description):
    if not isinstance(description, dict):
        return description
    kind, values = description["type"], description.get("values")
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](values)
    if kind == "generator":
        return (value for value in values)
    if kind == "ndarray":
        return np.array(values, description["dtype"])
    if kind == "tensor":
        return ms.Tensor(values, ms.float32)
    if kind == "cell":
        return {"LinearWD": LinearWD, "ScheduleWD": ScheduleWD}[description["class"]](
            **description["args"]
        )
    return getattr(nn, kind)(**description["args"])


def groups_of(groups, params):
    made = make_groups(groups and [without_rates(group) for group in groups], params)
    for mine, group in zip(made, groups or [], strict=groups is not None):
        mine.update({key: rate_of(group[key]) for key in ("lr", "weight_decay") if key in group})
    return made


def without_rates(group):
    return {key: value for key, value in group.items() if key not in ("lr", "weight_decay")}


def optimizer_of(config, params):
    rates = {name: rate_of(config[name]) for name in ("learning_rate", "weight_decay")}
    groups = groups_of(config["groups"], params)
    if config["optimizer"] == "AdamWeightDecay":
        chosen = {name: config[name] for name in ADAM_WEIGHT_DECAY_ARGUMENTS}
        optimizer = adamas.mindspore.AdamWeightDecay(groups, **rates, **chosen)
    else:
        chosen = {name: config[name] for name in ADAM_ARGUMENTS}
        chosen.update({name: True for name in SWITCHES if config[name]})
        optimizer = adamas.mindspore.Adam(groups, **rates, **chosen)
    if config["target"] is not None:
        optimizer.target = config["target"]
    return optimizer


def gradient(param, arrays, i, step):
    if param["grad"] == "dense":
        return ms.Tensor(np.ascontiguousarray(arrays[f"grad.{i}"][step]))
    parts = [ms.Tensor(arrays[f"grad.{i}.{step}.{part}"]) for part in ("indices", "values")]
    return (*parts, tuple(param["shape"]))


def states_of(optimizer, config):
    names = STATES[config["optimizer"]]
    kinds = {
        "param": optimizer.parameters,
        "moment1": getattr(optimizer, names[0]),
        "moment2": getattr(optimizer, names[1]),
    }
    if config["use_amsgrad"]:
        kinds["vhat"] = optimizer.vhat
    return kinds


def restore(optimizer, config, arrays, index_of):
    for kind, tensors in states_of(optimizer, config).items():
        for param, tensor in zip(optimizer.parameters, tensors, strict=True):
            tensor.set_data(ms.Tensor(arrays[f"init.{kind}.{index_of[param.name]}"]))
    for name in ("beta1_power", "beta2_power"):
        getattr(optimizer, name).set_data(ms.Tensor(arrays[f"init.{name}"].item(), ms.float32))
    optimizer.global_step.set_data(ms.Tensor([config["init_state"]["global_step"]], ms.int32))


@pytest.mark.parametrize("case", golden.parameters("optimizer"))
def test_every_step_agrees_with_the_recorded_run(case):
    config, arrays = case.config, case.arrays()
    described = config["params"]
    index_of = {param["name"]: i for i, param in enumerate(described)}
    params = [
        ms.Parameter(ms.Tensor(np.ascontiguousarray(arrays[f"init.param.{i}"])), name=one["name"])
        for i, one in enumerate(described)
    ]
    optimizer = optimizer_of(config, params)
    order = tuple(param.name for param in optimizer.parameters)
    assert order == case.update_order
    if "init_state" in config:
        restore(optimizer, config, arrays, index_of)
    for step in range(config["steps"]):
        grads = tuple(gradient(described[index_of[n]], arrays, index_of[n], step) for n in order)
        assert optimizer(grads) is True
        for kind, tensors in states_of(optimizer, config).items():
            for name, tensor in zip(order, tensors, strict=True):
                i = index_of[name]
                compared = arrays[f"check.{i}"][step] if f"check.{i}" in arrays else ...
                np.testing.assert_allclose(
                    tensor.asnumpy()[compared],
                    arrays[f"out.{kind}.{i}"][step][compared],
                    rtol=case.rtol,
                    atol=case.atol[kind],
                    equal_nan=True,
                    err_msg=f"{kind} of {name}, step {step}",
                )
        assert optimizer.global_step.asnumpy().item() == arrays["out.global_step"][step]
        for name in ("beta1_power", "beta2_power"):
            if f"out.{name}" in arrays:
                wanted = arrays[f"out.{name}"][step]
                np.testing.assert_allclose(getattr(optimizer, name).asnumpy(), wanted, rtol=1e-6)
