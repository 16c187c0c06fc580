"""What adamas.thinc needs of a step besides thinc itself: options, state and messages."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from . import _core, _options
from .typing import FloatArray

# The largest decay of `averages`.
_MOST_DECAY = 0.9999

# What thinc calls the arguments in messages of adamas.
_NAMES = {
    "params[0]": "weights",
    "grads[0]": "gradient",
    "moment1[0]": "mom1",
    "moment2[0]": "mom2",
    "ema[0]": "averages",
    "learning_rate": "learn_rate",
    "weight_decay": "L2",
}


@lru_cache(maxsize=4096)
def config_of(
    beta1: float,
    beta2: float,
    eps: float,
    grad_clip: float,
    shrinks: bool,
    ema_decay: float | None,
    num_threads: int | None,
) -> _core.AdamConfig:
    """Return the options of a step, checked; the same for all keys that are as old."""
    config = _core.AdamConfig()
    config.epsilon_placement = _core.EpsilonPlacement.inside
    config.clip_per_array = config.clip_after_decay = config.allow_zero = True
    config.decoupled_weight_decay = shrinks
    config.beta1 = _options.decay_rate("beta1", beta1, allow_zero=False)
    config.beta2 = _options.decay_rate("beta2", beta2, allow_zero=False)
    config.eps = _options.eps("eps", eps, allow_zero=True)
    config.max_grad_norm = _options.max_grad_norm("grad_clip", grad_clip or None)
    if ema_decay is not None:
        config.ema_decay = ema_decay
    if num_threads is not None:
        config.num_threads = num_threads
    return config


def averages_decay(updates: int) -> float:
    """Return what thinc multiplies averages with in the update of this number, from 1."""
    return min((1.0 + updates) / (10.0 + updates), _MOST_DECAY)


class State:
    """The moments of one key: thinc's flat arrays, and views of them in the weights' shape."""

    __slots__ = ("flat1", "flat2", "moment1", "moment2")

    def __init__(
        self, flat1: FloatArray | None, flat2: FloatArray | None, weights: FloatArray
    ) -> None:
        self.flat1 = _flat("mom1", flat1, weights)
        self.flat2 = _flat("mom2", flat2, weights)
        self.moment1 = self.flat1.reshape(weights.shape)
        self.moment2 = self.flat2.reshape(weights.shape)

    def belongs_to(
        self, flat1: FloatArray | None, flat2: FloatArray | None, weights: FloatArray
    ) -> bool:
        """Whether these are the arrays that thinc's dicts hold, for weights of this shape."""
        return self.flat1 is flat1 and self.flat2 is flat2 and self.moment1.shape == weights.shape


def real_of(weights: FloatArray) -> type[np.floating[Any]]:
    """Return the type of the state of weights."""
    return np.float64 if weights.dtype == np.float64 else np.float32


def _flat(name: str, kept: FloatArray | None, weights: FloatArray) -> FloatArray:
    """Return a flat moment: the one that is kept, or zeros."""
    if kept is None:
        return np.zeros(weights.size, real_of(weights))
    if type(kept) is not np.ndarray:
        raise TypeError(f"{name} must be a NumPy array, got {type(kept).__name__}")
    if kept.size != weights.size or not kept.flags.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous and have the {weights.size} elements of weights, "
            f"got shape {kept.shape}"
        )
    return kept


def check_kind(weights: Any, gradient: Any) -> None:
    """Refuse what is no array of NumPy."""
    for name, array in (("weights", weights), ("gradient", gradient)):
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"{name} must be a NumPy array, got {type(array).__module__}."
                f"{type(array).__qualname__}: adamas.Adam.v1 trains on the CPU; on a GPU use "
                'thinc\'s "Adam.v1"'
            )


def check_apart(weights: FloatArray, gradient: FloatArray) -> None:
    """Refuse a gradient that, being read from a copy, would be set to zero over the weights."""
    if np.shares_memory(weights, gradient):
        raise ValueError("gradient must not share memory with weights")


def renamed(error: Exception, key: object) -> Exception:
    """Return an error that says in thinc's words what is wrong, and with which key."""
    text = str(error)
    for name, own in _NAMES.items():
        text = text.replace(name, own)
    return type(error)(f"{text} (key {key!r})")
