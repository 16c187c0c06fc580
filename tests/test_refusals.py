"""Every refusal: what it raises, that it names the argument, and that nothing has changed.

And the opposite: what looks odd but is accepted, with the bits of the plain call.
"""

import array
import inspect
import math
import pickle

import numpy as np
import pytest

import adamas
from helpers import parameters, replaced
from rules import every_real

SHAPES = ((4, 3), (), (5,))
POSITIONS = range(len(SHAPES))
NAN, INF = math.nan, math.inf


def make_arrays(dtype=np.float32, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), dtype) for shape in shapes]


def one_parameter():
    return [adamas.Parameter(np.ones(3, np.float32), "weight")]


def make_optimizer(arrays=None, **options):
    """Return an optimizer with every kind of state, none of it zero."""
    arrays = make_arrays() if arrays is None else arrays
    optimizer = adamas.Adam(parameters(arrays), use_amsgrad=True, weight_decay=0.01, **options)
    for state in (*optimizer.moment1, *optimizer.moment2, *optimizer.vhat):
        state[...] = np.random.default_rng(9).random(state.shape)
    return optimizer


def snapshot(optimizer):
    """Return the bits of everything that a step changes."""
    arrays = [np.asarray(param) for param in optimizer.parameters]
    arrays += [*optimizer.moment1, *optimizer.moment2, *optimizer.vhat]
    return [a.tobytes() for a in arrays], optimizer.global_step


def check_refused(optimizer, grads, error, *fragments):
    """A call raises, says what is wrong, changes nothing, and the next one works."""
    before = snapshot(optimizer)
    with pytest.raises(error) as caught:
        optimizer(grads)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert snapshot(optimizer) == before
    return caught.value


def check_still_works(optimizer, grads):
    """A call makes one step, which moves every parameter."""
    before, step = snapshot(optimizer)
    assert optimizer(grads) is True
    after, step_after = snapshot(optimizer)
    assert step_after == step + 1
    assert all(after[i] != before[i] for i in range(len(grads)))


# Gradients


BAD_GRADS = {
    "shape": (lambda g: np.zeros((*g.shape, 2), g.dtype), ValueError, "shape"),
    "one element more": (lambda g: np.zeros(g.size + 1, g.dtype), ValueError, "shape"),
    "broadcastable": (lambda g: np.zeros((1, *g.shape), g.dtype), ValueError, "shape"),
    "int": (lambda g: np.zeros(g.shape, np.int32), TypeError, "int32"),
    "bool": (lambda g: np.zeros(g.shape, bool), TypeError, "bool"),
    "complex": (lambda g: np.zeros(g.shape, np.complex64), TypeError, "complex64"),
    "object": (lambda g: np.full(g.shape, None), TypeError, "object"),
    "str": (lambda g: np.full(g.shape, "1"), TypeError, "<U1"),
    "datetime": (lambda g: np.zeros(g.shape, "M8[s]"), TypeError, "datetime64"),
    "float": (lambda _: 1.0, TypeError, "float"),
    "list": (lambda g: g.tolist() if g.ndim else [1.0], TypeError, "list"),
    "string": (lambda _: "gradient", TypeError, "str"),
    "Parameter": (lambda g: adamas.Parameter(g), TypeError, "Parameter"),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("spoil", "error", "fragment"), BAD_GRADS.values(), ids=BAD_GRADS)
def test_a_bad_gradient_at_any_position(spoil, error, fragment, position):
    optimizer = make_optimizer()
    grads = make_arrays(seed=1)
    bad = replaced(grads, position, spoil(grads[position]))
    check_refused(optimizer, bad, error, f"grads[{position}]", f"'weight{position}'", fragment)
    check_refused(optimizer, tuple(bad), error, f"grads[{position}]", fragment)
    check_still_works(optimizer, grads)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_wrong_number_of_gradients(count, kind):
    optimizer = make_optimizer()
    grads = kind((make_arrays(seed=1) * 3)[:count])
    check_refused(optimizer, grads, ValueError, "grads", "3", str(count))


@pytest.mark.parametrize(
    "make",
    [
        lambda grads: iter(grads),
        lambda grads: grads[0],
        lambda _: None,
        lambda _: set(range(3)),
        lambda _: "abc",
    ],
    ids=["iterator", "array", "None", "set", "str"],
)
def test_grads_must_be_a_tuple_or_list(make):
    check_refused(make_optimizer(), make(make_arrays(seed=1)), TypeError, "grads", "tuple or list")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("other", POSITIONS)
