"""Parameters that come later: the others keep memory, steps and bits, and the new ones begin.

The references are optimizers that each have the parameters that came together.
"""

import copy

import numpy as np
import pytest

import adamas
from helpers import Falling, bits, check_refused, check_same_states
from rules import DTYPES, MOMENTS, STATE_DTYPES, every, every_numerics

FIRST = {"weight": (5, 3), "gamma": (7,)}
LATER = {"adapter": (3, 4), "norm.beta": ()}
BASE = {"learning_rate": 0.02, "weight_decay": 0.05, "beta1": 0.8}


def numbers_of(name, shape, dtype, step=-1):
    rng = np.random.default_rng([step + 1, *name.encode()])
    return np.array(rng.standard_normal(shape), dtype)


def make_params(shapes, dtype=np.float32):
    return [
        adamas.Parameter(numbers_of(name, shape, dtype), name) for name, shape in shapes.items()
    ]


def grad_of(param, step):
    return numbers_of(param.name, param.shape, param.dtype, step)


def steps(optimizer, start, count):
    for step in range(start, start + count):
        optimizer([grad_of(param, step) for param in optimizer.parameters])


def check_same(optimizer, *parts):
    """The optimizer has the bits of others side by side."""
    assert [p.name for p in optimizer.parameters] == [p.name for o in parts for p in o.parameters]
    for kind in ("parameters", "moment1", "moment2"):
        theirs = [array for other in parts for array in getattr(other, kind)]
        for mine, wanted in zip(getattr(optimizer, kind), theirs, strict=True):
            np.testing.assert_array_equal(bits(np.asarray(mine)), bits(np.asarray(wanted)))
    assert optimizer.steps == [step for other in parts for step in other.steps]


@every_numerics
@every("dtype", DTYPES)
@every("options", MOMENTS)
def test_added_parameters_are_like_an_optimizer_beside_the_first(options, dtype, numerics):
    options = {**BASE, **options, "numerics": numerics}
    optimizer = adamas.Adam(make_params(FIRST, dtype), **options)
    first = adamas.Adam(make_params(FIRST, dtype), **options)
    later = adamas.Adam(make_params(LATER, dtype), **options)
    for one in (optimizer, first):
        steps(one, 0, 3)
    optimizer.add(make_params(LATER, dtype))
    assert (optimizer.global_step, optimizer.steps) == (3, [3, 3, 0, 0])
    for one in (optimizer, first, later):
        steps(one, 3, 3)
    check_same(optimizer, first, later)
    assert len(optimizer) == 4
    assert len(optimizer.groups) == 1


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_random_bits_of_the_others_stay(state_dtype):
    options = {**BASE, "state_dtype": state_dtype, "seed": 3}
    optimizer = adamas.Adam(make_params(FIRST), **options)
    first, later = (adamas.Adam(make_params(shapes), **options) for shapes in (FIRST, LATER))
    steps(optimizer, 0, 2)
    optimizer.add(make_params(LATER))
    steps(first, 0, 2)
    for one in (optimizer, first, later):
        steps(one, 2, 2)
    check_same(optimizer, first, later)


def test_state_of_the_others_stays_where_it_is():
    optimizer = adamas.Adam(make_params(FIRST), **BASE)
    steps(optimizer, 0, 1)
    before = [*optimizer.moment1, *optimizer.moment2]
    values = [array.copy() for array in before]
    nbytes = optimizer.state_nbytes
    optimizer.add(make_params(LATER))
    after = [*optimizer.moment1[:2], *optimizer.moment2[:2]]
    for mine, old, value in zip(after, before, values, strict=True):
        assert np.shares_memory(mine, old)
        np.testing.assert_array_equal(mine, value)
    assert optimizer.state_nbytes > nbytes
    steps(optimizer, 1, 1)
    assert (before[0] != values[0]).any()


