"""Gradients of other libraries and in other layouts: read or copied with the bits of NumPy's.

`native_step` has no conversion in Python to fall back on.
"""

import array
import ctypes

import numpy as np
import pytest

import adamas
from adamas import _core
from helpers import check_refused, run_python

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


def tensor_library():
    return pytest.importorskip("torch", reason="torch is not installed")


class Capsule:
    """An array that has DLPack and nothing else."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **kwargs):
        return self.values.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def no_conversion(grad, like, label):
    raise AssertionError(f"{label} was not recognised")


def native_step(param, grad):
    """Make one step whose gradient must be recognised natively."""
    spec = _core.ParameterSpec(param, "weight", 0, False)
    native = _core.Optimizer([spec], _core.AdamConfig(), no_conversion)
    native.step((grad,), _core.Rates([(0.1, 0.01)]))
    return native


def check_reads(param, grad, wanted):
    """The step with `grad` has the bits of that with `wanted`, a contiguous NumPy array."""
    ours, theirs = param.copy(), param.copy()
    native, other = native_step(ours, grad), native_step(theirs, wanted)
    assert ours.tobytes() == theirs.tobytes()
    for kind in (_core.StateKind.moment1, _core.StateKind.moment2):
        assert native.state(kind, 0).tobytes() == other.state(kind, 0).tobytes()
    assert ours.size == 0 or ours.tobytes() != param.tobytes()


SHAPES = [(), (1,), (7,), (0,), (3, 5), (3, 0), (1, 5, 1), (2, 3, 4, 5), (3, 1, 2, 2, 3)]


def layouts(values):
    """Yield the same values, each lying in memory in another way."""
    yield "plain", values
    yield "reversed axes", np.array(values, order="F")
    doubled = np.zeros(tuple(2 * length for length in values.shape), values.dtype)
    every_second = doubled[(..., *(slice(None, None, 2) for _ in values.shape))]
    every_second[...] = values
    yield "every second", every_second
    yield "backwards", np.flip(np.flip(values).copy())
    buffer = np.zeros(values.nbytes + 1, np.uint8)
    shifted = buffer[1:].view(values.dtype).reshape(values.shape) if values.size else values
    shifted[...] = values
    yield "misaligned", shifted


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("param_type", "grad_type"),
    [
        ("float32", "float32"),
        ("float32", "float64"),
        ("float32", "float16"),
        ("float16", "float64"),
        ("float16", "float16"),
        ("float64", "float64"),
        ("float64", "float32"),
    ],
)
def test_layouts_and_types(shape, param_type, grad_type):
    rng = np.random.default_rng(3)
    param = np.array(rng.standard_normal(shape), param_type)
    values = np.array(rng.standard_normal(shape), grad_type)
    wanted = values.astype("float64" if param_type == "float64" else "float32")
    for what, grad in layouts(values):
        assert np.array_equal(grad, values), what
        check_reads(param, grad, wanted)


def test_broadcast_gradients():
    grad = np.broadcast_to(np.float32(0.5), (3, 4))
    assert grad.strides == (0, 0)
    check_reads(np.ones((3, 4), np.float32), grad, np.full((3, 4), 0.5, np.float32))


def test_many_elements():
    values = np.random.default_rng(1).standard_normal((300, 400))
    check_reads(np.ones((300, 400), np.float32), values.T.copy().T, values.astype(np.float32))


def test_all_numbers_are_rounded_as_by_numpy():
    numbers = np.array([1e300, -1e300, np.inf, np.nan, 1e-310, 1e-42, 1 + 2**-25, 1 + 2**-24, 1e38])
    with np.errstate(over="ignore"):
        wanted = numbers.astype(np.float32)
    param = np.ones(9, np.float32)
    check_reads(param, numbers, wanted)
    check_reads(param, np.repeat(numbers, 2)[::2], wanted)


@pytest.mark.parametrize(
    "export",
    [
        lambda values: array.array("f", values.tolist()),
        lambda values: memoryview(values),
        lambda values: memoryview(values.astype(np.float64)),
        lambda values: (ctypes.c_float * values.size)(*values),
        Capsule,
        lambda values: Capsule(np.repeat(values, 2)[::2]),
        lambda values: Capsule(values.astype(np.float64)),
    ],
    ids=["array", "memoryview", "float64 view", "ctypes", "DLPack", "DLPack strided", "DLPack f64"],
)
def test_exporters(export):
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    check_reads(np.ones(7, np.float32), export(values), values)


def test_scalars_are_gradients_of_parameters_without_axes():
    check_reads(np.ones((), np.float32), np.float32(0.5), np.array(0.5, np.float32))


def test_types_of_one_library_may_alternate():
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    param = np.ones(7, np.float32)
    for grad in [Capsule(values), values, memoryview(values), Capsule(values), memoryview(values)]:
        check_reads(param, grad, values)


class Failing:
    def __dlpack__(self, **kwargs):
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("grad", "error", "fragment"),
    [
        (b"12345678", TypeError, "float type"),
        (memoryview(np.ones((2, 1), np.float32)), ValueError, r"shape \(2,\)"),
        (Capsule(np.ones(2, np.int32)), TypeError, "float type"),
        (Capsule(np.ones(3, np.float32)), ValueError, r"shape \(2,\)"),
        (Failing(), TypeError, "Failing"),
        ([0.5, 0.5], TypeError, "list"),
    ],
    ids=["bytes", "shape", "int DLPack", "DLPack shape", "failing", "list"],
)
def test_what_is_no_gradient_is_still_refused(grad, error, fragment):
    optimizer = adamas.Adam([adamas.Parameter(np.ones(2, np.float32), "weight")])
    with pytest.raises(error, match=fragment):
        optimizer((grad,))
    check_refused(optimizer, lambda: optimizer((grad,)), error)


@pytest.mark.parametrize(
    ("grads", "hint"),
    [
        ((one for one in [np.ones(2, np.float32)]), "got generator; pass list(grads)"),
        (np.ones(2, np.float32), "got numpy.ndarray; pass (grad,) for one parameter"),
        (None, "got NoneType"),
    ],
    ids=["generator", "array", "None"],
)
def test_what_is_no_list_of_gradients(grads, hint):
    optimizer = adamas.Adam([adamas.Parameter(np.ones(2, np.float32), "weight")])
    check_refused(optimizer, lambda: optimizer(grads), TypeError, "tuple or list", hint)


def test_exported_memory_is_given_back():
    """A buffer that is in use can't grow."""
    grad = array.array("f", [1.0, 2.0])
    optimizer = adamas.Adam([adamas.Parameter(np.ones(2, np.float32))])
    optimizer((grad,))
    grad.append(3.0)