def test_a_gradient_that_is_a_parameter(position, other):
    arrays = make_arrays(shapes=((5,),) * 3)
    optimizer = make_optimizer(arrays)
    grads = replaced(make_arrays(seed=1, shapes=((5,),) * 3), position, arrays[other])
    check_refused(optimizer, grads, ValueError, "shares memory", f"'weight{position}'")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["moment1", "moment2", "vhat"])
def test_a_gradient_that_is_a_state(position, kind):
    optimizer = make_optimizer()
    state = getattr(optimizer, kind)[position]
    grads = replaced(make_arrays(seed=1), position, state)
    check_refused(optimizer, grads, ValueError, "shares memory", f"'weight{position}'")


@pytest.mark.parametrize("shift", [-7, -1, 1, 7])
def test_a_gradient_that_overlaps_in_part(shift):
    buffer = np.arange(32, dtype=np.float32)
    param, grad = buffer[8:16], buffer[8 + shift : 16 + shift]
    optimizer = make_optimizer([param])
    check_refused(optimizer, [grad], ValueError, "shares memory", "'weight0'")
    for start in (0, 16):  # its neighbours touch it but do not overlap
        check_still_works(optimizer, [buffer[start : start + 8]])


def test_a_gradient_is_checked_again_after_an_accepted_one():
    arrays = make_arrays()
    optimizer = make_optimizer(arrays)
    grads = make_arrays(seed=1)
    for _ in range(2):
        check_still_works(optimizer, grads)
        check_refused(optimizer, replaced(grads, 2, arrays[2]), ValueError, "shares memory")


def test_two_parameters_may_have_the_same_gradient():
    optimizer = make_optimizer(make_arrays(shapes=((5,), (5,))))
    check_still_works(optimizer, make_arrays(seed=1, shapes=((5,),)) * 2)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_parameter_made_read_only_later(position):
    arrays = make_arrays()
    optimizer = make_optimizer(arrays)
    arrays[position].flags.writeable = False
    grads = make_arrays(seed=1)
    check_refused(optimizer, grads, ValueError, f"'weight{position}'", "read-only")
    arrays[position].flags.writeable = True
    check_still_works(optimizer, grads)


def test_a_parameter_moved_later():
    param = np.ones(3, np.float32)
    optimizer = make_optimizer([param])
    param.resize(200_000, refcheck=False)
    with pytest.raises(ValueError, match="'weight0' was resized or moved"):
        optimizer((np.ones(3, np.float32),))
    assert (param[:3] == 1).all()
    assert optimizer.global_step == 0


def test_a_parameter_that_shrank():
    param = np.ones(1000, np.float32)
    optimizer = make_optimizer([param])
    param.resize(500, refcheck=False)
    with pytest.raises(ValueError, match="'weight0' was resized"):
        optimizer((np.ones(1000, np.float32),))
    assert (param == 1).all()
    assert optimizer.global_step == 0


@pytest.mark.filterwarnings("ignore:Setting the (dtype|strides):DeprecationWarning")
@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("dtype", np.int32, "given another type"), ("strides", (4, 8), "resized or moved")],
)
def test_a_parameter_that_was_reinterpreted(attribute, value, message):
    param = np.ones((2, 2), np.float32)
    optimizer = make_optimizer([param])
    before = getattr(param, attribute)
    try:
        setattr(param, attribute, value)
    except AttributeError:
        pytest.skip("this NumPy does not let it be set")
    grads = (np.ones((2, 2), np.float32),)
    with pytest.raises(ValueError, match=f"'weight0' was {message}"):
        optimizer(grads)
    setattr(param, attribute, before)
    assert (param == 1).all()
    assert optimizer.global_step == 0
    check_still_works(optimizer, grads)


class Unreadable:
    def __init__(self, error):
        self._error = error

    def __dlpack__(self, **_):
        raise self._error

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("position", POSITIONS)
def test_an_exporter_that_fails(position):
    grads = replaced(make_arrays(seed=1), position, Unreadable(BufferError("no")))
    check_refused(make_optimizer(), grads, TypeError, f"grads[{position}]", "Unreadable")


