"""Rates that are set between steps, groups as live views, and attributes that there are not."""

import itertools
import threading
from types import MappingProxyType

import numpy as np
import pytest

import adamas
from helpers import Falling, Rising, check_refused, check_same_states, everything, run_threads

NAMES = ("conv.weight", "norm.gamma", "bias")
SHAPES = ((3, 2), (), (17,))


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return [
        adamas.Parameter(np.array(rng.standard_normal(shape), np.float32), name)
        for name, shape in zip(NAMES, SHAPES, strict=True)
    ]


def make(grouped=False, **options):
    params = make_params()
    if not grouped:
        return adamas.Adam(params, **options)
    dicts = [
        {"params": [params[2]], "lr": 0.3, "weight_decay": 0.2},
        {"params": params[:2]},
        {"order_params": params},
    ]
    return adamas.Adam(dicts, **options)


def take_step(optimizer):
    rng = np.random.default_rng(optimizer.global_step)
    optimizer([np.array(rng.standard_normal(shape), np.float32) for shape in SHAPES])


def steps(optimizer, count):
    for _ in range(count):
        take_step(optimizer)


# Rates of the optimizer


def endless():
    return itertools.chain([0.4, 0.5, 0.1], itertools.repeat(0.2))


LATER_RATES = {
    "float": (lambda: 0.25, [0.25, 0.25]),
    "int": (lambda: 1, [1.0, 1.0]),
    "NumPy scalar": (lambda: np.float32(0.5), [0.5, 0.5]),
    "0-d array": (lambda: np.array(0.5), [0.5, 0.5]),
    "schedule": (Falling, [0.02 / 3, 0.02 / 4]),
    "list": (lambda: [9.0, 9.0, 0.3, 0.4], [0.3, 0.4]),
    "array": (lambda: np.array([9.0, 9.0, 0.25, 0.5]), [0.25, 0.5]),
    "iterator": (endless, [0.1, 0.2]),
}


@pytest.mark.parametrize("use_locking", [False, True])
@pytest.mark.parametrize(("later", "values"), LATER_RATES.values(), ids=LATER_RATES)
def test_a_learning_rate_of_each_form_holds_from_the_next_step_on(later, values, use_locking):
    """With the bits of an optimizer that was given all values in advance."""
    changed = make(learning_rate=0.1, weight_decay=0.05, use_locking=use_locking)
    steps(changed, 2)
    changed.learning_rate = later()
    assert changed.get_lr() == values[0]
    steps(changed, 2)
    planned = make(learning_rate=[0.1, 0.1, *values], weight_decay=0.05)
    steps(planned, 4)
    check_same_states(changed, planned)


@pytest.mark.parametrize("before", [0.1, [0.1, 0.1, 0.1, 0.1], lambda: Falling()])
def test_a_number_takes_the_place_of_any_form(before):
    changed = make(learning_rate=before() if callable(before) else before)
    steps(changed, 2)
    changed.learning_rate = 0.5
    changed.learning_rate = 0.25
    steps(changed, 2)
    first = [0.02, 0.01] if callable(before) else [0.1, 0.1]
    planned = make(learning_rate=[*first, 0.25, 0.25])
    steps(planned, 4)
    check_same_states(changed, planned)


@pytest.mark.parametrize("later", [0.3, 0, Rising(), lambda step: 0.1 * step])
def test_a_weight_decay_holds_from_the_next_step_on(later):
    changed = make(weight_decay=0.1)
    steps(changed, 2)
    changed.weight_decay = later
    expected = later(2) if callable(later) else later
    assert changed.get_weight_decay() == expected
    steps(changed, 2)
    planned = make(weight_decay=lambda s: 0.1 if s < 2 else later(s) if callable(later) else later)
    steps(planned, 4)
    check_same_states(changed, planned)


def test_weight_decay_skips_beta_and_gamma_also_when_it_is_set():
    optimizer = make(learning_rate=1.0, decoupled_weight_decay=True)
    optimizer.weight_decay = 0.5
    before = [np.array(p) for p in optimizer.parameters]
    optimizer([np.zeros(shape, np.float32) for shape in SHAPES])
    moved = [bool((np.asarray(p) != b).any()) for p, b in zip(optimizer.parameters, before)]  # noqa: B905
    assert moved == [True, False, True]