# torch


def torch_type(torch, name):
    return getattr(torch, name)


GOES_WITH = [(p, g) for p in ("float32", "float16") for g in ("float32", "float16", "bfloat16")]
CAST = [("float32", "float64"), ("float16", "float64"), ("float64", "float32")]


@pytest.mark.parametrize(("param_type", "grad_type"), [*GOES_WITH, ("float64", "float64"), *CAST])
@pytest.mark.parametrize("shape", [(), (7,), (0,), (3, 5), (2, 3, 4, 5)])
def test_tensors(param_type, grad_type, shape):
    torch = tensor_library()
    torch.manual_seed(4)
    grad = torch.randn(shape).to(torch_type(torch, grad_type))
    wanted = grad.to(torch_type(torch, "float64" if param_type == "float64" else "float32")).numpy()
    param = np.ones(shape, param_type)
    check_reads(param, grad, wanted)
    check_reads(param, grad.clone().requires_grad_(), wanted)
    check_reads(param, torch.nn.Parameter(grad), wanted)
    if grad.dim() > 1:
        check_reads(param, grad.mT.contiguous().mT, wanted)
    if grad.dim() == 4:
        check_reads(param, grad.to(memory_format=torch.channels_last), wanted)


@pytest.mark.parametrize("grad_type", ["float16", "bfloat16"])
def test_tensors_of_16_bits_for_float64(grad_type):
    """What Python converts."""
    torch = tensor_library()
    grad = torch.linspace(-1, 1, 7).to(torch_type(torch, grad_type))
    weights = [np.ones(7), np.ones(7)]
    for weight, given in zip(weights, (grad, grad.double().numpy()), strict=True):
        adamas.Adam([adamas.Parameter(weight)])((given,))
    assert weights[0].tobytes() == weights[1].tobytes()


