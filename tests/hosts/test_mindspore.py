"""adamas.mindspore beside mindspore.nn: steps, moving memory, checkpoints, training, refusals."""

import doctest
import inspect
import itertools
import threading

import ml_dtypes
import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed")

from mindspore import Parameter, Tensor, nn, ops  # noqa: E402
from mindspore.common.sparse_tensor import RowTensorInner  # noqa: E402
from mindspore.train import (  # noqa: E402
    DynamicLossScaleManager,
    FixedLossScaleManager,
    Model,
)

import adamas  # noqa: E402
import adamas.mindspore  # noqa: E402
from adamas._mindspore_count import steps_made  # noqa: E402
from helpers import bits  # noqa: E402

SHAPES = [(7,), (3, 5), (4, 16, 3), (1,), (129,)]  # the host has no kernels for () in places
NUMBERS = {"learning_rate": 0.013, "beta1": 0.85, "beta2": 0.97, "eps": 3e-5}
STATES = {"Adam": ("moment1", "moment2"), "AdamWeightDecay": ("moments1", "moments2")}


@pytest.fixture(autouse=True)
def _pynative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves files where it works
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def _at_once():
    """Let MindSpore make each operation when it is called: its queue waits by spinning."""
    ms.set_context(pynative_synchronize=True)
    yield
    ms.set_context(pynative_synchronize=False)


trains = pytest.mark.usefixtures("_at_once")


