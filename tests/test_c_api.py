"""The C API: the same bits as from Python, errors that change nothing, structs that grow."""

import ctypes
import re
from ctypes import byref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import adamas
import c_api
import combinations
from adamas import _core
from c_api import Config, Gradient, Parameter, Rates, Status, initialized
from helpers import ISAS, bits
from rules import STATE_DTYPES

MOMENT1, MOMENT2, VHAT, MASTER, ROW_STEP = range(5)
RATES = ((0.01, 0.1), (0.02, 0.0))
INVALID, OVERLAP, BAD_INDEX, BAD_STATE = 1, 2, 3, 4
HEADER = Path(__file__).parent.parent / "csrc/include/adamas/adamas.h"

# name -> options in C, options in Python
VARIANTS = {
    "plain": (
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
    ),
    "amsgrad": (
        {"use_amsgrad": 1, "use_nesterov": 1, "decoupled_weight_decay": 1},
        {"use_amsgrad": True, "use_nesterov": True, "decoupled_weight_decay": True},
    ),
    "clipped": (
        {"max_grad_norm": 0.5, "loss_scale": 12.0, "skip_nonfinite": 1, "num_threads": 3},
        {"max_grad_norm": 0.5, "loss_scale": 12.0, "skip_nonfinite": True, "num_threads": 3},
    ),
    "lazy": ({"row_policy": 1, "use_locking": 1}, {"row_policy": "lazy", "use_locking": True}),
    "catch_up": ({"row_policy": 2}, {"row_policy": "catch_up"}),
    **{
        name: (
            {"state_format": number, "seed": 2**64 - 1},
            {"state_dtype": name, "seed": 2**64 - 1},
        )
        for number, name in enumerate(STATE_DTYPES, 1)
    },
    "masters": ({"master_weights": 1}, {"master_weights": True}),
}


def make_inputs(dtype):
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((50, 64)).astype(dtype), rng.standard_normal(33).astype(dtype)]
    grads = [[rng.standard_normal(a.shape).astype(dtype) for a in arrays] for _ in range(5)]
    rows = rng.integers(0, 50, 20)
    return arrays, grads, rows


def by_python(arrays, grads, rows, options):
    # Random bits go by position in C, and by name in Python unless a key is given.
    params = [adamas.Parameter(array, f"weight{i}", key=i) for i, array in enumerate(arrays)]
    groups = [
        {"params": [param], "lr": lr, "weight_decay": decay}
        for param, (lr, decay) in zip(params, RATES, strict=True)
    ]
    optimizer = adamas.Adam(groups, **options)
    for table, bias in grads:
        if rows is not None:
            table = adamas.RowTensor(rows, table[: rows.size], arrays[0].shape)
        optimizer((table, bias))
    return optimizer


def by_c(arrays, grads, rows, options):
    parameters = [c_api.parameter(array, rates=i) for i, array in enumerate(arrays)]
    optimizer = c_api.Optimizer(initialized(Config, **options), parameters)
    for table, bias in grads:
        first = c_api.gradient(table)
        if rows is not None:
            first = c_api.sparse_gradient(rows, table[: rows.size])
        optimizer.step([first, c_api.gradient(bias)], RATES)
    return optimizer


def copies(arrays):
    return [array.copy() for array in arrays]


def all_by_c(chosen, values):
    """Return what `combinations.by_python` does."""
    config = initialized(
        Config,
        beta1=combinations.BETAS[0],
        beta2=combinations.BETAS[1],
        eps=combinations.EPS,
        loss_scale=chosen.loss_scale,
        numerics=("standard", "mindspore").index(chosen.numerics),
        use_nesterov=chosen.use_nesterov,
        use_amsgrad=chosen.use_amsgrad,
        decoupled_weight_decay=chosen.is_decoupled,
    )
    arrays = combinations.split(values[0])
    parameters = [c_api.parameter(array, centralize=chosen.centralize) for array in arrays]
    optimizer = c_api.Optimizer(config, parameters)
    for row in values[1:]:
        grads = combinations.split(row)
        rates = (combinations.LEARNING_RATE, chosen.weight_decay)
        optimizer.step([c_api.gradient(grad) for grad in grads], [rates])
    kinds = (MOMENT1, MOMENT2, VHAT) if chosen.use_amsgrad else (MOMENT1, MOMENT2)
    states = [optimizer.state(kind, i, np.float32) for kind in kinds for i in range(len(arrays))]
    return b"".join(array.tobytes() for array in [*arrays, *states])


