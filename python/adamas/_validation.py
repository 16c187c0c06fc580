"""The checks of hyper-parameters and their messages.

Every message names the argument, says what was wanted and shows what came.  A wrong type is a
TypeError (bool is never a number here), a value out of range, NaN or infinity a ValueError.
Checks return the value as a plain Python object, so that callers store nothing of the caller's.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _core


def shown(value: object) -> str:
    """The value and its type, short enough for a message."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def listed(names: Iterable[str]) -> str:
    """Return names for a message, which are not all shown if they are many."""
    known = list(names)
    text = ", ".join(repr(name) for name in known[:8])
    return text if len(known) <= 8 else f"{text}, ... ({len(known)} of them)"


def is_real(value: object) -> bool:
    """Whether ``value`` is a Python or NumPy number that is real and not a bool."""
    if type(value) is float:  # at once, for what is set in every step
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def is_integer(value: object) -> bool:
    """Whether ``value`` is a Python or NumPy integer and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return a finite real number (int or float) as a float, checked against its bounds.

    ``above`` and ``below`` are exclusive bounds, ``minimum`` and ``maximum`` inclusive ones.
    """
    if not is_real(value):
        raise TypeError(f"{name} must be a float or int, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        number = math.inf
    inside = (
        math.isfinite(number)
        and (above is None or number > above)
        and (minimum is None or number >= minimum)
        and (below is None or number < below)
        and (maximum is None or number <= maximum)
    )
    if not inside:
        wanted = _bounds(above, minimum, below, maximum)
        raise ValueError(f"{name} must be a finite number{wanted}, got {shown(value)}")
    return number


def _bounds(
    above: float | None, minimum: float | None, below: float | None, maximum: float | None
) -> str:
    parts = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", minimum), ("<", below), ("<=", maximum))
        if bound is not None
    ]
    return " " + " and ".join(parts) if parts else ""


def strict_float(name: str, value: Any, **bounds: float) -> float:
    """Like `real`, for arguments that the specification types as float: an int is a TypeError."""
    if not isinstance(value, (float, np.floating)):
        raise TypeError(f"{name} must be a float, got {shown(value)}")
    return real(name, value, **bounds)


def integer(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return an integer as an int, checked against its bounds (inclusive)."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    number = int(value)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        wanted = _bounds(None, minimum, None, maximum)
        raise ValueError(f"{name} must be an int{wanted}, got {shown(value)}")
    return number


def loss_scale(name: str, value: Any) -> float:
    """Return a loss scale as a float."""
    return real(name, value, minimum=_core.MIN_LOSS_SCALE, maximum=_core.MAX_LOSS_SCALE)


def flag(name: str, value: Any) -> bool:
    """Return a bool; anything else, 0 and 1 included, is a TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {shown(value)}")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return a string that is one of ``allowed``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}")
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be one of {options}, got {value!r}")
    return value
