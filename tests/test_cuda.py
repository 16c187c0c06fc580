"""The CUDA backend on an emulated device (emulation.py): the bits of the CPU (promise P2).

Both kinds of device run the same host code and the same kernels, which are compiled for the host
here: index arithmetic, tables, alignment, order of sums and decisions are what is tested.
"""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from emulation import (
    IS_REAL,
    ExchangeTensor,
    FakeArray,
    FakeTensor,
    Twins,
    emulated,
    fake,
    on_device,
)
from helpers import bits, half_values, values
from rules import HALVES, REALS, every_numerics, every_real, long
from test_identity import RULES, every_rule, problem

pytestmark = pytest.mark.usefixtures("device")

SIZES = (*range(20), 127, 1009, 4095, 4096, 4097, 16381, 16411, 40009)


@every_rule
@every_real
@pytest.mark.parametrize("offset", [long(0), 8, long(24)], ids="offset{}".format)
def test_every_rule_at_every_offset(rule, dtype, offset, identity):
    sizes = (1, 2, 5, 33, 1009, 16411) if rule.centralize else SIZES
    data = problem(dtype, sizes, centralize=rule.centralize)
    twins = Twins(data.param, rule.optimizer, offset=offset)
    twins.start(moment1=data.moment1, moment2=data.moment2)
    if twins.cpu.vhat:
        twins.start(vhat=data.vhat)
    for k, grads in enumerate(data.grads):
        twins.step(grads, offset=(offset, offset + dtype().itemsize)[k % 2])
    twins.check(identity)


@pytest.mark.parametrize("rule", ["adam", "amsgrad-l2", "nesterov-l2-centralized"])
@pytest.mark.parametrize("dtype", [*HALVES, np.float32], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("grad_dtype", [*HALVES, np.float32], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("offset", [long(0), 2, long(12)], ids="offset{}".format)
def test_types(rule, dtype, grad_dtype, master, offset, identity):
    if dtype is np.float32 and offset == 2:
        offset = 4
    rng = np.random.default_rng(3)
    shapes = [(5,), (64, 3), (7, 16), (4097,), (3, 20000)]
    if RULES[rule].centralize:
        shapes = [(*shape, 1, 1) for shape in shapes]

    def some(kind):
        if kind is np.float32:
            return [values(rng, kind, shape, "huge") for shape in shapes]
        return [half_values(rng, kind, shape, finite=False) for shape in shapes]

    params = some(dtype)
    twins = Twins(params, lambda p: RULES[rule].optimizer(p, master_weights=master), offset=offset)
    for _ in range(2):
        twins.step(some(grad_dtype), offset=offset if grad_dtype is not np.float32 else 4)
    twins.check(identity)


def test_parameters_of_several_types_in_one_optimizer(identity):
    rng = np.random.default_rng(5)
    dtypes = [*REALS, *HALVES] * 3
    arrays = [rng.standard_normal(100 + 37 * i).astype(d) for i, d in enumerate(dtypes)]
    twins = Twins(arrays, lambda p: adamas.Adam(p, 0.01, weight_decay=0.1))
    for k in range(3):
        grads = []
        for i, array in enumerate(arrays):  # the types of gradients change from step to step
            kind = np.float64 if array.dtype == np.float64 else (*HALVES, np.float32)[(i + k) % 3]
            grads.append(rng.standard_normal(array.shape).astype(kind))
        twins.step(grads)
    twins.check(identity)


def test_groups_with_many_rates(identity):
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(50).astype(np.float32) for _ in range(70)]

    def make(params):
        groups = [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(params)]
        return adamas.Adam(groups, weight_decay=0.01)

    twins = Twins(arrays, make)
    for _ in range(2):
        twins.step([rng.standard_normal(50).astype(np.float32) for _ in arrays])
    twins.check(identity)


@pytest.mark.skipif(IS_REAL, reason="counts launches of the emulated device")
def test_a_thousand_parameters_take_few_launches(device, identity):
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(10).astype(np.float32) for _ in range(1000)]
    twins = Twins(arrays, lambda p: adamas.Adam(p, 0.01))
    grads = [rng.standard_normal(10).astype(np.float32) for _ in arrays]
    twins.step(grads)
    views = tuple(on_device(g) for g in grads)
    twins.cpu(grads)
    twins.gpu(views)
    before = device.adamas_emulated_launches()
    twins.cpu(grads)
    twins.gpu(views)
    assert device.adamas_emulated_launches() - before == 1  # pointers have not changed
    twins.check(identity)


