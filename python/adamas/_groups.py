"""Parameters and group dicts -> members in the order of the gradients, and their groups."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import _core, _named, _options
from . import _validation as validation
from ._parameter import Parameter
from ._rates import Rate, RateBook

_KEYS = (
    *("params", "lr", "weight_decay", "grad_centralization", "order_params"),
    *_options.GROUP_OPTIONS,
)


@dataclass(frozen=True)
class Member:
    """One parameter, and where it belongs."""

    parameter: Parameter
    name: str
    group: int
    decays: bool = True  # whether the weight decay of the group is for it
    grad_centralization: bool = False


@dataclass
class GroupOptions:
    """What the parameters of a group have in common."""

    learning_rate: Rate
    weight_decay: Rate
    config: _core.AdamConfig
    grad_centralization: bool = False


def resolve(
    params: Any, defaults: GroupOptions, book: RateBook
) -> tuple[list[Member], list[GroupOptions], bool]:
    """Return all parameters in update order, the groups, and whether groups were given.

    Raises
    ------
    TypeError
        If ``params`` is not iterable, or mixes or holds other things than parameters or dicts.
    KeyError
        If a group has an unknown key or lacks "params".
    ValueError
        If there are no parameters, one stands twice in a plain list, two have the same name, or
        ``order_params`` is not a permutation of them.
    RuntimeError
        If a parameter stands in two groups.
    """
    if isinstance(params, Mapping) and isinstance(params.get("params"), (list, tuple)):
        raise TypeError("params must be a list of groups, got one dict with 'params'; put it in []")
    given = params if isinstance(params, Mapping) else _listed("params", params)
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        return *_from_groups(given, defaults, book), True
    parameters = _parameters("params", given)
    if not parameters:
        raise ValueError("params must hold at least one parameter, got none")
    return _from_list(parameters), [defaults], False


def resolve_more(
    params: Any, members: Sequence[Member], defaults: GroupOptions, count: int, book: RateBook
) -> tuple[list[Member], list[GroupOptions], bool]:
    """Return what is added to ``members``, which are in ``count`` groups: as `resolve` does.

    Without groups, an optimizer that had none has one still, and no new group is returned; one that
    had groups gets one more.
    """
    is_one = isinstance(params, Parameter) or _is_array(params)
    is_group = isinstance(params, Mapping) and "params" in params
    given = [params] if is_one or is_group else params
    given = given if isinstance(given, Mapping) else _listed("params", given)
    known = {id(member.parameter) for member in members}
    taken = {member.name for member in members}
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        if any("order_params" in group for group in given if isinstance(group, Mapping)):
            raise KeyError("order_params must stand in the constructor: added parameters come last")
        more, groups = _from_groups(given, defaults, book, len(members), known, taken, count)
        return more, groups, True
    parameters = _parameters("params", given)
    if not parameters:
        raise ValueError("params must hold at least one parameter, got none")
    return _from_list(parameters, len(members), known, taken), [], False


def _listed(name: str, value: Any) -> list[Any]:
    """Materialise an iterable once."""
    is_array = _is_array(value)
    if isinstance(value, Iterable) and not (is_array or isinstance(value, (str, bytes, Mapping))):
        return list(value)
    hint = "; put it in []" if is_array else ""
    raise TypeError(
        f"{name} must be an iterable of Parameters, got {validation.shown(value)}{hint}"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__dlpack__") or hasattr(value, "__array__")


def _parameters(label: str, given: Any) -> list[Parameter]:
    """Return Parameters as they are, and new ones of arrays, which are named if in a dict."""
    if isinstance(given, Mapping):
        named = _named.flat(given, label)
        return [_parameter(f"{label}[{name!r}]", item, name) for name, item in named.items()]
    return [_parameter(f"{label}[{i}]", item) for i, item in enumerate(_listed(label, given))]


def _parameter(label: str, item: Any, name: str | None = None) -> Parameter:
    if isinstance(item, Parameter):
        if name is None:
            return item
        raise TypeError(f"{label} must be an array, which gets its name here, got {item!r}")
    if isinstance(item, Mapping):
        raise TypeError(f"{label} must be a Parameter, like the first one, got a dict")
    try:
        return Parameter(item, name)
    except TypeError as error:
        got = validation.shown(item)
        raise TypeError(f"{label} must be a Parameter or its array, got {got}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _names(
    parameters: Iterable[Parameter], first: int = 0, others: Collection[str] = ()
) -> list[str]:
    """Return the names of parameters; one without gets one from its position.

    `first` is the position of the first, and `others` are names that there are besides.
    """
    listed = list(parameters)
    taken = set(others)
    for parameter in listed:
        if parameter.name in taken:
            raise ValueError(f"params must have different names, got {parameter.name!r} twice")
        if parameter.name is not None:
            taken.add(parameter.name)
    names = []
    for i, parameter in enumerate(listed, first):
        name = parameter.name
        if name is None:
            name = f"param{i}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


def _from_list(
    parameters: list[Parameter],
    first: int = 0,
    known: Collection[int] = (),
    taken: Collection[str] = (),
) -> list[Member]:
    seen = set(known)
    for i, parameter in enumerate(parameters):
        if id(parameter) in seen:
            raise ValueError(f"params must not repeat, got {parameter!r} again at position {i}")
        seen.add(id(parameter))
    return [
        Member(parameter, name, group=0, decays=not ("beta" in name or "gamma" in name))
        for parameter, name in zip(parameters, _names(parameters, first, taken), strict=True)
    ]


def _from_groups(
    dicts: list[Mapping[str, Any]],
    defaults: GroupOptions,
    book: RateBook,
    first: int = 0,
    known: Collection[int] = (),
    taken: Collection[str] = (),
    first_group: int = 0,
) -> tuple[list[Member], list[GroupOptions]]:
    members: dict[int, Member] = {}  # by id of the parameter
    groups: list[GroupOptions] = []
    order: list[Any] | None = None
    for i, group in enumerate(dicts):
        label = f"params[{i}]"
        if not isinstance(group, Mapping):
            raise TypeError(
                f"{label} must be a dict, like the first one, got {validation.shown(group)}"
            )
        unknown = [key for key in group if key not in _KEYS]
        if unknown:
            raise KeyError(f"{label} must only have keys of {_KEYS}, got {unknown[0]!r}")
        if "order_params" in group:
            if order is not None:
                raise ValueError(f"{label}: 'order_params' must stand in one group only")
            order = _order(group, label)
            continue
        options = _group_options(group, label, defaults, book)
        for parameter in _members(group, label):
            if id(parameter) in members or id(parameter) in known:
                raise RuntimeError(f"{label}: {parameter!r} stands in two groups")
            members[id(parameter)] = Member(
                parameter,
                "",
                first_group + len(groups),
                grad_centralization=options.grad_centralization,
            )
        groups.append(options)
    if not members:
        raise ValueError("params must hold at least one group with 'params', got none")
    names = _names((member.parameter for member in members.values()), first, taken)
    for key, name in zip(members, names, strict=True):
        members[key] = replace(members[key], name=name)
    return list(members.values()) if order is None else _ordered(members, order), groups


def _group_options(
    group: Mapping[str, Any], label: str, defaults: GroupOptions, book: RateBook
) -> GroupOptions:
    learning_rate, weight_decay = defaults.learning_rate, defaults.weight_decay
    if "lr" in group:
        learning_rate = book.learning_rate(f"{label}['lr']", group["lr"])
    if "weight_decay" in group:
        weight_decay = book.weight_decay(f"{label}['weight_decay']", group["weight_decay"])
    centralize = validation.flag(
        f"{label}['grad_centralization']", group.get("grad_centralization", False)
    )
    config = defaults.config.copy()
    for name in _options.GROUP_OPTIONS:
        if name in group:
            value = _options.of_group(
                name, f"{label}[{name!r}]", group[name], allow_zero=config.allow_zero
            )
            setattr(config, name, value)
    return GroupOptions(learning_rate, weight_decay, config, centralize)


def _members(group: Mapping[str, Any], label: str) -> list[Parameter]:
    if "params" not in group:
        raise KeyError(f"{label} must have the key 'params' (or 'order_params')")
    members = _parameters(f"{label}['params']", group["params"])
    if not members:
        raise ValueError(f"{label}['params'] must hold at least one parameter, got none")
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


def _ordered(members: dict[int, Member], order: list[Any]) -> list[Member]:
    ids = [id(parameter) for parameter in order]
    if len(ids) != len(members) or set(ids) != set(members):
        raise ValueError(
            f"'order_params' must hold each of the {len(members)} parameters of the groups once, "
            f"got {len(ids)} entries, {len(set(ids) & set(members))} of them different parameters "
            "of the groups"
        )
    return [members[i] for i in ids]
