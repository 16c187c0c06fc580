"""The types of what users pass to adamas, for the annotations of their own programs.

A type checker compares them; at run time adamas looks at the values themselves.

Examples
--------
>>> from adamas import Adam
>>> from adamas.typing import Group, LearningRate
>>> def optimizer_of(groups: list[Group], learning_rate: LearningRate = 0.01) -> Adam:
...     return Adam(groups, learning_rate, use_nesterov=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

import numpy as np

from ._arrays import Array, FloatArray
from ._parameter import Parameter
from ._schedules import LearningRateSchedule

__all__ = [
    "Array",
    "EpsilonPlacement",
    "FloatArray",
    "Gradient",
    "Grads",
    "Group",
    "LearningRate",
    "MissingGradients",
    "More",
    "Named",
    "NamedGrads",
    "Numerics",
    "Order",
    "Params",
    "Reduction",
    "RowPolicy",
    "StateDtype",
    "Target",
    "WeightDecay",
]


class _Rows(Protocol):
    """A `RowTensor`, or what has its attributes."""

    @property
    def indices(self) -> Any: ...
    @property
    def values(self) -> Any: ...
    @property
    def dense_shape(self) -> Any: ...


class _SciPyMatrix(Protocol):
    @property
    def shape(self) -> Any: ...
    def tocsr(self, *args: Any, **kwargs: Any) -> Any: ...


class _AsArray(Protocol):
    """What NumPy makes an array of: tensors of one axis."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


_Number = float | np.floating[Any] | np.integer[Any]

Gradient = Array | np.floating[Any] | _Rows | _SciPyMatrix
"""The gradient of one parameter: dense, or rows of it (`RowTensor`, SciPy's, torch's)."""

NamedGrads = Mapping[str, Gradient | Mapping[str, Any] | None]
"""Gradients by the names of their parameters, also in dicts of dicts: "conv.bias"."""

Grads = Sequence[Gradient | None] | NamedGrads
"""The gradients of a step; None, or no entry, for a parameter that has none."""

LearningRate = _Number | LearningRateSchedule | _AsArray | Iterable[_Number]
"""A number, a schedule, or the values of the steps one after the other."""

WeightDecay = _Number | Callable[[int], _Number]
"""A number, or what is called with the step."""


Named = Mapping[str, Array | Mapping[str, Any]]
"""Arrays by the names that their parameters get, also in dicts of dicts: "conv.bias"."""


class _Members(TypedDict):
    params: Iterable[Parameter | Array] | Named


class Group(_Members, total=False):
    """Parameters with options of their own; ``params`` is required."""

    lr: LearningRate
    weight_decay: WeightDecay
    grad_centralization: bool
    beta1: float
    beta2: float
    eps: float
    use_nesterov: bool
    use_amsgrad: bool
    decoupled_weight_decay: bool
    maximize: bool
    max_grad_norm: float | None
    clip_per_array: bool
    clip_after_decay: bool


class Order(TypedDict):
    """The order in which the gradients of all groups come."""

    order_params: Iterable[Parameter]


# One iterable, though Parameters and groups do not mix: mypy understands lists of dicts as such
# only if one type is wanted.
Params = Iterable[Parameter | Array | Group | Order] | Named
"""What an optimizer updates: Parameters or arrays, or groups and at most one order."""

More = Params | Parameter | Array | Group
"""What an optimizer takes later: what it takes at first, or one of it."""

EpsilonPlacement = Literal["outside", "inside"]
Reduction = Literal["mean", "sum"]
MissingGradients = Literal["error", "skip"]
Numerics = Literal["standard", "mindspore"]
RowPolicy = Literal["exact", "lazy", "catch_up"]
StateDtype = Literal["float32", "bfloat16", "int8"]
Target = Literal["CPU", "GPU"]
