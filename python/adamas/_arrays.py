"""Foreign arrays become NumPy arrays here: parameters without a copy, gradients at any price.

A parameter is written to, so a copy would lose the update: what cannot be used in place is refused.
A gradient is only read. The native step reads or copies by itself what is dense and of a usual type
(bindings/host_array.hpp); it calls `gradient` for all others: rows, rare types, and what is wrong.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import _core
from ._device_arrays import device_gradient, device_parameter

FloatArray = npt.NDArray[Any]
"""A NumPy array of float32, float64, float16 or bfloat16, which has no type of its own."""


class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


class _DLPack(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


class _CudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> Any: ...


Array = npt.NDArray[Any] | _Buffer | _DLPack | _CudaArray
"""Memory of any library that is used where it lies, on the CPU or on a CUDA device."""


def from_foreign(value: object) -> FloatArray | None:
    """View an object's memory as a NumPy array without a copy, or return None.

    Tries the buffer protocol, then ``numpy()`` of torch tensors and what behaves like them, then
    DLPack, which NumPy before 2.1 imports as read-only. Gradient tracking does not matter here, so
    a tensor that requires gradients is detached first.
    """
    try:
        return np.asarray(memoryview(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        pass
    try:
        detach = getattr(value, "detach", None)
        exporter: Any = detach() if callable(detach) else value
        if hasattr(exporter, "data_ptr") and hasattr(exporter, "numpy"):
            return _from_torch(exporter)
        if hasattr(exporter, "__dlpack__"):
            return np.from_dlpack(exporter)
    except (BufferError, ImportError, RuntimeError, TypeError, ValueError):
        pass
    return None


def _from_torch(tensor: Any) -> FloatArray | None:
    """View the memory of a torch tensor, or of what behaves like one, as a NumPy array."""
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy's is that of ml_dtypes
        from ml_dtypes import bfloat16

        bits = tensor.view(sys.modules["torch"].int16).numpy()
        array: FloatArray = np.asarray(bits).view(bfloat16)
    else:
        array = np.asarray(tensor.numpy())
    is_view = array.__array_interface__["data"][0] == tensor.data_ptr()
    return array if is_view or array.size == 0 else None


def _is_lazily_negated(value: Any) -> bool:
    """Whether the values of a torch tensor are those of its memory with the other sign."""
    return is_torch(value) and value.is_neg() is True


def is_torch(value: object) -> bool:
    """Whether it is a tensor of torch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def what_came(value: Any) -> str:
    """Say what came instead of an array in CPU memory and, where that is known, what would do."""
    name = type(value).__name__
    if not is_torch(value):
        return name
    layout, device = str(value.layout), value.device.type
    if device == "meta":
        return f"a {name} on the device meta, which has no memory; pass one that has (.to_empty())"
    if device != "cpu":
        return f"a {name} on {value.device}; pass one in CPU memory (.cpu())"
    if layout != "torch.strided":
        return f"a {name} of layout {layout}; pass a dense one (.to_dense())"
    if _is_lazily_negated(value):
        return f"a {name} whose sign is only noted (is_neg()); pass .resolve_neg()"
    if str(value.dtype) == "torch.bfloat16":
        return f"a {name} of torch.bfloat16, which needs the package ml_dtypes here"
    return f"a {name} of {value.dtype}"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the type is real floating point; those of ml_dtypes are no NumPy floats."""
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def _is_dense(array: FloatArray) -> bool:
    """Whether the elements fill their memory without gaps, the axes in whatever order."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    return bool(array.transpose(order).flags.c_contiguous)