# Learning rates and weight decays of a step


@pytest.mark.parametrize(
    "make",
    [
        lambda: [0.1, 0.2],
        lambda: (0.1, 0.2),
        lambda: np.array([0.1, 0.2]),
        lambda: (rate for rate in (0.1, 0.2)),
        lambda: iter([0.1, 0.2]),
        lambda: array.array("d", [0.1, 0.2]),
    ],
    ids=["list", "tuple", "ndarray", "generator", "iterator", "array"],
)
def test_exhausted_learning_rates(make):
    optimizer = make_optimizer(learning_rate=make())
    grads = make_arrays(seed=1)
    optimizer(grads)
    optimizer(grads)
    for _ in range(2):
        check_refused(optimizer, grads, IndexError, "learning_rate", "step 2")
    optimizer.global_step = 1
    check_still_works(optimizer, grads)


class Scheduled(adamas.LearningRateSchedule):
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, _step):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


BAD_ANSWERS = {
    "raises": (ZeroDivisionError("schedule"), ZeroDivisionError, ("schedule",)),
    "nan": (NAN, ValueError, ("nan",)),
    "inf": (INF, ValueError, ("inf",)),
    "negative": (-0.1, ValueError, (">= 0", "-0.1")),
    "string": ("0.1", TypeError, ("'0.1'",)),
    "None": (None, TypeError, ("None",)),
    "bool": (True, TypeError, ("True",)),
    "complex": (1j, TypeError, ("1j",)),
    "array": (np.array([0.1]), TypeError, ("array",)),
    "NaN in an array": (np.array(NAN), ValueError, ("nan",)),
}
bad_answers = pytest.mark.parametrize(
    ("answer", "error", "fragments"), BAD_ANSWERS.values(), ids=BAD_ANSWERS
)


@bad_answers
@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
def test_a_schedule_with_a_bad_answer(argument, answer, error, fragments):
    schedule = Scheduled(0.1)
    optimizer = adamas.Adam(parameters(make_arrays()), **{"use_amsgrad": True, argument: schedule})
    grads = make_arrays(seed=1)
    optimizer(grads)
    schedule.answer = answer
    named = () if isinstance(answer, Exception) else (argument,)
    check_refused(optimizer, grads, error, *named, *fragments)
    schedule.answer = 0.2
    check_still_works(optimizer, grads)


@pytest.mark.parametrize(
    ("answer", "error", "fragments"),
    [case for case in BAD_ANSWERS.values() if not isinstance(case[0], Exception)],
)
def test_an_iterator_with_a_bad_item(answer, error, fragments):
    optimizer = make_optimizer(learning_rate=iter([0.1, answer, 0.1]))
    grads = make_arrays(seed=1)
    optimizer(grads)
    for _ in range(2):  # the bad value is not lost
        check_refused(optimizer, grads, error, "learning_rate[1]", *fragments)


def test_an_iterator_that_raises():
    def rates():
        yield 0.1
        raise ZeroDivisionError("rates")

    optimizer = make_optimizer(learning_rate=rates())
    grads = make_arrays(seed=1)
    optimizer(grads)
    check_refused(optimizer, grads, ZeroDivisionError, "rates")


@pytest.mark.parametrize("position", POSITIONS)
def test_the_last_group_fails(position):
    arrays = make_arrays()
    groups = [{"params": [p]} for p in parameters(arrays)]
    groups[position]["lr"] = [0.1]
    optimizer = adamas.Adam(groups)
    grads = make_arrays(seed=1)
    optimizer(grads)
    check_refused(optimizer, grads, IndexError, f"params[{position}]['lr']")


@pytest.mark.parametrize("options", [{"learning_rate": 1e40}, {"weight_decay": 1e40}])
def test_a_rate_too_large_for_float32(options):
    optimizer = adamas.Adam(parameters(make_arrays()), **options)
    (name,) = options
    check_refused(optimizer, make_arrays(seed=1), ValueError, name.replace("_", " "), "too large")


