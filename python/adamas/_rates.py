"""Learning rates and weight decays in all their forms, as one question: what is it at step i.

A `RateBook` turns what the user gave into a `Rate`, which is asked with the 0-based global step and
answers with a checked float, or raises without having changed anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol, TypeGuard
from weakref import WeakValueDictionary

import numpy as np

from . import _validation as validation
from ._fork import add_lock
from ._schedules import LearningRateSchedule


class Rate(Protocol):
    """A value for each step; ``constant`` says that it is always the same.

    ``source`` is what it was made from: a number as a float, values as a list, else the object.
    """

    constant: bool

    @property
    def source(self) -> Any:
        """What the rate was made from."""
        ...

    def at(self, step: int, /) -> float:
        """Return the value at a 0-based step."""
        ...


class _Constant:
    constant = True

    def __init__(self, value: float) -> None:
        self.source = value

    def at(self, _step: int, /) -> float:
        return self.source


ZERO: Rate = _Constant(0.0)


class _Sequence:
    """The i-th of some checked values for step i."""

    constant = False

    def __init__(self, name: str, values: list[float]) -> None:
        self._name = name
        self._values = values

    @property
    def source(self) -> list[float]:
        return list(self._values)

    def at(self, step: int, /) -> float:
        value: float = _item(self._name, self._values, step)
        return value


class _Pulled:
    """The i-th value for step i, from an iterable of which no more is taken than was asked for.

    What was taken is kept as it came and checked when it is used, so that a bad value is refused
    each time and an iterator loses none.
    """

    constant = False

    def __init__(self, name: str, source: Iterable[Any]) -> None:
        self.source = source
        self._name = name
        self._taken: list[Any] = []
        self._rest: Iterator[Any] = iter(source)
        self._lock: AbstractContextManager[object]
        add_lock(self)

    def at(self, step: int, /) -> float:
        if len(self._taken) <= step:
            with self._lock:
                # One call: a fork between taking a value and keeping it would lose it in the child.
                self._taken.extend(islice(self._rest, max(0, step + 1 - len(self._taken))))
        return _checked(f"{self._name}[{step}]", _item(self._name, self._taken, step))


class _Called:
    """What a function of the step returns."""

    constant = False

    def __init__(self, name: str, function: Callable[[int], Any]) -> None:
        self.source = function
        self._name = name

    def at(self, step: int, /) -> float:
        value = self.source(step)
        if _is_plain(value):
            return value
        return _checked(f"{self._name} at step {step}", value)


def _is_plain(value: Any) -> TypeGuard[float]:
    """Whether a value is right at a glance: most are, and a check with messages takes longer."""
    return type(value) is float and 0.0 <= value < math.inf


def _item(name: str, values: Sequence[Any], step: int) -> Any:
    if len(values) <= step:
        raise IndexError(f"{name} has {len(values)} values, none for step {step}")
    return values[step]


def _checked(name: str, value: Any) -> float:
    """Check one value; a 0-d array counts as the number that it holds."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return validation.real(name, value, minimum=0.0)


class RateBook:
    """Makes one rate for each object that is given, however often it is given.

    Groups that share a schedule then ask it once per step, and groups that share an iterator see
    the same values, also if they are given it one after the other. Numbers and their sequences are
    copied, so that it does not matter there.
    """

    def __init__(self) -> None:
        # By id of the source, which a rate keeps: as long as it is in use, so is the id.
        self._made: WeakValueDictionary[tuple[str, int], Rate] = WeakValueDictionary()

    def learning_rate(self, name: str, value: Any) -> Rate:
        """Return the rate that a learning rate of any allowed form stands for.

        Raises
        ------
        TypeError
            If ``value`` is none of: float, int, 0-d or 1-D real array, iterable of numbers,
            LearningRateSchedule.
        ValueError
            If a number is negative, NaN or infinite, or an array is empty or of two or more axes.
        """
        return self._once(_learning_rate, name, value)

    def weight_decay(self, name: str, value: Any) -> Rate:
        """Return the rate that a weight decay stands for: a number or a callable of the step.

        Raises
        ------
        TypeError
            If ``value`` is neither.
        ValueError
            If a number is negative, NaN or infinite.
        """
        return self._once(_weight_decay, name, value)

    def _once(self, make: Callable[[str, Any], Rate], name: str, value: Any) -> Rate:
        if _is_plain(value):  # as what is set in every step is
            return _Constant(value)
        key = (make.__name__, id(value))
        known = self._made.get(key)
        if known is None:
            known = make(name, value)
            if known.source is value and not known.constant:
                self._made[key] = known
        return known


def _learning_rate(name: str, value: Any) -> Rate:
    if validation.is_real(value):
        return _Constant(validation.real(name, value, minimum=0.0))
    if isinstance(value, LearningRateSchedule):
        return _Called(name, value)
    if hasattr(value, "__array__"):
        value = np.asarray(value)
        if value.ndim == 0:
            return _Constant(_checked(name, value))
        if value.ndim > 1:
            raise ValueError(f"{name} must have at most one axis, got shape {value.shape}")
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"{name} must hold at least one value, got an empty sequence")
        return _Sequence(name, [_checked(f"{name}[{i}]", item) for i, item in enumerate(value)])
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return _Pulled(name, value)
    raise TypeError(
        f"{name} must be a float or int, an array, an iterable of numbers or a "
        f"LearningRateSchedule, got {validation.shown(value)}"
    )


def _weight_decay(name: str, value: Any) -> Rate:
    if callable(value):
        return _Called(name, value)
    if not validation.is_real(value):
        raise TypeError(
            f"{name} must be a float, an int or a callable of the step, "
            f"got {validation.shown(value)}"
        )
    return _Constant(validation.real(name, value, minimum=0.0))
