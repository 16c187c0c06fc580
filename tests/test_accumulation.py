"""Gradients that are accumulated for one step: `accumulate`, `discard_accumulated`, `reduction`."""

import ml_dtypes
import numpy as np
import pytest

import adamas
import rules
from emulation import Twins, on_device
from helpers import bits, check_refused
from rules import NUMBERS, THREADS, every, every_dtype

SHAPES = [(), (7,), (3, 5), (16411,), (0, 2)]
MICRO_BATCHES = 3
STEPS = 2
# Rules that see a gradient and its loss scale as one would see the mean.
OPTIONS = {
    **rules.RULES,
    "clip": {"max_grad_norm": 0.5},
    "skip": {"skip_nonfinite": True},
    "mindspore": {"numerics": "mindspore"},
}


def real(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def start(dtype):
    rng = np.random.default_rng(2)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def make(arrays, **options):
    params = [adamas.Parameter(array, f"weight{i}") for i, array in enumerate(arrays)]
    return adamas.Adam(params, **{**NUMBERS, **options})


def micro_batches(dtype):
    rng = np.random.default_rng(5)
    return [
        [rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(MICRO_BATCHES)
    ]


def summed(batches, dtype):
    sums = []
    for grads in zip(*batches, strict=True):
        total = grads[0].astype(real(dtype))
        for grad in grads[1:]:
            total = total + grad.astype(real(dtype))
        sums.append(np.asarray(total))
    return sums


def states(optimizer, arrays):
    lists = [arrays, optimizer.moment1, optimizer.moment2, optimizer.vhat]
    return [bits(array).tobytes() for one in lists for array in one]


@every_dtype
@every("options", OPTIONS)
def test_a_step_has_the_bits_of_one_with_the_mean(options, dtype, identity):
    batches = micro_batches(dtype)
    for threads in THREADS:
        ours, theirs = start(dtype), start(dtype)
        accumulating = make(ours, num_threads=threads, **options)
        # A mean is a sum with a loss scale.
        usual = make(theirs, loss_scale=float(MICRO_BATCHES), **options)
        for _ in range(STEPS):
            for k, grads in enumerate(batches):
                assert accumulating.accumulated == k
                accumulating.accumulate(grads)
            assert accumulating() is True
            assert accumulating.accumulated == 0
            usual(summed(batches, dtype))
        identity.compared += 1
        identity.mismatches += states(accumulating, ours) != states(usual, theirs)
        assert states(accumulating, ours) == states(usual, theirs)
        assert accumulating.global_step == STEPS
        np.testing.assert_equal(accumulating.last_grad_norm, usual.last_grad_norm)


def test_sums():
    ours, theirs = start(np.float32), start(np.float32)
    accumulating, usual = make(ours, reduction="sum"), make(theirs)
    batches = micro_batches(np.float32)
    for grads in batches:
        accumulating.accumulate(tuple(grads))
    accumulating.step()
    usual(summed(batches, np.float32))
    assert states(accumulating, ours) == states(usual, theirs)


def test_sums_keep_what_16_bits_would_lose():
    array = np.zeros(1, ml_dtypes.bfloat16)
    optimizer = adamas.Adam([adamas.Parameter(array)], beta1=0.5, reduction="sum")
    for value in (1.0, *[2.0**-9] * 64):  # each less than half a unit in the last place
        optimizer.accumulate([np.array([value], ml_dtypes.bfloat16)])
    optimizer()
    assert optimizer.moment1[0][0] == np.float32(0.5 * 1.125)


def test_gradients_that_come_in_some_micro_batches_or_in_none():
    arrays = {name: np.ones(2, np.float32) for name in ("often", "once", "never")}
    optimizer = adamas.Adam(arrays)
    ones = np.ones(2, np.float32)
    optimizer.accumulate({"often": ones})
    optimizer.accumulate({"often": ones, "once": ones})
    optimizer()
    assert optimizer.steps == [1, 1, 0]
    assert optimizer.moment1[0][0] == np.float32(0.1)
    assert optimizer.moment1[1][0] == np.float32(0.05)
    assert (arrays["never"] == 1).all()


@pytest.mark.parametrize("offload", [False, True])
@every("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_on_a_device(offload, dtype, device, identity):
    batches = micro_batches(dtype)
    for options in ({}, {"max_grad_norm": 0.5, "skip_nonfinite": True}):
        twins = Twins(
            start(dtype),
            lambda params, used=options: adamas.Adam(params, use_offload=offload, **used),
        )
        for _ in range(STEPS):
            for grads in batches:
                twins.cpu.accumulate(grads)
                twins.gpu.accumulate([on_device(grad, 2 * grad.itemsize) for grad in grads])
            assert twins.cpu()
            assert twins.gpu()
        twins.check(identity)
        assert twins.gpu.global_step == STEPS


# Refusals


def test_what_is_refused_while_gradients_are_accumulated():
    arrays = start(np.float32)
    optimizer = make(arrays)
    grads = micro_batches(np.float32)[0]
    state = optimizer.state_dict()
    optimizer.accumulate(grads)
    more = adamas.Parameter(np.zeros(3, np.float32), "more")
    for call in (
        lambda: optimizer(grads),
        optimizer.begin_step,
        lambda: optimizer.add(more),
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
    ):
        check_refused(optimizer, call, RuntimeError, "gradients are accumulated")
        assert optimizer.accumulated == 1
    optimizer.discard_accumulated()
    assert optimizer.accumulated == 0
    optimizer.add(more)
    optimizer([*grads, None])


def test_without_any_gradients():
    optimizer = make(start(np.float32))
    check_refused(optimizer, optimizer, TypeError, "none were accumulated")


def test_bad_micro_batches():
    arrays = start(np.float32)
    optimizer = make(arrays)
    grads = micro_batches(np.float32)[0]
    rows = adamas.RowTensor(np.array([0]), np.ones((1, 5), np.float32), (3, 5))
    for bad, error, text in (
        (grads[:-1], ValueError, "one gradient for each"),
        ([*grads[:2], rows, *grads[3:]], ValueError, "must be dense"),
        ([np.zeros(9, np.float32), *grads[1:]], ValueError, "must have shape"),
        ([arrays[0], *grads[1:]], ValueError, "shares memory"),
        (3, TypeError, "grads must be a tuple or list"),
    ):
        check_refused(optimizer, lambda bad=bad: optimizer.accumulate(bad), error, text)
        assert optimizer.accumulated == 0
    optimizer.begin_step()
    check_refused(optimizer, lambda: optimizer.accumulate(grads), RuntimeError, "step is open")


def test_a_step_that_is_refused_keeps_what_was_accumulated():
    arrays = start(np.float32)
    optimizer = make(arrays, max_grad_norm=1.0)
    grads = micro_batches(np.float32)[0]
    grads[1][0] = np.nan
    optimizer.accumulate(grads)
    check_refused(optimizer, optimizer, ValueError, "holds a NaN or infinity")
    assert optimizer.accumulated == 1


def test_capturable_optimizers_do_not_accumulate(device):
    optimizer = make([on_device(array) for array in start(np.float32)], capturable=True)
    grads = [on_device(grad) for grad in micro_batches(np.float32)[0]]
    with pytest.raises(ValueError, match="capturable"):
        optimizer.accumulate(grads)


@pytest.mark.parametrize(("value", "error"), [("median", ValueError), (None, TypeError)])
def test_bad_reductions(value, error):
    with pytest.raises(error, match="reduction"):
        make(start(np.float32), reduction=value)