def test_what_was_given_can_be_read():
    schedule, decay, iterator = Falling(), Rising(), iter([0.1])
    optimizer = make(learning_rate=1, weight_decay=decay)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1.0, decay)
    assert type(optimizer.learning_rate) is float
    for value, read in [(schedule, schedule), (iterator, iterator), (np.ones(2), [1.0, 1.0])]:
        optimizer.learning_rate = value
        assert optimizer.learning_rate == read


def test_a_list_that_is_read_or_given_is_a_copy():
    given = [0.1, 0.2]
    optimizer = make(learning_rate=given)
    given[0] = optimizer.learning_rate[0] = 9.0
    assert optimizer.get_lr() == 0.1
    optimizer.learning_rate = given
    assert optimizer.get_lr() == 9.0


BAD_RATES = {
    "negative": (-0.1, ValueError, "-0.1"),
    "NaN": (float("nan"), ValueError, "nan"),
    "infinite": (float("inf"), ValueError, "inf"),
    "bool": (True, TypeError, "bool"),
    "str": ("0.1", TypeError, "str"),
    "None": (None, TypeError, "None"),
    "dict": ({0: 0.1}, TypeError, "dict"),
}
BAD_LEARNING_RATES = {
    **BAD_RATES,
    "empty": ([], ValueError, "empty"),
    "two axes": (np.ones((2, 2)), ValueError, "(2, 2)"),
    "bad item": ([0.1, -1.0], ValueError, "[1]"),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("value", "error", "fragment"), BAD_LEARNING_RATES.values(),
                         ids=BAD_LEARNING_RATES)  # fmt: skip
def test_a_bad_learning_rate(value, error, fragment, grouped):
    optimizer = make(grouped, learning_rate=0.1)
    take_step(optimizer)
    before = optimizer.get_lr()
    set_rate = lambda: setattr(optimizer, "learning_rate", value)  # noqa: E731
    check_refused(optimizer, set_rate, error, "learning_rate", fragment)
    group = optimizer.groups[-1]
    name = f"groups[{int(grouped)}].lr"
    check_refused(optimizer, lambda: setattr(group, "lr", value), error, name, fragment)
    assert optimizer.get_lr() == before
    take_step(optimizer)


@pytest.mark.parametrize(("value", "error", "fragment"), BAD_RATES.values(), ids=BAD_RATES)
def test_a_bad_weight_decay(value, error, fragment):
    optimizer = make(True, weight_decay=0.1)
    take_step(optimizer)
    before = optimizer.get_weight_decay()
    set_decay = lambda: setattr(optimizer, "weight_decay", value)  # noqa: E731
    check_refused(optimizer, set_decay, error, "weight_decay", fragment)
    group = optimizer.groups[0]
    name = "groups[0].weight_decay"
    check_refused(optimizer, lambda: setattr(group, "weight_decay", value), error, name, fragment)
    assert optimizer.get_weight_decay() == before
    take_step(optimizer)


@pytest.mark.parametrize("use_locking", [False, True])
def test_rates_set_beside_steps_are_never_torn_or_lost(use_locking):
    """Each step uses one of the rates that were set, and in the end the last one holds."""
    optimizer = make(True, use_locking=use_locking, num_threads=1)
    done = threading.Event()

    def set_rates():
        for i in range(2000):
            optimizer.groups[i % 2].lr = 0.001 * (1 + i % 7)
            optimizer.groups[i % 2].weight_decay = Rising() if i % 3 else 0.0
        optimizer.learning_rate = 0.5
        done.set()

    def make_steps():
        while not done.is_set():
            take_step(optimizer)

    run_threads(set_rates, make_steps)
    assert optimizer.get_lr() == (0.5, 0.5, 0.5)
    optimizer.weight_decay = 0.0
    before = [np.array(p) for p in optimizer.parameters]
    fresh = make(learning_rate=0.5)
    for mine, saved in zip(fresh.parameters, before, strict=True):
        np.asarray(mine)[...] = saved
    for kind in ("moment1", "moment2"):
        for mine, other in zip(getattr(fresh, kind), getattr(optimizer, kind), strict=True):
            mine[...] = other
    fresh.global_step = optimizer.global_step
    take_step(fresh)
    take_step(optimizer)
    check_same_states(fresh, optimizer)