def test_every_combination_has_the_bits_of_python(record_property):
    values = combinations.make_values()
    results = {one: combinations.by_python(one, values) for one in combinations.COMBINATIONS}
    assert len(set(results.values())) == combinations.DIFFERENT
    different = [one for one in results if all_by_c(one, values) != results[one]]
    assert different == []
    record_property("combinations", len(results))
    assert len(results) == 144


@pytest.mark.parametrize("index_type", [None, np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_as_from_python(variant, dtype, index_type):
    in_c, in_python = VARIANTS[variant]
    if "state_format" in in_c and dtype is np.float64:
        pytest.skip("float64 parameters keep float64 moments")
    arrays, grads, rows = make_inputs(dtype)
    if index_type is None:
        rows = None
    elif variant == "int8":
        in_c, in_python = {**in_c, "row_policy": 1}, {**in_python, "use_lazy": True}
    if rows is not None:
        rows = rows.astype(index_type)
    ours, theirs = copies(arrays), copies(arrays)
    python = by_python(theirs, grads, rows, in_python)
    c = by_c(ours, grads, rows, in_c)
    for mine, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(bits(mine), bits(wanted))
    check_same_state(c, python, in_c)


def check_same_state(c, python, options):
    for i, parameter in enumerate(c.parameters):
        for kind, wanted in ((MOMENT1, python.moment1[i]), (MOMENT2, python.moment2[i])):
            if "state_format" in options:
                mine = np.empty(parameter.count, np.float32)
                c.call("decode_moment", kind, i, mine.ctypes.data)
            else:
                mine = c.state(kind, i, wanted.dtype)
            np.testing.assert_array_equal(mine, wanted.reshape(-1))
        if "use_amsgrad" in options:
            vhat = python.vhat[i]
            np.testing.assert_array_equal(c.state(VHAT, i, vhat.dtype), vhat.reshape(-1))
    assert c.call("global_step") == python.global_step == 5
    assert c.call("state_nbytes") == python.state_nbytes
    np.testing.assert_equal(c.call("last_grad_norm"), python.last_grad_norm)


@pytest.fixture
def simple():
    """Return an optimizer of one parameter, its array and its gradient."""
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    grad = np.full((3, 2), 0.5, np.float32)
    config = initialized(Config, skip_nonfinite=1)
    return c_api.Optimizer(config, [c_api.parameter(array)]), array, grad


def refused(optimizer, array, call):
    """Return what a refused call raises; it has changed nothing."""
    before = array.tobytes(), optimizer.state(MOMENT1, 0, np.float32).tobytes()
    step = optimizer.call("global_step")
    with pytest.raises(RuntimeError) as caught:
        call()
    assert before == (array.tobytes(), optimizer.state(MOMENT1, 0, np.float32).tobytes())
    assert optimizer.call("global_step") == step
    return caught.value.args


def test_refused_steps(simple):
    optimizer, array, grad = simple
    good = c_api.gradient(grad)

    def refuse(grads, rates=((0.1, 0.0),)):
        return refused(optimizer, array, lambda: optimizer.step(grads, rates))

    outside = np.array([3])
    assert refuse([good, good])[0] == INVALID
    assert refuse([good], [(-1.0, 0.0)])[0] == INVALID
    assert refuse([c_api.gradient(array)])[:2] == (OVERLAP, 0)
    assert refuse([c_api.sparse_gradient(outside, grad[:1])])[:2] == (BAD_INDEX, 0)
    assert refuse([initialized(Gradient, values=grad.ctypes.data, dtype=9)])[:2] == (INVALID, 0)
    assert refuse([initialized(Gradient, values=grad.ctypes.data, dtype=-1)])[:2] == (INVALID, 0)
    assert refuse([initialized(Gradient, values=grad.ctypes.data, struct_size=0)])[0] == INVALID
    assert refuse([initialized(Gradient)])[:2] == (INVALID, 0)


@pytest.mark.parametrize("off", [-6, -1, 1, 2**40, -8])
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_wrong_count(kind, in_parts, off):
    array, values = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 2), np.float32)
    optimizer = c_api.Optimizer(initialized(Config), [c_api.parameter(array)])
    grad = c_api.gradient(values)
    wanted = "as many elements as its parameter"
    if kind == "sparse":
        grad = c_api.sparse_gradient(np.array([2, 0, 2]), values)
        wanted = "a row of values for each index"
    optimizer.step([grad], [(0.1, 0.0)])
    grad.count += off

    def call():
        if in_parts:
            optimizer.call("apply", 0, byref(grad), None)
        optimizer.step([grad], [(0.1, 0.0)])

    if in_parts:
        optimizer.call("begin_step", c_api.array_of([Rates(0.1, 0.0)]), 1)
    code, index, text = refused(optimizer, array, call)
    assert (code, index) == (INVALID, 0)
    assert wanted in text