def test_bfloat16_tensors_need_no_other_package():
    tensor_library()
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, torch, adamas
for grad in (torch.full((2, 3), 0.5), torch.full((3, 2), 0.5).T):
    weights = [np.ones((2, 3), np.float32) for _ in range(2)]
    for weight, given in zip(weights, (grad, grad.to(torch.bfloat16))):
        adamas.Adam([adamas.Parameter(weight)], learning_rate=0.1)((given,))
    assert weights[0].tobytes() == weights[1].tobytes() != np.ones((2, 3), np.float32).tobytes()
print("same")
"""
    done = run_python("-c", code)
    assert done.stdout == "same\n", done.stderr


def test_lazily_negated_gradients():
    torch = tensor_library()
    values = torch.linspace(-1, 1, 6)
    for negated in (torch.complex(values, values).conj().imag, values._neg_view()):
        assert negated.is_neg()
        arrays = [np.ones(6, np.float32) for _ in range(2)]
        for weight, grad in zip(arrays, (negated, -values.numpy()), strict=True):
            adamas.Adam([adamas.Parameter(weight)])((grad,))
        assert arrays[0].tobytes() == arrays[1].tobytes()


def test_tensors_that_wrap_others_are_not_read():
    torch = tensor_library()

    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise NotImplementedError(str(function))

    optimizer = adamas.Adam([adamas.Parameter(np.ones(3, np.float32), "weight")])
    check_refused(optimizer, lambda: optimizer((Wrapper(torch.ones(3)),)), TypeError, "Wrapper")


def test_subclasses_without_operations_of_their_own_are_read():
    torch = tensor_library()

    class Named(torch.Tensor):
        pass

    values = torch.linspace(-1, 1, 6)
    check_reads(np.ones(6, np.float32), values.as_subclass(Named), values.numpy())


UNUSABLE = {
    "CSR": (lambda torch: torch.eye(3).to_sparse_csr(), "torch.sparse_csr; pass a dense one"),
    "CSC": (lambda torch: torch.eye(3).to_sparse_csc(), "torch.sparse_csc; pass a dense one"),
    "mkldnn": (lambda torch: torch.eye(3).to_mkldnn(), "torch._mkldnn; pass a dense one"),
    "meta": (lambda torch: torch.eye(3, device="meta"), "the device meta, which has no memory"),
    "conjugate": (lambda torch: torch.eye(3, dtype=torch.complex64).conj(), "torch.complex64"),
}


@pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")  # torch: "is in beta state"
@pytest.mark.parametrize(("make", "fragment"), UNUSABLE.values(), ids=UNUSABLE)
def test_tensors_that_are_no_arrays(make, fragment):
    torch = tensor_library()
    if make is UNUSABLE["mkldnn"][0] and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without mkldnn")
    tensor = make(torch)
    with pytest.raises(TypeError, match="data must be") as caught:
        adamas.Parameter(tensor)
    assert fragment in str(caught.value)
    optimizer = adamas.Adam([adamas.Parameter(np.ones((3, 3), np.float32), "weight")])
    check_refused(optimizer, lambda: optimizer((tensor,)), TypeError, "grads[0]", fragment)


def test_lazily_negated_parameters():
    torch = tensor_library()
    with pytest.raises(
        TypeError, match=r"whose sign is only noted \(is_neg\(\)\); pass .resolve_neg"
    ):
        adamas.Parameter(torch.ones(3)._neg_view())


@pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")
@pytest.mark.parametrize("grad_type", ["float32", "bfloat16", "float64", "float16"])
def test_jax_arrays(grad_type):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax.enable_x64(True):
        grad = jax.numpy.linspace(-1, 1, 6).astype(grad_type).reshape(2, 3)
        check_reads(np.ones((2, 3), np.float32), grad, np.asarray(grad).astype(np.float32))