def test_the_last_step():
    optimizer = make_optimizer()
    optimizer.global_step = 2**62
    check_refused(optimizer, make_arrays(seed=1), ValueError, "global_step")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (-1, ValueError),
        (2**62 + 1, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_a_bad_global_step(step, error):
    optimizer = make_optimizer()
    optimizer(make_arrays(seed=1))
    before = snapshot(optimizer)
    with pytest.raises(error, match="global_step"):
        optimizer.global_step = step
    assert snapshot(optimizer) == before


# Constructors


NOT_NUMBERS = {"bool": True, "str": "0.1", "None": None, "complex": 1j, "dict": {}}
both = pytest.mark.parametrize("make", [adamas.Adam, adamas.AdamWeightDecay])


def refuse(make, error, *fragments, params=None, **options):
    """A constructor raises, and the parameters are as before."""
    param = np.ones(3, np.float32)
    with pytest.raises(error) as caught:
        make([adamas.Parameter(param, "weight")] if params is None else params, **options)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert (param == 1).all()


@both
@pytest.mark.parametrize("name", ["beta1", "beta2", "eps"])
@pytest.mark.parametrize("value", [*NOT_NUMBERS.values(), 0, 1, np.int32(1), [0.9], np.array(0.9)])
def test_betas_and_eps_must_be_float(make, name, value):
    refuse(make, TypeError, f"{name} must be a float", **{name: value})


@both
@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, NAN, INF, -INF])
def test_betas_must_be_between_0_and_1(make, name, value):
    refuse(make, ValueError, name, "> 0", "< 1", repr(value), **{name: value})


@both
@pytest.mark.parametrize("value", [0.0, -1e-8, NAN, INF, -INF])
def test_eps_must_be_positive(make, value):
    refuse(make, ValueError, "eps", repr(value), eps=value)


@both
def test_eps_must_not_vanish_in_the_type_of_a_parameter(make):
    refuse(make, ValueError, "eps", "weight", eps=1e-46, numerics="standard")
    make([adamas.Parameter(np.ones(3), "weight")], eps=1e-46, numerics="standard")


@pytest.mark.parametrize("value", [*NOT_NUMBERS.values(), [1.0]])
def test_loss_scale_must_be_a_number(value):
    refuse(adamas.Adam, TypeError, "loss_scale must be a float or int", loss_scale=value)


@pytest.mark.parametrize(
    "value", [0.0, 0, -1.0, -1024, NAN, INF, -INF, 2.0**-127, 2.0**127, 10**400]
)
def test_loss_scale_must_be_positive(value):
    refuse(adamas.Adam, ValueError, "loss_scale", loss_scale=value)


FLAGS = [
    name
    for name, parameter in inspect.signature(adamas.Adam).parameters.items()
    if isinstance(parameter.default, bool)
]


def test_there_are_flags():
    assert {"use_locking", "decoupled_weight_decay", "capturable"} <= set(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [0, 1, 1.0, "True", None, [], np.array(True)])
def test_flags_must_be_bool(name, value):
    refuse(adamas.Adam, TypeError, f"{name} must be a bool", **{name: value})


@pytest.mark.parametrize(
    "names",
    [("use_lazy", "use_offload"), ("use_amsgrad", "use_lazy"), ("use_amsgrad", "use_offload")],
)
def test_flags_that_exclude_each_other(names):
    refuse(adamas.Adam, ValueError, *names, **dict.fromkeys(names, True))


@both
@pytest.mark.parametrize("value", [*NOT_NUMBERS.values(), b"0.1", lambda _: 0.1])
def test_a_learning_rate_of_another_type(make, value):
    refuse(make, TypeError, "learning_rate", learning_rate=value)


@both
@pytest.mark.parametrize(
    "value",
    [-0.1, -1, NAN, INF, -INF, [0.1, -0.1], [0.1, NAN], (INF,), [], (), np.array([]), 10**400],
)
def test_a_learning_rate_out_of_range(make, value):
    refuse(make, ValueError, "learning_rate", learning_rate=value)


@both
@pytest.mark.parametrize("value", [np.array(NAN), np.array(-0.1), np.ones((2, 2)), [0.1, INF]])
def test_an_array_of_learning_rates_out_of_range(make, value):
    refuse(make, ValueError, "learning_rate", learning_rate=value)


@both
@pytest.mark.parametrize("value", [[0.1, "0.2"], [True], [None], np.array([True]), [[0.1]], [1j]])
def test_a_learning_rate_item_of_another_type(make, value):
    refuse(make, TypeError, "learning_rate", learning_rate=value)