def test_null_pointers(simple):
    optimizer, array, _ = simple
    rates = c_api.array_of([Rates(0.1, 0.0)])
    for name, arguments in {
        "step": (None, 1, rates, 1, None),
        "begin_step": (None, 1),
        "apply": (0, None, None),
        "decode_moment": (0, 0, None),
        "set_rates": (None, 1, None),
        "steps": (None, 1),
        "set_steps": (None, 1),
    }.items():
        code, _, text = refused(optimizer, array, lambda n=name, a=arguments: optimizer.call(n, *a))
        assert code in (INVALID, BAD_STATE)
        assert text
    for name in ("end_step", "cancel_step"):
        assert c_api.call(name, None).code == INVALID
    assert c_api.call("create", None, None, 0, ctypes.c_void_p()).code == INVALID
    assert (
        c_api.call("create", byref(initialized(Config)), None, 1, ctypes.c_void_p()).code == INVALID
    )
    assert c_api.call("create", byref(initialized(Config)), None, 0, None).code == INVALID
    c_api.call("destroy", None)


def test_counts_beyond_all_memory(simple):
    optimizer, array, grad = simple
    rates = c_api.array_of([Rates(0.1, 0.0)])
    grads = c_api.array_of([c_api.gradient(grad)])

    def step():
        optimizer.call("step", grads, 2**62, rates, 1, None)

    assert refused(optimizer, array, step)[0] == 5


@pytest.mark.parametrize("member", ["numerics", "row_policy", "state_format"])
@pytest.mark.parametrize("value", [-1, 99])
def test_unknown_options(member, value):
    array = np.zeros(3, np.float32)
    with pytest.raises(RuntimeError, match="unknown"):
        c_api.Optimizer(initialized(Config, **{member: value}), [c_api.parameter(array)])


def test_a_bad_parameter_is_named():
    arrays = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    good, bad = c_api.parameter(arrays[0]), c_api.parameter(arrays[1])
    bad.dtype = 17
    with pytest.raises(RuntimeError) as caught:
        c_api.Optimizer(initialized(Config), [good, bad])
    assert caught.value.args == (INVALID, 1, "unknown dtype")


def test_a_step_in_parts_and_the_counters(simple):
    optimizer, array, grad = simple
    other = array.copy()
    rates = c_api.array_of([Rates(0.1, 0.0)])
    parts = c_api.Optimizer(initialized(Config), [c_api.parameter(other)])
    optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    parts.call("begin_step", rates, 1)
    parts.call("apply", 0, byref(c_api.gradient(grad)), None)
    parts.call("end_step")
    np.testing.assert_array_equal(array, other)
    parts.call("begin_step", rates, 1)
    parts.call("cancel_step")
    assert parts.call("global_step") == 1

    grad[0] = np.nan
    optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    assert optimizer.call("last_step_skipped") == 1
    assert optimizer.call("skipped_steps") == 1
    optimizer.call("set_global_step", 41)
    assert optimizer.call("global_step") == 41
    optimizer.call("set_loss_scale", 8.0)
    assert optimizer.call("loss_scale") == 8.0
    assert refused(optimizer, array, lambda: optimizer.call("set_loss_scale", 0.0))[0] == INVALID
    assert optimizer.call("loss_scale") == 8.0
    assert optimizer.call("state", 99, 0) is None
    assert optimizer.call("state", MOMENT1, 1) is None


def saved(optimizer, count, counters):
    """Return the arrays of an optimizer of one parameter, and the copies that load() takes."""
    arrays = {kind: np.empty(count, np.float32) for kind in (-1, MOMENT1, MOMENT2)}
    copies = c_api.array_of(
        [c_api.ArrayCopy(0, kind, a.ctypes.data, a.nbytes) for kind, a in arrays.items()]
    )
    optimizer.call("save", copies, len(copies), byref(counters))
    return arrays, copies


