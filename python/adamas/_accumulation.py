"""Gradients of several micro-batches, summed for one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _named
from ._device_arrays import stream_number
from ._parts import StepsInParts
from .typing import Grads


class Accumulating(StepsInParts):
    """Base of `Optimizer`, which makes it."""

    __slots__ = ()

    def accumulate(self, grads: Grads, *, stream: Any = None) -> None:
        """Add the gradients of a micro-batch to sums, of which the next step is made.

        Then call the optimizer without gradients: it makes a step with the mean of what has come
        since the last one, or with the sum (``reduction="sum"``). Sums are float32 for float32,
        float16 and bfloat16 parameters, and float64 for float64 ones: as much memory again as the
        parameters in these types, from the first call on.

        Parameters
        ----------
        grads : tuple, list or dict
            As for a step, but dense. A parameter without any gradient until the step is left out of
            it; one without some counts with those that it has, divided by the number of calls.
        stream : int or stream, optional
            As for a step.

        Raises
        ------
        TypeError, KeyError, ValueError
            As a step does; also ValueError if a gradient is sparse, or the optimizer capturable.
        RuntimeError
            If a step in parts (`begin_step`) is open.

        Whatever is raised, nothing has changed.

        Notes
        -----
        Until the step is made or the sums are discarded (`discard_accumulated`), RuntimeError is
        raised by steps with gradients, steps in parts, `add`, `state_dict` and `load_state_dict`.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam
        >>> weight = np.ones(2, np.float32)
        >>> optimizer = Adam({"weight": weight}, learning_rate=0.1)
        >>> for micro_batch in range(4):
        ...     optimizer.accumulate({"weight": np.full(2, 0.25 * micro_batch, np.float32)})
        >>> optimizer.accumulated
        4
        >>> optimizer()
        True
        >>> optimizer.moment1[0]  # (1 - beta1) times the mean
        array([0.0375, 0.0375], dtype=float32)
        """
        if isinstance(grads, Mapping):
            grads = self._in_order(grads)
        self._native.accumulate(grads, stream_number(stream))

    @property
    def accumulated(self) -> int:
        """How many micro-batches were accumulated since the last step."""
        return self._native.accumulated

    def discard_accumulated(self) -> None:
        """Forget the gradients that were accumulated since the last step."""
        self._native.discard_accumulated()

    def _step_accumulated(self, stream: Any) -> bool:
        with self._lock:
            self._native.step_accumulated(self._next_rates(), stream_number(stream))
        return True

    def _in_order(self, grads: Mapping[str, Any]) -> list[Any]:
        return _named.in_order(grads, [member.name for member in self._members])
