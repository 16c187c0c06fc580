"""Learning rates and weight decays as functions of the step.

An optimizer calls a schedule with its `global_step` before that advances: the first call sees step
0.  `dynamic_lr` turns the same schedules into lists.  All is computed in float64 from the step
itself, so a schedule holds no state and never drifts; a value too large is inf, never an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import _validation as validation

__all__ = [
    "CosineDecayLR",
    "ExponentialDecayLR",
    "InverseDecayLR",
    "LearningRateSchedule",
    "NaturalExpDecayLR",
    "PolynomialDecayLR",
    "WarmUpLR",
    "WeightDecaySchedule",
]


class _Schedule:
    """What the two bases share: a schedule is an object that is called with a step."""

    def __call__(self, step: int) -> float:
        """Return the value at ``step`` (an int, 0 at the first call of the optimizer)."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step) -> float")


class LearningRateSchedule(_Schedule):
    """Base of learning-rate schedules: subclass it and define ``__call__(step)``.

    Pass an instance as ``learning_rate`` of an optimizer or as ``lr`` of a group.

    Raises
    ------
    NotImplementedError
        When a subclass that does not define ``__call__`` is called.

    Examples
    --------
    >>> class HalfEvery(LearningRateSchedule):
    ...     def __init__(self, learning_rate, steps):
    ...         self.learning_rate = learning_rate
    ...         self.steps = steps
    ...
    ...     def __call__(self, step):
    ...         return self.learning_rate * 0.5 ** (step // self.steps)
    >>> schedule = HalfEvery(0.1, steps=100)
    >>> schedule(0), schedule(100), schedule(250)
    (0.1, 0.05, 0.025)
    """


class WeightDecaySchedule(_Schedule):
    """Base of dynamic weight decay: subclass it and define ``__call__(step)``.

    Pass an instance as ``weight_decay`` of an optimizer or of a group.  Any other object that can
    be called with a step serves as well; the base only gives the idea a name.

    Raises
    ------
    NotImplementedError
        When a subclass that does not define ``__call__`` is called.

    Examples
    --------
    >>> class LinearDecay(WeightDecaySchedule):
    ...     def __call__(self, step):
    ...         return 0.125 + 0.25 * step
    >>> LinearDecay()(2)
    0.625
    """