@every_numerics
def test_step_in_parts(numerics, identity):
    rng = np.random.default_rng(7)
    shapes = [(30, 4), (5000,), (3, 4, 5)]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    twins = Twins(arrays, lambda p: adamas.Adam(p, 0.01, weight_decay=0.1, numerics=numerics))
    for order in ([2, 0, 1], [0, 1, 2]):
        grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        for name, optimizer in twins.optimizers.items():
            optimizer.begin_step()
            for i in order:
                grad = grads[i] if name == "cpu" else on_device(grads[i])
                optimizer.apply(optimizer.parameters[i], grad)
            optimizer.end_step()
    twins.check(identity)


def test_setting_the_step(identity):
    rng = np.random.default_rng(8)
    twins = Twins([rng.standard_normal(9)], lambda p: adamas.Adam(p, 0.01, numerics="mindspore"))
    for step in (0, 1000, 7):
        twins.cpu.global_step = twins.gpu.global_step = step
        twins.step([rng.standard_normal(9)])
        twins.check(identity)


@emulated
def test_states_are_arrays_on_the_device():
    weight = np.ones((3, 4), np.float32)
    opt = adamas.Adam([adamas.Parameter(FakeArray(weight))])
    (moment,) = opt.moment1
    assert moment.shape == (3, 4)
    assert moment.dtype == np.float32
    assert moment.__cuda_array_interface__["shape"] == (3, 4)
    moment.assign(np.arange(12).reshape(3, 4))
    assert np.array_equal(opt.moment1[0].numpy().ravel(), np.arange(12))
    assert opt.state_nbytes == 96
    assert opt.target == "GPU"


@emulated
def test_dlpack_tensors_are_used_in_place():
    weight = np.ones(5, np.float32)
    tensor = FakeTensor(weight)
    opt = adamas.Adam([adamas.Parameter(tensor)], learning_rate=0.5)
    opt((FakeTensor(np.ones(5, np.float32)),))
    assert np.allclose(weight, 0.5)
    assert opt.parameters[0].data is tensor


@emulated
@pytest.mark.parametrize("dtype", [np.float32, *HALVES], ids=lambda d: np.dtype(d).name)
def test_tensors_that_describe_themselves_in_c(dtype):
    weight, other = np.ones((3, 4), dtype), np.ones((3, 4), dtype)
    grad = np.linspace(-1, 1, 12).reshape(3, 4).astype(dtype)
    opt = adamas.Adam([adamas.Parameter(ExchangeTensor(weight))], 0.1)
    cpu = adamas.Adam([adamas.Parameter(other)], 0.1)
    view = ExchangeTensor(grad)
    for _ in range(2):
        opt((view,))
        cpu((grad,))
    assert view.streams == []  # __dlpack__ was not called
    assert np.array_equal(bits(weight), bits(other))


