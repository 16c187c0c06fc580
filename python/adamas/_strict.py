"""Objects that refuse attributes which they do not have, and say which they have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


class Strict:
    """Base of classes with ``__slots__``: what is misspelt, or of another library, is an error.

    Subclasses of users have a ``__dict__``, and so attributes of their own.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # with it, checkers take any attribute for one that can be set

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                object.__setattr__(self, name, value)
            except AttributeError:
                if name.startswith("_") or _is_settable(self, name):
                    raise
                raise AttributeError(_message(self, name)) from None

    def __dir__(self) -> Iterable[str]:
        """Leave out what is private, so that completion shows what users use."""
        names = object.__dir__(self)
        return [name for name in names if not name.startswith("_") or name.startswith("__")]


def _is_settable(thing: object, name: str) -> bool:
    found = getattr(type(thing), name, None)
    if isinstance(found, property):
        return found.fset is not None
    return hasattr(type(found), "__set__")


def _message(thing: object, name: str) -> str:
    what = "can't be set" if hasattr(type(thing), name) else "does not exist"
    public = [other for other in dir(thing) if not other.startswith("_")]
    settable = [other for other in public if _is_settable(thing, other)]
    wanted = ", ".join(sorted(settable)) or "none"
    return f"{type(thing).__name__}.{name} {what}; attributes that can be set: {wanted}"
