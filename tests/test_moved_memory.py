"""Parameters whose memory is another object's, which may come to have other memory.

A step notices, and changes nothing; `Parameter.rebind` takes the new memory, without a copy, and
optimizers go on with the bits that they would have had.
"""

import copy

import numpy as np
import pytest

import adamas
from adamas import _core
from adamas._arrays import gradient
from helpers import check_refused, check_same_states, parameters, run_threads

SHAPE = (2, 3)
MOVED = "rebind"


def grad_of(step, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(step).standard_normal(shape).astype(dtype)


class Holder:
    """An array of a library without DLPack's functions of C, as MindSpore's is."""

    dtype = "float32"

    def __init__(self, values):
        self.values = values

    def data_ptr(self):
        return self.values.ctypes.data

    def numpy(self):
        return self.values


def make(data, **options):
    param = adamas.Parameter(data, "weight")
    return param, adamas.Adam([param], learning_rate=0.1, **options)


def test_an_owner_that_has_other_memory_is_noticed():
    holder = Holder(np.ones(SHAPE, np.float32))
    _, optimizer = make(holder)
    assert optimizer((grad_of(0),))
    before, holder.values = holder.values, np.ones(SHAPE, np.float32)
    calls = [
        lambda: optimizer((grad_of(1),)),
        lambda: optimizer((grad_of(1).astype(np.float64),)),
        lambda: optimizer.state_dict(parameters=True),
        lambda: optimizer.load_state_dict(state),
    ]
    state = optimizer.state_dict()
    state["parameters"]["weight"]["param"] = np.zeros(SHAPE, np.float32)
    for call in calls:
        check_refused(optimizer, call, ValueError, "'weight'", MOVED)
    assert (holder.values == 1).all()
    optimizer.begin_step()
    check_refused(
        optimizer, lambda: optimizer.apply(optimizer.parameters[0], grad_of(1)), ValueError, MOVED
    )
    optimizer.cancel_step()
    holder.values = before
    assert optimizer((grad_of(1),))


def test_an_owner_that_has_moved_before_the_optimizer_is_made():
    holder = Holder(np.ones(SHAPE, np.float32))
    param = adamas.Parameter(holder)
    holder.values = holder.values.copy()
    with pytest.raises(ValueError, match=MOVED):
        adamas.Adam([param])
    param.rebind(holder)
    assert adamas.Adam([param])((grad_of(0),))


@pytest.mark.parametrize("options", [{}, {"use_locking": True}, {"use_amsgrad": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rebinding_goes_on_with_the_same_bits(options, dtype):
    arrays = [np.ones(SHAPE, dtype), np.ones(5, dtype), np.ones((), dtype)]
    ours, theirs = (adamas.Adam(parameters(copy.deepcopy(arrays)), **options) for _ in range(2))
    old = []
    for step in range(4):
        grads = [grad_of(step, array.shape, dtype) for array in arrays]
        ours(grads)
        theirs(grads)
        for param in ours.parameters[: step + 1]:
            old.append((param.data, param.data.tobytes()))
            param.rebind(param.data.copy())
    check_same_states(ours, theirs)
    assert all(array.tobytes() == wanted for array, wanted in old)


def test_every_optimizer_of_a_parameter_follows():
    array = np.ones(SHAPE, np.float32)
    param = adamas.Parameter(array)
    optimizers = [adamas.Adam([param]) for _ in range(2)]
    moved = array.copy()
    param.rebind(moved)
    assert param.data is moved
    for optimizer in optimizers:
        before = moved.copy()
        optimizer((grad_of(0),))
        assert (moved != before).all()
    assert (array == 1).all()


def test_parameters_may_change_places():
    arrays = [np.full(SHAPE, value, np.float32) for value in (1, 2)]
    params = parameters(arrays)
    optimizer = adamas.Adam(params, learning_rate=0.5)
    for param, array in zip(params, reversed(arrays), strict=True):
        param.rebind(array)
    grads = [np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)]
    optimizer(grads)
    np.testing.assert_allclose(arrays[0], 0.5, rtol=1e-6)
    assert (arrays[1] == 2).all()


def test_states_are_saved_from_and_loaded_to_the_new_memory():
    param, optimizer = make(np.ones(SHAPE, np.float32))
    moved = np.full(SHAPE, 3, np.float32)
    param.rebind(moved)
    state = optimizer.state_dict(parameters=True)
    assert (state["parameters"]["weight"]["param"] == 3).all()
    moved[...] = 4
    again = moved.copy()
    param.rebind(again)
    optimizer.load_state_dict(state)
    assert (again == 3).all()
    assert (moved == 4).all()


@pytest.mark.parametrize(
    ("data", "error", "fragment"),
    [
        (np.ones((3, 2), np.float32), ValueError, r"shape \(2, 3\)"),
        (np.ones(SHAPE), TypeError, "float32"),
        (np.ones(SHAPE, np.int32), TypeError, "int32"),
        (np.ones((2, 6), np.float32)[:, ::2], ValueError, "strides"),
        (np.broadcast_to(np.float32(1), SHAPE), ValueError, "read-only"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], TypeError, "list"),
    ],
    ids=["shape", "type", "int", "strided", "read-only", "list"],
)
def test_other_memory_is_refused(data, error, fragment):
    array = np.ones(SHAPE, np.float32)
    param, optimizer = make(array)
    with pytest.raises(error, match=fragment):
        param.rebind(data)
    assert param.data is array
    check_refused(optimizer, lambda: param.rebind(data), error)
    optimizer((grad_of(0),))
    assert (array != 1).all()


@pytest.mark.parametrize("use_locking", [False, True])
def test_memory_of_another_parameter_or_of_the_state_is_refused(use_locking):
    arrays = [np.ones(SHAPE, np.float32) for _ in range(2)]
    params = parameters(arrays)
    optimizer = adamas.Adam(params, use_locking=use_locking)
    grads = [grad_of(0), grad_of(1)]
    optimizer(grads)
    for taken in (arrays[1], optimizer.moment1[0]):
        params[0].rebind(taken)
        before = [array.tobytes() for array in (*arrays, *optimizer.moment1)]
        with pytest.raises(ValueError, match="shares memory"):
            optimizer(grads)
        assert [array.tobytes() for array in (*arrays, *optimizer.moment1)] == before
        assert optimizer.global_step == 1
    params[0].rebind(arrays[0])
    optimizer(grads)
    assert optimizer.global_step == 2


def test_a_gradient_in_the_new_memory_is_refused():
    """Where a gradient lay before a parameter came to lie there."""
    param, optimizer = make(np.ones(SHAPE, np.float32))
    grad = grad_of(0)
    optimizer((grad,))
    param.rebind(grad)
    check_refused(optimizer, lambda: optimizer((grad,)), ValueError, "shares memory")


def test_an_open_step_is_not_rebound():
    param, optimizer = make(np.ones(SHAPE, np.float32))
    optimizer.begin_step()
    param.rebind(param.data.copy())
    with pytest.raises(RuntimeError, match="open"):
        optimizer.apply(param, grad_of(0))
    optimizer.cancel_step()
    optimizer((grad_of(0),))
    assert (param.data != 1).all()


def test_threads_follow_at_once():
    param, optimizer = make(np.ones(SHAPE, np.float32), use_locking=True)
    for _ in range(20):
        param.rebind(param.data.copy())
        run_threads(*[lambda: optimizer((grad_of(0),))] * 4)
    assert optimizer.global_step == 80


def spec_of(param, name, rates=0):
    return _core.ParameterSpec(param.memory, name, rates, False, source=param)


def test_parameters_that_are_added_are_watched():
    holders = [Holder(np.ones(SHAPE, np.float32)) for _ in range(3)]
    first, *params = [adamas.Parameter(holder) for holder in holders]
    native = _core.Optimizer([spec_of(first, "first")], _core.AdamConfig(), gradient)
    kept, holders[1].values = holders[1].values, np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match="'added' must keep its memory"):
        native.add([spec_of(params[1], "other"), spec_of(params[0], "added")], [])
    holders[1].values = kept
    native.add([spec_of(params[0], "added")], [])
    rates = _core.Rates([(0.1, 0.0)])
    native.step((grad_of(0), grad_of(1)), rates)
    params[0].rebind(params[0].memory.copy())
    native.step((grad_of(0), grad_of(1)), rates)
    holders[0].values = holders[0].values.copy()
    with pytest.raises(ValueError, match="'first' must keep its memory"):
        native.step((grad_of(0), grad_of(1)), rates)
    assert native.global_step == 2


# torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def replaced_data(torch, tensor):
    tensor.data = tensor.data.clone()


def of_another_type(torch, tensor):
    tensor.data = tensor.data.double()


def bits_of_another_type(torch, tensor):
    tensor.requires_grad_(False)
    tensor.data = tensor.data.view(torch.int32)


def transposed(torch, tensor):
    tensor.data = tensor.data.T


def resized(torch, tensor):
    tensor.data = torch.ones(50, 50)


def converted(torch, tensor):
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight = tensor
    module.double()


@pytest.mark.parametrize(
    "move",
    [replaced_data, of_another_type, bits_of_another_type, transposed, resized, converted],
    ids=lambda move: move.__name__,
)
def test_tensors_with_other_memory_are_noticed(torch, move):
    tensor = torch.nn.Parameter(torch.ones(SHAPE))
    _, optimizer = make(tensor)
    grad = torch.tensor(grad_of(0))
    optimizer((grad,))
    kept = tensor.data
    wanted = kept.clone()
    move(torch, tensor)
    now = tensor.detach().clone()
    for call in (lambda: optimizer((grad,)), lambda: optimizer((grad.double(),))):
        with pytest.raises(ValueError, match=MOVED):
            call()
    assert optimizer.global_step == 1
    assert torch.equal(tensor.detach(), now)
    assert torch.equal(kept, wanted)


def test_tensors_in_shared_memory(torch):
    tensor = torch.ones(SHAPE)
    param, optimizer = make(tensor)
    tensor.share_memory_()
    with pytest.raises(ValueError, match=MOVED):
        optimizer((torch.ones(SHAPE),))
    param.rebind(tensor)
    optimizer((torch.ones(SHAPE),))
    assert torch.allclose(tensor, torch.full(SHAPE, 0.9))


def test_rebinding_to_a_tensor_goes_on(torch):
    tensors = [torch.ones(SHAPE) for _ in range(2)]
    (param, ours), (_, theirs) = (make(tensor) for tensor in tensors)
    for step in range(3):
        grad = torch.tensor(grad_of(step))
        ours((grad,))
        theirs((grad,))
        tensors[0].data = tensors[0].data.clone()
        param.rebind(tensors[0])
    assert torch.equal(*tensors)


# torch's version counters


def weight_that_is_saved(torch):
    weight = torch.ones(SHAPE, requires_grad=True)
    inputs = torch.ones(SHAPE, requires_grad=True)
    return weight, (weight * inputs).sum()


def steps(optimizer, grad):
    optimizer((grad,))


def parts(optimizer, grad):
    optimizer.begin_step()
    optimizer.apply(optimizer.parameters[0], grad)
    optimizer.end_step()


def loads(optimizer, grad):
    optimizer.load_state_dict(optimizer.state_dict(parameters=True))


@pytest.mark.parametrize("write", [steps, parts, loads])
def test_a_backward_pass_through_changed_weights_is_refused_by_torch(torch, write):
    weight, loss = weight_that_is_saved(torch)
    _, optimizer = make(weight)
    write(optimizer, torch.ones(SHAPE))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_refused_step_leaves_the_version(torch):
    weight, loss = weight_that_is_saved(torch)
    _, optimizer = make(weight)
    with pytest.raises(ValueError, match="shape"):
        optimizer((torch.ones(5),))
    optimizer.state_dict(parameters=True)
    loss.backward()
    assert (weight.grad == 1).all()


def test_versions_without_an_optimizer(torch):
    weight, loss = weight_that_is_saved(torch)
    with torch.inference_mode():
        without = torch.ones(2)
    params = [weight, torch.ones(2), without, np.ones(2, np.float32)]
    grads = [torch.ones(SHAPE), None, torch.ones(2), np.ones(2, np.float32)]
    moments = [[torch.zeros(2) if i else torch.zeros(SHAPE) for i in range(4)] for _ in range(2)]
    adamas.functional.adam(params, grads, *moments, steps=[0] * 4, learning_rate=0.1)
    assert params[1]._version == 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_versions_of_some_parameters(torch):
    """Tensors beside arrays, and one that has no version."""
    with torch.inference_mode():
        without = torch.ones(2)
    tensors = [torch.ones(2), np.ones(2, np.float32), torch.ones(2), without]
    optimizer = adamas.Adam(parameters(tensors))
    optimizer([np.ones(2, np.float32)] * 4)
    assert [tensors[0]._version, tensors[2]._version] == [1, 1]
    optimizer.begin_step()
    for param in optimizer.parameters[1:3]:
        optimizer.apply(param, np.ones(2, np.float32))
    optimizer.cancel_step()
    assert [tensors[0]._version, tensors[2]._version] == [1, 2]
    optimizer([None, *[np.ones(2, np.float32)] * 3])
    assert [tensors[0]._version, tensors[2]._version] == [1, 3]
    optimizer.parameters[0].rebind(torch.ones(2))
    optimizer([np.ones(2, np.float32)] * 4)
    assert [optimizer.parameters[0].data._version, tensors[0]._version] == [1, 1]