def test_saved_and_loaded_it_goes_on_with_the_same_bits(simple):
    optimizer, array, grad = simple
    counters = initialized(c_api.Counters)
    optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    optimizer.call("set_loss_scale", 4.0)
    arrays, copies = saved(optimizer, array.size, counters)
    other = np.zeros_like(array)
    resumed = c_api.Optimizer(initialized(Config), [c_api.parameter(other)])
    resumed.call("load", copies, len(copies), byref(counters))
    assert resumed.call("global_step") == counters.global_step == 1
    assert resumed.call("loss_scale") == counters.loss_scale == 4.0
    for one in (optimizer, resumed):
        one.step([c_api.gradient(grad)], [(0.1, 0.0)])
    np.testing.assert_array_equal(array, other)
    assert arrays[-1].tobytes() != array.tobytes()

    copies[1].kind = 99
    for name in ("save", "load"):
        before = counters.global_step
        code = refused(
            optimizer, array, lambda n=name: optimizer.call(n, copies, 3, byref(counters))
        )[0]
        assert (code, counters.global_step) == (INVALID, before)
        assert c_api.call(name, optimizer.handle, copies, 3, None).code == INVALID
        assert c_api.call(name, optimizer.handle, None, 1, byref(counters)).code == INVALID


class LongerConfig(ctypes.Structure):
    _fields_ = [*Config._fields_, ("invented_later", ctypes.c_int64)]


class LongerParameter(ctypes.Structure):
    _fields_ = [*Parameter._fields_, ("invented_later", ctypes.c_int64)]


def grown(struct_type, **members):
    """Return a struct of a later version of the header, initialized by this library."""
    struct = struct_type()
    ctypes.memset(byref(struct), 0xFF, ctypes.sizeof(struct))
    init = getattr(c_api.library(), f"adamas_{struct_type.__name__[6:].lower()}_init")
    init(byref(struct), ctypes.c_size_t(ctypes.sizeof(struct)))
    for name, value in members.items():
        setattr(struct, name, value)
    return struct


def test_programs_compiled_with_a_later_header():
    arrays = [np.zeros(3, np.float32), np.zeros(5, np.float32)]
    places = [{"data": a.ctypes.data, "count": a.size} for a in arrays]
    optimizer = c_api.Optimizer(grown(LongerConfig), [grown(LongerParameter, **p) for p in places])
    assert optimizer.call("state_nbytes") == 2 * 4 * 8
    with pytest.raises(RuntimeError, match="does not know"):
        c_api.Optimizer(grown(LongerConfig, invented_later=1), optimizer.parameters)
    changed = [optimizer.parameters[0], grown(LongerParameter, invented_later=1, **places[1])]
    with pytest.raises(RuntimeError, match="does not know") as caught:
        c_api.Optimizer(grown(LongerConfig), changed)
    assert caught.value.args[1] == 1


def grads_of(arrays, step, *, absent=()):
    rng = np.random.default_rng(step)
    return [
        None if i in absent else rng.standard_normal(array.shape).astype(np.float32)
        for i, array in enumerate(arrays)
    ]


def in_c(grads):
    """Return gradients as structs; the arrays must stay."""
    none = initialized(Gradient, is_absent=1)
    return [none if grad is None else c_api.gradient(grad) for grad in grads]


def test_groups_absent_gradients_steps_and_more_parameters():
    """What the opened optimizer does has the bits of Python's, which other tests look at."""
    start = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(5, np.float32)]
    ours, theirs, more = copies(start), copies(start), [np.ones(4, np.float32) for _ in range(2)]
    optimizer = adamas.Adam([{"params": ours[:1], "beta1": 0.5}, {"params": ours[1:]}])
    config = initialized(Config)
    groups = [initialized(Config, beta1=0.5), initialized(Config)]
    c = c_api.Optimizer(
        config, [c_api.parameter(array, rates=i) for i, array in enumerate(theirs)], groups
    )
    rates = [(1e-3, 0.0)] * 2
    for step, absent in enumerate([(), (0,), (1,), ()]):
        grads = grads_of(ours, step, absent=absent)
        optimizer(grads)
        c.step(in_c(grads), rates)
    optimizer.groups[1].beta2 = 0.9
    c.call("set_group", 1, ctypes.byref(initialized(Config, beta2=0.9)))
    optimizer.add(adamas.Parameter(more[0]))
    added = c_api.array_of([c_api.parameter(more[1], rates=2)])
    c.call("add", added, 1, c_api.array_of([initialized(Config)]), 1)
    grads = grads_of([*ours, more[0]], 9)
    optimizer(grads)
    c.step(in_c(grads), rates * 2)
    steps = np.zeros(3, np.int64)
    c.call("steps", steps.ctypes.data, 3)
    assert steps.tolist() == optimizer.steps == [4, 4, 1]
    for mine, other in zip([*ours, more[0]], [*theirs, more[1]], strict=True):
        assert mine.tobytes() == other.tobytes()


