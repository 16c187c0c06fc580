"""Learning rates as lists, one value per step, to be passed as ``learning_rate`` of an optimizer.

Each function is a schedule of `schedules` that counts epochs instead of steps: the rate changes
from one epoch to the next and is constant within one.  The formulas and most checks live there.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import _validation as validation
from ._schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    LearningRateSchedule,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)

__all__ = [
    "cosine_decay_lr",
    "exponential_decay_lr",
    "inverse_decay_lr",
    "natural_exp_decay_lr",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "warmup_lr",
]


def piecewise_constant_lr(milestone: Sequence[int], learning_rates: Sequence[float]) -> list[float]:
    """Return a learning rate that is constant between milestones.

    Step ``i`` has ``learning_rates[k]`` with ``k`` the first piece for which ``i < milestone[k]``.

    Parameters
    ----------
    milestone : list or tuple of int
        The step at which each piece ends (exclusive); at least 1, never decreasing.  Two equal
        milestones make a piece of no steps.
    learning_rates : list or tuple of float
        The rate of each piece; as many as milestones.

    Returns
    -------
    list of float
        ``milestone[-1]`` values.

    Raises
    ------
    TypeError
        If an argument is neither list nor tuple, a milestone not an int or a rate not a float.
    ValueError
        If the lengths differ, a milestone is below 1 or below the one before it, or a rate is NaN
        or infinite.

    Examples
    --------
    >>> piecewise_constant_lr([2, 3, 5], [0.1, 0.05, 0.01])
    [0.1, 0.1, 0.05, 0.01, 0.01]
    """
    for name, value in (("milestone", milestone), ("learning_rates", learning_rates)):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple, got {type(value).__name__}")
    if len(milestone) != len(learning_rates):
        raise ValueError(
            "milestone and learning_rates must have the same length, "
            f"got {len(milestone)} and {len(learning_rates)}"
        )
    lr: list[float] = []
    for piece, (end, rate) in enumerate(zip(milestone, learning_rates, strict=True)):
        end = validation.integer(f"milestone[{piece}]", end, minimum=max(1, len(lr)))
        rate = validation.strict_float(f"learning_rates[{piece}]", rate)
        lr += [rate] * (end - len(lr))
    return lr


def exponential_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a learning rate that decays exponentially from epoch to epoch.

    .. math::
        lr_i = learning\_rate \cdot decay\_rate^{p}, \qquad p = epoch / decay\_epoch,
        \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    where :math:`p` is rounded down with ``is_stair``.

    Parameters
    ----------
    learning_rate : float
        The value in epoch 0; greater than 0.
    decay_rate : float
        The factor per ``decay_epoch`` epochs; greater than 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    decay_epoch : int
        The length of a decay period, in epochs; at least 1.
    is_stair : bool, default False
        Whether the rate stays constant within a period.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> exponential_decay_lr(0.5, 0.25, total_step=6, step_per_epoch=2, decay_epoch=2)
    [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    """
    decay_epoch = validation.integer("decay_epoch", decay_epoch, minimum=1)
    schedule = ExponentialDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _per_step(schedule, total_step, step_per_epoch)


def natural_exp_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a learning rate with natural exponential decay, ``decay_rate`` per epoch.

    .. math::
        lr_i = learning\_rate \cdot e^{-decay\_rate \cdot p},
        \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    where :math:`p = epoch`, or with ``is_stair``
    :math:`p = decay\_epoch \cdot \lfloor epoch / decay\_epoch \rfloor`.

    Parameters
    ----------
    learning_rate : float
        The value in epoch 0; greater than 0.
    decay_rate : float
        The decay per epoch; greater than 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    decay_epoch : int
        The length of a stair, in epochs; at least 1.  Without stairs it has no effect.
    is_stair : bool, default False
        Whether the rate stays constant within a stair.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> lr = natural_exp_decay_lr(0.1, 0.5, total_step=4, step_per_epoch=1, decay_epoch=2)
    >>> [round(value, 6) for value in lr]
    [0.1, 0.060653, 0.036788, 0.022313]
    """
    decay_epoch = validation.integer("decay_epoch", decay_epoch, minimum=1)
    schedule = NaturalExpDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _per_step(schedule, total_step, step_per_epoch)


def inverse_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a learning rate with inverse-time decay from epoch to epoch.

    .. math::
        lr_i = \frac{learning\_rate}{1 + decay\_rate \cdot p}, \qquad p = epoch / decay\_epoch,
        \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    where :math:`p` is rounded down with ``is_stair``.

    Parameters
    ----------
    learning_rate : float
        The value in epoch 0; greater than 0.
    decay_rate : float
        The growth of the denominator per ``decay_epoch`` epochs; greater than 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    decay_epoch : int
        The length of a decay period, in epochs; at least 1.
    is_stair : bool, default False
        Whether the rate stays constant within a period.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> inverse_decay_lr(0.5, 1.0, total_step=4, step_per_epoch=1, decay_epoch=1)[::3]
    [0.5, 0.125]
    """
    decay_epoch = validation.integer("decay_epoch", decay_epoch, minimum=1)
    schedule = InverseDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _per_step(schedule, total_step, step_per_epoch)


