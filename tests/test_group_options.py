"""Options of groups, given and set between steps; parameters without a gradient in some steps.

What an optimizer does with groups, or with gradients left out, has the bits of optimizers that each
have one of the parameters, and make the steps that it makes.
"""

import copy
import itertools
import math

import numpy as np
import pytest

import adamas
from helpers import bits, check_refused, check_same_states, everything, replaced
from rules import HALVES, NUMERICS, REALS, every, every_numerics

SHAPES = ((3, 16), (), (5,), (70,))
POSITIONS = range(len(SHAPES))
OWN = {
    "beta1": 0.7,
    "beta2": 0.9,
    "eps": 1e-3,
    "use_nesterov": True,
    "use_amsgrad": True,
    "decoupled_weight_decay": True,
    "maximize": True,
    "max_grad_norm": 0.5,
    "clip_per_array": True,
    "clip_after_decay": True,
}
SETTABLE = [name for name in OWN if name != "use_amsgrad"]
BASE = {"learning_rate": 0.02, "weight_decay": 0.05}


def make_params(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [
        adamas.Parameter(np.array(rng.standard_normal(shape), dtype), f"weight{i}")
        for i, shape in enumerate(SHAPES)
    ]


def grads_at(step, params):
    rng = np.random.default_rng(100 + step)
    return [np.array(rng.standard_normal(p.shape), p.dtype) for p in params]


def groups_of(params, *options):
    return [{"params": [p], **own} for p, own in zip(params, options, strict=True)]


def steps(optimizer, count):
    for _ in range(count):
        optimizer(grads_at(optimizer.global_step, optimizer.parameters))


def alone(dtype, position, numerics, options):
    """Return an optimizer of one of the parameters."""
    param = make_params(dtype)[position]
    return adamas.Adam([{"params": [param]}], **{**BASE, **options}, numerics=numerics)


def same_bits(optimizer, position, single):
    for kind in ("moment1", "moment2", "vhat"):
        theirs = getattr(single, kind)
        if theirs:
            ours = getattr(optimizer, kind)[position]
            np.testing.assert_array_equal(bits(ours), bits(theirs[0]), err_msg=kind)
    ours, theirs = optimizer.parameters[position], single.parameters[0]
    np.testing.assert_array_equal(bits(np.asarray(ours)), bits(np.asarray(theirs)))


# Groups that differ


MIXED = (
    {"beta1": 0.7, "eps": 1e-4, "use_amsgrad": True},
    {"use_nesterov": True, "beta2": 0.9},
    {"decoupled_weight_decay": True, "lr": 0.1},
    {"maximize": True, "use_amsgrad": True, "use_nesterov": True, "weight_decay": 0.0},
)


@every_numerics
@every("dtype", (*REALS, *HALVES))
@pytest.mark.parametrize("turn", range(len(MIXED)))
def test_groups_that_differ_are_optimizers_side_by_side(turn, dtype, numerics):
    mixed = MIXED[turn:] + MIXED[:turn]
    params = make_params(dtype)
    optimizer = adamas.Adam(groups_of(params, *mixed), **BASE, numerics=numerics)
    steps(optimizer, 3)
    names = {"lr": "learning_rate"}
    for i, own in enumerate(mixed):
        renamed = {names.get(key, key): value for key, value in own.items()}
        single = alone(dtype, i, numerics, renamed)
        for step in range(3):
            single([grads_at(step, params)[i]])
        same_bits(optimizer, i, single)


@every_numerics
@pytest.mark.parametrize("own", [{}, {"clip_after_decay": True}])
def test_a_norm_for_a_group_or_for_each_array(own, numerics):
    params = make_params()
    clip = {"max_grad_norm": 0.5, **own}
    groups = [
        {"params": params[:2], **clip},
        {"params": params[2:], **clip, "clip_per_array": True},
    ]
    optimizer = adamas.Adam(groups, **BASE, numerics=numerics)
    steps(optimizer, 3)
    pair = adamas.Adam([{"params": make_params()[:2]}], **BASE, **clip, numerics=numerics)
    singles = [alone(np.float32, i, numerics, clip) for i in (2, 3)]
    for step in range(3):
        grads = grads_at(step, params)
        pair(grads[:2])
        for single, grad in zip(singles, grads[2:], strict=True):
            single([grad])
    for i, single in zip((2, 3), singles, strict=True):
        same_bits(optimizer, i, single)
    for i in range(2):
        assert (
            bits(np.asarray(optimizer.parameters[i])).tobytes()
            == bits(np.asarray(pair.parameters[i])).tobytes()
        )


@pytest.mark.parametrize("name", OWN)
def test_what_a_group_lacks_it_takes_from_the_optimizer(name):
    """Alike for all groups, the option of the optimizer and that of the groups are the same."""
    options = {name: OWN[name]}
    if name in ("clip_per_array", "clip_after_decay"):
        options["max_grad_norm"] = 0.5
    of_optimizer = adamas.Adam(groups_of(make_params(), *[{}] * 4), **BASE, **options)
    plain = adamas.Adam(groups_of(make_params(), *[{}] * 4), **BASE)
    steps(of_optimizer, 3)
    steps(plain, 3)
    assert everything(of_optimizer) != everything(plain)
    if name not in ("max_grad_norm", "clip_after_decay"):  # whose norm is over all groups there
        in_groups = adamas.Adam(groups_of(make_params(), *[options] * 4), **BASE)
        steps(in_groups, 3)
        check_same_states(in_groups, of_optimizer)
        assert getattr(in_groups.groups[0], name) == getattr(of_optimizer.groups[0], name)


def test_vhat_of_groups_with_and_without():
    params = make_params()
    optimizer = adamas.Adam(groups_of(params, {"use_amsgrad": True}, {}, {}, {}))
    assert [v is not None for v in optimizer.vhat] == [True, False, False, False]
    assert [group.use_amsgrad for group in optimizer.groups] == [True, False, False, False]
    assert adamas.Adam(make_params()).vhat == []


# Set between steps


@every_numerics
@pytest.mark.parametrize(
    ("name", "whole"),
    [*((name, False) for name in SETTABLE), ("beta1", True), ("beta2", True), ("eps", True)],
)
def test_an_option_that_is_set_holds_from_the_next_step_on(name, whole, numerics):
    """With the bits of an optimizer that was made so, and took over the state."""
    before = {"max_grad_norm": 0.4} if name.startswith("clip") else {}
    options = [dict(before) for _ in SHAPES]
    optimizer = adamas.Adam(groups_of(make_params(), *options), **BASE, numerics=numerics)
    steps(optimizer, 2)
    if whole:
        setattr(optimizer, name, OWN[name])
        assert getattr(optimizer, name) == OWN[name]
        after = [{**own, name: OWN[name]} for own in options]
    else:
        setattr(optimizer.groups[2], name, OWN[name])
        after = replaced(options, 2, {**before, name: OWN[name]})
    assert getattr(optimizer.groups[2], name) == OWN[name]
    made_so = adamas.Adam(groups_of(make_params(), *after), **BASE, numerics=numerics)
    made_so.load_state_dict(optimizer.state_dict(parameters=True))
    steps(optimizer, 2)
    steps(made_so, 2)
    check_same_states(optimizer, made_so)


def test_betas_that_change_in_every_step():
    """As one-cycle schedules do it."""
    optimizer = adamas.Adam(make_params(), **BASE)
    resumed = adamas.Adam(make_params(), **BASE)
    for step in range(6):
        optimizer.beta1 = 0.95 - 0.02 * step
        resumed.beta1 = 0.95 - 0.02 * step
        if step == 3:
            resumed.load_state_dict(resumed.state_dict())
        steps(optimizer, 1)
        steps(resumed, 1)
    check_same_states(optimizer, resumed)
    constant = adamas.Adam(make_params(), **BASE, beta1=0.95)
    steps(constant, 6)
    assert everything(constant) != everything(optimizer)


def test_groups_that_differ_have_no_common_value():
    optimizer = adamas.Adam(groups_of(make_params(), {"beta1": 0.5}, {}, {}, {}))
    with pytest.raises(AttributeError, match=r"groups\[i\].beta1"):
        optimizer.beta1  # noqa: B018
    assert (optimizer.beta2, optimizer.eps) == (0.999, 1e-8)
    optimizer.beta1 = 0.25
    assert [group.beta1 for group in optimizer.groups] == [0.25] * 4


def test_mindspore_shows_what_was_given():
    optimizer = adamas.Adam(make_params(), beta1=0.8, numerics="mindspore")
    assert (optimizer.beta1, optimizer.groups[0].beta1) == (0.8, 0.8)
    optimizer.groups[0].beta1 = 0.7
    assert optimizer.beta1 == 0.7


BAD = [
    *[(name, value, TypeError) for name in ("beta1", "beta2", "eps") for value in (1, None, "0.9")],
    *[(name, value, ValueError) for name in ("beta1", "beta2")
      for value in (0.0, 1.0, -0.1, math.nan)],
    *[("eps", value, ValueError) for value in (0.0, -1e-8, math.inf, math.nan)],
    *[("max_grad_norm", value, ValueError) for value in (0.0, -1.0, math.inf, math.nan)],
    *[("max_grad_norm", value, TypeError) for value in (True, "1", [1.0])],
    *[(name, value, TypeError) for value in (1, None, "True") for name in SETTABLE
      if isinstance(OWN[name], bool)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_a_bad_option(name, value, error):
    optimizer = adamas.Adam(groups_of(make_params(), {}, {"use_amsgrad": True}, {}, {}), **BASE)
    steps(optimizer, 1)
    group = optimizer.groups[1]
    before = repr(optimizer)
    check_refused(
        optimizer, lambda: setattr(group, name, value), error, f"groups[1].{name}", repr(value)[:5]
    )
    if hasattr(adamas.Adam, name):
        check_refused(optimizer, lambda: setattr(optimizer, name, value), error, name)
    with pytest.raises(error, match=f"params\\[1\\]\\['{name}'\\]"):
        adamas.Adam(groups_of(make_params(), {}, {name: value}, {}, {}))
    assert repr(optimizer) == before
    twin = copy.deepcopy(optimizer)
    steps(twin, 1)
    steps(optimizer, 1)
    check_same_states(twin, optimizer)


def test_use_amsgrad_can_only_be_read():
    optimizer = adamas.Adam(make_params())
    setter = lambda: setattr(optimizer.groups[0], "use_amsgrad", True)  # noqa: E731
    check_refused(optimizer, setter, AttributeError, "use_amsgrad", "can't be set", "beta1")


@pytest.mark.parametrize("options", [{"use_lazy": True}, {"use_offload": True}])
def test_amsgrad_of_a_group_is_refused_where_that_of_the_optimizer_is(options):
    with pytest.raises(ValueError, match="use_amsgrad"):
        adamas.Adam(groups_of(make_params(), {}, {"use_amsgrad": True}, {}, {}), **options)


def test_eps_that_one_of_the_parameters_does_not_know():
    """The groups before it have it back."""
    params = [adamas.Parameter(np.ones(3, dtype), name)
              for dtype, name in [(np.float64, "wide"), (np.float32, "narrow")]]  # fmt: skip
    optimizer = adamas.Adam(groups_of(params, {}, {}), numerics="standard")
    setter = lambda: setattr(optimizer, "eps", 1e-46)  # noqa: E731
    check_refused(optimizer, setter, ValueError, "eps", "narrow")
    optimizer.groups[0].eps = 1e-46
    check_refused(optimizer, setter, ValueError, "eps", "narrow")
    assert [group.eps for group in optimizer.groups] == [1e-46, 1e-8]
    other = adamas.Adam(groups_of([adamas.Parameter(np.ones(3, d), n) for d, n in
                                   [(np.float64, "wide"), (np.float32, "narrow")]],
                                  {"eps": 1e-46}, {}), numerics="standard")  # fmt: skip
    for one in (optimizer, other):
        one([np.ones(3), np.ones(3, np.float32)])
    check_same_states(optimizer, other)


def test_the_norm_of_a_group_with_undecayed_names():
    params = [adamas.Parameter(np.ones(3, np.float32), name) for name in ("weight", "gamma")]
    optimizer = adamas.Adam(params, weight_decay=0.1)
    group = optimizer.groups[0]
    setter = lambda: setattr(group, "max_grad_norm", 1.0)  # noqa: E731
    check_refused(optimizer, setter, ValueError, "groups[0].max_grad_norm", "gamma")
    group.clip_per_array = True
    group.max_grad_norm = 1.0
    setter = lambda: setattr(group, "clip_per_array", False)  # noqa: E731
    check_refused(optimizer, setter, ValueError, "groups[0].clip_per_array", "gamma")
    optimizer([np.ones(3, np.float32)] * 2)


def test_an_option_in_an_open_step():
    optimizer = adamas.Adam(make_params())
    optimizer.begin_step()
    for thing in (optimizer, optimizer.groups[0]):
        check_refused(
            optimizer, lambda thing=thing: setattr(thing, "beta1", 0.5), RuntimeError, "step"
        )
    optimizer.cancel_step()
    assert optimizer.beta1 == 0.9
    optimizer.beta1 = 0.5


# New options of the optimizer


def test_zero_is_for_those_who_ask_for_it():
    zeros = {"beta1": 0.0, "beta2": 0.0, "eps": 0.0}
    for name, value in zeros.items():
        with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
            adamas.Adam(make_params(), **{name: value})
    weight = np.array([1.0, 2.0])
    optimizer = adamas.Adam([weight], 0.25, allow_zero=True, **zeros)
    optimizer([np.array([3.0, -0.5])])
    assert weight.tolist() == [0.75, 2.25]  # a step along the sign
    optimizer.groups[0].beta1 = 0.5
    optimizer.groups[0].beta1 = 0.0
    setter = lambda: setattr(optimizer, "beta1", -0.1)  # noqa: E731
    check_refused(optimizer, setter, ValueError, "beta1", ">= 0", "-0.1")


def test_eps_inside_the_bias_correction():
    weight, grad = np.array([1.0, -2.0]), np.array([0.01, 3.0])
    optimizer = adamas.Adam([weight], 0.1, 0.8, 0.95, 0.5, epsilon_placement="inside")
    optimizer([grad])
    step_size = 0.1 * math.sqrt(1 - 0.95) / (1 - 0.8)
    wanted = [1.0, -2.0] - step_size * 0.2 * grad / (np.sqrt(0.05 * grad**2) + 0.5)
    np.testing.assert_allclose(weight, wanted, rtol=1e-14)


def test_maximize_is_the_step_of_the_negated_gradient():
    up, down = adamas.Adam(make_params(), **BASE, maximize=True), adamas.Adam(make_params(), **BASE)
    for step in range(3):
        grads = grads_at(step, up.parameters)
        up(grads)
        down([-grad for grad in grads])
    check_same_states(up, down)


def test_averages_of_the_parameters():
    params = [np.full(3, 2.0), np.full(2, -1.0)]
    optimizer = adamas.Adam(params, 0.1, ema_decay=0.75)
    wanted = [average.copy() for average in optimizer.ema]
    for _ in range(3):
        optimizer([np.ones(3), np.ones(2)])
        wanted = [0.75 * w + 0.25 * p for w, p in zip(wanted, params, strict=True)]
    for average, value in zip(optimizer.ema, wanted, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-14)
    twin = copy.deepcopy(optimizer)
    assert all((a == b).all() for a, b in zip(twin.ema, optimizer.ema, strict=True))
    assert adamas.Adam([np.ones(3)]).ema == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epsilon_placement": "between"}, ValueError),
        ({"epsilon_placement": None}, TypeError),
        ({"allow_zero": 1}, TypeError),
        ({"maximize": None}, TypeError),
        ({"clip_per_array": 0}, TypeError),
        ({"clip_after_decay": "no"}, TypeError),
        ({"ema_decay": 0.0}, ValueError),
        ({"ema_decay": 1.0}, ValueError),
        ({"ema_decay": math.nan}, ValueError),
        ({"ema_decay": True}, TypeError),
        ({"ema_decay": "0.9"}, TypeError),
    ],
)
def test_bad_new_options(options, error):
    ((name, _),) = options.items()
    with pytest.raises(error, match=name):
        adamas.Adam(make_params(), **options)


# Gradients that are absent


PATTERNS = list(itertools.product([True, False], repeat=len(SHAPES)))


@every_numerics
@every("dtype", (np.float32, np.float64, np.float16))
@pytest.mark.parametrize("seed", range(3))
def test_a_parameter_without_a_gradient_is_as_if_it_had_no_step(seed, dtype, numerics):
    """At every position, alone and together with others."""
    rng = np.random.default_rng(seed)
    params = make_params(dtype)
    optimizer = adamas.Adam([{"params": params}], **BASE, use_amsgrad=True, numerics=numerics)
    singles = [alone(dtype, i, numerics, {"use_amsgrad": True}) for i in POSITIONS]
    made = [0] * len(params)
    for step, k in enumerate(rng.permutation(len(PATTERNS))):
        grads = grads_at(step, params)
        present = PATTERNS[k]
        optimizer([grad if has else None for grad, has in zip(grads, present, strict=True)])
        for i in POSITIONS:
            if present[i]:
                singles[i]([grads[i]])
                made[i] += 1
        assert optimizer.steps == made
    assert optimizer.global_step == len(PATTERNS)
    for i in POSITIONS:
        same_bits(optimizer, i, singles[i])


@pytest.mark.parametrize("missing", POSITIONS)
def test_names_that_are_not_given_have_no_gradient(missing):
    listed, by_name, by_none = (adamas.Adam(make_params(), **BASE) for _ in range(3))
    for step in range(3):
        grads = grads_at(step, listed.parameters)
        present = replaced(grads, missing, None) if step != 1 else grads
        listed(tuple(present))
        named = {f"weight{i}": grad for i, grad in enumerate(present)}
        by_none(named)
        by_name({name: grad for name, grad in named.items() if grad is not None})
    check_same_states(by_name, listed)
    check_same_states(by_none, listed)
    wanted = replaced([3] * len(SHAPES), missing, 1)
    assert listed.steps == by_name.steps == by_none.steps == wanted


def test_a_step_without_any_gradient():
    optimizer = adamas.Adam(make_params(), **BASE)
    before = everything(optimizer)[0]
    optimizer({})
    optimizer([None] * len(SHAPES))
    assert everything(optimizer)[0] == before
    assert (optimizer.global_step, optimizer.steps) == (2, [0] * len(SHAPES))


@pytest.mark.parametrize("missing", POSITIONS)
def test_what_is_absent_does_not_hide_what_is_wrong(missing):
    optimizer = adamas.Adam(make_params(), **BASE)
    steps(optimizer, 1)
    other = (missing + 1) % len(SHAPES)
    grads = replaced(grads_at(1, optimizer.parameters), missing, None)
    bad = replaced(grads, other, np.ones(99, np.float32))
    before = optimizer.steps
    check_refused(optimizer, lambda: optimizer(bad), ValueError, f"grads[{other}]", "shape")
    assert optimizer.steps == before


def test_a_norm_over_the_gradients_that_there_are():
    optimizer = adamas.Adam(make_params(), **BASE, max_grad_norm=0.5)
    grads = replaced(grads_at(0, optimizer.parameters), 0, None)
    optimizer(grads)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads[1:]))
    assert optimizer.last_grad_norm == pytest.approx(norm, rel=1e-12)