def values(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def tensor(array, dtype=None):
    return Tensor(np.array(array), dtype)


def parameters(dtype=None, shapes=SHAPES):
    names = ("weight", "conv.weight", "kernel", "scale", "norm.beta")
    pairs = zip(values(0, shapes), names, strict=True)
    return [Parameter(tensor(value, dtype), name=name) for value, name in pairs]


def gradients(step, dtype=None, shapes=SHAPES):
    return tuple(tensor(value, dtype) for value in values(100 + step, shapes))


def gradients_for(optimizer, step):
    return gradients(step, shapes=[param.shape for param in optimizer.parameters])


def held(optimizer):
    """Return the bytes of all that a step changes, by name."""
    return {
        param.name: bits(param.asnumpy().astype(np.float32)).tobytes()
        for param in optimizer.get_parameters()
    }


def compare(own, host, rtol=2e-6, atol=3e-7):
    """All parameters, states and counters of two optimizers of MindSpore, by name."""
    mine = {param.name: param for param in own.get_parameters()}
    theirs = {param.name: param for param in host.get_parameters()}
    assert list(mine) == list(theirs)
    for name, wanted in theirs.items():
        assert mine[name].dtype == wanted.dtype, name
        found = mine[name].asnumpy()
        np.testing.assert_allclose(found, wanted.asnumpy(), rtol=rtol, atol=atol, err_msg=name)


# Steps


def groups(params):
    return [
        {"params": params[1:3], "lr": 0.02, "weight_decay": 0.05, "grad_centralization": False},
        {"params": [params[0]], "weight_decay": 0.0},
        {"params": params[3:], "lr": nn.CosineDecayLR(1e-3, 0.05, 9)},
        {"order_params": params[::-1]},
    ]


def fixed_groups(params):
    return [{"params": params[2:], "lr": 0.02}, {"params": params[:2], "weight_decay": 0.1}]


class Decay(nn.Cell):
    def construct(self, step):
        return 0.01 + 0.003 * step


RATES = {
    "number": {},
    "tensor": {"learning_rate": lambda: Tensor(0.017, ms.float32)},
    "list": {"learning_rate": lambda: [0.1, 0.02, 0.3, 0.01]},
    "vector": {"learning_rate": lambda: Tensor([0.1, 0.02, 0.3, 0.01], ms.float32)},
    "warm-up": {"learning_rate": lambda: nn.WarmUpLR(0.05, 3)},
    "decay": {"weight_decay": lambda: 0.07},
    "decay of a Cell": {"weight_decay": Decay},
    "loss scale": {"loss_scale": lambda: 512.0, "weight_decay": lambda: 0.07},
}
KINDS = {
    "plain": {},
    "nesterov": {"use_nesterov": True},
    "amsgrad": {"use_amsgrad": True},
    "lazy": {"use_lazy": True, "use_nesterov": True},
    "offload": {"use_offload": True},
    "locking": {"use_locking": True},
}
GROUPS = {"list": list, "groups": groups, "fixed groups": fixed_groups}


def grid(*lists):
    """Return all combinations, of which `make test` takes every third: each compiles a graph."""
    return [
        pytest.param(*names, marks=[pytest.mark.long] if i % 3 else [], id="-".join(names))
        for i, names in enumerate(itertools.product(*lists))
    ]


@pytest.mark.parametrize(("rate", "grouping", "kind"), grid(RATES, GROUPS, KINDS))
def test_every_array_of_nn_adam(rate, grouping, kind):
    ask = lambda: {name: make() for name, make in RATES[rate].items()}  # noqa: E731
    pair = [
        optimizer(GROUPS[grouping](parameters()), **{**NUMBERS, **KINDS[kind], **ask()})
        for optimizer in (adamas.mindspore.Adam, nn.Adam)
    ]
    for step in range(4):
        grads = gradients_for(pair[0], step)
        for optimizer in pair:
            optimizer(grads)
        compare(*pair)
    assert pair[0]._step.bindings == 1


@pytest.mark.parametrize("grouping", GROUPS)
@pytest.mark.parametrize("rate", [name for name in RATES if name != "loss scale"])
def test_every_array_of_nn_adam_weight_decay(rate, grouping):
    ask = lambda: {name: make() for name, make in RATES[rate].items()}  # noqa: E731
    pair = [
        optimizer(GROUPS[grouping](parameters()), **{**NUMBERS, **ask()})
        for optimizer in (adamas.mindspore.AdamWeightDecay, nn.AdamWeightDecay)
    ]
    for step in range(4):
        grads = gradients_for(pair[0], step)
        for optimizer in pair:
            optimizer(grads)
        compare(*pair)


def numpy_twin(optimizer, params, **options):
    """Return an optimizer over NumPy arrays like the parameters, and what gives it gradients."""
    arrays = [adamas.Parameter(numpy_of(param), param.name) for param in params]
    twin = optimizer(arrays, **{**NUMBERS, **options})
    return twin, lambda grads: twin([numpy_of(grad) for grad in grads])


def numpy_of(value):
    array = value.asnumpy().copy()
    if array.dtype.name != "bfloat16":
        return array
    return array.view(np.uint16).view(ml_dtypes.bfloat16)


def same_bits(optimizer, twin):
    kinds = {
        "parameters": [param.data for param in twin.parameters],
        STATES[type(optimizer).__name__][0]: twin.moment1,
        STATES[type(optimizer).__name__][1]: twin.moment2,
        **({"vhat": twin.vhat} if twin.vhat else {}),
    }
    for kind, arrays in kinds.items():
        for param, wanted in zip(getattr(optimizer, kind), arrays, strict=True):
            found = param.asnumpy()
            assert (found.dtype.name, found.shape) == (wanted.dtype.name, wanted.shape)
            assert found.tobytes() == wanted.tobytes(), param.name


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("numerics", ["mindspore", "standard"])
@pytest.mark.parametrize("name", STATES)
def test_the_bits_of_adamas_over_arrays(name, numerics, dtype):
    dtype = getattr(ms, dtype)
    options = {"numerics": numerics, "weight_decay": 0.03125, "learning_rate": 0.015625}
    extra = {"max_grad_norm": 0.5} if name == "Adam" else {}
    params = parameters(dtype, [*SHAPES[:3], (), (16411,)])
    optimizer = getattr(adamas.mindspore, name)(params, **{**NUMBERS, **options, **extra})
    twin, step_twin = numpy_twin(getattr(adamas, name), params, **options, **extra)
    for step in range(3):
        grads = gradients(step, dtype, [param.shape for param in params])
        optimizer(grads)
        step_twin(grads)
    same_bits(optimizer, twin)
    assert optimizer.last_grad_norm == pytest.approx(twin.last_grad_norm, nan_ok=True)


def test_extras():
    options = {"decoupled_weight_decay": True, "weight_decay": 0.25, "num_threads": 1}
    params = parameters()
    optimizer = adamas.mindspore.Adam(params, **{**NUMBERS, "learning_rate": 0.5}, **options)
    twin, step_twin = numpy_twin(
        adamas.Adam, params, numerics="mindspore", **{**options, "learning_rate": 0.5}
    )
    optimizer(gradients(0))
    step_twin(gradients(0))
    same_bits(optimizer, twin)


def test_a_step_that_is_skipped():
    optimizer = adamas.mindspore.Adam(parameters(), skip_nonfinite=True)
    optimizer(gradients(0))
    before = held(optimizer)
    grads = gradients(1)
    grads[2].asnumpy()[1, 2, 1] = np.inf
    assert optimizer(grads) is True
    assert held(optimizer) == before
    assert (optimizer.last_step_skipped, optimizer.skipped_steps) == (True, 1)
    optimizer.parameters[0].set_data(tensor(values(0)[0]))  # which makes the native side anew
    optimizer(gradients(2))
    assert (optimizer.last_step_skipped, optimizer.skipped_steps) == (False, 1)
    assert optimizer.global_step.asnumpy().tolist() == [2]


@pytest.mark.parametrize(("wide", "narrow"), [("float32", "float16"), ("float16", "float32")])
def test_gradients_of_another_type(wide, narrow):
    params = parameters(getattr(ms, wide))
    optimizer = adamas.mindspore.Adam(params, **NUMBERS)
    twin, step_twin = numpy_twin(adamas.Adam, params, numerics="mindspore")
    for step in range(2):
        grads = gradients(step, getattr(ms, narrow))
        optimizer(grads)
        step_twin(grads)
    same_bits(optimizer, twin)


def test_gradients_that_are_views():
    whole = Tensor(np.arange(60, dtype=np.float32).reshape(5, 12))
    views = [whole[1:3], whole[:, ::2].T[:, :], ops.transpose(whole, (1, 0))]
    params = [
        Parameter(Tensor(np.ones(v.shape, np.float32)), name=f"w{i}") for i, v in enumerate(views)
    ]
    optimizer = adamas.mindspore.Adam(params, **NUMBERS)
    twin, step_twin = numpy_twin(adamas.Adam, params, numerics="mindspore")
    for _ in range(2):
        optimizer(views)
        step_twin(views)
    same_bits(optimizer, twin)


def test_gradients_at_other_addresses_each_time():
    pair = [make(parameters(), **NUMBERS) for make in (adamas.mindspore.Adam, nn.Adam)]
    kept = []
    for step in range(6):
        kept.append(gradients(step % 4))
        for optimizer in pair:
            optimizer(kept[-1] if step < 4 else kept[step - 4])
    compare(*pair)


# Memory that moves


def moved_by_set_data(param):
    param.set_data(Tensor(param.asnumpy() * np.float32(2), param.dtype))


def moved_by_assign_value(param):
    param.assign_value(Tensor(param.asnumpy() * np.float32(2), param.dtype))


def moved_by_an_operation(param):
    param.set_data(ops.mul(param, 2))


def moved_by_loading(param):
    ms.save_checkpoint(
        [{"name": param.name, "data": Tensor(param.asnumpy() * np.float32(2), param.dtype)}],
        "one.ckpt",
    )
    net = nn.Cell()
    net.insert_param_to_cell("p", param)
    param.name = "p"
    ms.save_checkpoint(
        [{"name": "p", "data": Tensor(param.asnumpy() * np.float32(2), param.dtype)}], "one.ckpt"
    )
    assert ms.load_param_into_net(net, ms.load_checkpoint("one.ckpt")) == ([], [])


def kept_by_assign(param):
    ops.assign(param, Tensor(param.asnumpy() * np.float32(2), param.dtype))


MOVES = [
    *(moved_by_set_data, moved_by_assign_value, moved_by_an_operation, moved_by_loading),
    kept_by_assign,
]


@pytest.mark.parametrize("what", ["parameters", "moment1", "moment2", "vhat"])
@pytest.mark.parametrize("move", MOVES)
def test_new_values_between_two_steps(move, what):
    """In PyNative mode nn.Adam itself goes on with the old memory: no host to compare with."""
    params = parameters()
    optimizer = adamas.mindspore.Adam(params, **NUMBERS, use_amsgrad=True)
    twin, step_twin = numpy_twin(adamas.Adam, params, numerics="mindspore", use_amsgrad=True)
    optimizer(gradients(0))
    step_twin(gradients(0))
    arrays = [p.data for p in twin.parameters] if what == "parameters" else getattr(twin, what)
    for param, array in zip(getattr(optimizer, what), arrays, strict=True):
        name = param.name
        move(param)
        param.name = name
        array *= 2
    for step in (1, 2):
        optimizer(gradients(step))
        step_twin(gradients(step))
    same_bits(optimizer, twin)


def test_parameters_that_are_parts_of_tensors():
    """Their asnumpy() is a copy."""
    whole = Tensor(np.arange(60, dtype=np.float32).reshape(5, 12)) + 0
    before = whole.asnumpy().copy()
    param = Parameter(Tensor(np.zeros((2, 12), np.float32)), name="weight")
    optimizer = adamas.mindspore.Adam([param], **NUMBERS)
    param.set_data(whole[1:3])
    assert param.asnumpy().ctypes.data != param.data_ptr()  # or there is nothing to test
    for _ in range(2):
        optimizer((Tensor(np.ones((2, 12), np.float32)),))
    changed = (whole.asnumpy() != before).all(axis=1)
    assert changed.tolist() == [False, True, True, False, False]
    np.testing.assert_array_equal(param.asnumpy(), whole.asnumpy()[1:3])
    np.testing.assert_allclose(param.asnumpy(), before[1:3] - 0.026, rtol=1e-4)


def test_parameters_with_gaps():
    param = Parameter(Tensor(np.zeros((5, 3), np.float32)), name="weight")
    optimizer = adamas.mindspore.Adam([param], **NUMBERS)
    param.set_data((Tensor(np.ones((5, 6), np.float32)) + 0)[:, ::2])
    if param.is_contiguous():
        pytest.skip("MindSpore has copied")
    refused(optimizer, (Tensor(np.ones((5, 3), np.float32)),), ValueError, "without gaps")


def test_old_memory_is_left_alone():
    optimizer = adamas.mindspore.Adam(parameters())
    optimizer(gradients(0))
    param = optimizer.parameters[1]
    old = param.asnumpy()
    kept = old.copy()
    param.set_data(Tensor(old * 2))
    optimizer(gradients(1))
    np.testing.assert_array_equal(old, kept)
    assert (param.asnumpy() != kept * 2).all()


def test_only_what_has_moved_is_looked_up_again():
    optimizer = adamas.mindspore.Adam(parameters(), learning_rate=nn.WarmUpLR(0.1, 5))
    for step in range(3):
        optimizer(gradients(step))
    assert optimizer._step.bindings == 1
    optimizer.parameters[0].set_data(gradients(9)[0])
    for step in range(3):
        optimizer(gradients(step))
    assert optimizer._step.bindings == 2


def replaced(optimizer):
    optimizer.learning_rate = Parameter(Tensor(0.25, ms.float32), name="learning_rate")


SET_RATE = {
    "set_data": lambda own: own.learning_rate.set_data(Tensor(0.25, ms.float32)),
    "assign": lambda own: ops.assign(own.learning_rate, Tensor(0.25, ms.float32)),
    "replaced": replaced,
}


@pytest.mark.parametrize("way", SET_RATE)
def test_a_learning_rate_that_is_set(way):
    params = parameters()
    optimizer = adamas.mindspore.Adam(params, **NUMBERS)
    twin, step_twin = numpy_twin(adamas.Adam, params, numerics="mindspore")
    optimizer(gradients(0))
    step_twin(gradients(0))
    SET_RATE[way](optimizer)
    twin.learning_rate = 0.25
    optimizer(gradients(1))
    step_twin(gradients(1))
    same_bits(optimizer, twin)


def test_parameters_without_values_yet():
    data = ms.common.initializer.initializer("ones", (3, 4), ms.float32)
    param = Parameter(data, name="weight")
    optimizer = adamas.mindspore.Adam([param], learning_rate=0.5)
    optimizer((Tensor(np.ones((3, 4), np.float32)),))
    np.testing.assert_allclose(param.asnumpy(), 0.5, rtol=1e-5)


def test_a_change_of_type():
    param = Parameter(Tensor(np.ones(5, np.float32)), name="weight")
    optimizer = adamas.mindspore.Adam([param], **NUMBERS)
    grad = Tensor(np.ones(5, np.float32))
    optimizer((grad,))
    param.set_dtype(ms.float16)  # its moments stay float32
    optimizer((grad,))
    assert param.asnumpy().dtype == np.float16
    assert (param.asnumpy() < 0.98).all()


def test_operations_that_are_queued_see_all_of_a_step_or_nothing():
    """MindSpore queues operations, and a forward pass under way reads the parameters."""
    size = 500
    weight = Parameter(Tensor(np.eye(size, dtype=np.float32)), name="weight")
    optimizer = adamas.mindspore.Adam([weight], learning_rate=0.5)
    grads = (Tensor(np.ones((size, size), np.float32)),)
    optimizer._step.forget()
    for _ in range(3):
        before = weight.asnumpy().copy()
        start = Tensor(np.eye(size, dtype=np.float32))
        product = start
        for _ in range(8):  # which take longer than the step
            product = ops.matmul(product, weight)
        last = ops.matmul(start, weight)
        optimizer(grads)
        np.testing.assert_array_equal(last.asnumpy(), before)
        weight.set_data(Tensor(np.eye(size, dtype=np.float32)))


# Counters


def test_steps_of_powers():
    for beta1, beta2 in itertools.product([0.5, 0.9, 0.99], [0.9, 0.999, 0.9999]):
        betas = [np.float32(beta1), np.float32(beta2)]
        powers = [np.float32(1), np.float32(1)]
        for step in range(3001):
            if step % 375 in (0, 1, 7):
                found = steps_made(5, [float(power) for power in powers], betas)
                wanted = [
                    float(np.prod(np.full(found, beta, np.float32), dtype=np.float32))
                    for beta in betas
                ]
                assert found == step or np.allclose(wanted, powers, rtol=1e-5, atol=1e-37)
            powers = [power * beta for power, beta in zip(powers, betas, strict=True)]


def test_steps_of_many_steps():
    betas = [np.float32(0.9), np.float32(0.999)]
    assert steps_made(10**6, [0.0, 0.0], betas) == 10**6
    assert steps_made(10**6, [1e-45, 1e-45], betas) == 10**6
    power = float(np.multiply.accumulate(np.full(40001, betas[1], np.float32))[-1])
    assert steps_made(3, [0.0, power], betas) == 40001


def test_a_schedule_that_begins_anew_leaves_the_bias_corrected():
    options = {**NUMBERS, "learning_rate": [0.1, 0.2, 0.3, 0.4]}
    pair = [make(parameters(), **options) for make in (adamas.mindspore.Adam, nn.Adam)]
    for optimizer in pair:
        for step in range(3):
            optimizer(gradients(step))
        ops.assign(optimizer.global_step, Tensor([0], ms.int32))
        for step in range(3):
            optimizer(gradients(step))
    compare(*pair)
    assert pair[0].global_step.asnumpy().tolist() == [3]


def test_a_bias_that_is_corrected_anew():
    pair = [make(parameters(), **NUMBERS) for make in (adamas.mindspore.Adam, nn.Adam)]
    for optimizer in pair:
        for step in range(3):
            optimizer(gradients(step))
        for name in ("beta1_power", "beta2_power"):
            ops.assign(getattr(optimizer, name), Tensor(1.0, ms.float32))
        optimizer(gradients(3))
    compare(*pair)


# Checkpoints


@pytest.mark.parametrize("name", STATES)
def test_checkpoints_go_both_ways(name):
    own, host = getattr(adamas.mindspore, name), getattr(nn, name)
    whole = host(parameters(), **NUMBERS)
    for first, second in ((own, host), (host, own), (own, own)):
        started, resumed = first(parameters(), **NUMBERS), second(parameters(), **NUMBERS)
        for step in range(3):
            started(gradients(step))
        ms.save_checkpoint(started, "optimizer.ckpt")
        if second is own:
            resumed(gradients(7))  # so that there is memory that must be left
        loaded = ms.load_checkpoint("optimizer.ckpt")
        assert ms.load_param_into_net(resumed, loaded, strict_load=True) == ([], [])
        for step in range(3, 5):
            resumed(gradients(step))
        if whole.global_step.asnumpy() == 0:
            for step in range(5):
                whole(gradients(step))
        compare(resumed, whole)


def test_a_checkpoint_of_half_precision_comes_from_nn_adam():
    host = nn.Adam(parameters(ms.float16), **NUMBERS)
    for step in range(3):
        host(gradients(step, ms.float16))
    ms.save_checkpoint(host, "half.ckpt")
    own = adamas.mindspore.Adam(parameters(ms.float16), **NUMBERS)
    assert ms.load_param_into_net(own, ms.load_checkpoint("half.ckpt")) == ([], [])
    for mine, theirs in zip(own.moment2, host.moment2, strict=True):
        assert mine.dtype == ms.float32
        np.testing.assert_array_equal(mine.asnumpy(), theirs.asnumpy().astype(np.float32))
    own(gradients(3, ms.float16))
    assert own.global_step.asnumpy().tolist() == [4]


def test_a_checkpoint_of_half_precision_goes_to_nn_adam():
    own = adamas.mindspore.Adam(parameters(ms.float16), **NUMBERS)
    for step in range(3):
        own(gradients(step, ms.float16))
    ms.save_checkpoint(own, "half.ckpt")
    host = nn.Adam(parameters(ms.float16), **NUMBERS)
    assert ms.load_param_into_net(host, ms.load_checkpoint("half.ckpt")) == ([], [])
    for mine, theirs in zip(own.moment2, host.moment2, strict=True):
        assert theirs.dtype == ms.float16
        np.testing.assert_array_equal(theirs.asnumpy(), mine.asnumpy().astype(np.float16))


# Sparse gradients


def rows_of(form, indices, listed, shape):
    parts = (Tensor(indices), Tensor(listed))
    return RowTensorInner(*parts, shape) if form == "RowTensor" else (*parts, shape)


@pytest.mark.parametrize("form", ["RowTensor", "tuple"])
@pytest.mark.parametrize("lazy", [False, True])
def test_rows(lazy, form):
    shape = (9, 4)
    indices = np.array([7, 2, 7, 0], np.int32)
    listed = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
    whole = np.zeros(shape, np.float32)
    np.add.at(whole, indices, listed)
    table = Parameter(Tensor(values(0, [shape])[0]), name="table")
    bias = Parameter(Tensor(values(0, [(3,)])[0]), name="bias")
    optimizer = adamas.mindspore.Adam([table, bias], **NUMBERS, use_lazy=lazy)
    twin, _ = numpy_twin(adamas.Adam, [table, bias], numerics="mindspore", use_lazy=lazy)
    before = table.asnumpy().copy()
    for step in range(2):
        bias_grad = gradients(step, shapes=[(3,)])[0]
        optimizer((rows_of(form, indices, listed, shape), bias_grad))
        rows = adamas.RowTensor(indices, listed, shape)
        twin([rows, bias_grad.asnumpy()])
    assert table.asnumpy().tobytes() == twin.parameters[0].data.tobytes()
    untouched = [1, 3, 4, 5, 6, 8]
    assert (table.asnumpy() == before)[untouched].all()
    if not lazy:
        host = nn.Adam([Parameter(Tensor(before), name="table")], **NUMBERS)
        for _ in range(2):
            host((Tensor(whole),))
        host_table = host.parameters[0].asnumpy()
        np.testing.assert_allclose(table.asnumpy(), host_table, rtol=2e-6, atol=3e-7)


class Lookup(nn.Cell):
    def __init__(self, rows):
        super().__init__()
        self.table = nn.EmbeddingLookup(rows, 4, sparse=True)
        self.weights = Tensor(np.arange(20, dtype=np.float32).reshape(5, 4) - 7)

    def construct(self, indices):
        return (self.table(indices) * self.weights).sum()


def test_a_sparse_embedding_with_gradients_under_jit():
    net = Lookup(9)
    params = ms.ParameterTuple(net.trainable_params())

    @ms.jit
    def grads_of(indices):
        return ms.grad(net, None, params)(indices)

    optimizer = adamas.mindspore.Adam(net.trainable_params(), **NUMBERS, use_lazy=True)
    before = params[0].asnumpy().copy()
    optimizer(grads_of(Tensor([7, 2, 7, 0, 2], ms.int32)))
    moved = (params[0].asnumpy() != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [0, 2, 7]


# Training as MindSpore does it


class LeNet5(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, pad_mode="valid")
        self.conv2 = nn.Conv2d(6, 16, 5, pad_mode="valid")
        self.relu = nn.ReLU()
        self.max_pool2d = nn.MaxPool2d(kernel_size=2, stride=2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Dense(16 * 5 * 5, 120)
        self.fc2 = nn.Dense(120, 84)
        self.fc3 = nn.Dense(84, 10)

    def construct(self, x):
        x = self.max_pool2d(self.relu(self.conv1(x)))
        x = self.max_pool2d(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(self.flatten(x)))
        return self.fc3(self.relu(self.fc2(x)))


def small():
    return nn.SequentialCell(nn.Flatten(), nn.Dense(1024, 20), nn.ReLU(), nn.Dense(20, 10))


def lenet():
    return with_weights(LeNet5())


def dense():
    return with_weights(small())


def with_weights(net):
    """Give it the same weights each time, whatever was made before."""
    rng = np.random.default_rng(5)
    for param in net.trainable_params():
        scale = 1 / np.sqrt(np.prod(param.shape[1:], initial=1))
        data = rng.uniform(-scale, scale, param.shape).astype(np.float32)
        param.set_data(Tensor(data))
    return net


def digits(count, batch):
    """Yield batches of 32 x 32 pixels with a bright stripe, whose place is the class."""
    rng = np.random.default_rng(6)
    for _ in range(count):
        labels = rng.integers(0, 10, batch).astype(np.int32)
        images = rng.standard_normal((batch, 1, 32, 32)).astype(np.float32) * 0.3
        for image, label in zip(images, labels, strict=True):
            image[0, 3 * label : 3 * label + 2] += 1
        yield images, labels


def batches(count, batch):
    for images, labels in digits(count, batch):
        yield Tensor(images), Tensor(labels)


def grads_of(net, params):
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    return ms.value_and_grad(lambda x, y: loss(net(x), y), None, params)


@trains
@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.long)])
def test_lenet_with_the_gradients_of_the_host(count):
    """Each step: the parameters beside those of nn.Adam, given the same gradients.

    Within the tolerances of the recorded runs: 1e-5, and 1e-6 of what is usual in the array.
    """
    host_net, rate = lenet(), 0.001
    host = nn.Adam(host_net.trainable_params(), rate)
    own = adamas.mindspore.Adam(lenet().trainable_params(), rate)
    gradient = grads_of(host_net, host.parameters)
    losses = []
    for images, labels in batches(count, 16):
        loss, grads = gradient(images, labels)
        host(grads)
        own(grads)
        losses.append(loss.asnumpy().item())
        for mine, theirs in zip(own.parameters, host.parameters, strict=True):
            found, wanted = mine.asnumpy(), theirs.asnumpy()
            atol = 1e-6 * (np.median(np.abs(wanted)) + rate)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=atol, err_msg=mine.name)
    if count == 300:
        assert losses[-1] < 0.1 < 1.5 < losses[0]
    for mine, theirs in zip(
        (*own.moment1, *own.moment2), (*host.moment1, *host.moment2), strict=True
    ):
        found, wanted = mine.asnumpy(), theirs.asnumpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    assert own.global_step.asnumpy().tolist() == [count]
    assert own._step.bindings == 1


