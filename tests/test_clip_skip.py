"""max_grad_norm and skip_nonfinite: what is measured, what is scaled, what is left out."""

import math

import numpy as np
import pytest

import adamas
import oracle
from helpers import (
    ISAS,
    check_refused,
    check_same_states,
    everything,
    parameters,
    replaced,
    row_tensor,
    states_of,
)
from rules import NUMBERS, THREADS, every_policy, every_real

SHAPES = ((700, 3), (16411,), (), (5, 2, 33), (0, 3), (40_009,))
SPARSE = (0, 3)
EPS = {np.float32: 2e-6, np.float64: 1e-14}


def adam(arrays, **options):
    return adamas.Adam(parameters(arrays), **{**NUMBERS, **options})


def initial_arrays(dtype, shapes=SHAPES):
    rng = np.random.default_rng(51)
    return [np.array(rng.standard_normal(shape), dtype) for shape in shapes]


def gradients(seed, dtype, *, scale=1.0):
    """Return dense gradients and two sparse ones with rows that repeat."""
    rng = np.random.default_rng(seed)
    grads = [np.array(scale * rng.standard_normal(shape), dtype) for shape in SHAPES]
    for i in SPARSE:
        indices = rng.integers(0, SHAPES[i][0], 900)
        entries = np.array(scale * rng.standard_normal((900, *SHAPES[i][1:])), dtype)
        grads[i] = adamas.RowTensor(indices, entries, SHAPES[i])
    return grads


def to_dense(grad):
    if not isinstance(grad, adamas.RowTensor):
        return grad
    return oracle.dense_gradient(grad.indices, grad.values, grad.dense_shape)


def scaled(grad, factor):
    if not isinstance(grad, adamas.RowTensor):
        return (grad * factor).astype(grad.dtype)
    entries = (grad.values * factor).astype(grad.values.dtype)
    return adamas.RowTensor(grad.indices, entries, grad.dense_shape)


# The norm


@every_real
@every_policy
@pytest.mark.parametrize("loss_scale", [1.0, 3.0, 1024.0])
def test_the_norm_is_that_of_all_gradients(dtype, policy, loss_scale):
    optimizer = adam(
        initial_arrays(dtype), row_policy=policy, loss_scale=loss_scale, max_grad_norm=1.0
    )
    assert math.isnan(optimizer.last_grad_norm)
    for seed in range(3):
        grads = gradients(seed, dtype, scale=10.0**seed)
        optimizer(grads)
        wanted = oracle.global_norm([to_dense(grad) for grad in grads], loss_scale)
        np.testing.assert_allclose(optimizer.last_grad_norm, float(wanted), rtol=1e-12)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_the_norm_of_16_bit_gradients_has_float64_precision(half):
    if half == "bfloat16":
        half = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
    rng = np.random.default_rng(52)
    grad = np.array(100 * rng.standard_normal(70_001), np.float32).astype(half)
    optimizer = adam([np.ones(grad.shape, half)], skip_nonfinite=True)
    optimizer([grad])
    wanted = oracle.global_norm([grad.astype(np.float64)], 1.0)
    np.testing.assert_allclose(optimizer.last_grad_norm, float(wanted), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1023, 1024, 1025, 16384, 16385])
def test_a_norm_known_exactly(size):
    optimizer = adam([np.ones(size, np.float32)], skip_nonfinite=True)
    grad = np.zeros(size, np.float32)
    grad[0] = 3
    grad[-1] = 4 if size > 1 else 3
    optimizer([grad])
    assert optimizer.last_grad_norm == (5 if size > 1 else 3)


def test_large_float32_gradients_do_not_overflow():
    optimizer = adam([np.ones(4, np.float32)], max_grad_norm=1.0)
    optimizer([np.full(4, 3e38, np.float32)])
    np.testing.assert_allclose(optimizer.last_grad_norm, 6e38, rtol=1e-7)
    np.testing.assert_allclose(optimizer.moment1[0], 0.2 * 0.5, rtol=1e-6)


