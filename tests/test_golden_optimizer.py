"""Adam and AdamWeightDecay against runs of MindSpore: every array after every step.

MindSpore's own numerics are asked for, so that no tolerance has to cover another formula.
"""

import numpy as np
import pytest

import adamas
import golden

ADAM_WEIGHT_DECAY_ARGUMENTS = ("beta1", "beta2", "eps")
ADAM_ARGUMENTS = (
    *ADAM_WEIGHT_DECAY_ARGUMENTS,
    "use_locking",
    "use_nesterov",
    "loss_scale",
    "use_amsgrad",
)
SWITCHES = ("use_lazy", "use_offload")


class LinearWD(adamas.WeightDecaySchedule):
    def __init__(self, a, b):
        self.a = a
        self.b = b

    def __call__(self, step):
        return self.a + self.b * step


class ScheduleWD:
    """Not derived from the base: any callable object must do."""

    def __init__(self, schedule):
        self.schedule = make_schedule(schedule)

    def __call__(self, step):
        return self.schedule(step)


def make_schedule(description):
    return getattr(adamas, description["type"])(**description["args"])


def make_learning_rate(description):
    if not isinstance(description, dict):
        return description
    kind = description["type"]
    values = description.get("values")
    if kind == "list":
        return list(values)
    if kind == "tuple":
        return tuple(values)
    if kind == "generator":
        return (value for value in values)
    if kind == "ndarray":
        return np.array(values, dtype=description["dtype"])
    if kind == "tensor":
        return np.array(values, dtype=np.float32)
    return make_schedule(description)


def make_weight_decay(description):
    if not isinstance(description, dict):
        return description
    cell = {"LinearWD": LinearWD, "ScheduleWD": ScheduleWD}[description["class"]]
    return cell(**description["args"])


def make_parameters(case, arrays):
    """Return the parameters by their index in the case."""
    return [
        adamas.Parameter(np.ascontiguousarray(arrays[f"init.param.{i}"]), name=param["name"])
        for i, param in enumerate(case.config["params"])
    ]


def make_groups(groups, params):
    """Return what is to be passed as `params`: the list of parameters or of group dicts."""
    if groups is None:
        return list(params)
    made = []
    for group in groups:
        group = dict(group)
        for key in ("params", "order_params"):
            if key in group:
                group[key] = [params[i] for i in group[key]]
        if "lr" in group:
            group["lr"] = make_learning_rate(group["lr"])
        if "weight_decay" in group:
            group["weight_decay"] = make_weight_decay(group["weight_decay"])
        made.append(group)
    return made


def make_optimizer(config, params):
    positional = make_groups(config["groups"], params)
    shared = {
        "learning_rate": make_learning_rate(config["learning_rate"]),
        "weight_decay": make_weight_decay(config["weight_decay"]),
    }
    if config["optimizer"] == "AdamWeightDecay":
        chosen = {name: config[name] for name in ADAM_WEIGHT_DECAY_ARGUMENTS}
        optimizer = adamas.AdamWeightDecay(positional, **shared, **chosen)
    else:
        chosen = {name: config[name] for name in ADAM_ARGUMENTS}
        chosen.update({name: True for name in SWITCHES if config[name]})
        optimizer = adamas.Adam(positional, **shared, **chosen, numerics="mindspore")
    if config["target"] is not None:
        optimizer.target = config["target"]
    return optimizer


def states_of(optimizer, use_amsgrad):
    """Return {kind: {parameter name: live array}} of everything that a step changes."""
    kinds = {
        "param": [param.data for param in optimizer.parameters],
        "moment1": optimizer.moment1,
        "moment2": optimizer.moment2,
    }
    if use_amsgrad:
        kinds["vhat"] = optimizer.vhat
    names = [param.name for param in optimizer.parameters]
    return {kind: dict(zip(names, states, strict=True)) for kind, states in kinds.items()}


def restore(optimizer, states, arrays, index_of, global_step):
    """Bring the optimizer to the state that the recorded run started from."""
    for kind, by_name in states.items():
        if kind != "param":
            for name, state in by_name.items():
                state[...] = arrays[f"init.{kind}.{index_of[name]}"]
    optimizer.global_step = global_step


def gradient(param, arrays, i, step):
    if param["grad"] == "dense":
        return arrays[f"grad.{i}"][step]
    indices, values = (arrays[f"grad.{i}.{step}.{part}"] for part in ("indices", "values"))
    return adamas.RowTensor(indices, values, tuple(param["shape"]))


def scaled_weight_decays(optimizer, config):
    """Return {parameter name: weight decay of this step * loss scale}, as MindSpore reports it."""
    names = [param.name for param in optimizer.parameters]
    decay = optimizer.get_weight_decay()
    if config["groups"] is None:
        decays = [0.0 if "beta" in name or "gamma" in name else decay for name in names]
    else:
        decays = list(decay)
    return {name: value * config["loss_scale"] for name, value in zip(names, decays, strict=True)}


def check_scalars_before(optimizer, case, arrays, index_of, step):
    """The learning rates and weight decays that the coming step will use."""
    lr_atol = 6.1e-8 if "fixed_lr_roundtrip" in case.tags else 0.0
    decays = scaled_weight_decays(optimizer, case.config)
    for param in optimizer.parameters:
        i = index_of[param.name]
        np.testing.assert_allclose(
            float(optimizer.get_lr_parameter(param)),
            arrays[f"out.lr.{i}"][step],
            rtol=5e-5,
            atol=lr_atol,
            err_msg=f"lr of {param.name}, step {step}",
        )
        np.testing.assert_allclose(
            decays[param.name],
            arrays[f"out.weight_decay_scaled.{i}"][step],
            rtol=5e-5,
            err_msg=f"weight decay of {param.name}, step {step}",
        )


def check_states_after(states, case, arrays, index_of, step):
    for kind, by_name in states.items():
        for name, state in by_name.items():
            i = index_of[name]
            wanted = arrays[f"out.{kind}.{i}"][step]
            assert state.shape == wanted.shape
            assert state.dtype == wanted.dtype
            compared = arrays[f"check.{i}"][step] if f"check.{i}" in arrays else ...
            np.testing.assert_allclose(
                state[compared],
                wanted[compared],
                rtol=case.rtol,
                atol=case.atol[kind],
                equal_nan=True,
                err_msg=f"{kind} of {name}, step {step}",
            )


@pytest.mark.parametrize("case", golden.parameters("optimizer"))
def test_every_step_agrees_with_mindspore(case):
    config, arrays = case.config, case.arrays()
    descriptions = config["params"]
    index_of = {param["name"]: i for i, param in enumerate(descriptions)}
    params = make_parameters(case, arrays)
    optimizer = make_optimizer(config, params)
    assert tuple(param.name for param in optimizer.parameters) == case.update_order

    states = states_of(optimizer, config["use_amsgrad"])
    if "init_state" in config:
        restore(optimizer, states, arrays, index_of, config["init_state"]["global_step"])

    for step in range(config["steps"]):
        check_scalars_before(optimizer, case, arrays, index_of, step)
        grads = tuple(
            gradient(descriptions[i], arrays, i, step)
            for i in (index_of[name] for name in case.update_order)
        )
        assert optimizer(grads) is True
        check_states_after(states, case, arrays, index_of, step)
        assert optimizer.global_step == arrays["out.global_step"][step]


def test_there_are_cases():
    cases = [case for case in golden.cases("optimizer") if golden.in_scope(case)]
    assert len(cases) > 20
    assert sum(golden.is_sparse(case) for case in cases) > 5