def test_steps_in_parts_may_leave_some_out():
    parts, whole = adamas.Adam(make_params(), **BASE), adamas.Adam(make_params(), **BASE)
    for step in range(3):
        grads = replaced(grads_at(step, parts.parameters), step, None)
        whole(grads)
        parts.begin_step()
        for param, grad in zip(parts.parameters, grads, strict=True):
            if grad is not None:
                parts.apply(param, grad)
        check_refused(parts, lambda: parts.end_step(), RuntimeError, "parameter")
        parts.end_step(missing="skip")
    check_same_states(parts, whole)
    assert parts.steps == whole.steps == [2, 2, 2, 3]


@pytest.mark.parametrize(("missing", "error"), [("ignore", ValueError), (None, TypeError)])
def test_a_bad_answer_to_what_is_missing(missing, error):
    optimizer = adamas.Adam(make_params())
    optimizer.begin_step()
    check_refused(optimizer, lambda: optimizer.end_step(missing=missing), error, "missing")
    optimizer.end_step(missing="skip")
    assert optimizer.global_step == 1


# Steps of each parameter


def test_steps_can_be_set():
    optimizer, single = adamas.Adam(make_params(), **BASE), alone(np.float32, 2, "standard", {})
    optimizer.steps = [0, 5, 7, 2**40]
    assert optimizer.steps == [0, 5, 7, 2**40]
    assert optimizer.global_step == 0
    single.global_step = 7
    grads = grads_at(0, optimizer.parameters)
    optimizer(grads)
    single([grads[2]])
    same_bits(optimizer, 2, single)
    assert optimizer.steps == [1, 6, 8, 2**40 + 1]
    optimizer.global_step = 11  # by 10
    assert optimizer.steps == [11, 16, 18, 2**40 + 11]


