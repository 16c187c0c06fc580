"""The state of an optimizer: its moments, counters and loss scale, and dicts of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from . import _core, state_dict, validation
from .arrays import FloatArray
from .groups import ParameterOptions


class StateAccess:
    """What `Optimizer` has besides its steps; it sets the attributes."""

    _native: _core.Optimizer
    _config: _core.AdamConfig
    _options: list[ParameterOptions]
    _centralized: list[bool]
    _lock: AbstractContextManager[object]

    def _states(self, kind: _core.StateKind) -> list[FloatArray]:
        states = (self._native.state(kind, i) for i in range(len(self._options)))
        return [state for state in states if state is not None]

    @property
    def moment1(self) -> list[FloatArray]:
        """The first moments in update order: live, writable views of the optimizer's memory.

        With a ``state_dtype`` in 16 or 8 bits: read-only float32 copies. On a CUDA device: objects
        with ``__cuda_array_interface__``, ``numpy()``, which copies, and ``assign(values)``.
        """
        return self._states(_core.StateKind.moment1)

    @property
    def moment2(self) -> list[FloatArray]:
        """The second moments in update order, as `moment1`."""
        return self._states(_core.StateKind.moment2)

    @property
    def vhat(self) -> list[FloatArray]:
        """The largest second moments so far (AMSGrad): live, writable views; else empty."""
        return self._states(_core.StateKind.vhat) if self._config.use_amsgrad else []

    @property
    def master_weights(self) -> list[FloatArray | None]:
        """The float32 copies of 16-bit parameters (``master_weights``), None for the others."""
        states = (self._native.state(_core.StateKind.master, i) for i in range(len(self._options)))
        kept = self._config.master_weights
        return [state if kept else None for state in states]

    @property
    def last_grad_norm(self) -> float:
        """The norm over all gradients of the last step, divided by ``loss_scale``, not clipped.

        NaN if no step was made yet or neither ``max_grad_norm`` nor ``skip_nonfinite`` needed it.
        """
        return self._native.last_grad_norm

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step changed nothing because of a NaN or infinity."""
        return self._native.last_step_skipped

    @property
    def skipped_steps(self) -> int:
        """How many steps changed nothing because of a NaN or infinity (``skip_nonfinite``)."""
        return self._native.skipped_steps

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
        number = validation.integer("global_step", step, minimum=0, maximum=2**62)
        with self._lock:
            self._native.global_step = number

    @property
    def loss_scale(self) -> float:
        """What the gradients of the next step are divided by; can be set between steps.

        A dynamic loss scale goes here: ``opt.loss_scale = manager.get_loss_scale()``.
        """
        return self._native.loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        scale = validation.real("loss_scale", value, minimum=2.0**-126, maximum=2.0**126)
        with self._lock:
            self._native.loss_scale = scale

    def state_dict(self, *, parameters: bool = False) -> dict[str, Any]:
        """Return a copy of all that decides later steps, as plain arrays and numbers.

        Loaded into an optimizer made in the same way, with the same values in its parameters, it
        gives the bits of a run that never stopped.

        Parameters
        ----------
        parameters : bool, default False, keyword only
            Whether the parameters are copied too.

        Returns
        -------
        dict
            ``version``: 1. ``global_step``, ``skipped_steps``: int. ``last_step_skipped``: bool.
            ``last_grad_norm``, ``loss_scale``: float. ``options``: a dict of the options that must
            be the same when it is loaded. ``parameters``: a dict that has for each parameter, under
            its name and in update order, a dict of ``dtype`` (of the parameter),
            ``grad_centralization`` and NumPy arrays:

            - ``moment1``, ``moment2`` in the parameter's shape: float64 for float64 parameters,
              else float32; or as they are stored, uint16 for ``state_dtype="bfloat16"`` and uint8
              for ``"int8"``, which has ``scale1`` and ``scale2`` too, uint8 of shape (blocks,);
            - ``vhat`` (``use_amsgrad``) in the same type and shape;
            - ``master`` (``master_weights``): float32, of 16-bit parameters;
            - ``row_step`` (``row_policy="catch_up"``): int64 of shape (rows,), the last step that
              has updated each row;
            - ``param`` (``parameters=True``), the parameter in its own type and shape.

        Raises
        ------
        RuntimeError
            If a step in parts (`begin_step`) is open.

        See Also
        --------
        adamas.save_checkpoint : The same in a file.

        Notes
        -----
        A snapshot between two steps, whatever other threads do. Learning rates and weight decays
        are not in it: they are those of the optimizer that it is loaded into, at ``global_step``.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam, Parameter
        >>> optimizer = Adam([Parameter(np.ones(2, np.float32), name="weight")], beta1=0.5)
        >>> optimizer((np.ones(2, np.float32),))
        True
        >>> state = optimizer.state_dict()
        >>> state["global_step"], state["parameters"]["weight"]["moment1"]
        (1, array([0.5, 0.5], dtype=float32))
        """
        with self._lock:
            return state_dict.take(
                self._native,
                self._config,
                self._options,
                self._centralized,
                parameters=validation.flag("parameters", parameters),
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned.

        The optimizer must have parameters of the same names, types and shapes, and the same
        options: ``numerics``, ``beta1``, ``beta2``, ``eps``, ``use_nesterov``, ``use_amsgrad``,
        ``decoupled_weight_decay``, ``row_policy``, ``max_grad_norm``, ``skip_nonfinite``,
        ``state_dtype``, ``seed``, ``master_weights`` and ``grad_centralization``. Learning rates,
        weight decays, ``use_locking`` and ``num_threads`` may differ, and so may the order of the
        parameters where nothing depends on it (``max_grad_norm`` and the random bits of
        ``state_dtype`` do). ``loss_scale`` is loaded. To go on with another option all the same,
        change it in ``state["options"]``.

        Parameters
        ----------
        state : mapping
            As returned by `state_dict`, with the parameters or without. It is copied.

        Raises
        ------
        TypeError
            If the state, or an entry of it, has another type than it should.
        ValueError
            If an entry is missing, unknown, or not that of an optimizer like this one, with its
            name, what was wanted and what came; or if a parameter was made read-only, or an array
            shares memory with a parameter or the state.
        RuntimeError
            If a step in parts (`begin_step`) is open.

        Whatever is raised, nothing has changed.

        Notes
        -----
        Safe to call while other threads make steps: it happens between two of them. An iterator of
        learning rates must be given to the new optimizer from its beginning: the values of the
        steps already made are pulled from it, and dropped, when the next step asks for its own.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam, Parameter
        >>> first, second = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> optimizer = Adam([Parameter(first, name="weight")])
        >>> optimizer((np.ones(2, np.float32),))
        True
        >>> resumed = Adam([Parameter(second, name="weight")])
        >>> resumed.load_state_dict(optimizer.state_dict(parameters=True))
        >>> resumed.global_step, bool((first == second).all())
        (1, True)
        """
        with self._lock:
            state_dict.load(self._native, self._config, self._options, self._centralized, state)