def test_without_measuring_there_is_no_norm():
    optimizer = adam([np.ones(3, np.float32)])
    optimizer([np.ones(3, np.float32)])
    assert math.isnan(optimizer.last_grad_norm)
    assert (optimizer.last_step_skipped, optimizer.skipped_steps) == (False, 0)


@every_real
@every_policy
def test_the_norm_has_the_same_bits_everywhere(dtype, policy, select_isa, identity):
    def run(threads):
        optimizer = adam(
            initial_arrays(dtype), row_policy=policy, max_grad_norm=0.7, num_threads=threads
        )
        norms = []
        for seed in range(2):
            optimizer(gradients(seed, dtype))
            norms.append(optimizer.last_grad_norm)
        return optimizer, norms

    select_isa("scalar")
    wanted, norms = run(1)
    for isa in ISAS:
        for threads in THREADS:
            select_isa(isa)
            got, got_norms = run(threads)
            identity.compared += len(SHAPES)
            identity.mismatches += got_norms != norms
            assert got_norms == norms, (isa, threads)
            check_same_states(got, wanted, f"{isa}, {threads} threads")


# Clipping


@every_real
@every_policy
@pytest.mark.parametrize("loss_scale", [1.0, 3.0])
@pytest.mark.parametrize("decay", [{}, {"weight_decay": 0.037}], ids=["plain", "l2"])
def test_clipping_is_scaling_before(dtype, policy, loss_scale, decay):
    """Weight decay is not scaled."""
    options = {"row_policy": policy, "loss_scale": loss_scale, **decay}
    clipping = adam(initial_arrays(dtype), **options, max_grad_norm=0.7)
    plain = adam(initial_arrays(dtype), **options)
    for seed, scale in enumerate((1.0, 30.0, 1e-4, 2.0)):
        grads = gradients(seed, dtype, scale=scale)
        clipping(grads)
        norm = oracle.global_norm([to_dense(grad) for grad in grads], loss_scale)
        factor = float(oracle.clip_factor(norm, 0.7))
        assert (factor < 1) == (scale != 1e-4)
        plain([scaled(grad, factor) for grad in grads])
        for kind, arrays in states_of(clipping).items():
            for mine, wanted in zip(arrays, states_of(plain)[kind], strict=True):
                atol = EPS[dtype] * (1 if kind == "param" else 1e-2)
                np.testing.assert_allclose(mine, wanted, rtol=20 * EPS[dtype], atol=atol)


@every_real
@every_policy
@pytest.mark.parametrize("options", [{"max_grad_norm": 1e30}, {"skip_nonfinite": True}], ids=str)
def test_below_the_limit_nothing_changes(dtype, policy, options):
    more = {"row_policy": policy, "weight_decay": 0.037, "loss_scale": 3.0}
    measured = adam(initial_arrays(dtype), **more, **options)
    plain = adam(initial_arrays(dtype), **more)
    for seed in range(4):
        measured(gradients(seed, dtype))
        plain(gradients(seed, dtype))
        check_same_states(measured, plain)


def test_a_norm_at_the_limit_is_not_clipped():
    grad = np.array([3.0, 4.0], np.float32)
    optimizers = [adam([np.ones(2, np.float32)], **o) for o in ({"max_grad_norm": 5.0}, {})]
    for optimizer in optimizers:
        optimizer([grad])
    check_same_states(*optimizers)


def test_clipping_of_half_types_and_centralized_rows():
    """To a quarter, which is exact, so that the bits are those of a quarter of the gradient."""
    rng = np.random.default_rng(53)
    start = rng.standard_normal((4, 3, 5)).astype(np.float16)
    grad = rng.standard_normal((4, 3, 5)).astype(np.float32)

    def make(**options):
        group = {"params": parameters([start.copy()]), "grad_centralization": True}
        return adamas.Adam([group], **NUMBERS, **options)

    measuring = make(skip_nonfinite=True)
    measuring([grad])
    clipping, plain = make(max_grad_norm=measuring.last_grad_norm / 4), make()
    for _ in range(3):
        clipping([grad])
        plain([grad / 4])
        check_same_states(clipping, plain)