@pytest.mark.parametrize(
    ("values", "error", "fragment"),
    [
        ([1, 1, 1], ValueError, "4"),
        ([1, 1, 1, -1], ValueError, "steps[3]"),
        ([1, 2**62 + 1, 1, 1], ValueError, "steps[1]"),
        ([1, 1.0, 1, 1], TypeError, "steps[1]"),
        ([True, 1, 1, 1], TypeError, "steps[0]"),
        (3, TypeError, "list"),
        ("1111", TypeError, "list"),
        (None, TypeError, "list"),
    ],
)
def test_bad_steps(values, error, fragment):
    optimizer = adamas.Adam(make_params(), **BASE)
    steps(optimizer, 2)
    optimizer(replaced(grads_at(2, optimizer.parameters), 1, None))
    before = optimizer.steps
    setter = lambda: setattr(optimizer, "steps", values)  # noqa: E731
    check_refused(optimizer, setter, error, "steps", fragment)
    assert optimizer.steps == before == [3, 2, 3, 3]


# They go on from states and copies


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("way", ["state", "file", "copy"])
def test_steps_and_options_go_on(way, numerics, tmp_path):
    def make():
        return adamas.Adam(groups_of(make_params(), *MIXED), **BASE, numerics=numerics)

    optimizer = make()
    for step in range(4):
        optimizer(replaced(grads_at(step, optimizer.parameters), step, None))
    optimizer.groups[1].beta1 = 0.5
    optimizer.groups[2].maximize = True
    if way == "copy":
        resumed = copy.deepcopy(optimizer)
    else:
        resumed = make()
        resumed.groups[1].beta1 = 0.5
        resumed.groups[2].maximize = True
    if way == "state":
        resumed.load_state_dict(optimizer.state_dict(parameters=True))
    elif way == "file":
        adamas.save_checkpoint(tmp_path / "run.safetensors", optimizer)
        adamas.load_checkpoint(tmp_path / "run.safetensors", resumed)
    assert resumed.steps == optimizer.steps == [3, 3, 3, 3]
    assert resumed.state_dict()["groups"] == optimizer.state_dict()["groups"]
    for step in range(4, 7):
        grads = replaced(grads_at(step, optimizer.parameters), 1, None)
        optimizer(grads)
        resumed(grads)
    check_same_states(resumed, optimizer)
    assert resumed.steps == optimizer.steps == [6, 3, 6, 6]


