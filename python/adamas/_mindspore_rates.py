"""Learning rates and weight decays of a MindSpore optimizer, step by step.

`nn.Optimizer` has made of them, for all parameters together or for each one: a Parameter (a fixed
learning rate, which callbacks assign to), a Cell that is called with `global_step`, or a Tensor (a
fixed weight decay, times the loss scale).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.nn.optim import optimizer as _host

from . import _core
from . import _validation as validation
from ._arrays import FloatArray

Reader = Callable[[int], float]

# Cells of MindSpore's that only hold a Parameter: reading it is quicker than calling them. Where a
# version has others, they are called.
_FIXED_BESIDE_DYNAMIC: Any = getattr(_host, "_ConvertToCell", ())
_VECTOR: Any = getattr(_host, "_IteratorLearningRate", ())


class Rates:
    """The rates of all parameters, each distinct one asked once in a step.

    Parameters
    ----------
    optimizer : nn.Optimizer
    array : callable
        Returns the memory of a Parameter.
    """

    def __init__(self, optimizer: Any, array: Callable[[Any], FloatArray]) -> None:
        count = len(optimizer.parameters)
        rates, decays = optimizer.learning_rate, optimizer.weight_decay
        each_rate = list(rates) if optimizer.is_group_lr else [rates] * count
        each_decay = list(decays) if optimizer.is_group else [decays] * count
        flags = optimizer.decay_flags if optimizer.exec_weight_decay else [False] * count
        pairs = [
            (id(rate), id(decay) if decays_it else None)
            for rate, decay, decays_it in zip(each_rate, each_decay, flags, strict=True)
        ]
        self._pairs = list(dict.fromkeys(pairs))
        self.places = [self._pairs.index(pair) for pair in pairs]  # of each parameter
        step, scale = optimizer.global_step, optimizer.loss_scale
        self._readers: dict[int, Reader] = {
            id(rate): _rate_reader(rate, step, array) for rate in each_rate
        }
        for decay in each_decay:
            self._readers.setdefault(id(decay), _decay_reader(decay, step, scale))
        self._kept = [*each_rate, *each_decay]  # or an id could come to be another's
        self._last: tuple[list[float], _core.Rates] | None = None

    def at(self, step: int) -> _core.Rates:
        """Return the rates of a step, for its 0-based number.

        Raises
        ------
        ValueError
            If one is negative or not finite.
        IndexError
            If a vector of learning rates is exhausted.
        """
        values = [read(step) for read in self._readers.values()]
        if self._last is not None and self._last[0] == values:
            return self._last[1]
        known: dict[int | None, float] = dict(zip(self._readers, values, strict=True))
        known[None] = 0.0
        for rate, decay in self._pairs:
            validation.real("learning_rate", known[rate], minimum=0.0)
            validation.real("weight_decay", known[decay], minimum=0.0)
        rates = _core.Rates([(known[rate], known[decay]) for rate, decay in self._pairs])
        self._last = values, rates
        return rates


def _rate_reader(rate: Any, step: Any, array: Callable[[Any], FloatArray]) -> Reader:
    if isinstance(rate, Parameter):
        memory = array(rate)
        return lambda _: float(memory.item())
    if isinstance(rate, _FIXED_BESIDE_DYNAMIC):
        memory, one = array(rate.learning_rate), np.float32(1.0)
        return lambda _: float(memory[()] + one - one)  # as MindSpore rounds it
    if isinstance(rate, _VECTOR):
        return _vector_reader(array(rate.learning_rate))
    return lambda _: _number(rate(step))


def _vector_reader(memory: FloatArray) -> Reader:
    def read(step: int) -> float:
        if step >= memory.size:
            raise IndexError(f"learning_rate has {memory.size} values, and none for step {step}")
        return float(memory.item(step))

    return read


def _decay_reader(decay: Any, step: Any, loss_scale: float) -> Reader:
    if isinstance(decay, Tensor):
        value = _number(decay) / loss_scale
        return lambda _: value
    return lambda _: _number(decay(step)) / loss_scale


def _number(value: Any) -> float:
    return float(value.asnumpy().item() if isinstance(value, Tensor) else value)
