"""Arrays by name: a dict, or a dict of such dicts, is one flat list with names like "conv.bias"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import _validation as validation


def flat(tree: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return the values of a nested dict by their names, in its order.

    Raises
    ------
    TypeError
        If a key is not a string.
    ValueError
        If two values have the same name.
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(tree, label, ""):
        if name in found:
            raise ValueError(f"{label} must have different names, got {name!r} twice")
        found[name] = value
    return found


def _leaves(tree: Mapping[str, Any], label: str, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TypeError(f"{label} must have strings as keys, got {validation.shown(key)}")
        if isinstance(value, Mapping):
            yield from _leaves(value, label, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def like(tree: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict of the shape of another, with the values of these names."""
    return {
        key: like(value, values, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else values[prefix + key]
        for key, value in tree.items()
    }


def in_order(tree: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Return the gradients of a dict in the order of the parameters' names; None where it has none.

    Raises
    ------
    KeyError
        If it has one for a name that is none of these.
    """
    rest = flat(tree, "grads")
    found = [rest.pop(name, None) for name in names]
    if rest:
        raise KeyError(
            f"grads must only have names of parameters ({validation.listed(names)}), got "
            f"{validation.listed(rest)}"
        )
    return found
