"""One step against the oracle, in units of the last place of the largest operand (promise P3).

The library gets its hyper-parameters as float64 and rounds what it folds from them; the oracle
rounds nothing.  The error of an element is |got - oracle| / ulp(largest operand), where ulp is the
spacing of the parameter's type at that magnitude, and the largest operand is the largest magnitude
among the terms that the formula adds up, each as the oracle computes it:

    gradient  grad / loss_scale; with L2 also weight_decay * param, and the sum of the two; when
              centralized the largest of these in the row, which the mean brings to every element
    moment1   beta1 m; (1 - beta1) gradient; the new moment1
    moment2   beta2 v; (1 - beta2) gradient^2; the new moment2
    vhat      as moment2, and the old vhat
    update    lr / (1 - beta1^t) * num / denominator, with num the largest operand of the numerator
              (not below the smallest normal number, where relative precision ends); where the
              gradient's terms cancel, larger in proportion to what moment2 loses by it
    param     param; update; the new param

P3 promises 2 for moment1, 2.5 for moment2 and 4 for param.  `bounds` states what holds: all of it
for gradients that are not themselves a rounded sum, if the update is at most half the parameter.
Where the update decides the result, all its roundings count: the two moments, the root, the
division and three folded constants; Nesterov's numerator adds two more.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest

import adamas
import oracle
from rules import MOMENTS, NUMBERS, combined, every, every_real

STEPS = (1, 2, 3, 1000, 10**6)
LOSS_SCALES = (1.0, 2.0**10, 3.0)
WEIGHT_DECAYS = (0.0, 0.037)
ORACLE_TYPE = {np.float32: np.float64, np.float64: np.longdouble}
SHAPE = (7, 11, 53)

ADAM_WEIGHT_DECAY = {"decoupled_weight_decay": True, "bias_correction": False}
RULES = {
    name: oracle.Rule(**options)
    for name, options in combined(
        {"": {}, "centralized": {"grad_centralization": True}},
        {
            **combined(MOMENTS, {"": {}, "decoupled": {"decoupled_weight_decay": True}}),
            "adam_weight_decay": ADAM_WEIGHT_DECAY,
        },
    ).items()
}


def bounds(rule, dtype, weight_decay):
    """Return the units of the last place that each kind may be off."""
    adds_decay = weight_decay > 0 and not rule.decoupled_weight_decay
    moment1 = 2.5 if adds_decay else 2.0
    moment2 = 3.5 if adds_decay else 2.5
    if rule.grad_centralization:  # whose sum is in double, so more exact for float32
        moment1, moment2 = (2.5 if dtype is np.float32 else 3.5), 5.0
    return {
        "moment1": moment1,
        "moment2": moment2,
        "vhat": moment2,
        "param": 4.0,
        "param that moves far": 7.5 if rule.use_nesterov else 5.0,
    }


every_rule = every("rule", RULES)
longdouble_is_wider = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


# What a group or another class decides.
OF_OTHERS = ("grad_centralization", "bias_correction")


def make_optimizer(rule, hyper, param):
    """Return an optimizer of one parameter that follows a rule of the oracle."""
    group = {"params": [adamas.Parameter(param)], "grad_centralization": rule.grad_centralization}
    numbers = {name: getattr(hyper, name) for name in (*NUMBERS, "weight_decay")}
    if not rule.bias_correction:
        return adamas.AdamWeightDecay([group], **numbers, numerics="standard")
    return adamas.Adam(
        [group],
        **numbers,
        loss_scale=hyper.loss_scale,
        **{name: flag for name, flag in asdict(rule).items() if name not in OF_OTHERS},
    )


def magnitudes(rng, dtype, low, high):
    """Return numbers of both signs whose exponents are spread evenly."""
    return (rng.choice([-1.0, 1.0], SHAPE) * 10 ** rng.uniform(low, high, SHAPE)).astype(dtype)


def training_state(rng, dtype):
    """Return a state and a gradient as training has them."""
    grad = (0.1 * rng.standard_normal(SHAPE)).astype(dtype)
    moment2 = (0.01 * rng.random(SHAPE)).astype(dtype)
    state = oracle.State(
        param=rng.standard_normal(SHAPE).astype(dtype),
        moment1=(0.05 * rng.standard_normal(SHAPE)).astype(dtype),
        moment2=moment2,
        vhat=(moment2 * rng.uniform(0.5, 2.0, SHAPE)).astype(dtype),
    )
    return state, grad


def wild_state(rng, dtype):
    """Return magnitudes over many decades, zeros of both signs, and subnormals."""
    state = oracle.State(
        param=magnitudes(rng, dtype, -12, 6),
        moment1=magnitudes(rng, dtype, -12, 6),
        moment2=abs(magnitudes(rng, dtype, -24, 12)),
        vhat=abs(magnitudes(rng, dtype, -24, 12)),
    )
    grad = magnitudes(rng, dtype, -12, 6)
    smallest = np.finfo(dtype).smallest_subnormal
    for array in (state.param, state.moment1, grad):
        array.flat[rng.integers(0, array.size, 200)] = rng.choice([0.0, -0.0, 7 * smallest], 200)
    state.moment2.flat[rng.integers(0, grad.size, 200)] = rng.choice([0.0, 7 * smallest], 200)
    return state, grad


def cancelling_state(rng, dtype, hyper):
    """Return a state in which the terms of each sum almost cancel, some elements exactly."""
    state, grad = training_state(rng, dtype)
    almost = 1 + 10 ** rng.uniform(-9, -1, SHAPE) * rng.choice([-1, 0, 1], SHAPE)
    kind = rng.integers(0, 3, SHAPE)
    against_decay = -hyper.loss_scale * hyper.weight_decay * state.param * almost
    grad = np.where((kind == 0) & (hyper.weight_decay > 0), against_decay, grad).astype(dtype)
    whole = grad / hyper.loss_scale + hyper.weight_decay * state.param
    against_grad = -(1 - hyper.beta1) / hyper.beta1 * whole * almost
    state.moment1 = np.where(kind == 1, against_grad, state.moment1).astype(dtype)
    return state, grad


def offset_state(rng, dtype):
    """Return gradients whose row mean is far larger than what centralization leaves."""
    state, grad = training_state(rng, dtype)
    return state, (1000.0 + grad).astype(dtype)


def states(rng, dtype, hyper):
    yield "training", *training_state(rng, dtype)
    yield "wild", *wild_state(rng, dtype)
    yield "cancelling", *cancelling_state(rng, dtype, hyper)
    yield "offset", *offset_state(rng, dtype)


def largest(*terms):
    return np.max(np.broadcast_arrays(*(abs(term) for term in terms)), axis=0)


def gradient_term(rule, hyper, state, grad):
    """Return the largest magnitude among the terms of the gradient, and their sum."""
    terms = [oracle.unscaled(grad, hyper.loss_scale)]
    if not rule.decoupled_weight_decay:
        terms.append(hyper.weight_decay * state.param)
    term = largest(*terms, sum(terms))
    if rule.grad_centralization:
        term = np.broadcast_to(term.max(axis=(1, 2), keepdims=True), term.shape)
    return term


def update_term(rule, hyper, num, second, moment2, step):
    """Return the update that the largest operands of its parts would make."""
    update = oracle.update(rule, hyper, num, second, step)
    without_eps = oracle.update(rule, replace(hyper, eps=0.0), num, second, step)
    share_of_root = np.nan_to_num(update / without_eps)  # of the denominator, the rest being eps
    return update * np.maximum(1, np.nan_to_num(share_of_root * moment2 / second))


def largest_operands(rule, hyper, before, after, grad, step, smallest_normal):
    """Return {kind: the largest operand of each element}, as the module's text defines them."""
    term = gradient_term(rule, hyper, before, grad)
    moment1 = largest(hyper.beta1 * before.moment1, (1 - hyper.beta1) * term, after.moment1)
    moment2 = largest(hyper.beta2 * before.moment2, (1 - hyper.beta2) * term**2, after.moment2)
    num = moment1
    if rule.use_nesterov:
        num = largest(hyper.beta1 * moment1, (1 - hyper.beta1) * term)
    num = np.maximum(num, smallest_normal)
    second = after.vhat if rule.use_amsgrad else after.moment2
    with np.errstate(divide="ignore", invalid="ignore"):  # second may be 0
        update = update_term(rule, hyper, num, second, moment2, step)
    # lr * weight_decay * param of the decoupled rules is never larger than param.
    return {
        "moment1": moment1,
        "moment2": moment2,
        "vhat": largest(moment2, before.vhat),
        "update": update,
        "param": largest(before.param, after.param, update),
    }