def trained_by_a_cell(make):
    net = dense()
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    step = nn.TrainOneStepCell(nn.WithLossCell(net, loss), make(net.trainable_params(), 0.005))
    step.set_train()
    return net, [step(*batch).asnumpy().item() for batch in batches(30, 16)]


@trains
def test_train_one_step_cell():
    (net, losses), (host_net, host_losses) = map(
        trained_by_a_cell, (adamas.mindspore.Adam, nn.Adam)
    )
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, host_losses, rtol=0.01, atol=1e-3)
    for mine, theirs in zip(net.get_parameters(), host_net.get_parameters(), strict=True):
        np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), rtol=0.01, atol=2e-3)


def dataset(count, batch):
    return ms.dataset.GeneratorDataset(
        lambda: digits(count, batch), ["image", "label"], shuffle=False, num_parallel_workers=1
    )


def trained_by_a_model(make, **options):
    net = dense()
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    keywords = {"loss_scale": 256.0} if options else {}
    optimizer = make(net.trainable_params(), nn.WarmUpLR(0.005, 10), **keywords)
    model = Model(net, loss, optimizer, {"accuracy"}, **options)
    model.train(1, dataset(40, 16), dataset_sink_mode=False)
    return net, optimizer, model.eval(dataset(5, 16), dataset_sink_mode=False)["accuracy"]