# Groups


def test_groups_are_live_views():
    optimizer = make(True, learning_rate=0.1, weight_decay=0.01)
    first, second = optimizer.groups
    assert [p.name for p in first.parameters] == ["bias"]
    assert [p.name for p in second.parameters] == ["conv.weight", "norm.gamma"]
    assert (first.lr, second.lr, first.weight_decay, second.weight_decay) == (0.3, 0.1, 0.2, 0.01)
    first.lr = 0.7
    second.weight_decay = 0.5
    assert optimizer.groups[0].lr == 0.7
    assert optimizer.get_lr() == (0.1, 0.1, 0.7)
    assert optimizer.get_weight_decay() == (0.5, 0.5, 0.2)
    assert optimizer.get_lr_parameter(optimizer.parameters[2]) == 0.7
    assert not first.grad_centralization


def test_groups_compare_by_what_they_are():
    one, other = make(True), make(True)
    assert one.groups == one.groups
    assert one.groups[0] != one.groups[1]
    assert one.groups[0] != other.groups[0]
    assert one.groups[0] != "group"
    assert len({*one.groups, *one.groups}) == 2


def test_setting_a_group_has_the_bits_of_having_made_it_so():
    changed, planned = make(True, learning_rate=0.1), make(True, learning_rate=0.1)
    steps(changed, 2)
    changed.groups[0].lr = Falling()
    changed.groups[1].lr = 0.05
    changed.groups[1].weight_decay = 0.3
    steps(changed, 2)
    params = planned.parameters
    planned = adamas.Adam(
        [
            {"params": [params[2]], "lr": [0.3, 0.3, Falling()(2), Falling()(3)],
             "weight_decay": 0.2},
            {"params": params[:2], "lr": [0.1, 0.1, 0.05, 0.05],
             "weight_decay": lambda step: 0.0 if step < 2 else 0.3},
            {"order_params": params},
        ]
    )  # fmt: skip
    steps(planned, 4)
    check_same_states(changed, planned)


def test_without_groups_there_is_one():
    optimizer = make(learning_rate=0.1, weight_decay=0.2)
    (group,) = optimizer.groups
    assert group.parameters == optimizer.parameters
    group.lr = 0.3
    group.weight_decay = 0.4
    assert (optimizer.learning_rate, optimizer.get_lr()) == (0.3, 0.3)
    assert (optimizer.weight_decay, optimizer.get_weight_decay()) == (0.4, 0.4)


def test_what_is_set_for_the_optimizer_is_for_all_groups():
    optimizer = make(True, learning_rate=0.1)
    with pytest.raises(AttributeError, match=r"groups\[i\].lr"):
        optimizer.learning_rate  # noqa: B018
    with pytest.raises(AttributeError, match=r"groups\[i\].weight_decay"):
        optimizer.weight_decay  # noqa: B018
    optimizer.learning_rate = 0.6
    optimizer.weight_decay = 0.5
    assert [group.lr for group in optimizer.groups] == [0.6, 0.6]
    assert optimizer.get_weight_decay() == (0.5, 0.5, 0.5)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.6, 0.5)


class Counted(adamas.LearningRateSchedule):
    def __init__(self):
        self.asked = []

    def __call__(self, step):
        self.asked.append(step)
        return 0.1


def test_a_schedule_that_is_set_in_two_groups_is_asked_once_per_step():
    optimizer, schedule = make(True), Counted()
    for group in optimizer.groups:
        group.lr = schedule
    steps(optimizer, 3)
    assert schedule.asked == [0, 1, 2]


def test_an_iterator_that_is_set_in_two_groups_gives_both_the_same():
    optimizer, rates = make(True), iter([0.1, 0.2, 0.3])
    for group in optimizer.groups:
        group.lr = rates
    assert optimizer.get_lr() == (0.1, 0.1, 0.1)
    take_step(optimizer)
    assert optimizer.get_lr() == (0.2, 0.2, 0.2)