def test_accumulated_gradients():
    ours, theirs = [np.ones(7, np.float32)], [np.ones(7, np.float32)]
    optimizer = adamas.Adam(ours, reduction="sum")
    c = c_api.Optimizer(initialized(Config, reduction=1), [c_api.parameter(theirs[0])])
    for step in range(3):
        grads = grads_of(ours, step)
        optimizer.accumulate(grads)
        c.call("accumulate", c_api.array_of(in_c(grads)), 1, None)
    assert c.call("accumulated") == 3
    optimizer()
    c.call("step_accumulated", c_api.array_of([Rates(1e-3, 0.0)]), 1, None)
    assert c.call("accumulated") == 0
    assert ours[0].tobytes() == theirs[0].tobytes()
    c.call("accumulate", c_api.array_of(in_c(grads)), 1, None)
    c.call("discard_accumulated")
    assert c.call("accumulated") == 0


def test_a_step_without_an_optimizer():
    lists = [[np.ones(7, np.float32), np.zeros(7, np.float32), np.zeros(7, np.float32)]] * 2
    ours, theirs = (copies(arrays) for arrays in lists)
    steps = np.zeros(1, np.int64)

    def update(parameter, grad):
        return c_api.call(
            "update",
            ctypes.byref(initialized(Config)),
            ctypes.byref(parameter),
            ctypes.byref(c_api.gradient(grad)),
            steps.ctypes.data,
            1,
            c_api.array_of([Rates(1e-3, 0.0)]),
            1,
            None,
            0,
            None,
        )

    for step in range(3):
        (grad,) = grads_of(ours[:1], step)
        adamas.functional.adam(ours[:1], [grad], ours[1:2], ours[2:], steps=[step])
        parameter = c_api.parameter(
            theirs[0], moment1=theirs[1].ctypes.data, moment2=theirs[2].ctypes.data
        )
        done = update(parameter, grad)
        assert (done.code, done.text) == (0, b"ok")
    assert steps.tolist() == [3]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.tobytes() == other.tobytes()
    missing = c_api.parameter(theirs[0], moment1=theirs[1].ctypes.data)
    assert update(missing, grad).code == INVALID
    assert steps.tolist() == [3]


class FormerConfig(ctypes.Structure):
    """That of the first version, whose last member was reserved."""

    _fields_ = [*Config._fields_[:20], ("reserved", ctypes.c_int32)]


class FormerParameter(ctypes.Structure):
    """That of the first version, in which nothing was said of the axes."""

    _fields_ = Parameter._fields_[:8]


class FormerGradient(ctypes.Structure):
    """That of the first version, in which nothing was said of how many values there are."""

    _fields_ = Gradient._fields_[: -len(("count", "is_absent", "reserved"))]


STRUCTS = (
    FormerConfig,
    FormerParameter,
    FormerGradient,
    Rates,
    Status,
    c_api.Counters,
    c_api.ArrayCopy,
)


def test_the_structs_of_the_first_version_stay():
    """Members are only ever added at the end: the library refuses shorter structs than these."""
    sizes = [ctypes.sizeof(struct) for struct in STRUCTS]
    assert sizes == [112, 48, 48, 16, 24, 48, 32]


def test_without_a_count_a_gradient_has_those_of_its_parameter(simple):
    optimizer, array, grad = simple
    other = array.copy()
    former = c_api.Optimizer(initialized(Config), [c_api.parameter(other)])
    optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    former.step([grown(FormerGradient, values=grad.ctypes.data)], [(0.1, 0.0)])
    np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("struct", [Parameter, Gradient])
def test_what_is_reserved_must_be_zero(struct):
    """A member of a later version would stand there, and this library would not see it."""
    array = np.zeros(3, np.float32)
    members = {"data": array.ctypes.data, "count": 3}

    def make_a_step():
        parameter = initialized(Parameter, reserved=int(struct is Parameter), **members)
        optimizer = c_api.Optimizer(initialized(Config), [parameter])
        grad = c_api.gradient(np.ones(3, np.float32))
        grad.reserved = 1
        optimizer.step([grad], [(0.1, 0.0)])

    with pytest.raises(RuntimeError, match="does not know"):
        make_a_step()