@both
@pytest.mark.parametrize("value", [*NOT_NUMBERS.values(), [0.1], np.array([0.1])])
def test_a_weight_decay_of_another_type(make, value):
    refuse(make, TypeError, "weight_decay", weight_decay=value)


@both
@pytest.mark.parametrize("value", [-0.1, -1, NAN, INF, -INF])
def test_a_weight_decay_out_of_range(make, value):
    refuse(make, ValueError, "weight_decay", weight_decay=value)


@both
@pytest.mark.parametrize(
    ("value", "error"), [("other", ValueError), (1, TypeError), (None, TypeError)]
)
def test_numerics(make, value, error):
    refuse(make, error, "numerics", numerics=value)


@both
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_num_threads(make, value, error):
    refuse(make, error, "num_threads", num_threads=value)


@pytest.mark.parametrize("name", ["learning_rates", "lazy", "betas", "momentum"])
def test_unknown_keywords(name):
    refuse(adamas.Adam, KeyError, name, **{name: 1})


@both
@pytest.mark.parametrize(
    "params",
    [None, 1, "weight", b"weight", adamas.Parameter(np.ones(3)), {"params": []}, object()],
    ids=lambda value: type(value).__name__,
)
def test_params_must_be_an_iterable(make, params):
    with pytest.raises(TypeError, match="params must be"):
        make(params)


@both
@pytest.mark.parametrize("item", [np.ones(3, int), None, "weight", [], 1.0])
def test_items_of_params_must_be_parameters_or_groups(make, item):
    good = one_parameter()
    refuse(make, TypeError, "params[1]", params=[*good, item])
    refuse(make, TypeError, "params[0]", params=[item, *good])
    refuse(make, TypeError, "params[1]", params=[{"params": good}, item])


@both
def test_parameters_and_groups_do_not_mix(make):
    params = one_parameter()
    refuse(make, TypeError, "params[1]", params=[*params, {"params": one_parameter()}])
    refuse(make, TypeError, "params[1]", params=[{"params": one_parameter()}, *params])


@both
@pytest.mark.parametrize("params", [[], (), iter(()), [{"order_params": []}]])
def test_there_must_be_parameters(make, params):
    with pytest.raises(ValueError, match="params must hold at least one"):
        make(params)


@both
def test_a_parameter_twice(make):
    (param,) = one_parameter()
    refuse(make, ValueError, "params", "weight", params=[param, param])
    refuse(make, RuntimeError, "weight", params=[{"params": [param, param]}])
    refuse(make, RuntimeError, "weight", params=[{"params": [param]}, {"params": [param]}])


@both
def test_a_name_twice(make):
    refuse(make, ValueError, "names", "'weight'", params=[*one_parameter(), *one_parameter()])


@both
@pytest.mark.parametrize("shift", [0, 1, 7])
def test_two_parameters_that_share_memory(make, shift):
    buffer = np.ones(32, np.float32)
    first, apart, second = buffer[0:8], buffer[20:28], buffer[shift : 8 + shift]
    params = parameters([first, apart, second])
    refuse(make, ValueError, "shares memory", params=params)
    refuse(make, ValueError, "shares memory", params=[{"params": [p]} for p in params])
    make(params[:2])


@both
@pytest.mark.parametrize("key", ["learning_rate", "param", "betas", "", 1])
def test_unknown_group_keys(make, key):
    refuse(make, KeyError, "params[0]", params=[{"params": one_parameter(), key: 1}])


@both
def test_a_group_without_params(make):
    refuse(make, KeyError, "params[0]", "'params'", params=[{"lr": 0.1}])


@both
@pytest.mark.parametrize(
    ("value", "error"),
    [([], ValueError), (None, TypeError), (1, TypeError), ([1], TypeError), ([None], TypeError)],
)
def test_bad_params_of_a_group(make, value, error):
    groups = [{"params": one_parameter()}, {"params": value}]
    refuse(make, error, "params[1]['params']", params=groups)


