"""Schedules and list functions beyond what is recorded: arguments, overflow, protocols."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamas

RATE_DECAYS = (
    adamas.ExponentialDecayLR,
    adamas.NaturalExpDecayLR,
    adamas.InverseDecayLR,
)
RATE_DECAY_ARGUMENTS = {
    "learning_rate": 0.1,
    "decay_rate": 0.9,
    "decay_steps": 3,
    "is_stair": True,
}
SCHEDULES = {
    **dict.fromkeys(RATE_DECAYS, RATE_DECAY_ARGUMENTS),
    adamas.CosineDecayLR: {"min_lr": 0.01, "max_lr": 0.1, "decay_steps": 4},
    adamas.PolynomialDecayLR: {
        "learning_rate": 0.1,
        "end_learning_rate": 0.01,
        "decay_steps": 4,
        "power": 0.5,
        "update_decay_steps": True,
    },
    adamas.WarmUpLR: {"learning_rate": 0.1, "warmup_steps": 3},
}
LENGTHS = {"total_step": 13, "step_per_epoch": 2}
RATE_DECAY_LIST_ARGUMENTS = {
    "learning_rate": 0.1,
    "decay_rate": 0.9,
    **LENGTHS,
    "decay_epoch": 3,
    "is_stair": True,
}
LISTS = {
    adamas.exponential_decay_lr: RATE_DECAY_LIST_ARGUMENTS,
    adamas.natural_exp_decay_lr: RATE_DECAY_LIST_ARGUMENTS,
    adamas.inverse_decay_lr: RATE_DECAY_LIST_ARGUMENTS,
    adamas.cosine_decay_lr: {"min_lr": 0.01, "max_lr": 0.1, **LENGTHS, "decay_epoch": 3},
    adamas.polynomial_decay_lr: {
        "learning_rate": 0.1,
        "end_learning_rate": 0.01,
        **LENGTHS,
        "decay_epoch": 3,
        "power": 0.5,
        "update_decay_epoch": True,
    },
    adamas.warmup_lr: {"learning_rate": 0.1, **LENGTHS, "warmup_epoch": 3},
}
EVERYTHING = {**SCHEDULES, **LISTS}

FLAGS = {"is_stair", "update_decay_steps", "update_decay_epoch"}
COUNTS = {
    *("decay_steps", "warmup_steps", "total_step", "step_per_epoch"),
    *("decay_epoch", "warmup_epoch"),
}
# The rates that may be zero; warm-up may lead to zero, as in MindSpore.
MAY_BE_ZERO = {"min_lr", "end_learning_rate"}


def name_of(made):
    return made.__name__


def arguments(*, without=frozenset()):
    """Return (callable, argument name) for every argument."""
    return [
        pytest.param(made, name, id=f"{made.__name__}-{name}")
        for made, given_arguments in EVERYTHING.items()
        for name in given_arguments
        if name not in without
    ]


def wrong_types(name):
    if name in FLAGS:
        return [0, 1, None, "yes", 1.0]
    if name in COUNTS:
        return [1.0, True, None, "3", np.float32(3.0), [3]]
    return [1, True, None, "0.1", np.int64(1), [0.1], 1j]


def wrong_values(made, name):
    if name in COUNTS:
        return [0, -1]
    zero_is_wrong = name not in MAY_BE_ZERO and made not in (adamas.WarmUpLR, adamas.warmup_lr)
    return [-0.1, math.nan, math.inf, -math.inf] + ([0.0] if zero_is_wrong else [])


@pytest.mark.parametrize("made", EVERYTHING, ids=name_of)
def test_arguments_are_those_of_mindspore_in_its_order(made):
    by_name = made(**EVERYTHING[made])
    by_position = made(*EVERYTHING[made].values())
    if made in LISTS:
        assert by_position == by_name
    else:
        assert [by_position(step) for step in range(9)] == [by_name(step) for step in range(9)]
        assert vars(by_position) == EVERYTHING[made]


@pytest.mark.parametrize("made", EVERYTHING, ids=name_of)
def test_stairs_and_updates_are_off_unless_asked_for(made):
    required = {name: value for name, value in EVERYTHING[made].items() if name not in FLAGS}
    explicit = {name: name not in FLAGS and value for name, value in EVERYTHING[made].items()}
    if made in LISTS:
        assert made(**required) == made(**explicit)
    else:
        assert vars(made(**required)) == vars(made(**explicit))


@pytest.mark.parametrize(("made", "name"), arguments())
def test_wrong_type_names_argument_and_value(made, name):
    for value in wrong_types(name):
        with pytest.raises(TypeError) as caught:
            made(**{**EVERYTHING[made], name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} must be ")
        assert repr(value) in message


@pytest.mark.parametrize(("made", "name"), arguments(without=FLAGS))
def test_wrong_value_names_argument_and_value(made, name):
    for value in wrong_values(made, name):
        with pytest.raises(ValueError) as caught:
            made(**{**EVERYTHING[made], name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} must be ")
        assert repr(value) in message


@pytest.mark.parametrize("made", [adamas.CosineDecayLR, adamas.cosine_decay_lr], ids=name_of)
@pytest.mark.parametrize("min_lr", [0.1, 0.2])
def test_min_lr_must_be_below_max_lr(made, min_lr):
    with pytest.raises(ValueError, match=r"^max_lr must be > min_lr = 0\.[12], got 0\.1$"):
        made(**{**EVERYTHING[made], "min_lr": min_lr})


def test_numpy_scalars_serve_as_arguments():
    made = adamas.ExponentialDecayLR(np.float64(0.5), np.float32(0.25), np.int32(2), np.False_)
    assert [made(step) for step in range(3)] == [0.5, 0.25, 0.125]
    assert [type(value) for value in vars(made).values()] == [float, float, int, bool]


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_wrong_step_is_refused(cls):
    schedule = cls(**SCHEDULES[cls])
    for step in (1.0, True, None, "1"):
        with pytest.raises(TypeError, match=r"^step must be an int, got "):
            schedule(step)
    with pytest.raises(ValueError, match=r"^step must be an int >= 0, got -1 "):
        schedule(-1)
    with pytest.raises(ValueError, match=r"^step must be an int < 2\*\*63, got one of 64 bits"):
        schedule(2**63)


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_schedule_is_pure_and_returns_python_floats(cls):
    schedule = cls(**SCHEDULES[cls])
    forwards = [schedule(step) for step in range(20)]
    backwards = [schedule(np.int32(step)) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert {type(value) for value in forwards + backwards} == {float}


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_schedule_survives_pickle_and_copy(cls):
    schedule = cls(**SCHEDULES[cls])
    pickled = pickle.loads(pickle.dumps(schedule))  # noqa: S301
    for other in (pickled, copy.deepcopy(schedule)):
        assert type(other) is cls
        assert vars(other) == vars(schedule)
        assert other(5) == schedule(5)


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_repr_shows_the_arguments(cls):
    shown = ", ".join(f"{name}={value!r}" for name, value in SCHEDULES[cls].items())
    assert repr(cls(**SCHEDULES[cls])) == f"{cls.__name__}({shown})"


def test_growth_overflows_to_infinity():
    schedule = adamas.ExponentialDecayLR(0.1, decay_rate=10.0, decay_steps=1)
    assert schedule(300) == pytest.approx(1e299, rel=1e-12)
    for step in (309, 310, 10**6, 2**63 - 1):
        assert schedule(step) == math.inf
    stairs = adamas.ExponentialDecayLR(1e308, decay_rate=2.0, decay_steps=1, is_stair=True)
    assert stairs(1) == math.inf
    lr = adamas.exponential_decay_lr(0.1, 1e200, total_step=4, step_per_epoch=1, decay_epoch=1)
    assert lr[:2] == [0.1, pytest.approx(1e199)]
    assert lr[2:] == [math.inf, math.inf]


@pytest.mark.parametrize("cls", RATE_DECAYS, ids=name_of)
def test_decay_underflows_to_zero(cls):
    decay_rate = {adamas.ExponentialDecayLR: 1e-300}.get(cls, 1e300)
    schedule = cls(1e-300, decay_rate, decay_steps=1)
    assert schedule(2**63 - 1) == 0.0


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_periods_longer_than_any_float_raise_nothing(cls):
    arguments_of = {
        name: 10**400 if name in COUNTS else value for name, value in SCHEDULES[cls].items()
    }
    first = {adamas.WarmUpLR: 0.0}.get(cls, 0.1)
    assert cls(**arguments_of)(7) == pytest.approx(first, abs=1e-300)


@given(
    step=st.integers(0, 2**63 - 1),
    decay_steps=st.integers(1, 2**63),
    learning_rate=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
    decay_rate=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
    power=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
    flag=st.booleans(),
)
def test_no_argument_gives_nan_a_negative_rate_or_an_error(
    step, decay_steps, learning_rate, decay_rate, power, flag
):
    schedules = [cls(learning_rate, decay_rate, decay_steps, flag) for cls in RATE_DECAYS]
    schedules += [
        adamas.CosineDecayLR(0.0, learning_rate, decay_steps),
        adamas.PolynomialDecayLR(learning_rate, 0.0, decay_steps, power, flag),
        adamas.WarmUpLR(learning_rate, decay_steps),
    ]
    for schedule in schedules:
        assert schedule(step) >= 0.0


@given(st.integers(1, 10**18), st.integers(1, 1000))
def test_polynomial_with_updates_meets_its_end_after_every_period(decay_steps, periods):
    schedule = adamas.PolynomialDecayLR(0.5, 0.125, decay_steps, 2.0, True)
    step = min(decay_steps * periods, 2**63 - 1) // decay_steps * decay_steps
    assert schedule(step) == 0.125


@given(st.integers(0, 10**6), st.integers(1, 50))
def test_stairs_are_the_smooth_curve_at_the_start_of_the_period(step, decay_steps):
    for cls in RATE_DECAYS:
        stairs = cls(0.3, 0.01, decay_steps, True)
        smooth = cls(0.3, 0.01, decay_steps, False)
        assert stairs(step) == smooth(step - step % decay_steps)


@pytest.mark.parametrize(
    ("function", "cls"), list(zip(LISTS, SCHEDULES, strict=True)), ids=[f.__name__ for f in LISTS]
)
@pytest.mark.parametrize("step_per_epoch", [1, 2, 5, 100])
def test_list_is_the_schedule_in_epochs(function, cls, step_per_epoch):
    arguments_of = {**LISTS[function], "total_step": 23, "step_per_epoch": step_per_epoch}
    lr = function(**arguments_of)
    in_steps = {
        name.replace("epoch", "steps"): value
        for name, value in arguments_of.items()
        if name not in LENGTHS
    }
    schedule = cls(**in_steps)
    assert lr == [schedule(step // step_per_epoch) for step in range(23)]


def test_piecewise_constant_takes_tuples_equal_milestones_and_nothing():
    assert adamas.piecewise_constant_lr((1, 3), (0.5, 0.25)) == [0.5, 0.25, 0.25]
    assert adamas.piecewise_constant_lr([2, 2, 3], [0.1, 0.2, 0.3]) == [0.1, 0.1, 0.3]
    assert adamas.piecewise_constant_lr([], []) == []
    assert adamas.piecewise_constant_lr([np.int64(1)], [np.float32(0.5)]) == [0.5]


@pytest.mark.parametrize(
    ("milestone", "learning_rates", "error", "message"),
    [
        (3, [0.1], TypeError, "milestone must be a list or tuple, got int"),
        ([3], 0.1, TypeError, "learning_rates must be a list or tuple, got float"),
        (np.array([3]), [0.1], TypeError, "milestone must be a list or tuple, got ndarray"),
        ([3], iter([0.1]), TypeError, "learning_rates must be a list or tuple, got list_iterator"),
        ([3, 4], [0.1], ValueError, "must have the same length, got 2 and 1"),
        ([3, 4.0], [0.1, 0.2], TypeError, "milestone[1] must be an int, got 4.0 (float)"),
        ([True], [0.1], TypeError, "milestone[0] must be an int, got True (bool)"),
        ([3], [1], TypeError, "learning_rates[0] must be a float, got 1 (int)"),
        ([0], [0.1], ValueError, "milestone[0] must be an int >= 1, got 0 (int)"),
        ([3, 2], [0.1, 0.2], ValueError, "milestone[1] must be an int >= 3, got 2 (int)"),
        ([3], [math.nan], ValueError, "learning_rates[0] must be a finite number, got nan"),
    ],
)
def test_piecewise_constant_refuses(milestone, learning_rates, error, message):
    with pytest.raises(error) as caught:
        adamas.piecewise_constant_lr(milestone, learning_rates)
    assert message in str(caught.value)


@pytest.mark.parametrize("base", [adamas.LearningRateSchedule, adamas.WeightDecaySchedule])
def test_base_names_the_subclass_that_defines_nothing(base):
    class Forgetful(base):
        pass

    with pytest.raises(NotImplementedError, match=r"^Forgetful must define __call__\(step\)"):
        Forgetful()(0)
    assert callable(Forgetful())


@pytest.mark.parametrize("cls", SCHEDULES, ids=name_of)
def test_schedules_are_learning_rate_schedules(cls):
    assert issubclass(cls, adamas.LearningRateSchedule)
    assert not issubclass(cls, adamas.WeightDecaySchedule)