@pytest.mark.parametrize("numerics", [0, 1])
def test_without_a_word_on_the_axes_every_parameter_is_centralized(numerics):
    array = np.zeros((2, 3), np.float32)
    grad = np.array([[1, 2, 3], [5, 5, 5]], np.float32)
    usual = {"data": array.ctypes.data, "count": 6, "rows": 2, "centralize": 1}
    config = initialized(Config, numerics=numerics, beta1=0.5)
    optimizer = c_api.Optimizer(config, [grown(FormerParameter, **usual)])
    optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    assert optimizer.call("centralizes", 0) == 1
    assert optimizer.state(MOMENT1, 0, np.float32).tolist() == [-0.5, 0, 0.5, 0, 0, 0]


# shape -> in "standard", in "mindspore"
CENTRALIZED = {(3, 16, 2): (1, 1), (4, 3, 5): (1, 0), (4, 16): (0, 1), (32,): (0, 0)}


@pytest.mark.parametrize("numerics", [0, 1])
@pytest.mark.parametrize("offload", [0, 1])
def test_which_shapes_are_centralized(numerics, offload):
    arrays = [np.zeros(shape, np.float32) for shape in CENTRALIZED]
    config = initialized(Config, numerics=numerics, use_offload=offload)
    for asked in (0, 1):
        specs = [c_api.parameter(array, centralize=asked) for array in arrays]
        optimizer = c_api.Optimizer(config, specs)
        found = [optimizer.call("centralizes", i) for i in range(len(arrays))]
        never = not asked or (numerics and offload)
        assert found == [0 if never else both[numerics] for both in CENTRALIZED.values()]
    assert optimizer.call("centralizes", len(arrays)) == 0


@pytest.mark.parametrize("member", ["axes", "second_axis"])
def test_a_negative_shape_is_refused(member):
    array = np.zeros((2, 3), np.float32)
    with pytest.raises(RuntimeError) as caught:
        c_api.Optimizer(initialized(Config), [c_api.parameter(array, **{member: -1})])
    assert caught.value.args == (INVALID, 0, "a shape is negative")


@pytest.mark.parametrize("shape", CENTRALIZED)
def test_no_sparse_gradient_where_centralization_was_asked_for(shape):
    """Whether it is done or not, as in Python."""
    array = np.ones(shape, np.float32)
    optimizer = c_api.Optimizer(initialized(Config), [c_api.parameter(array, centralize=1)])
    grad = c_api.sparse_gradient(np.arange(shape[0]), array.copy())
    code, index, text = refused(optimizer, array, lambda: optimizer.step([grad], [(0.1, 0.0)]))
    assert (code, index) == (INVALID, 0)
    assert "centralized" in text


def test_all_functions_of_the_header_are_in_the_library():
    names = re.findall(r"ADAMAS_API [^;(]*?\b(adamas_\w+)\(", HEADER.read_text("utf-8"))
    assert len(names) == len(set(names)) > 25
    for name in names:
        assert getattr(c_api.library(), name)


def test_what_was_built():
    assert c_api.call("version").decode() == adamas.__version__
    assert c_api.call("isa_in_use").decode() == _core.isa_in_use()
    assert c_api.call("available_threads") == _core.available_threads()
    assert c_api.call("cuda_devices") == _core.cuda_devices()
    reason = c_api.call("cuda_unavailable_reason")
    assert (reason and reason.decode()) == _core.cuda_unavailable_reason()


def test_one_library_serves_both(select_isa):
    """What C chooses, Python uses."""
    for isa in ISAS:
        assert c_api.call("select_isa", isa.encode()).code == c_api.OK
        assert _core.isa_in_use() == isa
    assert c_api.call("select_isa", b"abacus").code == INVALID


def test_mindspore_ignores_nesterov_with_amsgrad():
    """Two steps of a constant gradient are two of the learning rate, without a look ahead."""
    array, grad = np.ones(1, np.float32), np.full(1, 0.5, np.float32)
    config = initialized(Config, numerics=1, use_nesterov=1, use_amsgrad=1)
    optimizer = c_api.Optimizer(config, [c_api.parameter(array)])
    for _ in range(2):
        optimizer.step([c_api.gradient(grad)], [(0.1, 0.0)])
    assert array[0] == pytest.approx(0.8, abs=1e-6)
