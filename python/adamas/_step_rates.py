"""Which learning rates and weight decays the next step has.

A native optimizer knows its parameters' rates by index. `StepRates` has one index for each group,
and another for those of its parameters that do not decay; it answers each step with a value for
every index, and is told when a group is given another rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from . import _core
from ._fork import add_lock
from ._rates import ZERO, Rate

Index = tuple[int, bool]
"""A group, and whether its weight decay applies."""


class StepRates:
    """The rates of all groups, by the indices that the native side has for them.

    Numbers cost a step nothing; of functions each distinct one is asked once, and the native form
    is made again only if an answer has changed. A step is never without rates: what it reads is
    replaced as a whole.

    Parameters
    ----------
    learning_rates, weight_decays : list of Rate
        Of each group.
    indices : sequence of Index
        What the native indices stand for, in their order.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "_plan",
        "constant",
        "indices",
        "learning_rates",
        "places",
        "weight_decays",
    )

    def __init__(
        self,
        learning_rates: Sequence[Rate],
        weight_decays: Sequence[Rate],
        indices: Sequence[Index],
    ) -> None:
        self.learning_rates = list(learning_rates)
        self.weight_decays = list(weight_decays)
        self.indices = list(indices)
        self.places = {index: place for place, index in enumerate(self.indices)}
        self._lock: AbstractContextManager[object]
        add_lock(self)
        self._plan: _Plan | None = None
        self.constant: _core.Rates | None = None  # those of every step, if there are such
        self._renew()

    def at(self, step: int) -> _core.Rates:
        """Return the rates of a step, for its 0-based number."""
        return (self._plan or self._renew()).at(step)

    def indices_of(self, group: int) -> list[int]:
        """Return where the native side has the parameters of a group."""
        both = ((group, True), (group, False))
        return [self.places[index] for index in both if index in self.places]

    def set_learning_rates(self, groups: Sequence[int], rate: Rate) -> None:
        """Give groups another learning rate."""
        with self._lock:
            constant = self._set(self.learning_rates, groups, rate)
            if constant is not None:
                indices = [i for group in groups for i in self.indices_of(group)]
                self.constant = constant.with_learning_rate(indices, rate.at(0))

    def set_weight_decays(self, groups: Sequence[int], rate: Rate) -> None:
        """Give groups another weight decay."""
        with self._lock:
            constant = self._set(self.weight_decays, groups, rate)
            if constant is not None:
                decaying = [(group, True) for group in groups if (group, True) in self.places]
                indices = [self.places[index] for index in decaying]
                self.constant = constant.with_weight_decay(indices, rate.at(0))

    def extend(
        self,
        learning_rates: Sequence[Rate],
        weight_decays: Sequence[Rate],
        indices: Sequence[Index],
    ) -> None:
        """Add groups and indices at the end."""
        with self._lock:
            self.learning_rates += learning_rates
            self.weight_decays += weight_decays
            self.indices += indices
            self.places.update((index, place) for place, index in enumerate(self.indices))
            self._plan = self.constant = None

    def _set(self, rates: list[Rate], groups: Sequence[int], rate: Rate) -> _core.Rates | None:
        """Return the rates of every step so far, if they stay such but for this change."""
        constant = self.constant if rate.constant else None
        for group in groups:
            rates[group] = rate
        self._plan = self.constant = None  # else the next step makes them: more may be set
        return constant

    def _renew(self) -> _Plan:
        with self._lock:  # or what is set meanwhile would be lost
            rates, decays = self.learning_rates, self.weight_decays
            plan = _Plan(
                [(rates[i], decays[i] if is_decayed else ZERO) for i, is_decayed in self.indices]
            )
            self._plan = plan
            self.constant = plan.constant
            return plan


class _Plan:
    """Which rates to ask in a step, and where their answers belong. Never changes."""

    __slots__ = ("_asked", "_fixed", "_last", "_places", "constant")

    def __init__(self, pairs: Sequence[tuple[Rate, Rate]]) -> None:
        if all(rate.constant and decay.constant for rate, decay in pairs):
            self.constant: _core.Rates | None = _core.Rates(
                [(rate.at(0), decay.at(0)) for rate, decay in pairs]
            )
            return
        self.constant = None
        distinct = dict.fromkeys(rate for pair in pairs for rate in pair)
        self._asked = [rate for rate in distinct if not rate.constant]
        fixed = [rate for rate in distinct if rate.constant]
        self._fixed = [rate.at(0) for rate in fixed]
        place = {rate: i for i, rate in enumerate((*self._asked, *fixed))}
        self._places = [(place[rate], place[decay]) for rate, decay in pairs]
        self._last: tuple[list[float], _core.Rates] | None = None

    def at(self, step: int) -> _core.Rates:
        if self.constant is not None:
            return self.constant
        values = [rate.at(step) for rate in self._asked]
        last = self._last
        if last is not None and values == last[0]:
            return last[1]
        known = values + self._fixed
        rates = _core.Rates([(known[rate], known[decay]) for rate, decay in self._places])
        self._last = values, rates
        return rates