@pytest.mark.parametrize("name", [name for name in SETTABLE if name != "max_grad_norm"])
def test_a_state_with_other_options_of_a_group_is_refused(name):
    first = adamas.Adam(groups_of(make_params(), {}, {name: OWN[name]}, {}, {}), **BASE)
    state = first.state_dict()
    assert state["groups"][1][name] == OWN[name]
    other = adamas.Adam(groups_of(make_params(), {}, {}, {}, {}), **BASE)
    check_refused(
        other, lambda: other.load_state_dict(state), ValueError, f"state['groups'][1]['{name}']"
    )
    setattr(other.groups[1], name, OWN[name])
    other.load_state_dict(state)


def test_groups_with_a_norm_must_have_the_same_parameters():
    def make(count):
        params = make_params()
        clip = {"max_grad_norm": 1.0}
        return adamas.Adam([{"params": params[:count], **clip}, {"params": params[count:], **clip}])

    state = make(1).state_dict()
    other = make(2)
    check_refused(
        other,
        lambda: other.load_state_dict(state),
        ValueError,
        "groups",
        "weight1",
        "max_grad_norm",
    )
    make(1).load_state_dict(state)


def test_groups_without_a_norm_may_be_cut_otherwise():
    params = make_params()
    one = adamas.Adam([{"params": params}], **BASE)
    steps(one, 2)
    four = adamas.Adam(groups_of(make_params(), *[{}] * 4), **BASE)
    four.load_state_dict(one.state_dict(parameters=True))
    steps(one, 1)
    steps(four, 1)
    check_same_states(one, four)
