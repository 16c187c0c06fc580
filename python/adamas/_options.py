"""The options of an optimizer by the names and as the values that users know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from . import _core

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
        for name in vars(_core.AdamConfig)
        if not name.startswith("_") and name not in _core.DECIDING_OPTIONS
    ),
)
"""The members of AdamConfig; first those that decide the bits of later steps."""


def plain(config: _core.AdamConfig, members: Iterable[str] = MEMBERS) -> dict[str, Any]:
    """Return options as numbers, strings, bools and None."""
    return {
        _USERS_NAMES.get(name, name): _plain_value(name, getattr(config, name)) for name in members
    }


def _plain_value(name: str, value: Any) -> Any:
    if value is _core.StateFormat.real:
        return _REAL
    if name in ("max_grad_norm", "num_threads"):
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
    members = {_USERS_NAMES.get(name, name): name for name in MEMBERS}
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
