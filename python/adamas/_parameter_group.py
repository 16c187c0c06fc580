"""A group of an optimizer as users see it: a live view, whose options can be set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _face
from ._parameter import Parameter
from ._strict import Strict

if TYPE_CHECKING:
    from ._optimizer import Optimizer
    from .typing import LearningRate, WeightDecay


class ParameterGroup(Strict):
    """Parameters of an optimizer that have their options in common; one of `Adam.groups`.

    Options are set between steps, checked as the constructor checks them, and hold from the next
    step on. A bad one raises what it raises there, and changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas import Adam, Parameter
    >>> weight, bias = (Parameter(np.ones(2, np.float32), name) for name in ("weight", "bias"))
    >>> optimizer = Adam([{"params": [weight], "lr": 0.1}, {"params": [bias]}], 0.01)
    >>> for group in optimizer.groups:
    ...     group.lr = group.lr / 2
    >>> optimizer.get_lr()
    (0.05, 0.005)
    """

    __slots__ = ("_optimizer", "_place")

    def __init__(self, optimizer: Optimizer, place: int) -> None:
        self._optimizer = optimizer
        self._place = place

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of the group, in update order."""
        members = self._optimizer._members
        return [member.parameter for member in members if member.group == self._place]

    @property
    def lr(self) -> LearningRate:
        """The learning rate, as it was given: a float, a list of values, or the object."""
        return self._optimizer._rates.learning_rates[self._place].source  # type: ignore[no-any-return]

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        optimizer = self._optimizer
        rate = optimizer._book.learning_rate(f"groups[{self._place}].lr", value)
        with optimizer._lock:
            optimizer._rates.set_learning_rates([self._place], rate)

    @property
    def weight_decay(self) -> WeightDecay:
        """The weight decay, as it was given: a float, or what is called with the step."""
        return self._optimizer._rates.weight_decays[self._place].source  # type: ignore[no-any-return]

    @weight_decay.setter
    def weight_decay(self, value: WeightDecay) -> None:
        optimizer = self._optimizer
        rate = optimizer._book.weight_decay(f"groups[{self._place}].weight_decay", value)
        with optimizer._lock:
            optimizer._rates.set_weight_decays([self._place], rate)

    @property
    def grad_centralization(self) -> bool:
        """Whether gradients lose their mean over all axes but the first."""
        return any(
            member.grad_centralization
            for member in self._optimizer._members
            if member.group == self._place
        )

    def __repr__(self) -> str:
        return f"ParameterGroup({_face.group(self._optimizer, self._place)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParameterGroup):
            return NotImplemented
        return self._optimizer is other._optimizer and self._place == other._place

    def __hash__(self) -> int:
        return hash((id(self._optimizer), self._place))
