"""The options of an optimizer by the names and as the values that users know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from . import _core
from . import _validation as validation

# What is called by its type: float32 (float64 for float64 parameters), as it is computed.
_REAL = "float32"

STATE_FORMATS = {
    _REAL if member is _core.StateFormat.real else member.name: member
    for member in _core.StateFormat
}
"""By the name that users know."""

_USERS_NAMES = {"state_format": "state_dtype"}

MEMBERS = (
    *_core.DECIDING_OPTIONS,
    *sorted(
        name
        for name, member in vars(_core.AdamConfig).items()
        if isinstance(member, property) and name not in _core.DECIDING_OPTIONS
    ),
)
"""The members of AdamConfig; first those that decide the bits of later steps."""

GROUP_OPTIONS = _core.GROUP_OPTIONS
"""Those in which groups may differ."""

# Those of the optimizer's own, as far as they decide bits; the norms of groups come on top.
OPTIMIZER_OPTIONS = tuple(
    name
    for name in _core.DECIDING_OPTIONS
    if name not in GROUP_OPTIONS or name in ("max_grad_norm", "clip_per_array")
    if name != "writes_delta"  # which no optimizer of Python has
)


def users_name(name: str) -> str:
    """Return what users call a member of AdamConfig."""
    return _USERS_NAMES.get(name, name)


def plain(config: _core.AdamConfig, members: Iterable[str] = MEMBERS) -> dict[str, Any]:
    """Return options as numbers, strings, bools and None."""
    return {users_name(name): plain_value(name, getattr(config, name)) for name in members}


def plain_value(name: str, value: Any) -> Any:
    """Return the value of one member as users know it."""
    if value is _core.StateFormat.real:
        return _REAL
    if name in ("max_grad_norm", "num_threads", "ema_decay"):
        return value or None
    return value.name if isinstance(value, Enum) else value


def config_of(options: Mapping[str, Any]) -> _core.AdamConfig:
    """Return the options that `plain` has described; what it has not described is at its default.

    Raises
    ------
    ValueError
        If there is an option that this version does not have.
    """
    config = _core.AdamConfig()
    members = {users_name(name): name for name in MEMBERS}
    for name, value in options.items():
        if name not in members:
            raise ValueError(f"there is no option {name!r} in adamas {_core.__version__}")
        default = getattr(config, members[name])
        if isinstance(default, _core.StateFormat):
            value = STATE_FORMATS[value]
        elif isinstance(default, Enum):
            value = type(default)[value]
        setattr(config, members[name], 0 if value is None else value)
    return config


def decay_rate(label: str, value: Any, *, allow_zero: bool) -> float:
    """Return beta1 or beta2, checked."""
    if allow_zero:
        return validation.strict_float(label, value, minimum=0.0, below=1.0)
    return validation.strict_float(label, value, above=0.0, below=1.0)


def eps(label: str, value: Any, *, allow_zero: bool) -> float:
    """Return eps, checked."""
    if allow_zero:
        return validation.strict_float(label, value, minimum=0.0)
    return validation.strict_float(label, value, above=0.0)


def max_grad_norm(label: str, value: Any) -> float:
    """Return a norm to clip to, checked; 0 for None."""
    return 0.0 if value is None else validation.real(label, value, above=0.0)


def of_group(name: str, label: str, value: Any, *, allow_zero: bool) -> Any:
    """Return an option of a group as the member of AdamConfig, checked.

    Raises
    ------
    TypeError, ValueError
        As the constructors do, with ``label`` as the name.
    """
    if name in ("beta1", "beta2"):
        return decay_rate(label, value, allow_zero=allow_zero)
    if name == "eps":
        return eps(label, value, allow_zero=allow_zero)
    if name == "max_grad_norm":
        return max_grad_norm(label, value)
    return validation.flag(label, value)