def parameter_array(
    data: object, label: str = "data", known: tuple[str, ...] = _core.DTYPES
) -> FloatArray:
    """Return the NumPy view of memory that is updated in place, called ``label``.

    Raises
    ------
    TypeError
        If ``data`` exports no array memory, or of another type than those in ``known``.
    ValueError
        If the memory is read-only, has gaps or is not aligned: what must change is named.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{label} must not be a masked array; use its .data")
    array = np.asarray(data) if isinstance(data, np.ndarray) else from_foreign(data)
    if array is None:
        raise TypeError(
            f"{label} must be a NumPy array, or export writable CPU memory by the buffer protocol "
            f"or DLPack, got {what_came(data)}"
        )
    if array.dtype.name not in known or not array.dtype.isnative:
        names = ", ".join(known[:-1]) + " or " + known[-1] if len(known) > 1 else known[0]
        raise TypeError(
            f"{label} must be {names} in native byte order, got {array.dtype.str} ({array.dtype})"
        )
    if not array.flags.writeable:
        raise ValueError(
            f"{label} must be writable, because it is updated in place; it is read-only"
        )
    if not _is_dense(array):
        raise ValueError(
            f"{label} must be C-contiguous, or fill its memory without gaps in another order of "
            f"its axes, got strides {array.strides} for shape {array.shape}: the update of a copy "
            "would be lost; pass the whole array or store it contiguously (numpy.ascontiguousarray)"
        )
    if not array.flags.aligned:
        raise ValueError(f"{label} must be aligned to its items of {array.itemsize} bytes")
    return array


def state_array(
    value: object, kind: str, like: FloatArray | _core.DeviceArray
) -> FloatArray | _core.DeviceArray:
    """Return the memory of a parameter's state that its owner has brought.

    Parameters
    ----------
    value
        An array as a parameter may be.
    kind
        "moment1", "moment2", "vhat" or "master"; what messages call it.
    like
        The parameter's memory.

    Raises
    ------
    TypeError, ValueError
        As for a parameter; or if it is elsewhere than the parameter, or of another shape, layout,
        or a type that no option goes with.
    """
    real = _core.gradient_dtypes(like.dtype.name)[0]
    if kind == "master" and like.dtype.name == real:
        raise ValueError(f"master must be None for a parameter of {real}: it is its own master")
    has_formats = kind in ("moment1", "moment2") and real == "float32"
    known = (real, "bfloat16", "uint16") if has_formats else (real,)
    on_device = device_parameter(value, kind, known)
    array = parameter_array(value, kind, known) if on_device is None else on_device
    places = [_place(memory) for memory in (like, array)]
    if places[0] != places[1]:
        raise ValueError(f"{kind} must be on {places[0]}, as its parameter is, got {places[1]}")
    if array.shape != like.shape:
        raise ValueError(f"{kind} must have the parameter's shape {like.shape}, got {array.shape}")
    if isinstance(array, np.ndarray) and isinstance(like, np.ndarray):
        wanted = tuple(step // like.itemsize * array.itemsize for step in like.strides)
        if not is_laid_out_like(array, wanted):
            raise ValueError(
                f"{kind} must have its axes in memory as the parameter has, with strides {wanted}, "
                f"got {array.strides}"
            )
    return array


def _place(memory: FloatArray | _core.DeviceArray) -> str:
    return f"CUDA device {memory.device}" if isinstance(memory, _core.DeviceArray) else "the CPU"


def is_laid_out_like(array: FloatArray, strides: tuple[int, ...]) -> bool:
    """Whether an array has these strides, as far as they matter."""
    pairs = zip(array.shape, array.strides, strides, strict=True)
    return array.size == 0 or all(length < 2 or mine == its for length, mine, its in pairs)


def gradient(grad: object, like: FloatArray | _core.DeviceArray, label: str) -> object:
    """Return a gradient in the form that the native step reads.

    Parameters
    ----------
    grad
        A dense gradient: a NumPy array or scalar of any real float type and any strides, or an
        object that exports CPU memory by the buffer protocol or DLPack. Or a sparse one: a
        RowTensor, a SciPy sparse matrix, or a torch sparse COO tensor over rows.
    like
        The parameter's array, or what describes it if it is on a CUDA device; then the gradient
        must be there too.
    label
        What messages call the gradient.

    Returns
    -------
    array, or tuple of arrays, or of DeviceArray
        An array of the parameter's shape and of a type that goes with its own; or the indices and
        values of rows.

    Raises
    ------
    TypeError
        If ``grad`` is not an array or not of a real float type, or indices are not integers.
    ValueError
        If a shape is wrong.
    """
    rows = rows_of(grad)
    if isinstance(like, _core.DeviceArray):
        return device_gradient(grad, rows, like, label)
    if rows is not None:
        return _row_arrays(*rows, like, label)
    return _dense(grad, like.shape, like.dtype, label)


def _dense(grad: Any, shape: tuple[int, ...], dtype: np.dtype[Any], label: str) -> FloatArray:
    if isinstance(grad, np.ma.MaskedArray):
        raise TypeError(f"{label} must not be masked; fill it first, say with grad.filled(0)")
    if isinstance(grad, (np.ndarray, np.generic)):
        array: FloatArray | None = np.asarray(grad)
    else:
        array = from_foreign(grad.resolve_neg() if _is_lazily_negated(grad) else grad)
    if array is None:
        raise TypeError(
            f"{label} must be an array of shape {shape} and type {dtype}, got {what_came(grad)}"
        )
    if not is_float(array.dtype):
        raise TypeError(
            f"{label} must be of a float type, got {array.dtype}; "
            f"convert it with .astype({dtype.name!r})"
        )
    if array.shape != shape:
        raise ValueError(f"{label} must have shape {shape}, got {array.shape}")
    return _in_step_type(array, dtype)


def _in_step_type(array: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Convert to a type that the native step reads for a parameter of type ``dtype``.

    That is float64 for float64, and float32 or 16 bits for all others: a 16-bit parameter's
    gradient keeps float32's precision. What is too large becomes infinity, as everywhere.
    """
    known = _core.gradient_dtypes(dtype.name)
    if array.dtype.name in known and array.dtype.isnative:
        return array
    with np.errstate(over="ignore"):
        return array.astype(known[0])


