"""begin_step, apply and end_step: one parameter at a time, with the bits of one call."""

from functools import partial

import numpy as np
import pytest

import adamas
from helpers import (
    Falling,
    Rising,
    check_refused,
    check_same_states,
    parameters,
    row_tensor,
    run_threads,
    states_of,
    values,
)
from rules import MINDSPORE_RULES, NUMBERS, RULES, SCALED, every, every_numerics, every_real

SHAPES = ((7, 5), (40, 3), (), (16411,), (0, 2), (3, 2, 1031), (5, 33003))
SPARSE = (0, 1, 6)


OPTIONS = {
    **RULES,
    "l2-scaled": {**RULES["adam-l2"], **SCALED},
    "mindspore": MINDSPORE_RULES["mindspore-adam-l2"],
    "lazy": {"use_lazy": True, "weight_decay": 0.037},
    "catch_up": {"row_policy": "catch_up"},
    "locking": {"use_locking": True},
    "schedules": {"learning_rate": Falling(), "weight_decay": Rising()},
    "vector": {"learning_rate": [0.1, 0.2, 0.05, 0.01]},
}


def initial_arrays(dtype):
    rng = np.random.default_rng(61)
    return [values(rng, dtype, shape, "any") for shape in SHAPES]


def gradients(rng, dtype, step):
    """Return gradients, every other step some of them sparse."""
    grads = [values(rng, dtype, shape, "any") for shape in SHAPES]
    for i in SPARSE if step % 2 == 0 else ():
        rows = SHAPES[i][0]
        grads[i] = row_tensor(rng, SHAPES[i], rng.integers(0, rows, rows + 3), dtype)
    return grads


def step_in_parts(optimizer, grads, order):
    optimizer.begin_step()
    for i in order:
        optimizer.apply(optimizer.parameters[i], grads[i])
    optimizer.end_step()


def check_parts(make, dtype):
    """Several steps in parts, in random orders, with a whole step between them."""
    rng = np.random.default_rng(62)
    whole, parts = (make(initial_arrays(dtype)) for _ in range(2))
    for step in range(4):
        grads = gradients(rng, dtype, step)
        assert whole(grads) is True
        if step == 2:
            parts(grads)
        else:
            step_in_parts(parts, grads, rng.permutation(len(grads)))
        check_same_states(parts, whole, f"after step {step}")


@every("options", OPTIONS)
@every_real
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_one_call(options, dtype, threads):
    def make(arrays):
        return adamas.Adam(parameters(arrays), **{**NUMBERS, **options}, num_threads=threads)

    check_parts(make, dtype)


@every_numerics
def test_parts_of_adam_weight_decay(numerics):
    def make(arrays):
        return adamas.AdamWeightDecay(
            parameters(arrays), **NUMBERS, weight_decay=0.037, numerics=numerics
        )

    check_parts(make, np.float32)


@every_real
@pytest.mark.parametrize("decay", [0.0, 0.037])
def test_parts_with_groups(dtype, decay):
    def make(arrays):
        params = parameters(arrays)
        groups = [
            {"params": params[6:], "lr": Falling(), "weight_decay": Rising()},
            {"params": params[2:6], "lr": 0.1, "grad_centralization": True},
            {"params": params[:2]},
            {"order_params": params},
        ]
        return adamas.Adam(groups, **NUMBERS, weight_decay=decay, loss_scale=3.0)

    check_parts(make, dtype)


@pytest.mark.parametrize("master", [False, True])
def test_parts_of_16_bit_parameters(master):
    rng = np.random.default_rng(63)
    arrays = [rng.standard_normal(shape).astype(np.float16) for shape in ((9, 4), (1031,))]
    whole, parts = (
        adamas.Adam(parameters([a.copy() for a in arrays]), **NUMBERS, master_weights=master)
        for _ in range(2)
    )
    for _ in range(3):
        grads = [rng.standard_normal(array.shape).astype(np.float16) for array in arrays]
        whole(grads)
        step_in_parts(parts, grads, (1, 0))
        check_same_states(parts, whole)


def test_rates_are_those_of_begin_step():
    rate = [0.1]

    class Changing(adamas.LearningRateSchedule):
        def __call__(self, _step):
            return rate[0]

    param = np.zeros(1)
    optimizer = adamas.Adam(parameters([param]), learning_rate=Changing())
    optimizer.begin_step()
    rate[0] = 0.7
    optimizer.apply(optimizer.parameters[0], np.ones(1))
    optimizer.end_step()
    np.testing.assert_allclose(param, -0.1, rtol=1e-6)


# Errors