def test_rates_can_be_set_in_a_step_in_parts():
    """The open step keeps those that it was begun with."""
    optimizer, whole = make(learning_rate=0.1), make(learning_rate=0.1)
    take_step(whole)
    optimizer.begin_step()
    optimizer.learning_rate = 5.0
    rng = np.random.default_rng(0)
    for param in optimizer.parameters:
        optimizer.apply(param, np.array(rng.standard_normal(param.shape), np.float32))
    optimizer.end_step()
    check_same_states(optimizer, whole)
    assert optimizer.get_lr() == 5.0


# Attributes that there are not


def settable_things():
    optimizer = make()
    return [optimizer, adamas.AdamWeightDecay(make_params()), optimizer.groups[0]]


@pytest.mark.parametrize("thing", settable_things(), ids=lambda thing: type(thing).__name__)
@pytest.mark.parametrize("name", ["learning_rat", "lrs", "betas", "param_groups", "weightdecay"])
def test_an_unknown_attribute_is_refused_and_what_exists_is_named(thing, name):
    with pytest.raises(AttributeError) as caught:
        setattr(thing, name, 0.5)
    assert name in str(caught.value)
    assert "weight_decay" in str(caught.value)
    assert not hasattr(thing, name)


@pytest.mark.parametrize("name", ["shape", "data", "grad", "Name"])
def test_attributes_of_parameters(name):
    parameter = adamas.Parameter(np.ones(3, np.float32), "weight")
    with pytest.raises(AttributeError, match=f"Parameter.{name} (can't be set|does not exist)"):
        setattr(parameter, name, 1)


def test_lr_of_an_optimizer_is_refused():
    optimizer = make()
    setter = lambda: setattr(optimizer, "lr", 0.5)  # noqa: E731
    check_refused(optimizer, setter, AttributeError, "Adam.lr", "learning_rate")


@pytest.mark.parametrize(
    "name", ["moment1", "parameters", "groups", "state_nbytes", "skipped_steps", "step", "get_lr"]
)
def test_what_can_only_be_read(name):
    optimizer = make()
    setter = lambda: setattr(optimizer, name, 0.5)  # noqa: E731
    check_refused(optimizer, setter, AttributeError, name, "can't be set")


def test_a_users_subclass_has_attributes_of_its_own():
    class Mine(adamas.Adam):
        def __init__(self, params, history):
            super().__init__(params)
            self.history = history

    optimizer = Mine(make_params(), [])
    optimizer.note = "mine"
    assert (optimizer.history, optimizer.note) == ([], "mine")
    with pytest.raises(AttributeError, match="moment1"):
        optimizer.moment1 = []


@pytest.mark.parametrize("thing", settable_things(), ids=lambda thing: type(thing).__name__)
def test_completion_shows_what_users_use(thing):
    names = dir(thing)
    assert "weight_decay" in names
    assert "__init__" in names
    assert not [name for name in names if name.startswith("_") and not name.startswith("__")]


# Arrays by name


def named_arrays():
    return [np.array(p) for p in make_params()]


def test_bare_arrays_are_parameters():
    arrays = named_arrays()
    optimizer = adamas.Adam(arrays, 0.1)
    take_step(optimizer)
    wanted = adamas.Adam([adamas.Parameter(array) for array in named_arrays()], 0.1)
    take_step(wanted)
    check_same_states(optimizer, wanted)
    assert [p.data is array for p, array in zip(optimizer.parameters, arrays, strict=True)]
    assert list(optimizer.state_dict()["parameters"]) == ["param0", "param1", "param2"]


def nested(values):
    weight, gamma, bias = values
    return {"conv": {"weight": weight}, "norm": {"gamma": gamma}, "bias": bias}


def test_a_dict_of_dicts_names_its_arrays():
    optimizer = adamas.Adam(nested(named_arrays()), 0.1, weight_decay=0.3)
    assert [p.name for p in optimizer.parameters] == list(NAMES)
    wanted = make(learning_rate=0.1, weight_decay=0.3)
    take_step(optimizer)
    take_step(wanted)
    check_same_states(optimizer, wanted)


def test_a_group_may_hold_a_dict():
    weight, gamma, bias = named_arrays()
    groups = [{"params": {"conv": {"weight": weight}, "norm.gamma": gamma}, "lr": 0.1},
              {"params": [bias]}]  # fmt: skip
    optimizer = adamas.Adam(groups)
    assert [p.name for p in optimizer.parameters] == ["conv.weight", "norm.gamma", None]
    assert list(optimizer.state_dict()["parameters"])[2] == "param2"