@both
@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("lr", -0.1, ValueError),
        ("lr", NAN, ValueError),
        ("lr", True, TypeError),
        ("lr", "0.1", TypeError),
        ("lr", None, TypeError),
        ("lr", [], ValueError),
        ("weight_decay", -0.1, ValueError),
        ("weight_decay", INF, ValueError),
        ("weight_decay", False, TypeError),
        ("weight_decay", "0", TypeError),
        ("weight_decay", None, TypeError),
        ("grad_centralization", 1, TypeError),
        ("grad_centralization", None, TypeError),
        ("grad_centralization", "True", TypeError),
    ],
)
def test_bad_values_in_a_group(make, key, value, error):
    refuse(make, error, f"params[0]['{key}']", params=[{"params": one_parameter(), key: value}])


@both
def test_bad_order_params(make):
    a, b, c = parameters(make_arrays())
    groups = [{"params": [a]}, {"params": [b]}]
    for order in ([], [a], [a, a], [a, b, b], [a, c], [a, b, c], [a, None]):
        refuse(make, ValueError, "order_params", params=[*groups, {"order_params": order}])
    for order in (None, 1, "ab", a):
        refuse(make, TypeError, "order_params", params=[*groups, {"order_params": order}])
    twice = [*groups, {"order_params": [a, b]}, {"order_params": [b, a]}]
    refuse(make, ValueError, "order_params", params=twice)


@pytest.mark.parametrize(
    ("value", "error"),
    [("GPU", ValueError), ("cpu", ValueError), (1, TypeError), (None, TypeError)],
)
def test_target(value, error):
    optimizer = make_optimizer()
    with pytest.raises(error, match="target"):
        optimizer.target = value
    assert optimizer.target == "CPU"


@pytest.mark.parametrize("value", [0, 1, None, "True"])
def test_unique(value):
    optimizer = make_optimizer()
    with pytest.raises(TypeError, match="unique"):
        optimizer.unique = value
    assert optimizer.unique is True


@pytest.mark.parametrize("value", [None, "weight0", 0, np.ones(3)])
def test_get_lr_parameter_of_something_else(value):
    with pytest.raises(TypeError, match="param must be a Parameter"):
        make_optimizer().get_lr_parameter(value)
    with pytest.raises(TypeError, match="param must be a Parameter"):
        make_optimizer().get_lr_parameter([value])


def test_get_lr_parameter_of_a_stranger():
    with pytest.raises(ValueError, match="must belong to this optimizer"):
        make_optimizer().get_lr_parameter(adamas.Parameter(np.ones(3)))


# Parameters


def read_only():
    data = np.ones(3, np.float32)
    data.flags.writeable = False
    return data