FORMS = {
    "Parameter": lambda array: adamas.Parameter(array, "new"),
    "array": lambda array: array,
    "list": lambda array: [array],
    "generator": lambda array: (one for one in [array]),
    "dict": lambda array: {"new": array},
    "dict of dicts": lambda array: {"new": {"er": array}},
    "group": lambda array: {"params": [array]},
    "group of a dict": lambda array: {"params": {"new": array}},
    "groups": lambda array: [{"params": [array]}, {"params": [np.ones(2)]}],
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form(form, grouped):
    params = make_params(FIRST)
    optimizer = adamas.Adam([{"params": params}] if grouped else params, **BASE)
    array = np.ones(3, np.float32)
    optimizer.add(form(array))
    assert optimizer.parameters[2].data is array
    optimizer([np.ones(p.shape, p.dtype) for p in optimizer.parameters])
    assert (array < 1).all()


def test_names_by_position():
    optimizer = adamas.Adam([np.ones(2), np.ones(3)])
    optimizer.add([np.ones(4), adamas.Parameter(np.ones(5), "param3")])
    assert list(optimizer.state_dict()["parameters"]) == ["param0", "param1", "param2", "param3"]
    optimizer.add(np.ones(6))
    assert list(optimizer.state_dict()["parameters"])[4] == "param4"


def test_a_group_of_its_own():
    optimizer = adamas.Adam(make_params(FIRST), **BASE)
    views = optimizer.groups
    optimizer.add({"params": make_params(LATER), "lr": 0.5, "beta1": 0.7, "use_amsgrad": True})
    assert [group.lr for group in optimizer.groups] == [0.02, 0.5]
    assert [group.beta1 for group in optimizer.groups] == [0.8, 0.7]
    assert optimizer.get_lr() == (0.02, 0.02, 0.5, 0.5)
    assert [v is None for v in optimizer.vhat] == [True, True, False, False]
    views[0].lr = 0.25
    optimizer.groups[1].lr = Falling()
    assert optimizer.get_lr() == (0.25, 0.25, 0.02, 0.02)
    first = adamas.Adam(make_params(FIRST), **{**BASE, "learning_rate": 0.25})
    own = {"learning_rate": Falling(), "beta1": 0.7, "use_amsgrad": True}
    later = adamas.Adam([{"params": make_params(LATER)}], **{**BASE, **own})
    for one in (optimizer, first, later):
        steps(one, 0, 3)
    check_same(optimizer, first, later)


def test_options_that_were_set_are_those_of_what_comes():
    optimizer = adamas.Adam([{"params": make_params(FIRST)}], **BASE)
    optimizer.learning_rate = 0.5
    optimizer.beta2 = 0.9
    optimizer.groups[0].eps = 1e-3  # of this group alone
    optimizer.add(make_params(LATER))
    group = optimizer.groups[1]
    assert (group.lr, group.beta2, group.eps) == (0.5, 0.9, 1e-8)
    assert optimizer.get_weight_decay() == (0.05,) * 4


def test_undecayed_names_without_groups():
    optimizer = adamas.Adam(make_params({"weight": (3,)}), 1.0, weight_decay=0.5,
                            decoupled_weight_decay=True)  # fmt: skip
    optimizer.add(make_params(LATER))
    before = [np.array(p) for p in optimizer.parameters]
    optimizer([np.zeros(p.shape, np.float32) for p in optimizer.parameters])
    pairs = zip(optimizer.parameters, before, strict=True)
    assert [bool((np.asarray(p) != old).any()) for p, old in pairs] == [True, True, False]


def test_schedules_are_asked_at_the_step_of_the_optimizer():
    optimizer = adamas.Adam(make_params(FIRST), Falling())
    steps(optimizer, 0, 3)
    optimizer.add(make_params(LATER))
    assert optimizer.get_lr() == Falling()(3)
    assert optimizer.get_lr_parameter(optimizer.parameters[3]) == Falling()(3)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}, {"max_grad_norm": 0.5}])
def test_states_and_copies(options):
    """A grown optimizer's state is that of one that was made with all."""
    grown = adamas.Adam(make_params(FIRST), **BASE, **options)
    steps(grown, 0, 2)
    grown.add(make_params(LATER))
    steps(grown, 2, 2)
    whole = adamas.Adam(make_params(FIRST | LATER), **BASE, **options)
    whole.load_state_dict(grown.state_dict(parameters=True))
    twin = copy.deepcopy(grown)
    for one in (grown, whole, twin):
        steps(one, 4, 2)
    check_same_states(whole, grown)
    check_same_states(twin, grown)
    assert grown.steps == [6, 6, 4, 4]


def test_steps_in_parts_know_the_new_ones():
    optimizer, whole = (adamas.Adam(make_params(FIRST), **BASE) for _ in range(2))
    for one in (optimizer, whole):
        one.add(make_params(LATER))
    steps(whole, 0, 1)
    optimizer.begin_step()
    for param in reversed(optimizer.parameters):
        optimizer.apply(param, grad_of(param, 0))
    optimizer.end_step()
    check_same_states(optimizer, whole)


def test_state_of_the_callers_comes_with_a_parameter():
    optimizer = adamas.Adam(make_params(FIRST), **BASE)
    moment1 = np.full(3, 0.5, np.float32)
    param = adamas.Parameter(np.ones(3, np.float32), "new", moment1=moment1)
    optimizer.add(param)
    optimizer({"new": np.ones(3, np.float32)})
    assert np.shares_memory(optimizer.moment1[2], moment1)
    np.testing.assert_allclose(moment1, 0.8 * 0.5 + 0.2 * (1 + 0.05), rtol=1e-6)
    bad = adamas.Parameter(np.ones(3, np.float32), "bad", vhat=np.ones(3, np.float32))
    check_refused(optimizer, lambda: optimizer.add(bad), ValueError, "state", "bad")


@pytest.mark.parametrize("options", [{"use_locking": True}, {"num_threads": 3}, {"ema_decay": 0.9}])
def test_ways_to_run(options):
    optimizer = adamas.Adam(make_params(FIRST), **BASE, **options)
    optimizer.add(make_params(LATER))
    whole = adamas.Adam(make_params(FIRST | LATER), **BASE, **options)
    for one in (optimizer, whole):
        steps(one, 0, 3)
    check_same_states(optimizer, whole)