def test_gradients_by_name_in_any_order():
    by_name, listed = make(learning_rate=0.1), make(learning_rate=0.1)
    for step in range(3):
        rng = np.random.default_rng(step)
        grads = [np.array(rng.standard_normal(shape), np.float32) for shape in SHAPES]
        listed(grads)
        tree = nested(grads)
        by_name(dict(reversed(tree.items())) if step else dict(zip(NAMES, grads, strict=True)))
    check_same_states(by_name, listed)


@pytest.mark.parametrize("use_locking", [False, True])
def test_schedules_are_asked_once_for_gradients_by_name(use_locking):
    schedule = Counted()
    optimizer = make(learning_rate=schedule, use_locking=use_locking)
    for _ in range(3):
        optimizer(dict(zip(NAMES, [np.ones(shape, np.float32) for shape in SHAPES], strict=True)))
    assert schedule.asked == [0, 1, 2]


def test_gradients_by_name_in_a_mapping_of_another_kind():
    optimizer = make()
    optimizer(MappingProxyType({"bias": np.ones(17, np.float32)}))
    assert optimizer.steps == [0, 0, 1]


def test_parameters_without_a_name_have_that_of_their_position():
    weight = np.ones(3, np.float32)
    optimizer = adamas.Adam([weight], 0.1)
    optimizer({"param0": np.ones(3, np.float32)})
    assert optimizer.global_step == 1
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("grads", "error", "fragments"),
    [
        ({"bias.weight": 1.0}, KeyError, ["'bias.weight'", "'conv.weight', 'norm.gamma', 'bias'"]),
        ({"conv": {"weights": 1.0}}, KeyError, ["'conv.weights'"]),
        ({"conv": {0: 1.0}}, TypeError, ["grads", "strings", "0 (int)"]),
        ({0: 1.0}, TypeError, ["grads", "strings", "0 (int)"]),
        ({"conv.weight": 1.0, "conv": {"weight": 2.0}}, ValueError, ["conv.weight", "twice"]),
        ({"bias": [1.0]}, TypeError, ["grads["]),
    ],
)
def test_gradients_with_bad_names(grads, error, fragments):
    optimizer = make()
    take_step(optimizer)
    good = dict(zip(NAMES, [np.ones(shape, np.float32) for shape in SHAPES], strict=True))
    check_refused(optimizer, lambda: optimizer({**good, **grads}), error, *fragments)
    take_step(optimizer)


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("params", "error", "fragments"),
    [
        (np.ones((2, 3), np.float32), TypeError, ["params", "put it in []"]),
        ({"w": adamas.Parameter(ONES)}, TypeError, ["params['w']", "Parameter"]),
        ({"w": [1.0, 2.0]}, TypeError, ["params['w']", "list"]),
        ({"a": {"w": 1.0}}, TypeError, ["params['a.w']", "float"]),
        ({1: ONES}, TypeError, ["params", "strings", "1 (int)"]),
        ({"a.w": ONES, "a": {"w": np.ones(3)}}, ValueError, ["'a.w'", "twice"]),
        ({}, ValueError, ["at least one parameter"]),
        ({"a": {}}, ValueError, ["at least one parameter"]),
        ({"params": [ONES], "lr": 0.1}, TypeError, ["list of groups"]),
        ([{"params": {"w": ONES}}, {"params": {"w": np.ones(3)}}], ValueError, ["'w'", "twice"]),
        ([{"params": ONES}], TypeError, ["params[0]['params']", "put it in []"]),
        ([ONES, np.ones((3, 3))[:, 1]], ValueError, ["params[1]", "C-contiguous"]),
        ([ONES, ONES[1:]], ValueError, ["param"]),
        ([ONES, {"params": [ONES]}], TypeError, ["params[1]", "dict"]),
    ],
)
def test_bad_arrays_as_parameters(params, error, fragments):
    with pytest.raises(error) as caught:
        adamas.Adam(params)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert (ONES == 1).all()


def test_refusals_leave_everything():
    """What `everything` looks at does change in a step."""
    optimizer = make()
    before = everything(optimizer)
    take_step(optimizer)
    assert everything(optimizer) != before
