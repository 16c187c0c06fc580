"""State that parameters bring: used in place, with the bits of the optimizer's own."""

import copy
import pickle

import numpy as np
import pytest

import adamas
from emulation import FakeArray
from helpers import Arena, bits, check_refused, check_same_states

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

SHAPES = ((3, 5), (7,), (), (0,), (20000,))
KINDS = ("moment1", "moment2", "vhat", "master")


def values_of(seed, shape, dtype=np.float32):
    return np.array(np.random.default_rng(seed).standard_normal(shape), dtype)


def state_of(shape, dtype, seed, *, master):
    """Return arrays of state with values of their own."""
    real = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    moment1 = values_of(seed, shape, real)
    square = np.asarray(moment1**2, moment1.dtype)  # NumPy 1 makes 0-d ones float64
    state = {"moment1": moment1, "moment2": square, "vhat": square + square}
    return {**state, "master": values_of(seed, shape, real)} if master else state


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("offset", [0, 8, 56])
@pytest.mark.parametrize("given", [KINDS, ("moment1",), ("moment2", "vhat")], ids=str)
def test_steps_have_the_bits_of_state_of_its_own(dtype, offset, given):
    halves = dtype == "float16"
    states = [state_of(shape, dtype, i, master=halves) for i, shape in enumerate(SHAPES)]
    given = [kind for kind in given if kind in states[0]]
    starts = [values_of(9, shape, dtype) for shape in SHAPES]
    options = {"use_amsgrad": True, "weight_decay": 0.01, "master_weights": halves}
    theirs = adamas.Adam([adamas.Parameter(start.copy()) for start in starts], **options)
    flat = Arena([state[kind] for state in states for kind in given], offset).views
    mine = [
        dict(zip(given, flat[i::1][: len(given)], strict=True))
        for i in range(0, len(flat), len(given))
    ]
    ours = adamas.Adam(
        [adamas.Parameter(s.copy(), **m) for s, m in zip(starts, mine, strict=True)], **options
    )
    lists = {"moment1": "moment1", "moment2": "moment2", "vhat": "vhat", "master": "master_weights"}
    for i, state in enumerate(states):
        for kind, values in state.items():
            getattr(theirs, lists[kind])[i][...] = values
            if kind not in given:
                getattr(ours, lists[kind])[i][...] = values
    for step in range(3):
        grads = [values_of(20 + step, shape, dtype) for shape in SHAPES]
        ours(grads)
        theirs(grads)
    check_same_states(ours, theirs)
    for i, arrays in enumerate(mine):
        for kind, array in arrays.items():
            assert getattr(ours.parameters[i], kind) is array
            view = getattr(ours, lists[kind])[i]
            assert view.size == 0 or view.ctypes.data == array.ctypes.data
            assert bits(array).tolist() == bits(getattr(theirs, lists[kind])[i]).tolist()


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301


def test_what_is_not_given_is_none():
    param = adamas.Parameter(np.ones(2, np.float32), moment2=np.zeros(2, np.float32))
    assert [getattr(param, kind) is None for kind in KINDS] == [True, False, True, True]


@pytest.mark.parametrize("stored", ["uint16", "bfloat16"])
def test_bfloat16_moments(stored):
    if stored == "bfloat16" and ml_dtypes is None:
        pytest.skip("ml_dtypes is not installed")
    dtype = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else np.uint16)
    moments = [np.zeros(300, dtype) for _ in range(2)]
    arrays = [np.ones(300, np.float32) for _ in range(2)]
    given = adamas.Parameter(arrays[0], "w", moment1=moments[0], moment2=moments[1])
    ours = adamas.Adam([given], state_dtype="bfloat16", seed=3)
    theirs = adamas.Adam([adamas.Parameter(arrays[1], "w")], state_dtype="bfloat16", seed=3)
    for step in range(3):
        grad = values_of(step, 300)
        ours((grad,))
        theirs((grad,))
    check_same_states(ours, theirs)
    saved = theirs.state_dict()["parameters"]["w"]
    for kind, moment in zip(("moment1", "moment2"), moments, strict=True):
        assert moment.view(np.uint16).tolist() == saved[kind].tolist()


def test_other_layouts():
    start, grad = values_of(0, (3, 4)), values_of(1, (3, 4))
    moments = [np.zeros((3, 4), np.float32, order="F") for _ in range(2)]
    param = adamas.Parameter(np.asfortranarray(start), moment1=moments[0], moment2=moments[1])
    ours, theirs = adamas.Adam([param]), adamas.Adam([adamas.Parameter(start.copy())])
    ours((grad,))
    theirs((grad,))
    check_same_states(ours, theirs)
    assert (moments[0] == theirs.moment1[0]).all()


def ones(shape=(2, 3), dtype=np.float32):
    return np.ones(shape, dtype)


def read_only():
    array = ones()
    array.flags.writeable = False
    return array


BAD = {
    "list": ({"moment1": [0.0] * 6}, TypeError, "moment1 must be a NumPy array"),
    "int": ({"moment1": ones(dtype=np.int32)}, TypeError, "moment1 must be float32"),
    "float64": ({"moment2": ones(dtype=np.float64)}, TypeError, "moment2 must be float32"),
    "uint16 vhat": ({"vhat": ones(dtype=np.uint16)}, TypeError, "vhat must be float32"),
    "shape": ({"vhat": ones((3, 2))}, ValueError, r"vhat must have the parameter's shape \(2, 3\)"),
    "read-only": ({"moment1": read_only()}, ValueError, "moment1 must be writable"),
    "strided": ({"moment1": ones((2, 6))[:, ::2]}, ValueError, "moment1 must be C-contiguous"),
    "layout": ({"moment1": ones((3, 2)).T}, ValueError, "moment1 must have its axes"),
    "masked": ({"moment1": np.ma.masked_array(ones())}, TypeError, "masked"),
    "master": ({"master": ones()}, ValueError, "master must be None"),
}