def one_step(rule, hyper, state, grad, step):
    """Return the state after the library's 1-based step ``step``, in the parameter's type."""
    param = state.param.copy()
    optimizer = make_optimizer(rule, hyper, param)
    optimizer.moment1[0][...] = state.moment1
    optimizer.moment2[0][...] = state.moment2
    if rule.use_amsgrad:
        optimizer.vhat[0][...] = state.vhat
    optimizer.global_step = step - 1
    optimizer((grad,))
    vhat = optimizer.vhat[0] if rule.use_amsgrad else state.vhat
    return oracle.State(param, optimizer.moment1[0], optimizer.moment2[0], vhat)


def errors(rule, hyper, state, grad, step):
    """Return {what is bounded: its errors in units of the last place}."""
    dtype = state.param.dtype.type
    wide = ORACLE_TYPE[dtype]
    before = state.astype(wide)
    got = one_step(rule, hyper, state, grad, step)
    wanted = oracle.next_state(rule, hyper, before, grad, step)
    operands = largest_operands(
        rule, hyper, before, wanted, grad.astype(wide), step, np.finfo(dtype).smallest_normal
    )

    def ulps(kind):
        error = abs(getattr(got, kind).astype(wide) - getattr(wanted, kind))
        return error / np.spacing(operands[kind].astype(dtype)).astype(wide)

    moves_little = operands["update"] <= abs(before.param) / 2
    return {
        "moment1": ulps("moment1"),
        "moment2": ulps("moment2"),
        "vhat": ulps("vhat") if rule.use_amsgrad else np.zeros(0),
        "param": ulps("param")[moves_little],
        "param that moves far": ulps("param")[~moves_little],
    }