@trains
@pytest.mark.parametrize("scaled", [False, True])
def test_model_train(scaled):
    def options():
        manager = FixedLossScaleManager(256.0, drop_overflow_update=False)
        return {"loss_scale_manager": manager} if scaled else {}

    (net, optimizer, accuracy), (host_net, _, host_accuracy) = (
        trained_by_a_model(make, **options()) for make in (adamas.mindspore.Adam, nn.Adam)
    )
    assert optimizer.global_step.asnumpy().tolist() == [40]
    assert accuracy == host_accuracy > 0.9
    for mine, theirs in zip(net.get_parameters(), host_net.get_parameters(), strict=True):
        np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), rtol=0.01, atol=3e-3)


@trains
def test_dynamic_loss_scale():
    """With MindSpore's manager; its own cell for it has no kernel on the CPU."""

    def run(make):
        net = dense()
        loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
        manager = DynamicLossScaleManager(2.0**130, 4, 7)  # the first steps overflow
        optimizer = make(net.trainable_params(), 0.005)
        scaled = ms.value_and_grad(
            lambda x, y, scale: loss(net(x), y) * scale, None, optimizer.parameters
        )
        seen = []
        for batch in batches(30, 16):
            scale = Tensor(manager.get_loss_scale(), ms.float32)
            value, grads = scaled(*batch, scale)
            grads = tuple(grad / scale for grad in grads)
            overflow = not ms.amp.all_finite(grads).asnumpy().item()
            manager.update_loss_scale(overflow)
            if not overflow:
                optimizer(grads)
            seen.append((overflow, manager.get_loss_scale()))
        return optimizer, seen, (value / scale).asnumpy().item()

    (own, seen, last), (host, wanted, host_last) = map(run, (adamas.mindspore.Adam, nn.Adam))
    assert seen == wanted
    overflows = sum(overflow for overflow, _ in seen)
    assert 0 < overflows < 15
    for optimizer in (own, host):
        assert optimizer.global_step.asnumpy().item() == 30 - overflows
    assert last == pytest.approx(host_last, rel=0.02)