@pytest.mark.parametrize(("state", "error", "fragment"), BAD.values(), ids=BAD)
def test_bad_state(state, error, fragment):
    with pytest.raises(error, match=fragment):
        adamas.Parameter(ones(), **state)


@pytest.mark.parametrize(
    ("state", "options", "error", "fragment"),
    [
        ({"moment1": ones(dtype=np.uint16)}, {}, TypeError, "must be float32, as state_dtype"),
        ({"moment2": ones()}, {"state_dtype": "bfloat16"}, TypeError, "bfloat16 or uint16"),
        ({"moment1": ones()}, {"state_dtype": "int8"}, ValueError, "can't be the caller's"),
        ({"vhat": ones()}, {}, ValueError, "do not keep"),
    ],
    ids=["bfloat16 for none", "float32 for bfloat16", "int8", "vhat without amsgrad"],
)
def test_state_that_does_not_go_with_the_options(state, options, error, fragment):
    with pytest.raises(error, match=fragment) as caught:
        adamas.Adam([adamas.Parameter(ones(), "weight", **state)], **options)
    assert "'weight'" in str(caught.value)


def test_master_weights_without_the_option():
    param = adamas.Parameter(ones(dtype=np.float16), "weight", master=ones())
    with pytest.raises(ValueError, match="do not keep"):
        adamas.Adam([param])


def test_state_that_overlaps():
    array, moment = ones(), np.zeros((2, 3), np.float32)
    for state in (
        {"moment1": moment, "moment2": moment},
        {"moment1": array},
        {"moment1": moment.reshape(-1)[:].reshape(2, 3), "moment2": moment},
    ):
        with pytest.raises(ValueError, match="shares memory"):
            adamas.Adam([adamas.Parameter(array, "weight", **state)])
    given = {"moment1": moment, "moment2": np.zeros((2, 3), np.float32)}
    optimizer = adamas.Adam([adamas.Parameter(array, "weight", **given)])
    check_refused(optimizer, lambda: optimizer((moment,)), ValueError, "shares memory")


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_copies_have_state_of_their_own(copied, axes):
    def laid_out(array):
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))

    grad = values_of(1, (2, 3, 4))
    given = {kind: laid_out(np.zeros((2, 3, 4), np.float32)) for kind in ("moment1", "moment2")}
    param = adamas.Parameter(laid_out(values_of(0, (2, 3, 4))), "weight", **given)
    optimizer = adamas.Adam([param])
    optimizer((grad,))
    twin = copied(optimizer)
    check_same_states(optimizer, twin)
    optimizer((grad,))
    assert twin.moment1[0].tobytes() != optimizer.moment1[0].tobytes()
    twin((grad,))
    check_same_states(optimizer, twin)
    mine = twin.parameters[0]
    assert np.shares_memory(mine.moment1, twin.moment1[0])
    assert not np.shares_memory(mine.moment1, param.moment1)


# CUDA devices


def test_state_on_a_device(emulated_device):
    start, grad = values_of(0, (3, 4)), values_of(1, (3, 4))
    moments = [np.zeros((3, 4), np.float32) for _ in range(2)]
    given = {"moment1": FakeArray(moments[0]), "moment2": FakeArray(moments[1])}
    param = adamas.Parameter(FakeArray(start.copy()), **given)
    ours, theirs = adamas.Adam([param]), adamas.Adam([adamas.Parameter(start)])
    ours((FakeArray(grad),))
    theirs((grad,))
    for mine, its in zip(moments, (theirs.moment1[0], theirs.moment2[0]), strict=True):
        assert mine.tobytes() == its.tobytes()
    assert param.data.host.tobytes() == start.tobytes()


@pytest.mark.parametrize(
    ("data", "moment", "fragment"),
    [
        (FakeArray(ones()), ones(), "on CUDA device 0, as its parameter is, got the CPU"),
        (ones(), FakeArray(ones()), "on the CPU, as its parameter is, got CUDA device 0"),
        (FakeArray(ones()), FakeArray(ones((3, 2))), "shape"),
        (FakeArray(ones()), FakeArray(ones(), readonly=True), "moment1 must be writable"),
    ],
    ids=["CPU", "device", "shape", "read-only"],
)
def test_bad_state_on_a_device(emulated_device, data, moment, fragment):
    with pytest.raises(ValueError, match=fragment):
        adamas.Parameter(data, moment1=moment)


def test_state_on_a_device_with_offload(emulated_device):
    param = adamas.Parameter(FakeArray(ones()), "weight", moment1=FakeArray(ones()))
    with pytest.raises(ValueError, match="'weight' must not be given with use_offload"):
        adamas.Adam([param], use_offload=True)


# torch


def test_tensors_as_state():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.ones(5)
    state = {"exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}
    param = adamas.Parameter(
        tensor, "weight", moment1=state["exp_avg"], moment2=state["exp_avg_sq"]
    )
    optimizer = adamas.Adam([param], learning_rate=0.1)
    optimizer((torch.full((5,), 0.5),))
    assert torch.allclose(state["exp_avg"], torch.full((5,), 0.05))
    assert state["exp_avg"].numpy().tobytes() == optimizer.moment1[0].tobytes()
    kept = state["exp_avg"].data
    state["exp_avg"].data = torch.zeros(5)
    before = tensor.clone(), kept.clone()
    for call in (lambda: optimizer((torch.ones(5),)), optimizer.state_dict):
        with pytest.raises(ValueError, match="moment1 of parameter 'weight' must keep its memory"):
            call()
    assert torch.equal(tensor, before[0])
    assert torch.equal(kept, before[1])
