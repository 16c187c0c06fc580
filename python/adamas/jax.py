"""Adam inside `jax.jit`: one foreign call for all parameters, in place where buffers are donated.

Imported by name only; needs JAX. `Adam` updates parameters and state, `adam` and `adamw` return a
gradient transformation as those of optax. The bits are those of `adamas.functional.adam`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _jax_step as native
from . import _jax_trees as trees
from . import _validation as validation
from ._jax_step import is_array, jax, jnp
from ._schedules import LearningRateSchedule, WeightDecaySchedule
from .typing import EpsilonPlacement, Numerics, StateDtype

__all__ = ["Adam", "AdamState", "GradientTransformation", "adam", "adamw"]

Tree: TypeAlias = Any
"""A pytree of arrays."""

Rate: TypeAlias = Any
"""A number, one that JAX traces, or a function of the traced number of steps made."""


class AdamState(NamedTuple):
    """The state of `Adam`, a pytree.

    ``count`` is an int32, the number of steps made; the others are pytrees of arrays like the
    parameters, or None if the options do not keep them.
    """

    count: Any
    moment1: Tree
    moment2: Tree
    vhat: Tree = None
    master: Tree = None
    ema: Tree = None


class _Transformation(NamedTuple):
    """A pair of functions ``init(params)`` and ``update(grads, state, params)``, as in optax."""

    init: Callable[..., Any]
    update: Callable[..., Any]


try:
    from optax import GradientTransformation
except ImportError:  # which only looks at these two
    GradientTransformation = _Transformation

_ZEROS = ("moment1", "moment2", "vhat")


@dataclass(frozen=True)
class Adam:
    r"""Adam for pytrees of JAX arrays, inside `jax.jit` or outside.

    It keeps nothing: parameters and state go in and come out, as everywhere in JAX. Where the
    caller donates them (``jax.jit(..., donate_argnums=...)``) the step is made in their memory;
    where not, XLA copies them first and the arguments stay as they are. One foreign call makes the
    step of all parameters, on the threads of adamas. The formulas are those of `adamas.Adam`,
    whose options these are.

    Parameters
    ----------
    learning_rate : float, array, or callable
        A number, a traced number, or a function that takes the traced number of steps made (0 at
        first) and returns one, as the schedules of optax. Another value compiles nothing anew.
    beta1, beta2, eps, loss_scale : float or array
        As in `adamas.Adam`. These too can be traced.
    weight_decay : float, array, or callable
        Likewise; L2 by default, that of AdamW with ``decoupled_weight_decay``.
    mask : pytree of bool, or callable, optional
        Which parameters have weight decay: of the structure of the parameters, or a function that
        makes it of them. All by default.
    use_nesterov, use_amsgrad, decoupled_weight_decay, maximize, grad_centralization
        As in `adamas.Adam`, and so are ``numerics``, ``epsilon_placement``, ``allow_zero``,
        ``max_grad_norm``, ``clip_per_array``, ``clip_after_decay``, ``skip_nonfinite``,
        ``master_weights``, ``ema_decay``, ``state_dtype`` (but for "int8"), ``seed`` and
        ``num_threads``. ``skip_nonfinite`` is the way to go on after a gradient that is not finite:
        without it ``max_grad_norm`` fails, and a program of JAX that fails loses what was donated.
    bias_correction : bool, default True
        Whether the moments are corrected for having begun at zero.

    Raises
    ------
    TypeError, ValueError
        As `adamas.Adam` does.

    See Also
    --------
    adamw : The same as a gradient transformation of optax.

    Examples
    --------
    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> import adamas.jax
    >>> optimizer = adamas.jax.Adam(0.1, weight_decay=0.01, decoupled_weight_decay=True)
    >>> @partial(jax.jit, donate_argnums=(0, 1))
    ... def step(params, state, x):
    ...     grads = jax.grad(lambda params: jnp.sum((params["w"] * x) ** 2))(params)
    ...     return optimizer.update(params, grads, state)
    >>> params = {"w": jnp.ones(3)}
    >>> state = optimizer.init(params)
    >>> params, state = step(params, state, jnp.arange(1.0, 4.0))
    >>> round(float(params["w"][0]), 3), int(state.count)
    (0.899, 1)
    """

    learning_rate: Rate = 1e-3
    _: KW_ONLY
    beta1: Any = 0.9
    beta2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Rate = 0.0
    mask: Any = None
    loss_scale: Any = 1.0
    use_nesterov: bool = False
    use_amsgrad: bool = False
    decoupled_weight_decay: bool = False
    maximize: bool = False
    bias_correction: bool = True
    grad_centralization: bool = False
    numerics: Numerics = "standard"
    epsilon_placement: EpsilonPlacement = "outside"
    allow_zero: bool = False
    max_grad_norm: float | None = None
    clip_per_array: bool = False
    clip_after_decay: bool = False
    skip_nonfinite: bool = False
    master_weights: bool = False
    ema_decay: float | None = None
    state_dtype: StateDtype | None = None
    seed: int | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        self._config("param")
        validation.flag("grad_centralization", self.grad_centralization)
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, (LearningRateSchedule, WeightDecaySchedule)):
                raise TypeError(
                    f"{name} must be a number or a function of a traced count, such as the "
                    f"schedules of optax, got {validation.shown(value)}"
                )
            if not callable(value):
                _checked(name, value)

    def init(self, params: Tree) -> AdamState:
        """Return the state before the first step.

        Parameters
        ----------
        params : pytree of arrays
            Of float32, float64, float16 or bfloat16.

        Returns
        -------
        AdamState
            Moments of zeros; copies of the parameters as ``ema`` and, of those in 16 bits, as
            ``master``, if the options keep them.

        Raises
        ------
        TypeError
            If a leaf is no array of these types.
        ValueError
            If one is on a device that is no CPU.
        """
        named = trees.leaves("params", params)
        config = self._config("param")

        def made(kind: str) -> Tree:
            dtypes = [trees.kept(kind, config, array.dtype.name) for _, array in named]
            if not any(dtypes):
                return None
            new = jnp.zeros_like if kind in _ZEROS else jnp.array  # array() copies
            arrays = [
                None if dtype is None else new(array, dtype=dtype)
                for dtype, (_, array) in zip(dtypes, named, strict=True)
            ]
            return jax.tree.unflatten(jax.tree.structure(params), arrays)

        return AdamState(jnp.zeros((), jnp.int32), *map(made, AdamState._fields[1:]))

    def update(
        self,
        params: Tree,
        grads: Tree,
        state: AdamState,
        *,
        learning_rate: Rate = None,
        weight_decay: Rate = None,
        loss_scale: Any = None,
    ) -> tuple[Tree, AdamState]:
        """Make one step.

        Parameters
        ----------
        params, grads : pytree of arrays
            Of one structure. Gradients are of any type that goes with their parameter's arithmetic.
        state : AdamState
            What `init` or the last step has returned.
        learning_rate, weight_decay, loss_scale : optional
            Of this step, instead of the optimizer's.

        Returns
        -------
        params, state
            New arrays, or those that were donated. A step that ``skip_nonfinite`` skips returns the
            values it has got, ``count`` included.

        Raises
        ------
        TypeError
            If an array has another type than those above.
        ValueError
            If structures or shapes differ, or the state is not that of these options.
        NotImplementedError
            Under `jax.vmap`.
        jax.errors.JaxRuntimeError
            When it runs: if a traced number is out of its range, or ``max_grad_norm`` meets a norm
            that is not finite.
        """
        given = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "loss_scale": loss_scale,
        }
        return self._step("param", params, grads, state, given)

    def transformation(self) -> GradientTransformation:
        """Return it as a gradient transformation of optax.

        Its ``update(grads, state, params)`` returns what the parameters change by, for
        ``optax.apply_updates``, and the state. The changes are rounded to the types of the
        parameters, and the sums again, so that a step can differ from `update` by one rounding.

        Returns
        -------
        GradientTransformation
            A pair of functions ``init`` and ``update``; that of optax, if it is installed.

        Raises
        ------
        ValueError
            With ``master_weights`` or ``ema_decay``, which follow the parameters themselves.
        """
        if self.master_weights or self.ema_decay is not None:
            raise ValueError(
                "master_weights and ema_decay follow the parameters, which a gradient "
                "transformation does not see after the step; use Adam.update"
            )

        def update(updates: Tree, state: AdamState, params: Tree = None) -> tuple[Tree, AdamState]:
            if params is None:
                if callable(self.weight_decay) or is_array(self.weight_decay):
                    decays = True
                else:
                    decays = self.weight_decay > 0
                if decays:
                    raise ValueError("params must be given, for weight_decay")
                params = jax.tree.map(jnp.zeros_like, updates)
            return self._step("delta", params, updates, state, {})

        return GradientTransformation(self.init, update)

    def _config(self, out: str) -> Any:
        given = {option.name: getattr(self, option.name) for option in fields(self)}
        return native.config_of(given | {"seed": given["seed"] or 0}, out)

    def _step(
        self, out: str, params: Tree, grads: Tree, state: AdamState, given: dict[str, Any]
    ) -> tuple[Tree, AdamState]:
        if not isinstance(state, AdamState):
            raise TypeError(f"state must be an AdamState, got {type(state).__name__}")
        config = self._config(out)
        count = trees.count(state.count)
        arrays = trees.of_call(config, params, grads, state)
        numbers = [count]
        for name in native.NUMBERS:
            value = given.get(name)
            value = getattr(self, name) if value is None else value
            value = value(count) if callable(value) else value
            numbers.append(trees.number(name, _checked(name, value)))
        options = native.attributes(config)
        options["grad_centralization"] = self.grad_centralization
        made, changed, states = native.call(options, self._decays(params), numbers, arrays)
        kept = {kind: _like(getattr(state, kind), arrays) for kind, arrays in states.items()}
        return _like(params, changed), AdamState(count=made, **kept)

    def _decays(self, params: Tree) -> list[bool]:
        """Return which parameters have weight decay."""
        if self.mask is None:
            return [True] * len(jax.tree.leaves(params))
        mask = self.mask(params) if callable(self.mask) else self.mask
        trees.check_structure("mask", mask, params)
        return [validation.flag("mask", leaf) for leaf in jax.tree.leaves(mask)]


def adam(learning_rate: Rate, **options: Any) -> GradientTransformation:
    """Return Adam as a gradient transformation of optax, in the place of ``optax.adam``.

    Parameters
    ----------
    learning_rate, **options
        Those of `Adam`, but for ``master_weights`` and ``ema_decay``.

    Returns
    -------
    GradientTransformation
        See `Adam.transformation`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import adamas.jax
    >>> tx = adamas.jax.adam(0.1)
    >>> params = {"w": jnp.ones(2)}
    >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> round(float(updates["w"][0]), 3)
    -0.1
    """
    return Adam(learning_rate, **options).transformation()


def adamw(
    learning_rate: Rate, *, weight_decay: Rate = 1e-4, **options: Any
) -> GradientTransformation:
    """Return AdamW as a gradient transformation of optax, in the place of ``optax.adamw``.

    The weight decay is decoupled (Loshchilov and Hutter, 2019) and, as in optax, 1e-4 by default.

    Parameters
    ----------
    learning_rate, weight_decay, **options
        As in `adam`.

    Returns
    -------
    GradientTransformation
        See `Adam.transformation`.

    Examples
    --------
    >>> import adamas.jax
    >>> tx = adamas.jax.adamw(1e-3, weight_decay=0.01, mask=lambda params: {"w": True, "b": False})
    """
    both = {"weight_decay": weight_decay, "decoupled_weight_decay": True}
    return Adam(learning_rate, **both, **options).transformation()


def _like(tree: Tree, arrays: list[Any]) -> Tree:
    """Return a pytree of this structure; None stands for what the structure does not have."""
    kept = [array for array in arrays if array is not None]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


def _checked(name: str, value: Any) -> Any:
    """Return a number that has a value as a float, checked; others as they are."""
    if is_array(value):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if name == "loss_scale":
        return validation.loss_scale(name, value)
    return validation.real(name, value, minimum=0.0)


def _show_options(function: Callable[..., Any], **fixed: Any) -> None:
    """Let a signature list the options: optax injects hyper-parameters by their names there."""
    shown = [one for name, one in inspect.signature(Adam).parameters.items() if name not in fixed]
    own = inspect.signature(function).parameters
    parameters = [own.get(one.name, one) for one in shown]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


_show_options(adam)
_show_options(adamw, decoupled_weight_decay=True)