@every_policy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2, 3, 5])
def test_what_is_not_finite_cannot_be_clipped(bad, position, policy):
    optimizer, twin = (
        adam(initial_arrays(np.float32), row_policy=policy, max_grad_norm=1.0) for _ in range(2)
    )
    for one in (optimizer, twin):
        one(gradients(0, np.float32))
    grads = gradients(1, np.float32)
    elements(grads[position])[-1] = bad
    check_refused(optimizer, lambda: optimizer(grads), ValueError, "NaN or infinity", "clipped")
    for one in (optimizer, twin):
        one(gradients(2, np.float32))
    check_same_states(optimizer, twin)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_norm_beyond_float64_cannot_be_clipped(skip):
    optimizer = adam([np.ones(2)], max_grad_norm=1.0, skip_nonfinite=skip)
    grad = np.array([1e200, 0.0])
    check_refused(optimizer, lambda: optimizer([grad]), ValueError, "overflows")


# Skipping


def elements(grad):
    """Return the elements of a gradient, flat and writable."""
    return (grad.values if isinstance(grad, adamas.RowTensor) else grad).reshape(-1)


def check_skipped(optimizer, call, *, skipped_before=0):
    """A call changes nothing but what says that it was skipped."""
    before, (step, *_, steps) = everything(optimizer)
    assert call() is True
    after, counters = everything(optimizer)
    assert after == before
    assert counters[:3] == (step, skipped_before + 1, True)
    assert counters[-1] == steps