@trains
def test_amp_in_functional_form():
    def run(make):
        net = ms.amp.auto_mixed_precision(dense(), "O2")
        loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
        optimizer = make(net.trainable_params(), 0.005)
        scaler = ms.amp.DynamicLossScaler(2.0**20, 2, 10)
        gradient = ms.value_and_grad(
            lambda x, y: scaler.scale(loss(net(x).astype(ms.float32), y)),
            None,
            optimizer.parameters,
        )
        losses = []
        for batch in batches(30, 16):
            scaled, grads = gradient(*batch)
            finite = ms.amp.all_finite(grads)
            scaler.adjust(finite)
            losses.append(scaled.asnumpy().item())
            if finite:
                optimizer(scaler.unscale(grads))
        return losses, optimizer

    (losses, own), (host_losses, host) = map(run, (adamas.mindspore.Adam, nn.Adam))
    assert own.global_step.asnumpy() == host.global_step.asnumpy() > 10
    np.testing.assert_allclose(losses[:5], host_losses[:5], rtol=0.02)


@trains
def test_a_net_under_jit_sees_every_step():
    net, host_net = lenet(), lenet()
    gradient = grads_of(net, net.trainable_params())
    own = adamas.mindspore.Adam(net.trainable_params(), 0.002)
    host = nn.Adam(host_net.trainable_params(), 0.002)
    forward = ms.jit(net.construct)
    for images, labels in batches(5, 4):
        _, grads = gradient(images, labels)
        own(grads)
        host(grads)
        wanted = host_net(images).asnumpy()
        np.testing.assert_allclose(forward(images).asnumpy(), wanted, rtol=1e-3, atol=1e-4)


