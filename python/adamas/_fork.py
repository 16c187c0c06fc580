"""Locks that the child of a fork finds open, whichever thread held them."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Protocol


class _Owner(Protocol):
    _lock: AbstractContextManager[object]


_owners: weakref.WeakSet[_Owner] = weakref.WeakSet()


def add_lock(owner: _Owner) -> None:
    """Give an object a lock as its ``_lock``, and a new one in the child of a fork.

    The threads that held the old one are not in the child. The fork has waited for the native calls
    that they were making; a generator that one of them was running says so in the child, as a
    ValueError.
    """
    owner._lock = threading.Lock()
    _owners.add(owner)


def _renew() -> None:
    for owner in _owners:
        owner._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