@pytest.mark.parametrize(
    ("grad", "error", "fragment"),
    [
        (lambda: ExchangeTensor(np.ones((3, 3), np.float32)), ValueError, "shape"),
        (lambda: ExchangeTensor(np.ones((6,), np.float32)), ValueError, "shape"),
        (lambda: ExchangeTensor(np.ones((3, 2))), TypeError, "float64"),
        (lambda: ExchangeTensor(np.ones((3, 2), np.int32)), TypeError, "int32"),
        (lambda: ExchangeTensor(np.ones((3, 4), np.float32)[:, ::2]), ValueError, "C-contiguous"),
        (lambda: ExchangeTensor(np.ones((3, 2), np.float32), 1), ValueError, "device 1"),
    ],
)
def test_described_tensors_that_are_refused(grad, error, fragment):
    weight = fake()
    opt = adamas.Adam([adamas.Parameter(weight)])
    with pytest.raises(error, match=fragment):
        opt((grad(),))
    assert np.all(weight.host == 1)


def misaligned():
    return np.zeros(25, np.uint8)[1:].view(np.float32).reshape(3, 2)


@emulated
@pytest.mark.parametrize(
    ("data", "error", "fragment"),
    [
        (lambda: fake(readonly=True), ValueError, "read-only"),
        (lambda: FakeArray(np.ones((4, 6), np.float32)[:, ::2]), ValueError, "C-contiguous"),
        (lambda: FakeArray(misaligned()), ValueError, "aligned"),
        (lambda: fake(dtype=np.int32), TypeError, "int32"),
        (lambda: fake(dtype=np.complex64), TypeError, "complex64"),
    ],
)
def test_parameters_that_are_refused(data, error, fragment):
    with pytest.raises(error, match=fragment):
        adamas.Parameter(data())


@emulated
def test_jax_arrays_are_refused_with_advice():
    class Array(FakeArray):
        pass

    Array.__module__ = "jaxlib._jax"
    with pytest.raises(TypeError, match="mutable"):
        adamas.Parameter(Array(np.ones(3, np.float32)))


@pytest.mark.parametrize(
    ("grad", "error", "fragment"),
    [
        (lambda: np.ones((3, 2), np.float32), TypeError, "CUDA device 0"),
        (lambda: fake((3, 3)), ValueError, "shape"),
        (lambda: fake(dtype=np.float64), TypeError, "float64"),
        (lambda: fake(dtype=np.int64), TypeError, "int64"),
        (lambda: FakeArray(np.ones((3, 4), np.float32)[:, ::2]), ValueError, "C-contiguous"),
        (lambda: FakeArray(misaligned()), ValueError, "aligned"),
        (lambda: ExchangeTensor(misaligned()), ValueError, "aligned"),
        (lambda: FakeTensor(np.ones((3, 2), np.float32), 1), ValueError, "device 1"),
        (lambda: 3.0, TypeError, "CUDA device"),
    ],
)
def test_gradients_that_are_refused(grad, error, fragment):
    weight = fake()
    opt = adamas.Adam([adamas.Parameter(weight)])
    with pytest.raises(error, match=fragment):
        opt((grad(),))
    assert np.all(weight.host == 1)
    assert opt.global_step == 0


def test_a_gradient_that_shares_memory_is_refused():
    weight = fake()
    opt = adamas.Adam([adamas.Parameter(weight)])
    with pytest.raises(ValueError, match="shares memory"):
        opt((weight,))
    with pytest.raises(ValueError, match="shares memory"):
        opt((opt.moment1[0],))


@emulated
def test_parameters_on_several_devices_are_refused():
    params = [adamas.Parameter(FakeTensor(np.ones(3, np.float32), d)) for d in (0, 1)]
    with pytest.raises(ValueError, match="one device"):
        adamas.Adam(params)
    with pytest.raises(ValueError, match="one device"):
        adamas.Adam([params[0], adamas.Parameter(np.ones(3, np.float32))])
    for param in params:
        adamas.Adam([param])


def test_device_gradients_of_host_parameters_are_refused():
    opt = adamas.Adam([adamas.Parameter(np.ones((3, 2), np.float32))])
    with pytest.raises(TypeError):
        opt((fake(),))
    with pytest.raises(ValueError, match="stream"):
        opt((np.ones((3, 2), np.float32),), stream=5)