@every_rule
@every_real
@pytest.mark.parametrize("weight_decay", WEIGHT_DECAYS)
def test_one_step_is_within_a_few_units_of_the_last_place(
    rule, dtype, weight_decay, record_property
):
    if dtype is np.float64 and not longdouble_is_wider:
        pytest.skip("numpy.longdouble is no wider than float64 here")
    rng = np.random.default_rng(20250101)
    allowed = bounds(rule, dtype, weight_decay)
    worst = dict.fromkeys(allowed, (0.0, "none"))
    for loss_scale in LOSS_SCALES if rule.bias_correction else (1.0,):
        hyper = oracle.HyperParameters(**NUMBERS, weight_decay=weight_decay, loss_scale=loss_scale)
        for step in STEPS:
            for name, state, grad in states(rng, dtype, hyper):
                where = f"{name} state, step {step}, loss_scale {loss_scale:g}"
                for kind, ulps in errors(rule, hyper, state, grad, step).items():
                    assert np.isfinite(ulps).all(), (kind, where)
                    worst[kind] = max(worst[kind], (float(ulps.max(initial=0.0)), where))
    for kind, (ulps, where) in worst.items():
        print(f"{kind}: {ulps:.2f} units of the last place ({where}), allowed {allowed[kind]}")
        record_property(f"worst ulps of {kind}", round(ulps, 3))
    for kind, (ulps, where) in worst.items():
        assert ulps <= allowed[kind], f"{kind}: {ulps:.3f} units of the last place, {where}"


@every_rule
@every_real
def test_hundreds_of_steps_stay_beside_the_oracle(rule, dtype):
    rng = np.random.default_rng(7)
    wide = ORACLE_TYPE[dtype]
    hyper = oracle.HyperParameters(
        **NUMBERS, weight_decay=0.037, loss_scale=48.0 if rule.bias_correction else 1.0
    )
    param = rng.standard_normal((5, 3, 7)).astype(dtype)
    wanted = oracle.State(*(np.array(x, wide) for x in (param, 0 * param, 0 * param, 0 * param)))
    optimizer = make_optimizer(rule, hyper, param)
    for step in range(1, 401):
        grad = (hyper.loss_scale * rng.standard_normal(param.shape)).astype(dtype)
        optimizer((grad,))
        wanted = oracle.next_state(rule, hyper, wanted, grad, step)
    assert optimizer.global_step == 400
    unit = float(np.finfo(dtype).eps)
    for got, want in (
        (param, wanted.param),
        (optimizer.moment1[0], wanted.moment1),
        (optimizer.moment2[0], wanted.moment2),
    ):
        np.testing.assert_allclose(
            got.astype(wide), want, rtol=1000 * unit, atol=200 * unit, equal_nan=False
        )
