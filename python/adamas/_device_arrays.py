"""Arrays of CUDA devices, whoever made them, become `_core.DeviceArray` here; nothing is copied.

They are described by ``__cuda_array_interface__`` (CuPy, Numba, torch, JAX) or by DLPack, which
also knows bfloat16. What lies on a device is used where it lies, so that what cannot be used as it
is (strided, of a type that the kernels do not know) is refused: a copy is the caller's to make.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core

_DEFAULT_STREAM = 1  # as DLPack calls it
_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged of DLPack
_NAMES_STREAMS = 3  # the version of the CUDA array interface from which on it does; torch has 2


def is_jax(value: object) -> bool:
    """Whether an array is one of JAX, which are immutable."""
    return type(value).__module__.partition(".")[0] in ("jax", "jaxlib")


def from_device(value: Any) -> _core.DeviceArray | None:
    """Describe an array on a CUDA device, or return None if it is something else.

    Raises
    ------
    TypeError
        If the type is unknown.
    ValueError
        If the array is not C-contiguous.
    RuntimeError
        If there is an array on a device, but no device that adamas can use.
    """
    if isinstance(value, _core.DeviceArray):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return None
    detach = getattr(value, "detach", None)
    exporter = detach() if callable(detach) else value
    array = _from_interface(exporter, value)
    if array is None:
        array = _from_dlpack(exporter, value)
    if array is not None:
        reason = _core.cuda_unavailable_reason()
        if reason is not None:
            raise RuntimeError(f"an array on a CUDA device can't be used: {reason}")
    return array


def _from_interface(exporter: Any, owner: Any) -> _core.DeviceArray | None:
    try:
        interface = exporter.__cuda_array_interface__
    except (AttributeError, TypeError, RuntimeError):  # torch: not CUDA, or bfloat16
        return None
    if interface.get("mask") is not None:
        raise TypeError("an array on a device must not be masked")
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    _check_contiguous(shape, interface.get("strides"), dtype.itemsize)
    address, readonly = interface["data"]
    device = _core.device_of(address) if address else _device_of_empty(exporter)
    stream = interface.get("stream") or 0
    if interface.get("version", 0) < _NAMES_STREAMS:
        stream = _current_stream(exporter)
    return _core.DeviceArray(address, shape, dtype, max(device, 0), readonly, stream, owner)


def _device_of_empty(exporter: Any) -> int:
    """Return where an array without memory says that it is."""
    if hasattr(exporter, "__dlpack_device__"):
        return int(exporter.__dlpack_device__()[1])
    return 0


def _current_stream(exporter: Any) -> int:
    """Return the stream on which the library of an array works; 0: the default one, or unknown."""
    stream = _core.DeviceArray.current_stream_of(exporter)
    torch = sys.modules.get("torch")
    if stream == 0 and torch is not None and isinstance(exporter, torch.Tensor):  # before 2.10
        stream = int(torch.cuda.current_stream(exporter.device).cuda_stream)
    return stream


def _from_dlpack(exporter: Any, owner: Any) -> _core.DeviceArray | None:
    """Have the producer make a stream wait for it, on which the step then waits."""
    if not hasattr(exporter, "__dlpack_device__"):
        return None
    try:
        device_type, _ = exporter.__dlpack_device__()
    except (ValueError, TypeError, BufferError, RuntimeError):  # no memory that DLPack knows
        return None
    if int(device_type) not in _CUDA_DEVICES:
        return None
    stream = _current_stream(exporter) or _DEFAULT_STREAM
    try:
        capsule = exporter.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # before DLPack 1.0
        capsule = exporter.__dlpack__(stream=stream)
    return _core.DeviceArray.from_dlpack(capsule, stream, owner)


def _check_contiguous(shape: tuple[int, ...], strides: Any, itemsize: int) -> None:
    if strides is None or 0 in shape:
        return
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if length != 1 and stride != step:
            raise ValueError(
                f"an array on a device must be C-contiguous, got strides {tuple(strides)} for "
                f"shape {shape}; pass a contiguous copy"
            )
        step *= length


def device_parameter(
    data: Any, label: str = "data", known: tuple[str, ...] = _core.DTYPES
) -> _core.DeviceArray | None:
    """Return memory on a device that is updated in place, or None if it is not on one.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If it is on one, but can't be updated in place.
    """
    array = from_device(data)
    if array is None:
        return None
    if is_jax(data):
        raise TypeError(
            f"{label} must be mutable, but JAX arrays are not: keep the values in an array of "
            "another library (cupy.from_dlpack(array).copy()) and hand it to JAX by "
            "jax.dlpack.from_dlpack before each use"
        )
    if array.dtype.name not in known:
        raise TypeError(f"{label} must be {' or '.join(known)}, got {array.dtype}")
    if array.readonly:
        raise ValueError(
            f"{label} must be writable, because it is updated in place; it is read-only"
        )
    return array


def device_gradient(
    grad: Any, rows: tuple[Any, Any, Any] | None, like: _core.DeviceArray, label: str
) -> _core.DeviceArray | tuple[_core.DeviceArray, _core.DeviceArray]:
    """Return a gradient of a parameter on a device in the form that the native step reads.

    `rows` are the parts of a sparse gradient, as `arrays.rows_of` gives them.
    """
    if rows is None:
        return _dense(grad, like.shape, like, label)
    indices, values, dense_shape = rows
    if like.ndim == 0:
        raise ValueError(f"{label} must be dense: a parameter without axes has no rows")
    if tuple(dense_shape) != like.shape:
        raise ValueError(f"{label} must have dense_shape {like.shape}, got {tuple(dense_shape)}")
    places = _on_device(indices, like, f"the indices of {label}")
    if places.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise TypeError(f"{label} must have indices of type int32 or int64, got {places.dtype}")
    if places.ndim != 1:
        raise ValueError(f"{label} must have indices of shape (k,), got {places.shape}")
    shape = (places.size, *like.shape[1:])
    return places, _dense(values, shape, like, f"the values of {label}")


def _dense(
    grad: Any, shape: tuple[int, ...], like: _core.DeviceArray, label: str
) -> _core.DeviceArray:
    array = _on_device(grad, like, label)
    wanted = _core.gradient_dtypes(like.dtype.name)
    if array.dtype.name not in wanted:
        raise TypeError(f"{label} must be {' or '.join(wanted)}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{label} must have shape {shape}, got {array.shape}")
    return array


def _on_device(value: Any, like: _core.DeviceArray, label: str) -> _core.DeviceArray:
    try:
        array = from_device(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None
    if array is None:
        raise TypeError(
            f"{label} must be an array on CUDA device {like.device}, as its parameter is, "
            f"got {type(value).__name__}"
        )
    if array.device != like.device and array.size > 0:
        raise ValueError(
            f"{label} must be on CUDA device {like.device}, as its parameter is, got one on "
            f"device {array.device}"
        )
    return array


def stream_number(stream: Any) -> int | None:
    """Return a stream as the number that the CUDA runtime knows it by.

    An int is taken as it is; objects may have ``__cuda_stream__()`` (the protocol of
    cuda.core), or an attribute ``cuda_stream`` (torch), ``ptr`` (CuPy) or ``handle`` (Numba).
    """
    if stream is None:
        return None
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        stream = protocol()[1]
    for name in ("cuda_stream", "ptr", "handle"):
        stream = getattr(stream, name, stream)
    stream = getattr(stream, "value", stream)  # of ctypes
    if isinstance(stream, bool) or not hasattr(stream, "__index__"):
        raise TypeError(f"stream must be a CUDA stream or its address, got {type(stream).__name__}")
    return int(stream)
