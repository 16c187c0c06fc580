"""A group of an optimizer as users see it: a live view, whose options can be set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, overload

from . import _face, _options
from ._parameter import Parameter
from ._strict import Strict

if TYPE_CHECKING:
    from ._settings import Settings
    from .typing import LearningRate, WeightDecay


_Value = TypeVar("_Value")


class _Option(Generic[_Value]):
    """An option of a group, as an attribute."""

    def __init__(self, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, group: None, owner: type) -> _Option[_Value]: ...
    @overload
    def __get__(self, group: ParameterGroup, owner: type) -> _Value: ...
    def __get__(self, group: ParameterGroup | None, owner: type) -> _Option[_Value] | _Value:
        if group is None:
            return self
        config = group._optimizer._configs[group._place]
        value: _Value = _options.plain_value(self._name, getattr(config, self._name))
        return value

    def __set__(self, group: ParameterGroup, value: _Value) -> None:
        group._optimizer._set_option(self._name, value, group._place)


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

    def __init__(self, optimizer: Settings, place: int) -> None:
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

    @property
    def use_amsgrad(self) -> bool:
        """As the argument of `Adam`; fixed when the optimizer is made, since it needs memory."""
        return self._optimizer._configs[self._place].use_amsgrad

    beta1 = _Option[float]("beta1")
    """As the argument of `Adam`, like all that follow."""
    beta2 = _Option[float]("beta2")
    """The decay rate of the second moment."""
    eps = _Option[float]("eps")
    """What is added to the denominator."""
    use_nesterov = _Option[bool]("use_nesterov")
    """Whether the numerator looks one step ahead."""
    decoupled_weight_decay = _Option[bool]("decoupled_weight_decay")
    """Whether weight decay is AdamW's."""
    maximize = _Option[bool]("maximize")
    """Whether parameters go along their gradients."""
    max_grad_norm = _Option["float | None"]("max_grad_norm")
    """What the norm over the gradients of this group is clipped to, beside that of all."""
    clip_per_array = _Option[bool]("clip_per_array")
    """Whether ``max_grad_norm`` is for each gradient by itself."""
    clip_after_decay = _Option[bool]("clip_after_decay")
    """Whether gradients are clipped with L2 weight decay in them."""

    def __repr__(self) -> str:
        return f"ParameterGroup({_face.group(self._optimizer, self._place)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParameterGroup):
            return NotImplemented
        return self._optimizer is other._optimizer and self._place == other._place

    def __hash__(self) -> int:
        return hash((id(self._optimizer), self._place))
