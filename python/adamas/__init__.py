"""adamas: the Adam optimizer as native software.

The same bits on every instruction set, thread count and device; an error instead of a corrupted
state.
"""

from . import cuda
from ._core import __version__
from .adam import Adam, AdamWeightDecay
from .checkpoint import load_checkpoint, save_checkpoint
from .dynamic_lr import (
    cosine_decay_lr,
    exponential_decay_lr,
    inverse_decay_lr,
    natural_exp_decay_lr,
    piecewise_constant_lr,
    polynomial_decay_lr,
    warmup_lr,
)
from .loss_scale import (
    DynamicLossScaleManager,
    DynamicLossScaleUpdateCell,
    FixedLossScaleManager,
    FixedLossScaleUpdateCell,
    all_finite,
)
from .parameter import Parameter, RowTensor
from .schedules import (
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
    "PolynomialDecayLR",
    "RowTensor",
    "WarmUpLR",
    "WeightDecaySchedule",
    "__version__",
    "all_finite",
    "cosine_decay_lr",
    "cuda",
    "exponential_decay_lr",
    "inverse_decay_lr",
    "load_checkpoint",
    "natural_exp_decay_lr",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "save_checkpoint",
    "warmup_lr",
]