def small_optimizer(**options):
    arrays = [np.ones((4, 3), np.float32), np.ones(5, np.float32), np.ones((3, 2), np.float32)]
    return adamas.Adam(parameters(arrays), **options)


def small_gradients():
    rng = np.random.default_rng(64)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (5,), (3, 2))]


def check_finishes(optimizer, remaining):
    """The open step can still be finished, and is then one whole step."""
    grads, twin = small_gradients(), small_optimizer()
    for i in remaining:
        optimizer.apply(optimizer.parameters[i], grads[i])
    optimizer.end_step()
    twin(grads)
    check_same_states(optimizer, twin)
    optimizer(grads)
    twin(grads)
    check_same_states(optimizer, twin)


def test_apply_and_end_without_begin():
    optimizer = small_optimizer()
    param, grad = optimizer.parameters[1], small_gradients()[1]
    for _ in range(2):
        check_refused(optimizer, lambda: optimizer.apply(param, grad), RuntimeError, "begin_step")
        check_refused(optimizer, optimizer.end_step, RuntimeError, "begin_step")
        optimizer(small_gradients())
    step_in_parts(optimizer, small_gradients(), range(3))
    check_refused(optimizer, lambda: optimizer.apply(param, grad), RuntimeError, "begin_step")
    check_refused(optimizer, optimizer.end_step, RuntimeError, "begin_step")


@pytest.mark.parametrize("twice", [0, 1, 2])
def test_a_parameter_twice(twice):
    optimizer = small_optimizer()
    grads = small_gradients()
    optimizer.begin_step()
    for i in (twice, (twice + 1) % 3):
        optimizer.apply(optimizer.parameters[i], grads[i])
    check_refused(
        optimizer,
        lambda: optimizer.apply(optimizer.parameters[twice], grads[twice]),
        RuntimeError,
        "already",
        f"'weight{twice}'",
    )
    check_finishes(optimizer, [(twice + 2) % 3])


def test_something_else_than_a_parameter_of_the_optimizer():
    optimizer = small_optimizer()
    grad = small_gradients()[1]
    optimizer.begin_step()
    stranger = adamas.Parameter(np.ones(5, np.float32), "weight1")
    check_refused(optimizer, lambda: optimizer.apply(stranger, grad), ValueError, "weight1")
    for wrong in (None, 1, "weight1", grad):
        check_refused(
            optimizer, lambda wrong=wrong: optimizer.apply(wrong, grad), TypeError, "param"
        )
    check_finishes(optimizer, range(3))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_an_unfinished_step_names_the_parameter_and_stays_open(missing):
    optimizer = small_optimizer()
    grads = small_gradients()
    optimizer.begin_step()
    for i in range(3):
        if i != missing:
            optimizer.apply(optimizer.parameters[i], grads[i])
    for _ in range(2):
        check_refused(optimizer, optimizer.end_step, RuntimeError, f"'weight{missing}'")
    check_finishes(optimizer, [missing])


def set_global_step(optimizer):
    optimizer.global_step = 7


@pytest.mark.parametrize(
    "call",
    [
        lambda optimizer: optimizer(small_gradients()),
        lambda optimizer: optimizer.step(small_gradients()),
        lambda optimizer: optimizer.begin_step(),
        set_global_step,
    ],
    ids=["call", "step", "begin_step", "global_step"],
)
@pytest.mark.parametrize("applied", [0, 1, 3])
def test_what_is_refused_while_a_step_is_open(call, applied):
    optimizer = small_optimizer()
    grads = small_gradients()
    optimizer.begin_step()
    for i in range(applied):
        optimizer.apply(optimizer.parameters[i], grads[i])
    check_refused(optimizer, lambda: call(optimizer), RuntimeError, "open")
    check_finishes(optimizer, range(applied, 3))


@pytest.mark.parametrize(
    "options",
    [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}, {"max_grad_norm": 1e9, "use_lazy": True}],
    ids=str,
)
def test_what_needs_all_gradients_at_once(options):
    optimizer = small_optimizer(**options)
    check_refused(optimizer, optimizer.begin_step, RuntimeError, "max_grad_norm and skip_nonfinite")
    assert optimizer(small_gradients()) is True