def test_hooks_of_the_cell():
    optimizer = adamas.mindspore.Adam(parameters())
    seen = []
    optimizer.register_forward_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_forward_hook(lambda *given: seen.append(given[-1]))
    optimizer(gradients(0))
    assert seen == ["before", True]


def test_threads_that_share_an_optimizer():
    grads = gradients(0)
    own, one_by_one = (adamas.mindspore.Adam(parameters()) for _ in range(2))
    run = lambda: [own(grads) for _ in range(20)]  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(60):
        one_by_one(grads)
    assert held(own) == held(one_by_one)


def test_the_signature_is_that_of_the_host():
    own = inspect.signature(adamas.mindspore.Adam).parameters
    host = inspect.signature(inspect.unwrap(nn.Adam.__init__.__closure__[0].cell_contents))
    for name, wanted in host.parameters.items():
        if name not in ("self", "kwargs"):
            assert (own[name].default, own[name].kind) == (wanted.default, wanted.kind)
    others = inspect.signature(nn.AdamWeightDecay.__init__).parameters
    own = inspect.signature(adamas.mindspore.AdamWeightDecay).parameters
    for name, wanted in others.items():
        if name != "self":
            assert (own[name].default, own[name].kind) == (wanted.default, wanted.kind)


@pytest.mark.parametrize("name", STATES)
def test_the_examples_of_the_reference(name):
    found = doctest.DocTestFinder().find(getattr(adamas.mindspore, name), name, False, globs={})
    runner = doctest.DocTestRunner()
    examples = [test for test in found if test.examples]
    assert examples
    for example in examples:
        assert runner.run(example).failed == 0