def unaligned(values):
    buffer = np.zeros(values.nbytes + 1, np.uint8)
    view = buffer[1:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


BAD_DATA = {
    "strided": (lambda: np.ones(6, np.float32)[::2], ValueError, "C-contiguous"),
    "reversed": (lambda: np.ones(6, np.float32)[::-1], ValueError, "C-contiguous"),
    "transposed with gaps": (lambda: np.ones((4, 3), np.float32)[::2].T, ValueError, "gaps"),
    "rows that repeat": (
        lambda: np.lib.stride_tricks.as_strided(np.ones(6, np.float32), (2, 3), (4, 4)),
        ValueError,
        "gaps",
    ),
    "read-only": (read_only, ValueError, "read-only"),
    "broadcast": (lambda: np.broadcast_to(np.float32(1), 3), ValueError, "read-only"),
    "unaligned": (lambda: unaligned(np.ones(3, np.float32)), ValueError, "aligned"),
    "unaligned float64": (lambda: unaligned(np.ones(3)), ValueError, "aligned"),
    "byte-swapped": (lambda: np.ones(3, ">f4"), TypeError, "byte order"),
    "int": (lambda: np.ones(3, np.int64), TypeError, "int64"),
    "bool": (lambda: np.ones(3, bool), TypeError, "bool"),
    "complex": (lambda: np.ones(3, np.complex64), TypeError, "complex64"),
    "longdouble": (lambda: np.ones(3, np.longdouble), TypeError, np.dtype(np.longdouble).name),
    "object": (lambda: np.full(3, None), TypeError, "object"),
    "structure": (lambda: np.ones(3, [("x", "f4")]), TypeError, "'x'"),
    "list": (lambda: [1.0, 2.0], TypeError, "list"),
    "float": (lambda: 1.0, TypeError, "float"),
    "None": (lambda: None, TypeError, "NoneType"),
    "str": (lambda: "data", TypeError, "str"),
    "bytes": (lambda: b"1234", TypeError, "uint8"),
    "NumPy scalar": (lambda: np.float32(1), ValueError, "read-only"),
    "array of int": (lambda: array.array("i", [1]), TypeError, "int32"),
    "Parameter": (lambda: adamas.Parameter(np.ones(3)), TypeError, "Parameter"),
}


@pytest.mark.parametrize(("make", "error", "fragment"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_of_a_parameter(make, error, fragment):
    with pytest.raises(error, match="data must") as caught:
        adamas.Parameter(make())
    assert fragment in str(caught.value)


@pytest.mark.parametrize("name", [1, b"weight", ["weight"], True])
def test_a_bad_name_of_a_parameter(name):
    with pytest.raises(TypeError, match="name must be a string"):
        adamas.Parameter(np.ones(3), name)


# What is accepted


def strided(grad):
    room = np.zeros((*grad.shape, 3), grad.dtype)
    room[..., 1] = grad
    return room[..., 1]


def read_only_copy(grad):
    copy = grad.copy()
    copy.flags.writeable = False
    return copy


def from_pickle(array_):
    """Return an equal array whose dtype is another object."""
    return pickle.loads(pickle.dumps(array_))  # noqa: S301


CONVERSIONS = {
    "strided": strided,
    "reversed": lambda g: g[..., ::-1].copy()[..., ::-1] if g.ndim else g,
    "Fortran order": lambda g: np.asarray(g, order="F"),
    "byte-swapped": lambda g: g.astype(g.dtype.newbyteorder()),
    "unaligned": unaligned,
    "unaligned and byte-swapped": lambda g: unaligned(g.astype(g.dtype.newbyteorder())),
    "read-only": read_only_copy,
    "float16": lambda g: g.astype(np.float16),
    "float32": lambda g: g.astype(np.float32),
    "float64": lambda g: g.astype(np.float64),
    "longdouble": lambda g: g.astype(np.longdouble),
    "pickled": from_pickle,
    "with metadata": lambda g: g.astype(np.dtype(g.dtype, metadata={"unit": "m"})),
    "memoryview": memoryview,
}


@every_real
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_other_gradients_have_the_bits_of_contiguous_ones(convert, dtype):
    rng = np.random.default_rng(4)
    shapes = ((4, 3), (), (131,), (0, 3), (1,))
    grads = [np.array(rng.integers(-64, 64, shape) / 32, dtype) for shape in shapes]
    optimizers = [make_optimizer(make_arrays(dtype, shapes=shapes)) for _ in range(2)]
    for _ in range(3):
        optimizers[0](grads)
        optimizers[1]([convert(grad) for grad in grads])
    assert snapshot(optimizers[0]) == snapshot(optimizers[1])


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_other_gradients_for_a_parameter_from_a_pickle(convert):
    param, grad = (from_pickle(a) for a in make_arrays(shapes=((5,), (5,))))
    grad[...] = 0.5
    plain = make_optimizer([np.array(param, np.float32)])
    plain([np.full(5, 0.5, np.float32)])
    optimizer = make_optimizer([param])
    optimizer([convert(grad)])
    assert snapshot(optimizer) == snapshot(plain)


def test_a_float64_gradient_too_large_for_float32_is_infinite():
    param = np.ones(1, np.float32)
    adamas.Adam([adamas.Parameter(param)])([np.array([1e300])])
    assert np.isnan(param[0])


@every_real
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (0,), (3, 0), (0, 3, 2)])
@pytest.mark.parametrize("centralize", [False, True])
def test_tiny_shapes(shape, dtype, centralize):
    param = np.ones(shape, dtype)
    group = {"params": [adamas.Parameter(param)], "grad_centralization": centralize}
    optimizer = adamas.Adam([group], learning_rate=0.5, use_amsgrad=True)
    assert optimizer((np.ones(shape, dtype),)) is True
    assert optimizer.global_step == 1
    for state in (optimizer.moment1[0], optimizer.moment2[0], optimizer.vhat[0]):
        assert state.shape == shape
        assert state.dtype == dtype
    moved = 0.0 if centralize and len(shape) >= 3 else 0.5
    np.testing.assert_allclose(param, 1 - moved, rtol=1e-6)


def test_only_empty_parameters():
    optimizer = make_optimizer(make_arrays(shapes=((0,), (2, 0))))
    assert optimizer([np.zeros(0, np.float32), np.zeros((2, 0), np.float32)]) is True
    assert optimizer.global_step == 1


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
def test_numpy_scalars_for_0d_parameters(kind):
    optimizers = [make_optimizer([np.array(1.0, np.float32)]) for _ in range(2)]
    optimizers[0]([np.array(0.5, np.float32)])
    optimizers[1]([kind(0.5)])
    assert snapshot(optimizers[0]) == snapshot(optimizers[1])


@pytest.mark.parametrize("code", ["f", "d"])
def test_a_buffer_as_parameter_is_updated_in_place(code):
    data = array.array(code, [1.0, 2.0, 3.0])
    param = adamas.Parameter(data, "weight")
    assert param.data is data
    assert param.shape == (3,)
    wanted = np.array(data)
    for array_ in (data, wanted):
        make_optimizer([array_])([np.ones(3, wanted.dtype)])
    assert data.tobytes() == wanted.tobytes()
    with pytest.raises(BufferError):
        data.append(4.0)


def test_a_memoryview_as_parameter_and_gradient():
    memory = bytearray(np.ones(6, np.float32).tobytes())
    view = memoryview(memory).cast("B").cast("f", shape=[2, 3])
    plain = make_optimizer([np.ones((2, 3), np.float32)])
    optimizer = make_optimizer([view])
    grad = np.full((2, 3), 0.5, np.float32)
    plain([grad])
    optimizer([memoryview(grad)])
    assert snapshot(optimizer) == snapshot(plain)
    assert bytes(memory) == snapshot(plain)[0][0]


def test_a_list_and_a_tuple_are_the_same():
    optimizers = [make_optimizer() for _ in range(2)]
    grads = make_arrays(seed=1)
    optimizers[0](grads)
    optimizers[1].step(tuple(grads))
    assert snapshot(optimizers[0]) == snapshot(optimizers[1])


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": np.float32(0.1)},
        {"learning_rate": np.array(0.1)},
        {"learning_rate": 1},
        {"weight_decay": 0},
        {"weight_decay": np.float64(0.1)},
        {"beta1": np.float64(0.5), "beta2": np.float32(0.5), "eps": np.float64(1e-3)},
        {"loss_scale": 1024, "use_nesterov": np.True_},
        {"use_lazy": True},
        {"use_offload": True},
        {"num_threads": np.int64(3)},
    ],
    ids=str,
)
def test_what_constructors_take(options):
    check_still_works(adamas.Adam(parameters(make_arrays()), **options), make_arrays(seed=1))


