"""What the optimizers share: parameters, rates, state, and one native call per step."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from . import _core, groups, validation
from .arrays import FloatArray, gradient_array
from .groups import Defaults, ParameterOptions
from .parameter import Parameter
from .rates import Rate, RateBook


class Optimizer:
    """Base of `Adam` and `AdamWeightDecay`, which document the parameters of the constructor."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any,
        weight_decay: Any,
        config: _core.AdamConfig,
        *,
        use_locking: bool = False,
        use_offload: bool = False,
    ) -> None:
        book = RateBook()
        self._defaults = Defaults(
            book.learning_rate("learning_rate", learning_rate),
            book.weight_decay("weight_decay", weight_decay),
        )
        self._options, self._grouped = groups.resolve(params, self._defaults, book)
        self._round_lr = config.numerics is _core.Numerics.mindspore
        self._lock = threading.Lock() if use_locking else None
        self._target = "CPU"
        self._unique = True

        pairs = [(option.learning_rate, option.weight_decay) for option in self._options]
        self._pairs: list[tuple[Rate, Rate]] = list(dict.fromkeys(pairs))
        self._native = _core.Optimizer(
            [
                _core.ParameterSpec(
                    np.asarray(option.parameter),
                    option.name,
                    self._pairs.index(pair),
                    self._centralizes(option, config.numerics, use_offload),
                )
                for option, pair in zip(self._options, pairs, strict=True)
            ],
            config,
            gradient_array,
        )
        is_static = all(lr.constant and decay.constant for lr, decay in self._pairs)
        self._static_rates = self._rates_at(0) if is_static else None

    @staticmethod
    def _centralizes(option: ParameterOptions, numerics: _core.Numerics, offload: bool) -> bool:
        """Whether the row means of this parameter's gradients are subtracted."""
        shape = option.parameter.shape
        if not option.grad_centralization:
            return False
        if numerics is _core.Numerics.mindspore:
            return len(shape) >= 2 and shape[1] % 16 == 0 and not offload
        return len(shape) >= 3

    def _lr_at(self, rate: Rate, step: int) -> float:
        value = rate.at(step)
        return float(np.float32(value)) if self._round_lr else value

    def _rates_at(self, step: int) -> _core.Rates:
        """Ask each distinct learning rate and weight decay once."""
        values: dict[Rate, float] = {}
        for lr, decay in self._pairs:
            if lr not in values:
                values[lr] = self._lr_at(lr, step)
            if decay not in values:
                values[decay] = decay.at(step)
        return _core.Rates([(values[lr], values[decay]) for lr, decay in self._pairs])

    def __call__(self, grads: Any) -> bool:
        """Make one step: update every parameter in place.

        Parameters
        ----------
        grads : tuple or list of arrays
            The gradients in the order of `parameters`, each with its parameter's shape.
            An array of the parameter's type that is C-contiguous is read where it lies. A gradient
            is only read, so one that is strided, of another float width, or exported by another
            library (buffer protocol, DLPack) is converted first, at the price of a temporary array;
            a value too large for the parameter's type becomes infinity. Integer, bool and complex
            arrays are refused: they are mistakes more often than gradients.

        Returns
        -------
        bool
            True.

        Raises
        ------
        TypeError
            If ``grads`` is neither tuple nor list, or a gradient is not an array of a float type.
        ValueError
            If the number of gradients or a shape is wrong, a gradient shares memory with a
            parameter or the state, a parameter was made read-only, or a schedule returned a
            negative or non-finite number.
        IndexError
            If a vector or iterator of learning rates is exhausted.

        Whatever is raised, nothing has changed: no parameter, no moment, no counter.
        """
        if self._lock is None:
            return self._step(grads)
        with self._lock:
            return self._step(grads)

    step = __call__

    def _step(self, grads: Any) -> bool:
        now = self._static_rates
        if now is None:
            now = self._rates_at(self._native.global_step)
        self._native.step(grads, now)
        return True

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters in update order, which is the order of the gradients."""
        return [option.parameter for option in self._options]

    def _states(self, kind: _core.StateKind) -> list[FloatArray]:
        states = (self._native.state(kind, i) for i in range(len(self._options)))
        return [state for state in states if state is not None]

    @property
    def moment1(self) -> list[FloatArray]:
        """The first moments in update order: live, writable views of the optimizer's memory."""
        return self._states(_core.StateKind.moment1)

    @property
    def moment2(self) -> list[FloatArray]:
        """The second moments in update order: live, writable views."""
        return self._states(_core.StateKind.moment2)

    @property
    def vhat(self) -> list[FloatArray]:
        """The largest second moments so far (AMSGrad): live, writable views; else empty."""
        return self._states(_core.StateKind.vhat)

    @property
    def state_nbytes(self) -> int:
        """The bytes of all state arrays together."""
        return self._native.state_nbytes

    @property
    def global_step(self) -> int:
        """The number of steps made. Setting it moves schedules and bias correction with it."""
        return self._native.global_step

    @global_step.setter
    def global_step(self, step: int) -> None:
        self._native.global_step = validation.integer("global_step", step, minimum=0)

    @property
    def target(self) -> str:
        """Where sparse gradients are applied: "CPU" or "GPU"."""
        return self._target

    @target.setter
    def target(self, value: str) -> None:
        target = validation.choice("target", value, ("CPU", "GPU"))
        if target == "GPU":
            raise ValueError("target must be 'CPU' for parameters in CPU memory, got 'GPU'")
        self._target = target

    @property
    def unique(self) -> bool:
        """Whether rows that repeat in a sparse gradient are summed first; they always are."""
        return self._unique

    @unique.setter
    def unique(self, value: bool) -> None:
        self._unique = validation.flag("unique", value)

    def get_lr(self) -> float | tuple[float, ...]:
        """Return the learning rate that the next step uses.

        One float, or with groups a tuple of one for each parameter in update order.
        """
        step = self.global_step
        if not self._grouped:
            return self._lr_at(self._defaults.learning_rate, step)
        return tuple(self._lr_at(option.learning_rate, step) for option in self._options)

    def get_weight_decay(self) -> float | tuple[float, ...]:
        """Return the weight decay that the next step uses, not multiplied by the loss scale.

        One float, or with groups a tuple of one for each parameter in update order. Without
        groups, parameters named "beta" or "gamma" are not decayed whatever this says.
        """
        step = self.global_step
        if not self._grouped:
            return self._defaults.weight_decay.at(step)
        return tuple(option.weight_decay.at(step) for option in self._options)

    def get_lr_parameter(self, param: Any) -> float | list[float]:
        """Return the learning rate that the next step uses for a parameter, or a list of them.

        Parameters
        ----------
        param : Parameter or list or tuple of Parameter
            What to look up.

        Raises
        ------
        TypeError
            If something else is given.
        ValueError
            If a parameter does not belong to this optimizer.
        """
        if isinstance(param, (list, tuple)):
            return [self._lr_of(one) for one in param]
        return self._lr_of(param)

    def _lr_of(self, param: Any) -> float:
        if not isinstance(param, Parameter):
            raise TypeError(f"param must be a Parameter, got {validation.shown(param)}")
        for option in self._options:
            if option.parameter is param:
                return self._lr_at(option.learning_rate, self.global_step)
        raise ValueError(f"param must belong to this optimizer, got {param!r}")