def cosine_decay_lr(
    min_lr: float, max_lr: float, total_step: int, step_per_epoch: int, decay_epoch: int
) -> list[float]:
    r"""Return half a cosine from ``max_lr`` down to ``min_lr``, which then stays.

    .. math::
        lr_i = min\_lr + \frac{max\_lr - min\_lr}{2}
               \left(1 + \cos \frac{\pi \min(epoch, decay\_epoch)}{decay\_epoch}\right),
        \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    Parameters
    ----------
    min_lr : float
        The value from epoch ``decay_epoch`` on; at least 0 and below ``max_lr``.
    max_lr : float
        The value in epoch 0; greater than 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    decay_epoch : int
        The length of the decay, in epochs; at least 1.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> lr = cosine_decay_lr(0.0, 0.5, total_step=6, step_per_epoch=2, decay_epoch=2)
    >>> [round(value, 6) for value in lr]
    [0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    """
    decay_epoch = validation.integer("decay_epoch", decay_epoch, minimum=1)
    return _per_step(CosineDecayLR(min_lr, max_lr, decay_epoch), total_step, step_per_epoch)


def polynomial_decay_lr(
    learning_rate: float,
    end_learning_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    power: float,
    update_decay_epoch: bool = False,
) -> list[float]:
    r"""Return a polynomial from ``learning_rate`` to ``end_learning_rate``.

    .. math::
        lr_i = (learning\_rate - end\_learning\_rate) \left(1 - \frac{e}{d}\right)^{power}
               + end\_learning\_rate, \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    with :math:`e = \min(epoch, decay\_epoch)` and :math:`d = decay\_epoch`.  With
    ``update_decay_epoch`` instead :math:`e = epoch` and
    :math:`d = decay\_epoch \cdot \max(1, \lceil epoch / decay\_epoch \rceil)`.

    Parameters
    ----------
    learning_rate : float
        The value in epoch 0; greater than 0.
    end_learning_rate : float
        The value in epoch ``decay_epoch``; at least 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    decay_epoch : int
        The length of the decay, in epochs; at least 1.
    power : float
        The exponent; greater than 0.
    update_decay_epoch : bool, default False
        Whether the decay starts again after every ``decay_epoch`` epochs, from a lower value and
        over a longer range.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> polynomial_decay_lr(0.5, 0.25, total_step=4, step_per_epoch=1, decay_epoch=2, power=2.0)
    [0.5, 0.3125, 0.25, 0.25]
    """
    decay_epoch = validation.integer("decay_epoch", decay_epoch, minimum=1)
    update_decay_epoch = validation.flag("update_decay_epoch", update_decay_epoch)
    schedule = PolynomialDecayLR(
        learning_rate, end_learning_rate, decay_epoch, power, update_decay_epoch
    )
    return _per_step(schedule, total_step, step_per_epoch)


def warmup_lr(
    learning_rate: float, total_step: int, step_per_epoch: int, warmup_epoch: int
) -> list[float]:
    r"""Return linear growth from 0 in epoch 0 to ``learning_rate``, which then stays.

    .. math::
        lr_i = learning\_rate \cdot \frac{\min(epoch, warmup\_epoch)}{warmup\_epoch},
        \qquad epoch = \lfloor i / step\_per\_epoch \rfloor

    Parameters
    ----------
    learning_rate : float
        The value from epoch ``warmup_epoch`` on; at least 0.
    total_step : int
        The number of values, in steps; at least 1.
    step_per_epoch : int
        The length of an epoch, in steps; at least 1.
    warmup_epoch : int
        The length of the warm-up, in epochs; at least 1.

    Returns
    -------
    list of float
        ``total_step`` values.

    Raises
    ------
    TypeError
        If an argument has another type; an int is not a float, nor a bool an int.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> warmup_lr(0.5, total_step=6, step_per_epoch=2, warmup_epoch=2)
    [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
    """
    warmup_epoch = validation.integer("warmup_epoch", warmup_epoch, minimum=1)
    return _per_step(WarmUpLR(learning_rate, warmup_epoch), total_step, step_per_epoch)


def _per_step(schedule: LearningRateSchedule, total_step: int, step_per_epoch: int) -> list[float]:
    """Return ``total_step`` values of a schedule that counts epochs of ``step_per_epoch`` steps."""
    total_step = validation.integer("total_step", total_step, minimum=1)
    step_per_epoch = validation.integer("step_per_epoch", step_per_epoch, minimum=1)
    epochs = -(-total_step // step_per_epoch)
    rates = [schedule(epoch) for epoch in range(epochs)]
    return [rates[step // step_per_epoch] for step in range(total_step)]
