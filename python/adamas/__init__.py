"""adamas: the Adam optimizer as native software.

The same bits on every instruction set, thread count and device; an error instead of a corrupted
state.
"""

from . import cuda, functional
from . import typing as typing  # not in __all__, where it would hide Python's own
from ._adam import Adam, AdamWeightDecay
from ._checkpoint import load_checkpoint, save_checkpoint
from ._core import __version__
from ._dynamic_lr import (
    cosine_decay_lr,
    exponential_decay_lr,
    inverse_decay_lr,
    natural_exp_decay_lr,
    piecewise_constant_lr,
    polynomial_decay_lr,
    warmup_lr,
)
from ._loss_scale import (
    DynamicLossScaleManager,
    DynamicLossScaleUpdateCell,
    FixedLossScaleManager,
    FixedLossScaleUpdateCell,
    all_finite,
)
from ._parameter import Parameter, RowTensor
from ._parameter_group import ParameterGroup
from ._schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    LearningRateSchedule,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
    WeightDecaySchedule,
)

__all__ = [
    "Adam",
    "AdamWeightDecay",
    "CosineDecayLR",
    "DynamicLossScaleManager",
    "DynamicLossScaleUpdateCell",
    "ExponentialDecayLR",
    "FixedLossScaleManager",
    "FixedLossScaleUpdateCell",
    "InverseDecayLR",
    "LearningRateSchedule",
    "NaturalExpDecayLR",
    "Parameter",
    "ParameterGroup",
    "PolynomialDecayLR",
    "RowTensor",
    "WarmUpLR",
    "WeightDecaySchedule",
    "__version__",
    "all_finite",
    "cosine_decay_lr",
    "cuda",
    "exponential_decay_lr",
    "functional",
    "inverse_decay_lr",
    "load_checkpoint",
    "natural_exp_decay_lr",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "save_checkpoint",
    "warmup_lr",
]


def _sign() -> None:
    """Let what users import from here say so, and not where it is written, which may change.

    Messages and documentation show it, and pickles hold it.
    """
    for name in __all__:
        thing = globals()[name]
        if callable(thing):
            thing.__module__ = __name__


_sign()
