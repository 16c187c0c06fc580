"""Pytrees of JAX arrays: parameters, gradients and state that fit together, or what is wrong.

`adamas.jax` calls it. All of it is seen when a program is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core
from . import _validation as validation
from ._jax_step import KINDS, Arrays, is_array, jax, jnp

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_HALVES = ("float16", "bfloat16")


def real(dtype: Any) -> str:
    """Return the type of the arithmetic."""
    return "float64" if dtype == "float64" else "float32"


def kept(kind: str, config: _core.AdamConfig, dtype: Any) -> str | None:
    """Return in which type a kind of state of a parameter is kept; None: it is not."""
    if kind in ("moment1", "moment2"):
        return real(dtype) if config.state_format is _core.StateFormat.real else "bfloat16"
    is_kept = {
        "vhat": config.use_amsgrad,
        "master": config.master_weights and dtype in _HALVES,
        "ema": config.ema_decay > 0.0,
    }
    return real(dtype) if is_kept[kind] else None


def leaves(label: str, tree: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a pytree with their names, in its order.

    Raises
    ------
    TypeError
        If a leaf is no array of a float type.
    ValueError
        If an array is on a device that is no CPU.
    """
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = label + jax.tree_util.keystr(path)
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"{name} must be an array, got {validation.shown(leaf)}") from None
        if array.dtype.name not in _FLOATS:
            wanted = ", ".join(_FLOATS)
            raise TypeError(f"{name} must be of one of {wanted}, got {array.dtype.name}")
        if not isinstance(array, jax.core.Tracer):
            platforms = {device.platform for device in array.devices()}
            if platforms != {"cpu"}:
                raise ValueError(
                    f"{name} must be on a CPU, got an array on {', '.join(sorted(platforms))}"
                )
        found.append((name, array))
    return found


def check_structure(label: str, tree: Any, params: Any) -> None:
    """Raise ValueError unless a pytree has the structure of the parameters."""
    mine, wanted = jax.tree.structure(tree), jax.tree.structure(params)
    if mine == wanted:
        return
    names, others = (
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]}
        for one in (params, tree)
    )
    differing = sorted(names ^ others)
    at = f"; they differ at {validation.listed(differing)}" if differing else ""
    raise ValueError(f"{label} must have the structure of params{at}")


def of_call(config: _core.AdamConfig, params: Any, grads: Any, state: Any) -> Arrays:
    """Return all arrays of a call, which fit together.

    Raises
    ------
    TypeError
        If an array has a type that does not go with its parameter's.
    ValueError
        If structures or shapes differ, or the state is not that of the options.
    """
    named = leaves("params", params)
    check_structure("grads", grads, params)
    given = leaves("grads", grads)
    for (name, grad), (_, param) in zip(given, named, strict=True):
        allowed = _core.gradient_dtypes(param.dtype.name)
        if grad.dtype.name not in allowed:
            wanted = ", ".join(allowed)
            raise TypeError(f"{name} must be of one of {wanted}, got {grad.dtype.name}")
        _check_shape(name, grad, param)
    states = {kind: _state(config, kind, getattr(state, kind), params, named) for kind in KINDS}
    arrays = [array for _, array in named]
    return Arrays(arrays, [array for _, array in given], states)


def _state(
    config: _core.AdamConfig, kind: str, tree: Any, params: Any, named: Sequence[tuple[str, Any]]
) -> list[Any]:
    """Return the arrays of one kind of state; None for a parameter that does not have it."""
    label = f"state.{kind}"
    having = [kept(kind, config, param.dtype.name) for _, param in named]
    if not any(having):
        if jax.tree.leaves(tree):
            raise ValueError(f"{label} must be None: these options do not keep it")
        return [None] * len(named)
    check_structure(label, tree, jax.tree.unflatten(jax.tree.structure(params), having))
    given = iter(leaves(label, tree))
    found: list[Any] = []
    for dtype, (_, param) in zip(having, named, strict=True):
        if dtype is None:
            found.append(None)
            continue
        name, array = next(given)
        if array.dtype.name != dtype:
            raise TypeError(f"{name} must be of {dtype}, got {array.dtype.name}")
        _check_shape(name, array, param)
        found.append(array)
    return found


def _check_shape(name: str, array: Any, param: Any) -> None:
    if array.shape != param.shape:
        raise ValueError(f"{name} must have the shape {param.shape}, got {array.shape}")


def count(value: Any) -> Any:
    """Return the number of steps as an array, checked."""
    array = jnp.asarray(value)
    if array.shape != () or array.dtype.name not in ("int32", "int64"):
        raise TypeError(
            f"state.count must be one int32 or int64, got {array.dtype.name} of shape {array.shape}"
        )
    return array


def number(label: str, value: Any) -> Any:
    """Return a number as an operand: a traced one as it is, others as the bits of a double.

    So what is written as 1e-3 in a program is 1e-3, though arrays of float64 are off by default;
    and a number that differs from call to call compiles nothing anew.
    """
    if is_array(value):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(
                f"{label} must be one number, got {value.dtype.name} of shape {value.shape}"
            )
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{label} must be real, got {value.dtype.name}")
        return value.astype(real(value.dtype.name))
    low, high = np.array([value], np.float64).view(np.uint32).tolist()
    # XLA computes constants that it can, by a kernel for each: with this word it can't.
    return jnp.asarray(np.array([low, high, (2 * high - low + 1) % 2**32], np.uint32))