# Refusals


def refused(optimizer, grads, error, match):
    before = held(optimizer)
    with pytest.raises(error, match=match):
        optimizer(grads)
    assert held(optimizer) == before


def swapped(position, grad):
    grads = list(gradients(1))
    grads[position] = grad
    return tuple(grads)


BAD_GRADS = {
    "fewer": (lambda: gradients(1)[:-1], ValueError, "one for each of the 5 parameters, got 4"),
    "one tensor": (lambda: gradients(1)[0], TypeError, "must be a tuple or list"),
    "None": (lambda: swapped(1, None), TypeError, r"gradients\[1\] must be a tensor, got None"),
    "shape": (lambda: swapped(2, tensor(np.ones(3, np.float32))), ValueError, "must have shape"),
    "integers": (lambda: swapped(0, tensor(np.ones(7, np.int32))), TypeError, "float type"),
    "two parts": (lambda: swapped(0, (1, 2)), TypeError, r"gradients\[0\] must be .* 2 things"),
    "no tensor": (lambda: swapped(0, "grad"), TypeError, "grad"),
    "row out of range": (
        lambda: swapped(
            1, rows_of("tuple", np.array([3], np.int32), np.ones((1, 5), np.float32), (3, 5))
        ),
        IndexError,
        "a row index of a sparse gradient is outside the parameter",
    ),
    "shape of rows": (
        lambda: swapped(
            1, rows_of("tuple", np.array([0], np.int32), np.ones((1, 5), np.float32), (4, 5))
        ),
        ValueError,
        "dense_shape",
    ),
}


def in_order(params):
    """In groups with rates of their own, and the order of a list."""
    return [
        {"params": params[2:], "lr": 0.02},
        {"params": params[:2], "weight_decay": 0.1},
        {"order_params": params},
    ]


@pytest.mark.parametrize("grouping", [list, in_order])
@pytest.mark.parametrize("bad", BAD_GRADS)
def test_bad_gradients(bad, grouping):
    make, error, match = BAD_GRADS[bad]
    optimizer = adamas.mindspore.Adam(grouping(parameters()), **NUMBERS)
    refused(optimizer, make(), error, match)  # before the first step
    optimizer = adamas.mindspore.Adam(parameters(), **NUMBERS)
    optimizer(gradients(0))
    refused(optimizer, make(), error, match)
    optimizer(gradients(1))


def test_a_gradient_that_is_the_parameter():
    optimizer = adamas.mindspore.Adam(parameters())
    refused(optimizer, swapped(0, optimizer.parameters[0]), ValueError, "shares memory")
    alias = Tensor(optimizer.parameters[0])
    if alias.data_ptr() == optimizer.parameters[0].data_ptr():
        refused(optimizer, swapped(0, alias), ValueError, "shares memory")


