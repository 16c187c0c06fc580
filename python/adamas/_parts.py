"""Steps that are made one parameter at a time, inside the backward pass."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, get_args

from . import _validation as validation
from ._device_arrays import stream_number
from ._parameter import Parameter
from ._settings import Settings
from .typing import Gradient, MissingGradients


class StepsInParts(Settings):
    """Base of `Optimizer`, which makes it."""

    __slots__ = ("_submitted", "_worker")

    _submitted: list[Future[None]]
    _worker: ThreadPoolExecutor | None  # as soon as something was submitted

    def begin_step(self) -> None:
        """Open a step that is made one parameter at a time, inside the backward pass.

        Then call `apply` once for each parameter, in any order, and `end_step`. The result has the
        bits of one call with all gradients. Learning rates are those of this moment. If the
        backward pass fails in between, the parameters applied so far have moved; `cancel_step`
        gives up the rest.

        Raises
        ------
        RuntimeError
            If a step is open, or the optimizer clips or skips (``max_grad_norm``,
            ``skip_nonfinite``), which needs all gradients first.
        """
        with self._lock:
            self._native.begin_step(self._next_rates())

    def apply(self, param: Parameter, grad: Gradient, *, stream: Any = None) -> None:
        """Update one parameter of the open step as soon as its gradient exists.

        Parameters
        ----------
        param : Parameter
            One of `parameters`.
        grad : array or RowTensor
            As in a whole step.
        stream : int or stream, optional
            Likewise.

        Raises
        ------
        RuntimeError
            If no step is open, or the parameter was applied in it already.
        TypeError, ValueError, IndexError
            As a whole step does. Nothing has changed then, and the step stays open.
        """
        self._native.apply(self._position(param), grad, stream_number(stream))

    def submit(self, param: Parameter, grad: Gradient, *, stream: Any = None) -> None:
        """Start to update one parameter of the open step, and return; `end_step` waits for it.

        With ``use_offload`` the update runs in another thread, beside the rest of the backward
        pass: the gradient must stay as it is until then. Otherwise this is `apply`.

        Parameters
        ----------
        param, grad, stream
            As in `apply`. What is wrong with them `end_step` raises.
        """
        if not self._config.use_offload:
            self.apply(param, grad, stream=stream)
            return
        position = self._position(param)
        number = stream_number(stream)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="adamas")
        self._submitted.append(self._worker.submit(self._native.apply, position, grad, number))

    def _finish_submitted(self) -> None:
        """Wait for all that was submitted; raise the first error."""
        submitted, self._submitted = self._submitted, []
        wait(submitted)
        for update in submitted:
            update.result()

    def end_step(self, *, missing: MissingGradients = "error") -> None:
        """Close the step.

        Parameters
        ----------
        missing : {"error", "skip"}, keyword only
            Whether a parameter that was not applied is an error, or has no gradient in this step
            and is left as it is, with its number of steps (`steps`).

        Raises
        ------
        RuntimeError
            If a parameter is missing, which leaves the step open, or no step is open.
        """
        skip = validation.choice("missing", missing, get_args(MissingGradients)) == "skip"
        if self._submitted:
            self._finish_submitted()
        self._native.end_step(skip)

    def cancel_step(self) -> None:
        """Give up the open step, when the backward pass has failed, without counting it.

        Parameters that were applied keep their update; RuntimeError if no step is open.
        """
        submitted, self._submitted = self._submitted, []
        wait(submitted)
        self._native.cancel_step()
