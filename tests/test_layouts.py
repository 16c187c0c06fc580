"""Parameters whose elements fill their memory without gaps, the axes in another order than C's.

The step is the same, element by element; moments lie as their parameter does, and what is saved
does not tell.
"""

import itertools
import warnings

import numpy as np
import pytest

import adamas
from helpers import bits, check_refused, check_same_states, everything
from rules import DTYPES, every_dtype

SHAPE = (3, 4, 2, 5)
# torch's channels_last, Fortran's order, others.
ORDERS = [(0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)]

every_order = pytest.mark.parametrize("order", ORDERS, ids=str)


def laid_out(values, order):
    """Return a copy whose axes lie in memory in this order."""
    places = np.argsort(order)
    return np.ascontiguousarray(values.transpose(order)).transpose(places)


def values_of(seed, dtype, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pair(order, dtype, **options):
    """Return an optimizer of a reordered parameter and the same of one in C's order."""
    start = values_of(0, dtype)
    optimizers = []
    for array in (laid_out(start, order), start.copy()):
        others = [adamas.Parameter(values_of(1, dtype, (7,)), "other")]
        params = [adamas.Parameter(array, "weight"), *others]
        optimizers.append(adamas.Adam(params, learning_rate=0.1, weight_decay=0.01, **options))
    assert not optimizers[0].parameters[0].data.flags.c_contiguous
    return optimizers


def other_grad(dtype):
    return values_of(2, dtype, (7,))


OPTIONS = [
    {},
    {"use_amsgrad": True, "use_nesterov": True},
    {"max_grad_norm": 1e9, "skip_nonfinite": True},
    {"decoupled_weight_decay": True, "use_locking": True},
]


@every_order
@every_dtype
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_have_the_same_bits(order, dtype, options):
    if np.dtype(dtype).itemsize == 2:
        options = {**options, "master_weights": True}
    ours, theirs = pair(order, dtype, **options)
    for step in range(4):
        grad = values_of(10 + step, dtype)
        other = other_grad(dtype)
        ways = (laid_out(grad, order), grad, laid_out(grad, ORDERS[1]), np.flip(np.flip(grad)))
        ours((ways[step], other))
        theirs((grad, other))
    check_same_states(ours, theirs)
    for moment in (ours.moment1[0], ours.moment2[0]):
        steps = np.array(moment.strides) // moment.itemsize
        param = ours.parameters[0].data
        assert steps.tolist() == (np.array(param.strides) // param.itemsize).tolist()


def test_all_orders_of_three_axes():
    for order in itertools.permutations(range(3)):
        start, grad = values_of(0, np.float32, (3, 1, 4)), values_of(1, np.float32, (3, 1, 4))
        arrays = [laid_out(start, order), start.copy()]
        for array in arrays:
            adamas.Adam([adamas.Parameter(array)])((grad,))
        assert bits(arrays[0]).tolist() == bits(arrays[1]).tolist()


def test_a_gradient_of_the_same_layout_is_read_where_it_lies():
    """It would be copied before it was found to overlap."""
    param = laid_out(values_of(0, np.float32), ORDERS[0])
    optimizer = adamas.Adam([adamas.Parameter(param)])
    check_refused(optimizer, lambda: optimizer((param,)), ValueError, "shares memory")


@every_order
def test_moments_are_live_views(order):
    ours, theirs = pair(order, np.float32)
    start = values_of(3, np.float32) ** 2
    for optimizer in (ours, theirs):
        optimizer.moment1[0][...] = start
        optimizer.moment2[0][...] = start
        optimizer((values_of(4, np.float32), other_grad(np.float32)))
    check_same_states(ours, theirs)


@every_order
@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [(d, None) for d in DTYPES] + [("float32", "bfloat16")]
)
def test_what_is_saved_does_not_tell(order, dtype, state_dtype, tmp_path):
    chosen = {"state_dtype": state_dtype, "use_amsgrad": True}
    ours, theirs = pair(order, dtype, **chosen)
    grads = (values_of(5, dtype), other_grad(dtype))
    ours(grads)
    state = ours.state_dict(parameters=True)
    for entry in state["parameters"].values():
        assert all(v.flags.c_contiguous for v in entry.values() if isinstance(v, np.ndarray))
    if state_dtype is None:
        theirs(grads)
        wanted = theirs.state_dict(parameters=True)
        for kind in ("param", "moment1", "moment2", "vhat"):
            mine, its = (one["parameters"]["weight"][kind] for one in (state, wanted))
            assert bits(mine).tolist() == bits(its).tolist(), kind
    else:
        theirs.load_state_dict(state)
    check_same_states(ours, theirs)
    adamas.save_checkpoint(tmp_path / "ours", ours)
    adamas.save_checkpoint(tmp_path / "theirs", theirs)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    resumed, _ = pair(order, dtype, **chosen)
    adamas.load_checkpoint(tmp_path / "theirs", resumed)
    check_same_states(ours, resumed)


def test_copies_of_smaller_moments_are_laid_out_alike():
    ours, _ = pair(ORDERS[0], np.float32, state_dtype="bfloat16")
    ours((values_of(5, np.float32), other_grad(np.float32)))
    moment = ours.moment1[0]
    assert moment.strides == ours.parameters[0].data.strides
    stored = ours.state_dict()["parameters"]["weight"]["moment1"]
    assert (moment == (stored.astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("options", [{"state_dtype": "int8"}, {"row_policy": "catch_up"}], ids=str)
def test_what_goes_by_rows_is_refused(options):
    with pytest.raises(ValueError, match="'weight' must be C-contiguous with"):
        pair(ORDERS[0], np.float32, **options)


def test_centralization_is_refused():
    param = adamas.Parameter(laid_out(values_of(0, np.float32), ORDERS[0]), "weight")
    with pytest.raises(ValueError, match="'weight' must be C-contiguous to have grad_central"):
        adamas.Adam([{"params": [param], "grad_centralization": True}])


def test_sparse_gradients_are_refused():
    param = adamas.Parameter(np.ones((4, 3), np.float32, order="F"), "weight")
    optimizer = adamas.Adam([param])
    rows = adamas.RowTensor(np.array([1]), np.ones((1, 3), np.float32), (4, 3))
    check_refused(optimizer, lambda: optimizer((rows,)), ValueError, "must be dense", "C-contig")


def test_a_change_of_the_layout_is_noticed():
    array = np.ones((3, 3), np.float32, order="F")
    optimizer = adamas.Adam([adamas.Parameter(array)])
    before = everything(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.4
        array.strides = array.strides[::-1]
    with pytest.raises(ValueError, match="moved"):
        optimizer((np.ones((3, 3), np.float32),))
    assert everything(optimizer) == before


def test_rebinding_keeps_the_layout():
    param = adamas.Parameter(np.ones((3, 4), np.float32, order="F"))
    optimizer = adamas.Adam([param], learning_rate=0.5)
    with pytest.raises(ValueError, match="axes in memory as before"):
        param.rebind(np.ones((3, 4), np.float32))
    moved = np.ones((3, 4), np.float32, order="F")
    param.rebind(moved)
    optimizer((np.ones((3, 4), np.float32),))
    assert (moved < 1).all()


def test_channels_last_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = torch.randn(4, 3, 2, 2)
    tensors = [weight.clone().to(memory_format=torch.channels_last), weight.clone()]
    optimizers = [adamas.Adam([adamas.Parameter(tensor)]) for tensor in tensors]
    for _ in range(3):
        grad = torch.randn(4, 3, 2, 2)
        optimizers[0]((grad.to(memory_format=torch.channels_last),))
        optimizers[1]((grad,))
    assert torch.equal(*tensors)
    assert tensors[0].is_contiguous(memory_format=torch.channels_last)


def test_a_change_to_channels_last_is_noticed():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = torch.nn.Conv2d(3, 4, 2)
    params = [adamas.Parameter(tensor) for tensor in module.parameters()]
    optimizer = adamas.Adam(params)
    module.to(memory_format=torch.channels_last)
    grads = [torch.ones_like(tensor) for tensor in module.parameters()]
    check_refused(optimizer, lambda: optimizer(grads), ValueError, "rebind")