def rows_of(grad: Any) -> tuple[Any, Any, Any] | None:
    """Return indices, values and shape of a sparse gradient, or None if it is not one."""
    if hasattr(grad, "indices") and hasattr(grad, "values") and hasattr(grad, "dense_shape"):
        return grad.indices, grad.values, grad.dense_shape
    if hasattr(grad, "tocsr") and hasattr(grad, "shape"):  # SciPy
        return _scipy_rows(grad)
    if getattr(grad, "is_sparse", False) is True and hasattr(grad, "_indices"):  # torch COO
        indices = grad._indices()
        return indices[0] if len(indices) == 1 else indices, grad._values(), tuple(grad.shape)
    return None


def _scipy_rows(matrix: Any) -> tuple[Any, Any, Any]:
    if len(matrix.shape) == 1:
        entries = matrix.tocoo()
        return entries.coords[0], entries.data, matrix.shape
    by_row = matrix.tocsr()
    rows = np.flatnonzero(np.diff(by_row.indptr))
    return rows, by_row[rows].toarray(), matrix.shape


def _index_array(indices: Any, label: str) -> npt.NDArray[Any]:
    rows = indices if isinstance(indices, np.ndarray) else from_foreign(indices)
    if rows is not None:
        return rows
    try:
        rows = np.asarray(indices)
    except ValueError:  # ragged
        raise TypeError(f"{label} must have an array of indices, got {indices!r:.60}") from None
    return rows.astype(np.int64) if rows.size == 0 else rows


def _row_arrays(
    indices: Any, values: Any, dense_shape: Any, like: FloatArray, label: str
) -> tuple[npt.NDArray[Any], FloatArray]:
    """Check the parts of a sparse gradient; whether indices are in range is checked natively."""
    if like.ndim == 0:
        raise ValueError(f"{label} must be dense: a parameter without axes has no rows")
    if not isinstance(dense_shape, (tuple, list)):
        raise TypeError(f"{label} must have a tuple as dense_shape, got {dense_shape!r}")
    if tuple(dense_shape) != like.shape:
        raise ValueError(f"{label} must have dense_shape {like.shape}, got {tuple(dense_shape)}")
    rows = _index_array(indices, label)
    if rows.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise TypeError(f"{label} must have indices of type int32 or int64, got {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"{label} must have indices of shape (k,), got {rows.shape}")
    shape = (len(rows), *like.shape[1:])
    listed = _dense(values, shape, like.dtype, f"the values of {label}")
    return np.require(rows, None, ["C", "A"]), np.require(listed, None, ["C", "A"])