@dataclass(eq=False)
class _RateDecayLR(LearningRateSchedule):
    """The arguments that the three schedules with a decay rate share."""

    learning_rate: float
    decay_rate: float
    decay_steps: int
    is_stair: bool = False

    def __post_init__(self) -> None:
        self.learning_rate = validation.strict_float("learning_rate", self.learning_rate, above=0.0)
        self.decay_rate = validation.strict_float("decay_rate", self.decay_rate, above=0.0)
        self.decay_steps = validation.integer("decay_steps", self.decay_steps, minimum=1)
        self.is_stair = validation.flag("is_stair", self.is_stair)

    def _periods(self, step: int) -> float:
        """The number of decay periods that have passed at ``step``, whole ones with stairs."""
        step = _checked_step(step)
        return float(step // self.decay_steps) if self.is_stair else step / self.decay_steps


@dataclass(eq=False)
class ExponentialDecayLR(_RateDecayLR):
    r"""Exponential decay: the rate is multiplied by ``decay_rate`` every ``decay_steps`` steps.

    .. math::
        lr(step) = learning\_rate \cdot decay\_rate^{p}, \qquad p = step / decay\_steps

    where :math:`p` is rounded down with ``is_stair``.  A ``decay_rate`` above 1 makes the rate
    grow, in the end to inf.

    Parameters
    ----------
    learning_rate : float
        The value at step 0; greater than 0.
    decay_rate : float
        The factor per ``decay_steps`` steps; greater than 0.
    decay_steps : int
        The length of a decay period, in steps; at least 1.
    is_stair : bool, default False
        Whether the rate stays constant within a period.

    Raises
    ------
    TypeError
        If ``learning_rate`` or ``decay_rate`` is not a float (an int is not), ``decay_steps`` not
        an int or ``is_stair`` not a bool; when called, if the step is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = ExponentialDecayLR(0.5, decay_rate=0.25, decay_steps=2)
    >>> [schedule(step) for step in range(4)]
    [0.5, 0.25, 0.125, 0.0625]
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        return self.learning_rate * _power(self.decay_rate, self._periods(step))


@dataclass(eq=False)
class NaturalExpDecayLR(_RateDecayLR):
    r"""Natural exponential decay, with ``decay_rate`` per step.

    .. math::
        lr(step) = learning\_rate \cdot e^{-decay\_rate \cdot p}

    where :math:`p = step`, or with ``is_stair`` the last multiple of ``decay_steps`` that is not
    above it, :math:`p = decay\_steps \cdot \lfloor step / decay\_steps \rfloor`.  Without stairs
    ``decay_steps`` therefore has no effect, as in MindSpore.

    Parameters
    ----------
    learning_rate : float
        The value at step 0; greater than 0.
    decay_rate : float
        The decay per step; greater than 0.
    decay_steps : int
        The length of a stair, in steps; at least 1.
    is_stair : bool, default False
        Whether the rate stays constant within a stair.

    Raises
    ------
    TypeError
        If ``learning_rate`` or ``decay_rate`` is not a float (an int is not), ``decay_steps`` not
        an int or ``is_stair`` not a bool; when called, if the step is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = NaturalExpDecayLR(0.1, decay_rate=0.5, decay_steps=2, is_stair=True)
    >>> [round(schedule(step), 6) for step in range(4)]
    [0.1, 0.1, 0.036788, 0.036788]
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        step = _checked_step(step)
        position = step - step % self.decay_steps if self.is_stair else step
        return self.learning_rate * math.exp(-self.decay_rate * position)


@dataclass(eq=False)
class InverseDecayLR(_RateDecayLR):
    r"""Inverse-time decay.

    .. math::
        lr(step) = \frac{learning\_rate}{1 + decay\_rate \cdot p}, \qquad p = step / decay\_steps

    where :math:`p` is rounded down with ``is_stair``.

    Parameters
    ----------
    learning_rate : float
        The value at step 0; greater than 0.
    decay_rate : float
        The growth of the denominator per ``decay_steps`` steps; greater than 0.
    decay_steps : int
        The length of a decay period, in steps; at least 1.
    is_stair : bool, default False
        Whether the rate stays constant within a period.

    Raises
    ------
    TypeError
        If ``learning_rate`` or ``decay_rate`` is not a float (an int is not), ``decay_steps`` not
        an int or ``is_stair`` not a bool; when called, if the step is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = InverseDecayLR(0.5, decay_rate=1.0, decay_steps=2)
    >>> schedule(0), schedule(2), schedule(6)
    (0.5, 0.25, 0.125)
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        return self.learning_rate / (1.0 + self.decay_rate * self._periods(step))


@dataclass(eq=False)
class CosineDecayLR(LearningRateSchedule):
    r"""Half a cosine from ``max_lr`` down to ``min_lr``, which then stays.

    .. math::
        lr(step) = min\_lr + \frac{max\_lr - min\_lr}{2}
                   \left(1 + \cos \frac{\pi \min(step, decay\_steps)}{decay\_steps}\right)

    Parameters
    ----------
    min_lr : float
        The value from step ``decay_steps`` on; at least 0 and below ``max_lr``.
    max_lr : float
        The value at step 0; greater than 0.
    decay_steps : int
        The length of the decay, in steps; at least 1.

    Raises
    ------
    TypeError
        If ``min_lr`` or ``max_lr`` is not a float (an int is not) or ``decay_steps`` not an int;
        when called, if the step is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = CosineDecayLR(min_lr=0.0, max_lr=0.5, decay_steps=4)
    >>> [round(schedule(step), 6) for step in range(6)]
    [0.5, 0.426777, 0.25, 0.073223, 0.0, 0.0]
    """

    min_lr: float
    max_lr: float
    decay_steps: int

    def __post_init__(self) -> None:
        self.min_lr = validation.strict_float("min_lr", self.min_lr, minimum=0.0)
        self.max_lr = validation.strict_float("max_lr", self.max_lr, above=0.0)
        self.decay_steps = validation.integer("decay_steps", self.decay_steps, minimum=1)
        if self.min_lr >= self.max_lr:
            raise ValueError(f"max_lr must be > min_lr = {self.min_lr!r}, got {self.max_lr!r}")

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        progress = min(_checked_step(step), self.decay_steps) / self.decay_steps
        half_range = 0.5 * (self.max_lr - self.min_lr)
        return self.min_lr + half_range * (1.0 + math.cos(math.pi * progress))


@dataclass(eq=False)
class PolynomialDecayLR(LearningRateSchedule):
    r"""Polynomial from ``learning_rate`` to ``end_learning_rate``.

    .. math::
        lr(step) = (learning\_rate - end\_learning\_rate) \left(1 - \frac{s}{d}\right)^{power}
                   + end\_learning\_rate

    with :math:`s = \min(step, decay\_steps)` and :math:`d = decay\_steps`: the end value stays.
    With ``update_decay_steps`` instead :math:`s = step` and
    :math:`d = decay\_steps \cdot \max(1, \lceil step / decay\_steps \rceil)`: each time that the
    end value is reached, the decay starts again from a lower value over a longer range.

    Parameters
    ----------
    learning_rate : float
        The value at step 0; greater than 0.
    end_learning_rate : float
        The value at step ``decay_steps``; at least 0.
    decay_steps : int
        The length of the decay, in steps; at least 1.
    power : float
        The exponent; greater than 0.
    update_decay_steps : bool, default False
        Whether the decay starts again after every ``decay_steps`` steps.

    Raises
    ------
    TypeError
        If ``learning_rate``, ``end_learning_rate`` or ``power`` is not a float (an int is not),
        ``decay_steps`` not an int or ``update_decay_steps`` not a bool; when called, if the step
        is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = PolynomialDecayLR(0.5, 0.25, decay_steps=2, power=2.0)
    >>> [schedule(step) for step in range(4)]
    [0.5, 0.3125, 0.25, 0.25]
    """

    learning_rate: float
    end_learning_rate: float
    decay_steps: int
    power: float
    update_decay_steps: bool = False

    def __post_init__(self) -> None:
        self.learning_rate = validation.strict_float("learning_rate", self.learning_rate, above=0.0)
        self.end_learning_rate = validation.strict_float(
            "end_learning_rate", self.end_learning_rate, minimum=0.0
        )
        self.decay_steps = validation.integer("decay_steps", self.decay_steps, minimum=1)
        self.power = validation.strict_float("power", self.power, above=0.0)
        self.update_decay_steps = validation.flag("update_decay_steps", self.update_decay_steps)

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        step = _checked_step(step)
        decay_steps = self.decay_steps
        if self.update_decay_steps:
            # The ceiling in integers: in floats it can be one too small, and 1 - s/d negative.
            decay_steps *= max(1, -(-step // decay_steps))
        remaining = 1.0 - min(step, decay_steps) / decay_steps
        start, end = self.learning_rate, self.end_learning_rate
        return (start - end) * _power(remaining, self.power) + end


@dataclass(eq=False)
class WarmUpLR(LearningRateSchedule):
    r"""Linear growth from 0 at step 0 to ``learning_rate``, which then stays.

    .. math::
        lr(step) = learning\_rate \cdot \frac{\min(step, warmup\_steps)}{warmup\_steps}

    Parameters
    ----------
    learning_rate : float
        The value from step ``warmup_steps`` on; at least 0.
    warmup_steps : int
        The length of the warm-up, in steps; at least 1.

    Raises
    ------
    TypeError
        If ``learning_rate`` is not a float (an int is not) or ``warmup_steps`` not an int; when
        called, if the step is not an int.
    ValueError
        If a value is outside its range, NaN or infinite; when called, if the step is negative.

    Examples
    --------
    >>> schedule = WarmUpLR(0.5, warmup_steps=2)
    >>> [schedule(step) for step in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """

    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        self.learning_rate = validation.strict_float(
            "learning_rate", self.learning_rate, minimum=0.0
        )
        self.warmup_steps = validation.integer("warmup_steps", self.warmup_steps, minimum=1)

    def __call__(self, step: int) -> float:
        """Return the learning rate at ``step`` (int, >= 0)."""
        progress = min(_checked_step(step), self.warmup_steps) / self.warmup_steps
        return self.learning_rate * progress


def _checked_step(step: int) -> int:
    """Return ``step`` as an int; a negative one or one of more than 63 bits is a ValueError."""
    if type(step) is int and 0 <= step < 2**63:  # in every step: at once
        return step
    step = validation.integer("step", step, minimum=0)
    if step.bit_length() > 63:
        raise ValueError(f"step must be an int < 2**63, got one of {step.bit_length()} bits")
    return step


def _power(base: float, exponent: float) -> float:
    """Return ``base ** exponent`` of two numbers that are not negative; inf where it overflows."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
