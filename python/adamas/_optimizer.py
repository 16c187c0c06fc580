"""What the optimizers share: parameters, rates, state, and one native call per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, get_args
from typing import NoReturn as Never  # what typing calls it from Python 3.11 on

from . import _copying, _core, _face, _groups, _keys, _options
from . import _validation as validation
from ._accumulation import Accumulating
from ._arrays import FloatArray, gradient
from ._device_arrays import stream_number
from ._fork import add_lock
from ._groups import GroupOptions, Member
from ._parameter import Parameter
from ._rates import RateBook
from ._state import OptimizerState
from ._step_rates import Index, StepRates
from .typing import (
    Grads,
    LearningRate,
    More,
    Params,
    Target,
    WeightDecay,
)

_NO_GRADS = (
    "grads must be a tuple or list with one gradient for each parameter, or a dict, got NoneType; "
    "and none were accumulated"
)


class Optimizer(Accumulating):
    """Base of `Adam` and `AdamWeightDecay`, which document the parameters of the constructor."""

    # No others can be set by mistake; subclasses of users have a __dict__.
    __slots__ = (
        "__weakref__",
        "_is_plain",
        "_keys",
        "_native_step",
        "_rates_of_capture",
        "_target",
        "_unique",
    )
    # What a subclass has unless told otherwise, which its repr leaves out.
    _usual_options: ClassVar[Mapping[str, Any]] = _options.plain(_core.AdamConfig())

    def __init__(
        self,
        params: Params,
        learning_rate: LearningRate,
        weight_decay: WeightDecay,
        config: _core.AdamConfig,
    ) -> None:
        self._book = RateBook()
        self._defaults = GroupOptions(
            self._book.learning_rate("learning_rate", learning_rate),
            self._book.weight_decay("weight_decay", weight_decay),
            _core.default_group(config),
        )
        members, groups, self._grouped = _groups.resolve(params, self._defaults, self._book)
        self._assemble(members, groups, config)

    def _assemble(
        self, members: list[Member], groups: list[GroupOptions], config: _core.AdamConfig
    ) -> None:
        self._given = config
        # Around the schedules and the native call that belong together.
        self._lock = nullcontext()
        if config.use_locking:
            add_lock(self)
        self._worker = None
        self._submitted = []
        self._unique = True
        self._members = members
        self._index = {id(member.parameter): i for i, member in enumerate(members)}
        self._configs = [group.config for group in groups]
        self._rates = StepRates(
            [group.learning_rate for group in groups],
            [group.weight_decay for group in groups],
            list(dict.fromkeys((member.group, member.decays) for member in members)),
        )
        self._check_amsgrad(self._configs)
        keys = self._keys_of(members)
        self._use(self._made(keys), keys)
        self._target: Target = "CPU" if self._native.device < 0 else "GPU"
        self._is_plain = not (config.use_locking or config.capturable)
        # A step that is being captured takes its rates from the device.
        self._rates_of_capture = _core.Rates([(0.0, 0.0)] * len(self._rates.indices))

    def _keys_of(self, members: Sequence[Member]) -> list[int]:
        """Return a key for each parameter, or -1 where nothing is rounded stochastically."""
        if self._given.state_format is _core.StateFormat.real:
            return [-1] * len(members)
        return [_keys.key_of(member.parameter, member.name) for member in members]

    def _made(self, keys: list[int]) -> _core.Optimizer:
        """Return a native optimizer with a key for each parameter's stochastic rounding."""
        places = self._rates.places
        specs = [self._spec(*pair, places) for pair in zip(self._members, keys, strict=True)]
        configs = [self._configs[group] for group, _ in self._rates.indices]
        return _core.Optimizer(specs, self._given, gradient, configs)

    def _spec(self, member: Member, key: int, places: Mapping[Index, int]) -> _core.ParameterSpec:
        return _core.ParameterSpec(
            member.parameter.memory,
            member.name,
            places[member.group, member.decays],
            member.grad_centralization,
            states=member.parameter.states_for(member.name, self._given),
            key=key,
            source=member.parameter,
        )

    def _use(self, native: _core.Optimizer, keys: list[int]) -> None:
        self._native = native
        self._config = native.config
        self._keys = keys
        self._native_step = native.step  # bound once: a step of a small model is microseconds

    def add(self, params: More) -> None:
        """Take more parameters, between two steps.

        They come last in the order of the gradients. State, steps and bits of the others stay as
        they are; those of the new ones begin at zero, as in a new optimizer.

        Parameters
        ----------
        params : Parameter, array, group, or list or dict of them as for the constructor
            Without a group they join the others if there are no groups, else a new group with the
            options of the optimizer.

        Raises
        ------
        TypeError, ValueError, KeyError, RuntimeError
            As the constructor does; also if a parameter, or one of its name, is there already, or
            a step in parts is open. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam
        >>> optimizer = Adam({"weight": np.ones(2, np.float32)}, learning_rate=0.1)
        >>> optimizer.add({"params": {"adapter": np.zeros(2, np.float32)}, "lr": 0.5})
        >>> optimizer.get_lr()
        (0.1, 0.5)
        """
        with self._lock:
            self._add(params)

    def _add(self, params: More) -> None:
        count = len(self._configs)
        members, groups, grouped = _groups.resolve_more(
            params, self._members, self._defaults, count, self._book
        )
        if self._grouped and not grouped:  # they are a group of their own
            members = [replace(member, group=count, decays=True) for member in members]
            groups = [replace(self._defaults, config=self._defaults.config.copy())]
        configs = [*self._configs, *(group.config for group in groups)]
        self._check_amsgrad(configs)
        keys = self._keys_of(members)
        places = dict(self._rates.places)
        for member in members:
            places.setdefault((member.group, member.decays), len(places))
        indices = list(places)[len(self._rates.places) :]
        self._check_norms(indices, configs)
        specs = [self._spec(*pair, places) for pair in zip(members, keys, strict=True)]
        self._native.add(specs, [configs[group] for group, _ in indices])
        self._grouped = self._grouped or grouped
        self._configs = configs
        self._index.update(
            (id(member.parameter), i) for i, member in enumerate(members, len(self._members))
        )
        self._members = [*self._members, *members]
        self._keys = [*self._keys, *keys]
        self._rates.extend(
            [group.learning_rate for group in groups],
            [group.weight_decay for group in groups],
            indices,
        )
        self._rates_of_capture = _core.Rates([(0.0, 0.0)] * len(self._rates.indices))

    def _check_norms(self, indices: Sequence[Index], configs: Sequence[_core.AdamConfig]) -> None:
        """Refuse to split a group whose gradients are clipped together."""
        for group, _ in indices:
            is_split = any((group, decays) in self._rates.places for decays in (True, False))
            if is_split and configs[group].max_grad_norm and not configs[group].clip_per_array:
                raise ValueError(
                    f"params must be put into a group: groups[{group}].max_grad_norm can't be that "
                    "of parameters named beta or gamma and of others together"
                )

    def _check_amsgrad(self, configs: Sequence[_core.AdamConfig]) -> None:
        config = self._given
        uses_amsgrad = any(group.use_amsgrad for group in (config, *configs))
        if uses_amsgrad and (config.row_policy is _core.RowPolicy.lazy or config.use_offload):
            raise ValueError("use_amsgrad must not be True together with use_lazy or use_offload")

    def __call__(self, grads: Grads | None = None, *, stream: Any = None) -> bool:
        """Make one step: update every parameter in place.

        Parameters
        ----------
        grads : tuple or list of arrays or RowTensor, or dict of them; optional
            Without any, the step is made of those that were accumulated (`accumulate`). The
            gradients in the order of `parameters`, each with its parameter's shape; or under the
            names of the parameters, where a dict in a dict adds its key and a dot. A parameter
            whose gradient is None, or not in the dict, is left as it is, and so is its number of
            steps (`steps`). Sparse gradients are a `RowTensor`, a SciPy sparse matrix or a torch
            sparse COO tensor over rows. C-contiguous arrays of the parameter's type, or of any of
            float32, float16 and bfloat16 unless the parameter is float64, are read where they lie.
            A gradient is only read, so one that is strided, of another float width, or exported by
            another library (buffer protocol, DLPack) is converted first, at the price of a
            temporary array; a value too large for the type of the arithmetic becomes infinity.
            Integer, bool and complex arrays are refused: they are mistakes more often than
            gradients. Gradients of parameters on a CUDA device must be there too, contiguous, and
            are never converted.
        stream : int or stream, optional
            The CUDA stream that the step is queued on, for parameters on a device: its address, or
            an object of CuPy, torch, Numba or cuda.core. Without it, the stream that a gradient's
            producer names, else the default one.

        Returns
        -------
        bool
            True.

        Raises
        ------
        TypeError
            If ``grads`` is neither tuple nor list nor dict, or missing though nothing was
            accumulated; a gradient is not an array of a float
            type, or row indices are not int32 or int64.
        KeyError
            If a name is not that of a parameter.
        ValueError
            If the number of gradients or a shape is wrong, a gradient shares memory with a
            parameter or the state, a parameter was made read-only, a schedule returned a negative
            or non-finite number, a sparse gradient comes for a parameter with grad_centralization,
            or gradients that are to be clipped are not finite.
        IndexError
            If a row index is outside its parameter, or a vector or iterator of learning rates is
            exhausted.
        RuntimeError
            If a step in parts (`begin_step`) is open; if there are gradients though others were
            accumulated.

        Whatever is raised, nothing has changed: no parameter, no moment, no counter.

        Notes
        -----
        On a device the call returns when the work is queued; only the rows of sparse gradients are
        waited for, to check them. With ``max_grad_norm``, a step whose gradients are not finite is
        not made, and a later call says so instead of being made itself. Gradients that were made on
        another stream than that of the step must be kept until the step is done there.
        """
        try:
            if stream is None and self._is_plain:
                self._native_step(grads, self._rates.constant or self._rates_for(grads))
            else:
                self._ordered_step(grads, stream_number(stream))
            return True
        except TypeError:  # asked about dicts only here: a step of a small model is microseconds
            if grads is None:
                if not self.accumulated:
                    raise TypeError(_NO_GRADS) from None
                return self._step_accumulated(stream)
            if not isinstance(grads, Mapping):
                raise
        return Optimizer.__call__(self, self._in_order(grads), stream=stream)

    def _rates_for(self, grads: Grads | None) -> _core.Rates:
        """Ask the schedules, unless the gradients have to be put in order first."""
        if grads is None or isinstance(grads, dict):
            raise TypeError
        return self._next_rates()

    def _ordered_step(self, grads: Grads | None, stream: int | None) -> None:
        if grads is None:
            raise TypeError
        if isinstance(grads, Mapping):
            grads = self._in_order(grads)
        with self._lock:
            is_captured = self._config.capturable and self._native.is_capturing(grads, stream)
            rates = self._rates_of_capture if is_captured else self._next_rates()
            self._native_step(grads, rates, stream)

    step = __call__

    def refresh_rates(self, step: int | None = None, *, stream: Any = None) -> None:
        """Send the learning rates and weight decays that replays of captured steps use from now on.

        Parameters
        ----------
        step : int, optional
            The step that schedules are asked for; by default `global_step`, which waits for the
            steps so far.
        stream : int or stream, optional
            The stream of the replays.

        Raises
        ------
        RuntimeError
            If the optimizer is not ``capturable``.
        """
        number = stream_number(stream) or 0
        with self._lock:
            rates = self._next_rates() if step is None else self._rates.at(step)
            self._native.set_rates(rates, number)

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters in update order, which is the order of the gradients."""
        return [member.parameter for member in self._members]

    @property
    def moment1(self) -> list[FloatArray]:
        """The first moments in update order: live, writable views of the optimizer's memory.

        With a ``state_dtype`` in 16 or 8 bits: read-only float32 copies. On a CUDA device: objects
        with ``__cuda_array_interface__``, ``numpy()``, which copies, and ``assign(values)``.
        """
        return OptimizerState(self).arrays(_core.StateKind.moment1)

    @property
    def moment2(self) -> list[FloatArray]:
        """The second moments in update order, as `moment1`."""
        return OptimizerState(self).arrays(_core.StateKind.moment2)

    @property
    def vhat(self) -> list[FloatArray]:
        """The largest second moments so far (AMSGrad): live, writable views; else empty.

        None for parameters of groups that do without, where others do not.
        """
        arrays = OptimizerState(self).arrays(_core.StateKind.vhat)
        return arrays if any(array is not None for array in arrays) else []

    @property
    def master_weights(self) -> list[FloatArray | None]:
        """The float32 copies of 16-bit parameters (``master_weights``), None for the others."""
        return OptimizerState(self).arrays(_core.StateKind.master)

    @property
    def ema(self) -> list[FloatArray]:
        """The averages of the parameters (``ema_decay``): live, writable views; else empty."""
        return OptimizerState(self).arrays(_core.StateKind.ema) if self._config.ema_decay else []

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
    def steps(self) -> list[int]:
        """The number of steps that each parameter has made, in update order; can be set.

        Bias correction goes by it. It is `global_step` but for parameters that were without a
        gradient in some steps; setting `global_step` moves all of them by the same distance.
        """
        return self._native.steps

    @steps.setter
    def steps(self, values: Sequence[int]) -> None:
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"steps must be a list or tuple, got {validation.shown(values)}")
        if len(values) != len(self._members):
            raise ValueError(
                f"steps must hold one number for each of the {len(self._members)} parameters, got "
                f"{len(values)}"
            )
        numbers = [
            validation.integer(f"steps[{i}]", value, minimum=0, maximum=2**62)
            for i, value in enumerate(values)
        ]
        with self._lock:
            self._native.steps = numbers

    @property
    def target(self) -> Target:
        """Where sparse gradients are applied: "CPU" or "GPU"."""
        return self._target

    @target.setter
    def target(self, value: Target) -> None:
        target = validation.choice("target", value, get_args(Target))
        if target != self._target:
            raise ValueError(
                f"target must be {self._target!r}, which is where this optimizer's state is, got "
                f"{target!r} (use_offload=True puts it on the CPU)"
            )

    @property
    def unique(self) -> bool:
        """Whether rows that repeat in a sparse gradient are summed first; they always are."""
        return self._unique

    @unique.setter
    def unique(self, value: bool) -> None:
        self._unique = validation.flag("unique", value)

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
            ``version``: 2. ``global_step``, ``skipped_steps``: int. ``last_step_skipped``: bool.
            ``last_grad_norm``, ``loss_scale``: float. ``options``: a dict of the options that must
            be the same when it is loaded. ``groups``: a list of dicts of those that groups may
            differ in, with the names of their ``parameters``. ``parameters``: a dict that has for
            each parameter, under its name and in update order, a dict of ``dtype`` (of the
            parameter), ``grad_centralization``, ``step`` (how many it has made), ``key`` (of
            stochastic rounding, where there is any) and NumPy arrays:

            - ``moment1``, ``moment2`` in the parameter's shape: float64 for float64 parameters,
              else float32; or as they are stored, uint16 for ``state_dtype="bfloat16"`` and uint8
              for ``"int8"``, which has ``scale1`` and ``scale2`` too, uint8 of shape (blocks,);
            - ``vhat`` (``use_amsgrad``) in the same type and shape;
            - ``master`` (``master_weights``): float32, of 16-bit parameters;
            - ``ema`` (``ema_decay``): the average, in the type of the arithmetic;
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
            return OptimizerState(self).take(parameters=validation.flag("parameters", parameters))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned.

        The optimizer must have parameters of the same names, types and shapes with the same
        ``grad_centralization``, and the same options that decide bits, which ``state["options"]``
        and ``state["groups"]`` list. Learning rates, weight decays, ``use_locking`` and
        ``num_threads`` may differ, and so may the order of the parameters where nothing depends on
        it (``max_grad_norm`` does). ``loss_scale`` is loaded, and so are steps and keys. To go on
        with another option all the same, change it in the state. States of version 1 (adamas
        0.1.0) load as well.

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
            OptimizerState(self).load(state)

    def summary(self) -> str:
        """Return a table of all parameters: sizes, groups, next rates, bytes of state.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam, Parameter
        >>> names = ("weight", "bias")
        >>> optimizer = Adam([Parameter(np.ones(3, np.float32), name) for name in names])
        >>> print(optimizer.summary())
        name    shape    dtype  elements  group     lr  weight_decay  state
        weight  (3,)   float32         3      0  0.001             0   24 B
        bias    (3,)   float32         3      0  0.001             0   24 B
        total                          6                               48 B
        """
        return _face.text_table(self)

    def __repr__(self) -> str:
        return _face.described(self)

    def _repr_html_(self) -> str:
        return _face.html(self)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._members)

    def __bool__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return _copying.parts(self)

    def __setstate__(self, parts: dict[str, Any]) -> None:
        _copying.put_together(self, parts)

    def __copy__(self) -> Never:
        raise TypeError(
            f"copy.copy() would give two optimizers over the same memory; copy.deepcopy() gives an "
            f"independent {type(self).__name__}"
        )