SHARED = np.ones(8, np.float32)


def refused():
    ones = np.ones(3, np.float32)
    return {
        "nothing": (lambda _: [], ValueError, "at least one"),
        "None": (lambda _: None, TypeError, "params"),
        "number": (lambda _: [1.0], TypeError, "params[0]"),
        "a parameter that is there": (lambda o: o.parameters[0], ValueError, "weight"),
        "and in a group": (lambda o: {"params": o.parameters[:1]}, RuntimeError, "weight"),
        "a name that is there": (lambda _: {"weight": ones}, ValueError, "'weight'"),
        "the same twice": (lambda _: [SHARED, SHARED], ValueError, "memory"),
        "memory that is there": (lambda o: [o.parameters[0].data], ValueError, "memory"),
        "a part of it": (lambda o: [o.parameters[1].data[1:]], ValueError, "memory"),
        "memory of the state": (lambda o: [o.moment1[0]], ValueError, "memory"),
        "read-only": (lambda _: [np.broadcast_to(ones, (2, 3))], ValueError, "params[0]"),
        "unknown key": (lambda _: {"params": [ones], "betas": 1}, KeyError, "betas"),
        "order": (
            lambda o: [{"params": [ones]}, {"order_params": o.parameters}],
            KeyError,
            "order",
        ),
        "bad lr": (lambda _: {"params": [ones], "lr": -1.0}, ValueError, "['lr']"),
        "bad beta1": (lambda _: {"params": [ones], "beta1": 1}, TypeError, "['beta1']"),
        "groups and arrays": (lambda _: [{"params": [ones]}, ones], TypeError, "params[1]"),
        "arrays and groups": (lambda _: [ones, {"params": [ones]}], TypeError, "params[1]"),
        "bad eps": (lambda _: {"params": [ones], "eps": 1e-46}, ValueError, "eps"),
        "integers": (lambda _: np.ones(3, int), TypeError, "float"),
    }


@pytest.mark.parametrize(("make", "error", "fragment"), refused().values(), ids=refused())
def test_what_can_not_be_added(make, error, fragment):
    optimizer = adamas.Adam(make_params(FIRST), **BASE, numerics="standard")
    steps(optimizer, 0, 2)
    twin = copy.deepcopy(optimizer)
    before = repr(optimizer), optimizer.steps
    check_refused(optimizer, lambda: optimizer.add(make(optimizer)), error, fragment)
    assert (repr(optimizer), optimizer.steps) == before
    for one in (optimizer, twin):
        steps(one, 2, 1)
        one.add(make_params(LATER))
        steps(one, 3, 1)
    check_same_states(optimizer, twin)


def test_an_open_step():
    optimizer = adamas.Adam(make_params(FIRST), **BASE)
    optimizer.begin_step()
    later = make_params(LATER)
    check_refused(optimizer, lambda: optimizer.add(later), RuntimeError, "step")
    optimizer.cancel_step()
    optimizer.add(later)
    assert len(optimizer) == 4


def test_amsgrad_with_lazy_rows():
    optimizer = adamas.Adam(make_params(FIRST), use_lazy=True)
    later = {"params": make_params(LATER), "use_amsgrad": True}
    check_refused(optimizer, lambda: optimizer.add(later), ValueError, "use_amsgrad")


def test_a_group_with_a_norm_is_not_split():
    optimizer = adamas.Adam(make_params({"weight": (3,)}), **BASE)
    optimizer.groups[0].max_grad_norm = 1.0
    later = make_params(LATER)
    check_refused(optimizer, lambda: optimizer.add(later), ValueError, "groups[0].max_grad_norm")
    optimizer.add({"params": later})
    steps(optimizer, 0, 1)


def test_gradients_of_the_new_ones_are_wanted():
    optimizer = adamas.Adam(make_params(FIRST), **BASE)
    optimizer.add(make_params(LATER))
    grads = [grad_of(param, 0) for param in optimizer.parameters]
    check_refused(optimizer, lambda: optimizer(grads[:2]), ValueError, "4", "2")
    optimizer({"weight": grads[0]})
    assert optimizer.steps == [1, 0, 0, 0]


def test_on_a_device(emulated_device):
    from emulation import FakeArray

    def on_device(shapes):
        return [adamas.Parameter(FakeArray(np.asarray(p)), p.name) for p in make_params(shapes)]

    device = adamas.Adam(on_device(FIRST), **BASE)
    host = adamas.Adam(make_params(FIRST), **BASE)
    for step in range(4):
        if step == 2:
            device.add(on_device(LATER))
            host.add(make_params(LATER))
        grads = [grad_of(param, step) for param in host.parameters]
        host(grads)
        device([FakeArray(grad) for grad in grads])
    for mine, theirs in zip(device.moment1, host.moment1, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)
    assert device.steps == host.steps == [4, 4, 2, 2]
