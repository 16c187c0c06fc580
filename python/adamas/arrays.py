"""Foreign arrays become NumPy arrays here: parameters without a copy, gradients at any price.

A parameter is written to, so a copy would lose the update: what cannot be used in place is refused.
A gradient is only read, so one that is strided, of another float width or from another library is
converted; the price is a temporary array and a pass over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[Any]


def _from_foreign(value: object) -> FloatArray | None:
    """View an object's memory as a NumPy array without a copy, or return None.

    Tries the buffer protocol, then DLPack (a torch tensor; its gradient tracking does not matter
    here, so a tensor that requires gradients is detached first).
    """
    try:
        return np.asarray(memoryview(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        pass
    detach = getattr(value, "detach", None)
    exporter = detach() if callable(detach) else value
    if hasattr(exporter, "__dlpack__"):
        try:
            return np.from_dlpack(exporter)
        except (BufferError, RuntimeError, TypeError, ValueError):
            return None
    return None


def parameter_array(data: object) -> FloatArray:
    """Return the NumPy view of a parameter's memory.

    Raises
    ------
    TypeError
        If ``data`` exports no array memory or holds another type than float32 and float64.
    ValueError
        If the memory is read-only, not C-contiguous or not aligned: what must change is named.
    """
    array = data if isinstance(data, np.ndarray) else _from_foreign(data)
    if array is None:
        raise TypeError(
            "data must be a NumPy array, or export writable CPU memory by the buffer protocol or "
            f"DLPack, got {type(data).__name__}"
        )
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(
            f"data must be float32 or float64 in native byte order, got {array.dtype.str} "
            f"({array.dtype})"
        )
    if not array.flags.writeable:
        raise ValueError("data must be writable, because it is updated in place; it is read-only")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"data must be C-contiguous, got strides {array.strides} for shape {array.shape}: the "
            "update of a copy would be lost; pass the whole array or store it contiguously "
            "(numpy.ascontiguousarray)"
        )
    if not array.flags.aligned:
        raise ValueError(f"data must be aligned to its items of {array.itemsize} bytes")
    return array


def gradient_array(grad: object, like: FloatArray, label: str) -> FloatArray:
    """Return a gradient as a contiguous array with the shape and type of its parameter.

    Parameters
    ----------
    grad
        A NumPy array or scalar of any real float type and any strides, or an object that exports
        CPU memory by the buffer protocol or DLPack.
    like
        The parameter's array.
    label
        What messages call the gradient.

    Raises
    ------
    TypeError
        If ``grad`` is not an array or not of a real float type.
    ValueError
        If its shape is not the parameter's.
    """
    if isinstance(grad, (np.ndarray, np.floating)):
        array: FloatArray | None = np.asarray(grad)
    else:
        array = _from_foreign(grad)
    if array is None:
        raise TypeError(
            f"{label} must be an array of shape {like.shape} and type {like.dtype}, "
            f"got {type(grad).__name__}"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"{label} must be of a float type, got {array.dtype}; "
            f"convert it with .astype({like.dtype.name!r})"
        )
    if array.shape != like.shape:
        raise ValueError(f"{label} must have shape {like.shape}, got {array.shape}")
    with np.errstate(over="ignore"):  # what is too large becomes infinity, as everywhere
        return np.require(array, dtype=like.dtype, requirements=["C_CONTIGUOUS", "ALIGNED"])
