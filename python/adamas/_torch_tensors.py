"""torch's tensors as `adamas.torch` takes them: where they lie, and how their elements do."""

from __future__ import annotations

from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError(
        'adamas.torch needs PyTorch, which is not installed: pip install "adamas[torch]"'
    ) from error
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(
        f"adamas.torch needs PyTorch 2.10 or newer, got {torch.__version__}: "
        'pip install --upgrade "adamas[torch]"'
    )

# The types of moments, by that of their parameter.
REAL_TYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


def number(name: str, value: Any) -> float:
    """Return an option that may be a number of any kind, or a tensor of one element."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a number or a tensor of one, got {type(value).__name__}"
        ) from None


def is_unusual(param: Any) -> bool:
    """Whether a parameter itself is not what the native step reads."""
    if torch.nn.parameter.is_lazy(param):
        return False  # of a lazy module: it has no gradient yet, and is looked at when it has
    return bool(
        param.is_complex()
        or hasattr(param, "to_local")
        or param.device.type != "cpu"
        or param.layout != torch.strided
        or param.is_neg()
        or has_gaps(param)
    )


def has_gaps(tensor: Any) -> bool:
    """Whether there is memory between the elements, or elements share memory."""
    if tensor.numel() == 0:
        return False
    expected = 1
    for step, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1:
            if step != expected:
                return True
            expected *= length
    return False


def plain_copy(tensor: Any, position: int) -> Any:
    """Return a copy without gaps and of plain sign, if there is a place for each element."""
    reach = 1 + sum(
        (length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    if reach < tensor.numel():
        raise ValueError(
            f"parameter {position} must have memory for each element, got strides "
            f"{tensor.stride()} for shape {tuple(tensor.shape)}"
        )
    return torch.empty_like(tensor).copy_(tensor)


def in_layout(tensor: Any, like: Any) -> Any:
    """Return the tensor, or a copy of it, whose elements lie like those of the other."""
    if tensor.shape != like.shape:
        raise ValueError(
            f"a gradient must have the shape of its parameter, {tuple(like.shape)}, got "
            f"{tuple(tensor.shape)}"
        )
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def local(tensor: Any, like: Any = None) -> Any:
    """Return a tensor, or the part of a DTensor that lies here, which must lie like the other."""
    if not hasattr(tensor, "to_local"):
        return tensor
    if like is not None and getattr(like, "placements", None) != tensor.placements:
        raise RuntimeError(
            f"the gradient of a DTensor must be placed like it, {like.placements}, got "
            f"{tensor.placements}; redistribute it"
        )
    return tensor.to_local()


def fitting(array: Any, param: Any, dtype: Any, label: str) -> Any:
    """Return an array of state, or a copy that lies like its parameter, where that one is."""
    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(array).__name__}")
    if array.shape != param.shape:
        raise ValueError(
            f"{label} must have the shape of its parameter, {tuple(param.shape)}, got "
            f"{tuple(array.shape)}"
        )
    if array.dtype != dtype:
        raise ValueError(
            f"{label} must be of {dtype}, got {array.dtype}; load_state_dict(state_dict()) casts it"
        )
    if hasattr(array, "to_local"):
        return array
    like = torch.empty_like(param, dtype=dtype, requires_grad=False)
    is_like = array.stride() == like.stride() and array.device == like.device
    return array if is_like and not array.is_neg() else like.copy_(array)


def count_type() -> Any:
    """Return the type in which torch counts steps."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def count(steps: Any, label: str) -> Any:
    """Return a number of steps, an int or a tensor of one float on the CPU."""
    value = number(f"the step {label}", steps)
    if not 0.0 <= value <= 2.0**62 or value != int(value):
        raise ValueError(f"the step {label} must be a whole number in [0, 2**62], got {steps}")
    if type(steps) is int:
        return steps
    kind = torch.float64 if getattr(steps, "dtype", None) == torch.float64 else torch.float32
    return torch.tensor(value, dtype=kind, device="cpu")