def test_parameters_that_share_memory():
    shared = Tensor(np.ones(3, np.float32)) + 0
    params = [Parameter(Tensor(np.ones(3, np.float32)), name=name) for name in "ab"]
    optimizer = adamas.mindspore.Adam(params)
    for param in params:
        param.set_data(shared)
    if params[0].data_ptr() != params[1].data_ptr():
        pytest.skip("MindSpore has copied")
    refused(optimizer, (tensor([1.0] * 3, ms.float32),) * 2, ValueError, "share")


def test_counters_that_contradict_each_other():
    optimizer = adamas.mindspore.Adam(parameters(), **NUMBERS)
    optimizer(gradients(0))
    good = optimizer.beta1_power.asnumpy().item()
    for bad in (0.123, -1.0, 2.0, float("nan")):
        optimizer.beta1_power.set_data(Tensor(bad, ms.float32))
        refused(optimizer, gradients(1), ValueError, "beta1_power and beta2_power must be")
    optimizer.beta1_power.set_data(Tensor(good, ms.float32))
    for bad in (-1, 2**31 - 1):
        optimizer.global_step.set_data(Tensor([bad], ms.int32))
        refused(optimizer, gradients(1), ValueError, "global_step must be in")
    optimizer.global_step.set_data(Tensor([1], ms.int32))
    optimizer(gradients(1))


def test_rates_that_are_wrong():
    optimizer = adamas.mindspore.Adam(parameters(), [0.1, 0.2])
    optimizer(gradients(0))
    optimizer(gradients(1))
    refused(optimizer, gradients(2), IndexError, "2 values, and none for step 2")
    optimizer = adamas.mindspore.Adam(parameters())
    for bad in (-0.5, float("nan"), float("inf")):
        optimizer.learning_rate.set_data(Tensor(bad, ms.float32))
        refused(optimizer, gradients(0), ValueError, "learning_rate must be")


def test_state_that_does_not_go_with_its_parameter():
    optimizer = adamas.mindspore.Adam(parameters(), **NUMBERS)
    optimizer.moment1[1].set_dtype(ms.float16)
    refused(optimizer, gradients(0), TypeError, r"'moment1.conv.weight' must be float32")
    optimizer = adamas.mindspore.Adam(parameters(), **NUMBERS)
    optimizer.parameters[1].set_data(Tensor(np.ones((2, 5), np.float32)), slice_shape=True)
    refused(optimizer, gradients(0), ValueError, r"must have the shape \(2, 5\)")


def test_parameters_of_integers():
    param = Parameter(Tensor(np.ones(3, np.int32)), name="weight")
    optimizer = adamas.mindspore.Adam([param])
    with pytest.raises(TypeError, match="'weight' must be float32"):
        optimizer((Tensor(np.ones(3, np.float32)),))


@pytest.mark.parametrize("capture_mode", ["ast", "bytecode"])
def test_graphs(capture_mode):
    optimizer = adamas.mindspore.Adam(parameters())
    optimizer(gradients(0))
    before = held(optimizer)
    grads = gradients(1)

    @ms.jit(capture_mode=capture_mode)
    def step(first, second, third, fourth, fifth):
        return optimizer((first, second, third, fourth, fifth))

    with pytest.raises(RuntimeError, match=r"is not a graph: use mindspore\.PYNATIVE_MODE"):
        step(*grads)
    ms.set_context(mode=ms.GRAPH_MODE)
    with pytest.raises(RuntimeError, match=r"is not a graph: use mindspore\.PYNATIVE_MODE"):
        optimizer(grads)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert held(optimizer) == before


BAD_OPTIONS = {
    "beta1": (1.0, ValueError),
    "beta2": (1, TypeError),
    "eps": (0.0, ValueError),
    "use_locking": (1, TypeError),
    "use_nesterov": (None, TypeError),
    "use_amsgrad": ("yes", TypeError),
    "use_lazy": (2, TypeError),
    "use_offload": (2, TypeError),
    "numerics": ("torch", ValueError),
    "max_grad_norm": (-1.0, ValueError),
    "skip_nonfinite": (1, TypeError),
    "num_threads": (0, ValueError),
    "decoupled_weight_decay": (1, TypeError),
    "use_fast": (True, KeyError),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name):
    value, error = BAD_OPTIONS[name]
    with pytest.raises(error, match=name):
        adamas.mindspore.Adam(parameters(), **{name: value})


def test_options_that_exclude_each_other():
    for names in (("use_lazy", "use_offload"), ("use_amsgrad", "use_lazy")):
        with pytest.raises(ValueError, match=names[0]):
            adamas.mindspore.Adam(parameters(), **dict.fromkeys(names, True))


def test_what_the_host_refuses():
    for make in (adamas.mindspore.Adam, nn.Adam):
        with pytest.raises(TypeError, match="learning_rate"):
            make(parameters(), learning_rate=None)
        with pytest.raises(TypeError, match=r"Parameter.*or.*dict"):
            make([np.ones(3)])
        with pytest.raises(ValueError, match="loss_scale"):
            make(parameters(), loss_scale=0.0)
        params = parameters()
        with pytest.raises(RuntimeError, match="already exists"):
            make([{"params": params}, {"params": params[:1]}])
        with pytest.raises(KeyError, match="momentum"):
            make([{"params": params, "momentum": 0.5}])
        with pytest.raises(ValueError, match="target"):
            make(params).target = "GPU"