@pytest.mark.parametrize("loss_scale", [2.0**-126, 2.0**126])
def test_the_ends_of_the_range_of_loss_scale(loss_scale):
    param = np.zeros(1, np.float32)
    optimizer = adamas.Adam([adamas.Parameter(param)], loss_scale=loss_scale, beta1=0.5)
    assert optimizer([np.array([loss_scale], np.float32)]) is True
    assert optimizer.moment1[0].tolist() == [0.5]


def test_a_learning_rate_of_zero_leaves_the_parameter():
    param = np.ones(3, np.float32)
    optimizer = adamas.Adam([adamas.Parameter(param)], learning_rate=0)
    assert optimizer([np.ones(3, np.float32)]) is True
    assert (param == 1).all()
    assert (optimizer.moment1[0] != 0).all()


def test_masked_arrays():
    param = np.ones(3, np.float32)
    optimizer = adamas.Adam([adamas.Parameter(param)])
    grad = np.ma.masked_array(np.array([1, np.nan, 1], np.float32), mask=[0, 1, 0])
    check_refused(optimizer, (grad,), TypeError, "grads[0]", "masked")
    with pytest.raises(TypeError, match="data must not be a masked"):
        adamas.Parameter(np.ma.masked_array(param))


@pytest.mark.parametrize(
    "options", [{"eps": 1e300}, {"eps": 1e-60}, {"beta2": 1 - 1e-12}, {"learning_rate": 1e60}]
)
def test_what_float32_cannot_hold_in_mindspore_numerics(options):
    with pytest.raises(ValueError, match=r"finite|too large|in \(0, 1\)"):
        adamas.Adam([adamas.Parameter(np.ones(3, np.float32))], numerics="mindspore", **options)(
            (np.ones(3, np.float32),)
        )