def unreadable(optimizer, i):
    """Return gradients that are refused, with what is raised."""
    data = optimizer.parameters[i].data
    shape, rows = data.shape, data.shape[0]
    one_row = np.ones((1, *shape[1:]), np.float32)
    yield np.ones((*shape, 1), np.float32), ValueError, "shape"
    yield np.ones(shape, np.int32), TypeError, "int32"
    yield None, TypeError, "NoneType"
    yield data, ValueError, "shares memory"
    yield optimizer.moment1[i], ValueError, "shares memory"
    yield adamas.RowTensor(np.array([rows]), one_row, shape), IndexError, "row index"
    yield adamas.RowTensor(np.array([-1]), one_row, shape), IndexError, "row index"
    yield adamas.RowTensor(np.array([0.0]), one_row, shape), TypeError, "int32 or int64"
    yield adamas.RowTensor(np.array([0]), data[:1], shape), ValueError, "shares memory"
    yield adamas.RowTensor(np.array([0, 1]), one_row, shape), ValueError, "shape"
    yield adamas.RowTensor(np.array([0]), one_row, (*shape, 1)), ValueError, "dense_shape"


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"use_lazy": True}], ids=["exact", "lazy"])
def test_a_refused_gradient_leaves_the_step_open(position, options):
    optimizer = small_optimizer(**options)
    grads = small_gradients()
    before = (position + 1) % 3
    optimizer.begin_step()
    optimizer.apply(optimizer.parameters[before], grads[before])
    param = optimizer.parameters[position]
    for grad, error, fragment in unreadable(optimizer, position):
        check_refused(
            optimizer,
            lambda grad=grad: optimizer.apply(param, grad),
            error,
            f"'weight{position}'",
            fragment,
        )
    check_finishes(optimizer, [i for i in range(3) if i != before])


def test_a_read_only_parameter():
    optimizer = small_optimizer()
    param, grad = optimizer.parameters[1], small_gradients()[1]
    optimizer.begin_step()
    param.data.flags.writeable = False
    check_refused(optimizer, lambda: optimizer.apply(param, grad), ValueError, "read-only")
    param.data.flags.writeable = True
    check_finishes(optimizer, range(3))


def test_a_sparse_gradient_for_a_centralized_parameter():
    data = np.ones((4, 3), np.float32)
    group = {"params": parameters([data]), "grad_centralization": True}
    optimizer = adamas.Adam([group])
    optimizer.begin_step()
    grad = adamas.RowTensor(np.array([0]), np.ones((1, 3), np.float32), (4, 3))
    (param,) = optimizer.parameters
    check_refused(
        optimizer, lambda: optimizer.apply(param, grad), ValueError, "grad_centralization"
    )
    optimizer.apply(param, np.ones((4, 3), np.float32))
    optimizer.end_step()
    assert optimizer.global_step == 1


@pytest.mark.parametrize("rates", [[], [0.1]])
def test_begin_step_without_a_learning_rate(rates):
    optimizer = small_optimizer(learning_rate=[*rates, 0.1][: max(1, len(rates))])
    optimizer(small_gradients())
    check_refused(optimizer, optimizer.begin_step, IndexError, "learning_rate")
    check_refused(optimizer, optimizer.end_step, RuntimeError, "no step is open")
    optimizer.global_step = 0
    step_in_parts(optimizer, small_gradients(), range(3))


def test_the_last_step_in_parts():
    optimizer = small_optimizer()
    optimizer.global_step = 2**62
    check_refused(optimizer, optimizer.begin_step, ValueError, "global_step")


@pytest.mark.parametrize("use_locking", [False, True])
def test_parameters_applied_by_several_threads(use_locking):
    """As a backward pass of several threads does."""
    optimizer, twin = (small_optimizer(use_locking=use_locking) for _ in range(2))
    grads = small_gradients()
    for _ in range(50):
        optimizer.begin_step()
        pairs = zip(optimizer.parameters, grads, strict=True)
        run_threads(*[partial(optimizer.apply, *pair) for pair in pairs])
        optimizer.end_step()
        twin(grads)
    check_same_states(optimizer, twin)


def test_states_move_with_each_apply():
    optimizer = small_optimizer()
    grads = small_gradients()
    optimizer.begin_step()
    optimizer.apply(optimizer.parameters[2], grads[2])
    moved = [bool((moment != 0).all()) for moment in states_of(optimizer)["moment1"]]
    assert moved == [False, False, True]
    assert optimizer.global_step == 0


def test_a_step_can_be_given_up():
    first, second = np.ones(3, np.float32), np.ones(3, np.float32)
    params = [adamas.Parameter(first), adamas.Parameter(second)]
    optimizer = adamas.Adam(params, learning_rate=0.1)
    grad = np.full(3, 0.5, np.float32)
    optimizer.begin_step()
    optimizer.apply(params[0], grad)
    optimizer.cancel_step()
    assert optimizer.global_step == 0
    assert (first != 1).all()
    assert (second == 1).all()
    optimizer((grad, grad))
    assert optimizer.global_step == 1
    with pytest.raises(RuntimeError, match="begin_step"):
        optimizer.cancel_step()