@every_policy
@pytest.mark.parametrize("clip", [{}, {"max_grad_norm": 1.0}], ids=["alone", "with clipping"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2, 3, 5])
def test_a_step_that_is_not_finite_is_skipped(position, bad, place, clip, policy):
    """And the next ones are as if it had never been."""
    optimizer, twin = (
        adam(initial_arrays(np.float32), row_policy=policy, skip_nonfinite=True, **clip)
        for _ in range(2)
    )
    for one in (optimizer, twin):
        one(gradients(0, np.float32))
    grads = gradients(1, np.float32)
    flat = elements(grads[position])
    flat[{"first": 0, "middle": len(flat) // 2, "last": len(flat) - 1}[place]] = bad
    check_skipped(optimizer, lambda: optimizer(grads))
    check_skipped(optimizer, lambda: optimizer(grads), skipped_before=1)
    for one in (optimizer, twin):
        one(gradients(2, np.float32))
        assert one.last_step_skipped is False
    check_same_states(optimizer, twin)
    assert optimizer.skipped_steps == 2
    assert optimizer.last_grad_norm == twin.last_grad_norm


@pytest.mark.parametrize("place", [*range(40), 1022, 1023, 1024, 1025, 2046])
def test_no_element_is_overlooked(place):
    optimizer = adam([np.ones(2047, np.float32)], skip_nonfinite=True)
    grad = np.ones(2047, np.float32)
    grad[place] = np.nan
    check_skipped(optimizer, lambda: optimizer([grad]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "float16", "bfloat16"])
def test_16_bit_gradients(param, dtype, isa, select_isa):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    select_isa(isa)
    optimizer = adam([np.ones(37, kinds[param])], skip_nonfinite=True, master_weights=True)
    patterns = np.arange(2**16, dtype=np.uint16).view(kinds[dtype])
    with np.errstate(invalid="ignore"):
        bad = patterns[~np.isfinite(patterns.astype(np.float32))]
    skipped = 0
    for i, pattern in enumerate(bad[:: max(1, len(bad) // 50)]):
        grad = np.ones(37, kinds[dtype])
        grad[i % 37] = pattern
        check_skipped(optimizer, lambda grad=grad: optimizer([grad]), skipped_before=skipped)
        skipped += 1
    assert skipped >= 5
    assert optimizer([np.full(37, patterns[1])]) is True
    assert optimizer.last_step_skipped is False


@every_policy
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_sum_of_duplicates_that_overflows_is_skipped(policy, dtype):
    """float16 values are summed in float32, where two of them never overflow."""
    optimizer = adam([np.ones((3, 2), np.float32)], row_policy=policy, skip_nonfinite=True)
    largest = np.full((2, 2), np.finfo(dtype).max, dtype)
    grad = adamas.RowTensor(np.array([1, 1]), largest, (3, 2))
    if dtype is np.float32:
        check_skipped(optimizer, lambda: optimizer([grad]))
    else:
        optimizer([grad])
        assert optimizer.last_step_skipped is False
    apart = adamas.RowTensor(np.array([1, 2]), largest, (3, 2))
    assert optimizer([apart]) is True
    assert optimizer.last_step_skipped is False


@every_policy
def test_opposite_infinities_in_one_row(policy):
    optimizer = adam([np.ones((3, 1), np.float32)], row_policy=policy, skip_nonfinite=True)
    opposite = np.array([[np.inf], [-np.inf]], np.float32)
    grad = adamas.RowTensor(np.array([2, 2]), opposite, (3, 1))
    check_skipped(optimizer, lambda: optimizer([grad]))


def test_a_float64_gradient_too_large_for_a_float32_parameter_is_skipped():
    optimizer = adam([np.ones(1, np.float32)], skip_nonfinite=True)
    check_skipped(optimizer, lambda: optimizer([np.array([1e300])]))


def test_schedules_and_iterators_do_not_advance():
    seen = []

    class Seen(adamas.LearningRateSchedule):
        def __call__(self, step):
            seen.append(step)
            return 0.1

    optimizer = adam([np.ones(2, np.float32)], learning_rate=Seen(), skip_nonfinite=True)
    vector = adam([np.ones(2, np.float32)], learning_rate=iter([0.1, 0.2]), skip_nonfinite=True)
    good, bad = np.ones(2, np.float32), np.array([1.0, np.nan], np.float32)
    for grad in (good, bad, bad, good):
        optimizer([grad])
        vector([grad])
    assert seen == [0, 1, 1, 1]
    assert (optimizer.global_step, optimizer.skipped_steps) == (2, 2)
    with pytest.raises(IndexError):
        vector([good])


def test_a_skipped_step_keeps_rows_no_longer_behind():
    """catch_up counts steps, not calls."""
    optimizer, twin = (
        adam([np.ones((4, 1), np.float32)], row_policy="catch_up", skip_nonfinite=True)
        for _ in range(2)
    )

    def row(index, value=1.0):
        return adamas.RowTensor(np.array([index]), np.full((1, 1), value, np.float32), (4, 1))

    for grad in (row(0), row(1), row(2, np.nan), row(2), row(0)):
        optimizer([grad])
        if np.isfinite(grad.values).all():
            twin([grad])
    check_same_states(optimizer, twin)


def with_loss_scale(old, param, loss_scale):
    """Return an optimizer that continues another one with a loss scale of its own."""
    new = adam([param], learning_rate=0.1, loss_scale=loss_scale, skip_nonfinite=True)
    if old is not None:
        new.moment1[0][...] = old.moment1[0]
        new.moment2[0][...] = old.moment2[0]
        new.global_step = old.global_step
    return new


def test_a_loop_with_dynamic_loss_scaling():
    """The scale falls until the scaled gradient fits float16, and grows after some good steps."""
    manager = adamas.DynamicLossScaleManager(init_loss_scale=2**20, scale_factor=2, scale_window=4)
    param = np.full(3, 4.0, np.float32)
    reference = adam([param.copy()], learning_rate=0.1)
    optimizer, skipped = None, 0
    for _ in range(40):
        scale = manager.get_loss_scale()
        optimizer = with_loss_scale(optimizer, param, scale)
        with np.errstate(over="ignore"):
            grad = (param * np.float32(scale)).astype(np.float16)
        optimizer([grad])
        overflow = optimizer.last_step_skipped
        assert overflow == (not adamas.all_finite([grad]))
        manager.update_loss_scale(overflow)
        skipped += overflow
        if not overflow:  # all scales are powers of two
            reference([grad.astype(np.float32) / np.float32(scale)])
        check_same_states(optimizer, reference)
    assert skipped >= 7
    assert optimizer.global_step == 40 - skipped >= 20


# The options


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_grad_norm", 0, ValueError),
        ("max_grad_norm", 0.0, ValueError),
        ("max_grad_norm", -1.0, ValueError),
        ("max_grad_norm", math.nan, ValueError),
        ("max_grad_norm", math.inf, ValueError),
        ("max_grad_norm", 10**400, ValueError),
        ("max_grad_norm", "1", TypeError),
        ("max_grad_norm", True, TypeError),
        ("max_grad_norm", 1j, TypeError),
        ("max_grad_norm", [1.0], TypeError),
        ("skip_nonfinite", 1, TypeError),
        ("skip_nonfinite", None, TypeError),
        ("skip_nonfinite", "True", TypeError),
        ("master_weights", 1, TypeError),
        ("master_weights", None, TypeError),
        ("row_policy", "sparse", ValueError),
        ("row_policy", "", ValueError),
        ("row_policy", "Lazy", ValueError),
        ("row_policy", 1, TypeError),
        ("row_policy", True, TypeError),
    ],
)
def test_bad_options(name, value, error):
    with pytest.raises(error, match=name):
        adam([np.ones(2, np.float32)], **{name: value})


@pytest.mark.parametrize("policy", ["exact", "catch_up"])
def test_use_lazy_with_another_policy(policy):
    with pytest.raises(ValueError, match="row_policy"):
        adam([np.ones(2, np.float32)], use_lazy=True, row_policy=policy)
    adam([np.ones(2, np.float32)], use_lazy=True, row_policy="lazy")


def test_amsgrad_with_lazy_rows_by_either_name():
    for options in ({"use_lazy": True}, {"row_policy": "lazy"}):
        with pytest.raises(ValueError, match="use_amsgrad"):
            adam([np.ones(2, np.float32)], use_amsgrad=True, **options)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_max_grad_norm_is_any_real_number(value):
    optimizer = adam([np.zeros(1, np.float32)], max_grad_norm=value, beta1=0.5)
    optimizer([np.array([8.0], np.float32)])
    np.testing.assert_allclose(optimizer.moment1[0], float(value) / 2, rtol=1e-6)


def test_replacing_one_gradient_changes_only_the_norm_below_the_limit():
    """The dense and the sparse form of one gradient have the same norm up to rounding."""
    rng = np.random.default_rng(54)
    grads = gradients(0, np.float64)
    grads[0] = row_tensor(rng, SHAPES[0], rng.integers(0, 700, 900), np.float64)
    norms = []
    for form in (grads, replaced(grads, 0, to_dense(grads[0]))):
        optimizer = adam(initial_arrays(np.float64), max_grad_norm=1e30)
        optimizer(form)
        norms.append(optimizer.last_grad_norm)
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-14)


def test_clipping_by_a_factor_that_float32_cannot_hold():
    clipped, scaled = np.ones(2, np.float32), np.ones(2, np.float32)
    grad = np.full(2, 1e38, np.float32)
    adamas.Adam([adamas.Parameter(clipped)], max_grad_norm=1e-8)((grad,))
    adamas.Adam([adamas.Parameter(scaled)])((np.full(2, 1e-8 / math.sqrt(2), np.float32),))
    np.testing.assert_allclose(clipped, scaled, rtol=1e-6)
    assert (clipped < 1).all()
