"""Norms, clipping, skipping and sparse gradients on the emulated CUDA device: the CPU's bits."""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from emulation import FakeArray, Twins, emulated, fake, on_device
from helpers import ROW_SETS, Falling, Rising, half_values, values
from rules import (
    HALVES,
    every,
    every_dtype,
    every_numerics,
    every_policy,
    every_real,
    every_state_dtype,
)

pytestmark = pytest.mark.usefixtures("device")

SHAPES = ((1,), (3, 5), (7,), (16411,), (40, 1025), (2, 3, 20000))


def arrays_of(rng, shapes=SHAPES, dtype=np.float32, scale=1.0):
    return [(scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


@every_numerics
@every_real
@pytest.mark.parametrize("largest", [1e-3, 1e9])
def test_clipping(numerics, dtype, largest, identity):
    rng = np.random.default_rng(1)
    twins = Twins(
        arrays_of(rng, dtype=dtype),
        lambda p: adamas.Adam(
            p,
            Falling(),
            weight_decay=Rising(),
            max_grad_norm=largest,
            loss_scale=3.0,
            numerics=numerics,
        ),
    )
    for _ in range(4):
        twins.step(arrays_of(rng, dtype=dtype))
        twins.check(identity)


@every("dtype", HALVES)
def test_clipping_16_bit_gradients(dtype, identity):
    rng = np.random.default_rng(2)
    twins = Twins(arrays_of(rng), lambda p: adamas.Adam(p, 0.01, max_grad_norm=1.0))
    for _ in range(2):
        twins.step([half_values(rng, dtype, s, finite=True) for s in SHAPES])
        twins.check(identity)


def test_clipping_with_row_means(identity):
    rng = np.random.default_rng(3)

    def make(params):
        groups = [{"params": params, "grad_centralization": True, "weight_decay": 0.1}]
        return adamas.Adam(groups, 0.01, max_grad_norm=0.1)

    shapes = [(5, 3, 1), (7, 2, 3000), (2, 3, 20000), (40, 4, 4)]
    twins = Twins(arrays_of(rng, shapes), make)
    for _ in range(3):
        twins.step(arrays_of(rng, shapes))
    twins.check(identity)


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skipping(clips, bad, identity):
    rng = np.random.default_rng(4)
    largest = 0.5 if clips else None
    twins = Twins(
        arrays_of(rng),
        lambda p: adamas.Adam(
            p, Falling(), skip_nonfinite=True, max_grad_norm=largest, numerics="mindspore"
        ),
    )
    for k in range(6):
        grads = arrays_of(rng)
        if k in (0, 3, 4):
            grads[k].flat[-1] = bad
        twins.step(grads)
        twins.check(identity)
    assert twins.gpu.skipped_steps == 3


@emulated
def test_a_norm_that_overflows_is_reported_by_the_next_call():
    weight = fake((3,), np.float64)
    opt = adamas.Adam([adamas.Parameter(weight)], 0.1, max_grad_norm=1.0)
    huge = FakeArray(np.full(3, 1e300))
    fine = FakeArray(np.ones(3))
    opt((huge,))
    assert opt.global_step == 0
    with pytest.raises(ValueError, match="overflowed"):
        opt((fine,))
    assert np.all(weight.host == 1)
    opt((fine,))
    assert opt.global_step == 1


@emulated
def test_what_is_not_finite_is_reported_by_the_next_call():
    weight = fake((3,))
    opt = adamas.Adam([adamas.Parameter(weight)], 0.1, max_grad_norm=1.0)
    fine = FakeArray(np.ones(3, np.float32))
    opt((fine,))
    before = weight.host.copy()
    opt((FakeArray(np.array([1, np.nan, 1], np.float32)),))
    with pytest.raises(ValueError, match="NaN or infinity"):
        opt((fine,))
    assert np.array_equal(weight.host, before)
    assert opt.global_step == 1
    opt((fine,))
    assert opt.global_step == 2


def test_setting_the_step_of_an_optimizer_that_clips(identity):
    rng = np.random.default_rng(5)
    twins = Twins(
        arrays_of(rng), lambda p: adamas.Adam(p, 0.01, max_grad_norm=1.0, numerics="mindspore")
    )
    for step in (0, 1000, 7):
        twins.cpu.global_step = twins.gpu.global_step = step
        twins.cpu.loss_scale = twins.gpu.loss_scale = float(step + 1)
        twins.step(arrays_of(rng))
        twins.check(identity)


def sparse(indices, entries, shape):
    """Return a sparse gradient for the CPU, and one for the device."""
    there = adamas.RowTensor(on_device(indices), on_device(entries), shape)
    return adamas.RowTensor(indices, entries, shape), there


def step_rows(twins, gradients):
    twins.cpu(tuple(g if isinstance(g, np.ndarray) else g[0] for g in gradients))
    twins.gpu(tuple(on_device(g) if isinstance(g, np.ndarray) else g[1] for g in gradients))


@every_policy
@every_numerics
@every_dtype
@pytest.mark.parametrize("shape", [(1, 3), (9, 1), (13, 64), (6, 2, 700), (40,)], ids=str)
def test_sparse_gradients(policy, numerics, dtype, shape, identity):
    rng = np.random.default_rng(6)
    is_half = dtype in HALVES

    def some(count):
        size = (count, *shape[1:])
        if is_half:
            return half_values(rng, dtype, size, finite=True)
        return values(rng, dtype, size, "mild")

    def make(params):
        return adamas.Adam(
            params, 0.01, weight_decay=0.1, row_policy=policy, numerics=numerics, loss_scale=2.0
        )

    twins = Twins([some(shape[0]), np.ones(5, dtype)], make)
    for k, rows in enumerate(ROW_SETS):
        indices = rows(rng, shape[0]).astype((np.int64, np.int32)[k % 2])
        gradients = [sparse(indices, some(len(indices)), shape), np.full(5, 0.5, dtype)]
        if k == 4:
            gradients[0] = some(shape[0])  # a dense one between them
        step_rows(twins, gradients)
        twins.check(identity)


@every_policy
@pytest.mark.parametrize("options", [{"use_nesterov": True}, {"decoupled_weight_decay": True}])
def test_rules_of_sparse_gradients(policy, options, identity):
    rng = np.random.default_rng(7)
    twins = Twins(
        [values(rng, np.float32, (23, 70), "mild")],
        lambda p: adamas.Adam(p, Falling(), weight_decay=0.1, row_policy=policy, **options),
    )
    for rows in ROW_SETS:
        indices = rows(rng, 23)
        entries = values(rng, np.float32, (len(indices), 70), "mild")
        step_rows(twins, [sparse(indices, entries, (23, 70))])
    twins.check(identity)


def test_amsgrad_and_sparse_gradients(identity):
    rng = np.random.default_rng(8)
    twins = Twins(
        [values(rng, np.float32, (23, 7), "mild")], lambda p: adamas.Adam(p, use_amsgrad=True)
    )
    for rows in ROW_SETS:
        indices = rows(rng, 23)
        entries = values(rng, np.float32, (len(indices), 7), "mild")
        step_rows(twins, [sparse(indices, entries, (23, 7))])
    twins.check(identity)


@every_policy
@pytest.mark.parametrize("width", [3, 1500])
def test_clipping_sparse_gradients(policy, width, identity):
    rng = np.random.default_rng(9)
    twins = Twins(
        [values(rng, np.float32, (50, width), "mild"), np.ones(20000, np.float32)],
        lambda p: adamas.Adam(
            p, 0.01, row_policy=policy, max_grad_norm=0.1, skip_nonfinite=True, weight_decay=0.01
        ),
    )
    for k, rows in enumerate(ROW_SETS):
        indices = rows(rng, 50)
        entries = values(rng, np.float32, (len(indices), width), "mild")
        dense = values(rng, np.float32, 20000, "mild")
        if k == 3:
            dense[77] = np.inf
        step_rows(twins, [sparse(indices, entries, (50, width)), dense])
        twins.check(identity)


def test_steps_of_sparse_gradients_in_parts(identity):
    rng = np.random.default_rng(10)
    twins = Twins(arrays_of(rng, [(8, 3), (9,)]), lambda p: adamas.Adam(p, use_lazy=True))
    grad = sparse(np.array([3, 1, 3]), np.ones((3, 3), np.float32), (8, 3))
    dense = np.ones(9, np.float32)
    for optimizer, one, other in (
        (twins.cpu, grad[0], dense),
        (twins.gpu, grad[1], on_device(dense)),
    ):
        optimizer.begin_step()
        optimizer.apply(optimizer.parameters[1], other)
        optimizer.apply(optimizer.parameters[0], one)
        optimizer.end_step()
    twins.check(identity)


@pytest.mark.parametrize("index", [-1, 8, 2**40])
@pytest.mark.parametrize("options", [{"use_lazy": True}, {"max_grad_norm": 1.0}])
def test_an_index_outside_changes_nothing(index, options):
    table, bias = fake((8, 3)), fake((4,))
    opt = adamas.Adam([adamas.Parameter(table), adamas.Parameter(bias)], **options)
    _, bad = sparse(np.array([1, index]), np.ones((2, 3), np.float32), (8, 3))
    _, good = sparse(np.array([1, 2]), np.ones((2, 3), np.float32), (8, 3))
    with pytest.raises(IndexError):
        opt((bad, fake((4,))))
    assert np.all(table.host == 1)
    assert np.all(bias.host == 1)
    assert opt.global_step == 0
    opt((good, fake((4,))))
    assert opt.global_step == 1


@every_state_dtype
@pytest.mark.parametrize("dtype", [np.float32, *HALVES], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("offset", [0, 4, 12], ids="offset{}".format)
def test_smaller_moments(state_dtype, dtype, offset, identity):
    rng = np.random.default_rng(11)
    shapes = [(1,), (15,), (63, 3), (7, 64), (5, 300), (4099,), (3, 6000), (129, 17)]

    def some(kind="huge"):
        if dtype in HALVES:
            return [half_values(rng, dtype, s, finite=kind == "mild") for s in shapes]
        return [values(rng, dtype, s, kind) for s in shapes]

    twins = Twins(
        some("mild"),
        lambda p: adamas.Adam(p, 0.01, weight_decay=0.1, state_dtype=state_dtype, seed=5),
        offset=offset,
    )
    for k in range(3):
        twins.step(some("any" if k == 2 else "huge"), offset=offset)
        twins.check(identity)


@every_state_dtype
def test_smaller_moments_with_everything(state_dtype, identity):
    rng = np.random.default_rng(12)
    shapes = [(5, 4, 16), (3, 2, 64), (6, 300, 1)]

    def make(params):
        groups = [{"params": params, "grad_centralization": True, "weight_decay": 0.1}]
        return adamas.Adam(
            groups,
            0.01,
            use_amsgrad=True,
            use_nesterov=True,
            state_dtype=state_dtype,
            master_weights=True,
            max_grad_norm=1.0,
        )

    twins = Twins([half_values(rng, HALVES[1], s, finite=True) for s in shapes], make)
    for _ in range(3):
        twins.step(arrays_of(rng, shapes))
        twins.check(identity)


@every_state_dtype
@pytest.mark.parametrize("policy", ["exact", "lazy"])
@pytest.mark.parametrize("width", [16, 64, 192, 600])
def test_smaller_moments_of_sparse_gradients(state_dtype, policy, width, identity):
    rng = np.random.default_rng(13)
    twins = Twins(
        [values(rng, np.float32, (21, width), "mild")],
        lambda p: adamas.Adam(
            p, 0.01, row_policy=policy, state_dtype=state_dtype, weight_decay=0.1
        ),
    )
    for rows in ROW_SETS:
        indices = rows(rng, 21)
        entries = values(rng, np.float32, (len(indices), width), "mild")
        step_rows(twins, [sparse(indices, entries, (21, width))])
        twins.check(identity)
