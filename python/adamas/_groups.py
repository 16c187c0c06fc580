"""Parameters and group dicts -> one flat list of options, in the order of the gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _validation as validation
from ._parameter import Parameter
from ._rates import ZERO, Rate, RateBook

_KEYS = ("params", "lr", "weight_decay", "grad_centralization", "order_params")


@dataclass(frozen=True)
class ParameterOptions:
    """One parameter and what applies to it."""

    parameter: Parameter
    name: str
    learning_rate: Rate
    weight_decay: Rate
    grad_centralization: bool


@dataclass(frozen=True)
class Defaults:
    """What a parameter uses unless its group says otherwise."""

    learning_rate: Rate
    weight_decay: Rate


def resolve(params: Any, defaults: Defaults, book: RateBook) -> tuple[list[ParameterOptions], bool]:
    """Return the options of every parameter, in update order, and whether groups were given.

    Raises
    ------
    TypeError
        If ``params`` is not iterable, or mixes or holds other things than Parameters or dicts.
    KeyError
        If a group has an unknown key or lacks "params".
    ValueError
        If there are no parameters, one stands twice in a plain list, two have the same name, or
        ``order_params`` is not a permutation of them.
    RuntimeError
        If a parameter stands in two groups.
    """
    items = _listed("params", params)
    if not items:
        raise ValueError("params must hold at least one parameter, got none")
    grouped = isinstance(items[0], Mapping)
    for i, item in enumerate(items):
        if not isinstance(item, Mapping if grouped else Parameter):
            wanted = "a dict, like the first one" if grouped else "a Parameter"
            raise TypeError(f"params[{i}] must be {wanted}, got {validation.shown(item)}")
    options = _from_groups(items, defaults, book) if grouped else _from_list(items, defaults)
    return options, grouped


def _listed(name: str, value: Any) -> list[Any]:
    """Materialise an iterable once."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    raise TypeError(f"{name} must be an iterable of Parameters, got {validation.shown(value)}")


def _names(parameters: Iterable[Parameter]) -> list[str]:
    """Return the names of all parameters; one without gets one from its position."""
    listed = list(parameters)
    taken: set[str] = set()
    for parameter in listed:
        if parameter.name in taken:
            raise ValueError(f"params must have different names, got {parameter.name!r} twice")
        if parameter.name is not None:
            taken.add(parameter.name)
    names = []
    for i, parameter in enumerate(listed):
        name = parameter.name
        if name is None:
            name = f"param{i}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


def _from_list(parameters: list[Parameter], defaults: Defaults) -> list[ParameterOptions]:
    seen: set[int] = set()
    for i, parameter in enumerate(parameters):
        if id(parameter) in seen:
            raise ValueError(f"params must not repeat, got {parameter!r} again at position {i}")
        seen.add(id(parameter))
    return [
        ParameterOptions(
            parameter,
            name,
            defaults.learning_rate,
            ZERO if "beta" in name or "gamma" in name else defaults.weight_decay,
            False,
        )
        for parameter, name in zip(parameters, _names(parameters), strict=True)
    ]


def _from_groups(
    groups: list[Mapping[str, Any]], defaults: Defaults, book: RateBook
) -> list[ParameterOptions]:
    options: dict[int, ParameterOptions] = {}  # by id of the parameter
    order: list[Any] | None = None
    for i, group in enumerate(groups):
        label = f"params[{i}]"
        unknown = [key for key in group if key not in _KEYS]
        if unknown:
            raise KeyError(f"{label} must only have keys of {_KEYS}, got {unknown[0]!r}")
        if "order_params" in group:
            if order is not None:
                raise ValueError(f"{label}: 'order_params' must stand in one group only")
            order = _order(group, label)
            continue
        learning_rate, weight_decay = defaults.learning_rate, defaults.weight_decay
        if "lr" in group:
            learning_rate = book.learning_rate(f"{label}['lr']", group["lr"])
        if "weight_decay" in group:
            weight_decay = book.weight_decay(f"{label}['weight_decay']", group["weight_decay"])
        centralize = validation.flag(
            f"{label}['grad_centralization']", group.get("grad_centralization", False)
        )
        for parameter in _members(group, label):
            if id(parameter) in options:
                raise RuntimeError(f"{label}: {parameter!r} stands in two groups")
            options[id(parameter)] = ParameterOptions(
                parameter, "", learning_rate, weight_decay, centralize
            )
    if not options:
        raise ValueError("params must hold at least one group with 'params', got none")
    names = _names(option.parameter for option in options.values())
    for key, name in zip(options, names, strict=True):
        options[key] = replace(options[key], name=name)
    return list(options.values()) if order is None else _ordered(options, order)


def _members(group: Mapping[str, Any], label: str) -> list[Parameter]:
    if "params" not in group:
        raise KeyError(f"{label} must have the key 'params' (or 'order_params')")
    members = _listed(f"{label}['params']", group["params"])
    if not members:
        raise ValueError(f"{label}['params'] must hold at least one parameter, got none")
    for j, member in enumerate(members):
        if not isinstance(member, Parameter):
            raise TypeError(
                f"{label}['params'][{j}] must be a Parameter, got {validation.shown(member)}"
            )
    return members


def _order(group: Mapping[str, Any], label: str) -> list[Any]:
    ignored = [key for key in group if key != "order_params"]
    if ignored:
        warnings.warn(
            f"{label}: next to 'order_params' the keys {ignored} are ignored",
            UserWarning,
            stacklevel=6,
        )
    return _listed(f"{label}['order_params']", group["order_params"])


def _ordered(options: dict[int, ParameterOptions], order: list[Any]) -> list[ParameterOptions]:
    ids = [id(parameter) for parameter in order]
    if len(ids) != len(options) or set(ids) != set(options):
        raise ValueError(
            f"'order_params' must hold each of the {len(options)} parameters of the groups once, "
            f"got {len(ids)} entries, {len(set(ids) & set(options))} of them different parameters "
            "of the groups"
        )
    return [options[i] for i in ids]
