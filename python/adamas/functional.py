"""One step of Adam over arrays of the caller's, without an optimizer.

For those who keep the state themselves: frameworks, functional programs, one call for each
parameter. The bits are those of `adamas.Adam` with the same options, state and numbers of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from . import _core, _named, _options
from . import _validation as validation
from ._arrays import gradient, parameter_array
from ._device_arrays import device_parameter
from ._options import STATE_FORMATS
from .typing import Array, EpsilonPlacement, Gradient, Numerics, RowPolicy, StateDtype

__all__ = ["adam"]

Arrays = Sequence[Array] | Mapping[str, Array]
Gradients = Sequence[Gradient | None] | Mapping[str, Gradient | None]

# By the options of a call: most calls of a program have the same ones.
_configs: dict[tuple[Any, ...], _core.AdamConfig] = {}
_MOST_CONFIGS = 1024

# The lists of arrays of state, as they are passed on together.
_STATES = ("moment1", "moment2", "vhat", "master", "ema", "delta")

# The options of a call that decide its AdamConfig, in the order in which `adam` lists them.
_NAMES = (
    *("beta1", "beta2", "eps", "loss_scale", "use_nesterov", "decoupled_weight_decay", "maximize"),
    *("bias_correction", "numerics", "epsilon_placement", "allow_zero", "row_policy"),
    *("max_grad_norm", "clip_per_array", "clip_after_decay", "skip_nonfinite", "ema_decay"),
    *("state_dtype", "seed", "num_threads", "use_amsgrad", "master_weights", "has_ema", "out"),
)
_FLAGS = (
    *("use_nesterov", "decoupled_weight_decay", "maximize", "bias_correction", "allow_zero"),
    *("clip_per_array", "clip_after_decay", "skip_nonfinite", "use_amsgrad", "master_weights"),
)
_CHOICES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "numerics": (_core.Numerics, get_args(Numerics)),
    "epsilon_placement": (_core.EpsilonPlacement, get_args(EpsilonPlacement)),
    "row_policy": (_core.RowPolicy, ("exact", "lazy")),
}


def adam(
    params: Arrays,
    grads: Gradients,
    moment1: Arrays,
    moment2: Arrays,
    vhat: Arrays | None = None,
    *,
    steps: Any,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    use_nesterov: bool = False,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    bias_correction: bool = True,
    grad_centralization: bool = False,
    numerics: Numerics = "standard",
    epsilon_placement: EpsilonPlacement = "outside",
    allow_zero: bool = False,
    row_policy: RowPolicy = "exact",
    max_grad_norm: float | None = None,
    clip_per_array: bool = False,
    clip_after_decay: bool = False,
    skip_nonfinite: bool = False,
    master: Arrays | None = None,
    ema: Arrays | None = None,
    ema_decay: float | None = None,
    state_dtype: StateDtype | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    out: Literal["param", "delta"] = "param",
    delta: Arrays | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Make one step of Adam over arrays that the caller keeps.

    With :math:`t` the step of each parameter, ``steps[i] + 1``, the formulas of `adamas.Adam`,
    whose options these are.

    Parameters
    ----------
    params : sequence or dict of arrays, or nested dict
        What is updated in place: writable arrays of float32, float64, float16 or bfloat16, of NumPy
        or of a library that exports its memory (torch tensors), of any shapes, whose elements lie
        without gaps; on the CPU, or all on one CUDA device.
    grads : sequence or dict of arrays, or of None
        The gradient of each, as `adamas.Adam` takes them. A parameter with None, or without an
        entry in the dict, is left as it is and counts no step.
    moment1, moment2 : sequence or dict of arrays
        The moments, updated in place: of the shape and the layout of their parameters, float64 for
        float64 parameters, else float32 (bfloat16 with ``state_dtype="bfloat16"``). Zeros before
        the first step.
    vhat : sequence or dict of arrays, optional
        The largest second moments so far, which makes the step one of AMSGrad (Reddi et al., 2018).
    steps : array of int64, list of int, or dict
        How many steps each parameter has made, in [0, 2**62]. Each is counted up in place, unless
        its parameter has no gradient or the step is skipped.
    learning_rate, weight_decay, loss_scale : float or int
        Of this step.
    beta1, beta2, eps, use_nesterov, decoupled_weight_decay, maximize, grad_centralization
        As in `adamas.Adam`, and so are ``numerics``, ``epsilon_placement``, ``allow_zero``,
        ``row_policy`` (but for "catch_up", which has state of its own), ``max_grad_norm``,
        ``clip_per_array``, ``clip_after_decay``, ``skip_nonfinite``, ``ema_decay``, ``state_dtype``
        (but for "int8", likewise), ``seed`` and ``num_threads``. Arrays on a device go without
        ``max_grad_norm`` and ``skip_nonfinite``.
    bias_correction : bool, default True
        Whether the moments are corrected for having begun at zero; not in
        `adamas.AdamWeightDecay`.
    master : sequence or dict of arrays, optional
        float32 copies of float16 or bfloat16 parameters. They are what is updated; ``params`` are
        written in the same pass, rounded to nearest even: a low-precision copy of float32 weights.
    ema : sequence or dict of arrays, optional
        Moving averages of the parameters, updated in the same pass (``ema_decay``): float64 for
        float64 parameters, else float32.
    keys : sequence of int, optional
        What the random bits of ``state_dtype="bfloat16"`` depend on for each parameter, besides
        ``seed``, step and element; its position by default.
    out : {"param", "delta"}, default "param"
        "delta": the parameters are only read; what they would change by is written to ``delta``.
    delta : sequence or dict of arrays, optional
        Arrays like ``params`` for ``out="delta"``; by default new ones, on the CPU.

    Returns
    -------
    bool, or list or dict of arrays
        Whether the step was made: False if ``skip_nonfinite`` has skipped it. With ``out="delta"``
        the changes, which are zero for parameters without a gradient and in a skipped step.

    Raises
    ------
    TypeError
        If an argument or an array has another type than those above.
    ValueError
        If a value is out of its range, arrays are not as many, or not of the shape, layout or
        device of their parameters, or share memory.
    KeyError
        If a dict lacks a parameter, or has one that ``params`` has not.
    IndexError
        If a row index is outside its parameter.

    Whatever is raised, nothing has changed.

    See Also
    --------
    adamas.Adam : Keeps the state, and has groups and schedules.

    Notes
    -----
    Small lists are quick: a call costs about as much as one of `adamas.Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas import functional
    >>> weight = np.ones(3, np.float32)
    >>> moment1, moment2, steps = np.zeros_like(weight), np.zeros_like(weight), [0]
    >>> grad = np.full(3, 0.5, np.float32)
    >>> functional.adam(
    ...     [weight], [grad], [moment1], [moment2], steps=steps, learning_rate=0.1
    ... )
    True
    >>> weight.round(3), steps
    (array([0.9, 0.9, 0.9], dtype=float32), [1])
    """
    options = (
        beta1,
        beta2,
        eps,
        loss_scale,
        use_nesterov,
        decoupled_weight_decay,
        maximize,
        bias_correction,
        numerics,
        epsilon_placement,
        allow_zero,
        row_policy,
        max_grad_norm,
        clip_per_array,
        clip_after_decay,
        skip_nonfinite,
        ema_decay,
        state_dtype,
        seed,
        num_threads,
        vhat is not None,
        master is not None,
        ema is not None,
        out,
    )
    config = _configs.get(options)
    if config is None:
        config = _config(options)
    if type(grad_centralization) is not bool:
        grad_centralization = validation.flag("grad_centralization", grad_centralization)
    names: list[str] | None = None
    states: tuple[Any, ...] = (moment1, moment2, vhat, master, ema, None)
    arrays: tuple[Any, ...] = (params, grads, states, steps)
    if isinstance(params, Mapping):
        names = list(_named.flat(params, "params"))
        arrays = _listed(names, params, grads, states, steps)
    if out == "delta":
        arrays, deltas = _with_delta(names, arrays, delta)
    elif delta is not None:
        raise ValueError("delta must be None unless out='delta'")
    if type(learning_rate) is not float or type(weight_decay) is not float:
        learning_rate = validation.real("learning_rate", learning_rate, minimum=0.0)
        weight_decay = validation.real("weight_decay", weight_decay, minimum=0.0)
    rest = (learning_rate, weight_decay, grad_centralization, keys)
    call: tuple[Any, ...] = (config, *arrays, *rest)
    made = _core.update(*call)
    if made is NotImplemented:
        made = _update_any(*call)
    if names is not None:
        _store(steps, dict(zip(names, arrays[3], strict=True)))
    if out == "param":
        return made
    for array, grad in zip(deltas, arrays[1], strict=True):
        if grad is None or not made:
            array[...] = 0
    if names is None or not isinstance(params, Mapping):
        return deltas
    return _named.like(params, dict(zip(names, deltas, strict=True)))


# The same function, quicker where it is called again with the same options.
if not TYPE_CHECKING:
    adam = update_wrapper(_core.RepeatedCall(adam), adam)


def _config(options: tuple[Any, ...]) -> _core.AdamConfig:
    """Check the options of a call, and keep what they stand for."""
    given = dict(zip(_NAMES, options, strict=True))
    if given["has_ema"] == (given["ema_decay"] is None):
        raise ValueError("ema and ema_decay must be given together")
    config = _core.AdamConfig()
    for name in _FLAGS:
        setattr(config, name, validation.flag(name, given[name]))
    for name in ("beta1", "beta2"):
        rate = _options.decay_rate(name, given[name], allow_zero=config.allow_zero)
        setattr(config, name, rate)
    config.eps = _options.eps("eps", given["eps"], allow_zero=config.allow_zero)
    config.loss_scale = validation.loss_scale("loss_scale", given["loss_scale"])
    config.max_grad_norm = _options.max_grad_norm("max_grad_norm", given["max_grad_norm"])
    for name, (kind, allowed) in _CHOICES.items():
        setattr(config, name, kind[validation.choice(name, given[name], allowed)])
    if given["ema_decay"] is not None:
        config.ema_decay = validation.real("ema_decay", given["ema_decay"], above=0.0, below=1.0)
    if given["state_dtype"] is not None:
        name = validation.choice("state_dtype", given["state_dtype"], ("float32", "bfloat16"))
        config.state_format = STATE_FORMATS[name]
    config.seed = validation.integer("seed", given["seed"], minimum=0, maximum=2**64 - 1)
    if given["num_threads"] is not None:
        threads = given["num_threads"]
        config.num_threads = validation.integer("num_threads", threads, minimum=1, maximum=4096)
    config.writes_delta = validation.choice("out", given["out"], ("param", "delta")) == "delta"
    if len(_configs) >= _MOST_CONFIGS:
        _configs.clear()
    _configs[options] = config
    return config


def _listed(
    names: list[str], params: Mapping[str, Any], grads: Any, states: tuple[Any, ...], steps: Any
) -> tuple[list[Any], list[Any], tuple[list[Any] | None, ...], list[int]]:
    """Return dicts of arrays as lists, in the order of the parameters."""
    if not isinstance(grads, Mapping):
        raise TypeError(f"grads must be a dict like params, got {type(grads).__name__}")
    return (
        list(_named.flat(params, "params").values()),
        _named.in_order(grads, names),
        tuple(
            None if state is None else _in_order(names, label, state)
            for label, state in zip(_STATES, states, strict=True)
        ),
        _in_order(names, "steps", steps),
    )


def _in_order(names: list[str], label: str, given: Any) -> list[Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{label} must be a dict like params, got {type(given).__name__}")
    found = _named.flat(given, label)
    for name in names:
        if name not in found:
            raise KeyError(f"{label} must have {name!r}, as params has")
    return [found[name] for name in names]


def _store(steps: Any, numbers: Mapping[str, int], prefix: str = "") -> None:
    """Put numbers of steps back where they came from."""
    for key, value in steps.items():
        if isinstance(value, Mapping):
            _store(value, numbers, f"{prefix}{key}.")
        elif prefix + key in numbers:
            steps[key] = numbers[prefix + key]


def _with_delta(
    names: list[str] | None, arrays: tuple[Any, ...], delta: Any
) -> tuple[tuple[Any, ...], list[Any]]:
    """Add places for what the parameters change by."""
    params, grads, states, steps = arrays
    if delta is None:
        if any(device_parameter(param) is not None for param in params):
            raise ValueError("delta must be given for parameters on a CUDA device")
        deltas: list[Any] = [np.zeros_like(parameter_array(param)) for param in params]
    else:
        deltas = list(delta) if names is None else _in_order(names, "delta", delta)
    return (params, grads, (*states[:-1], deltas), steps), deltas


def _update_any(config: _core.AdamConfig, params: Any, grads: Any, states: Any, *rest: Any) -> bool:
    """Update arrays of any library, which are brought into forms that the native side reads."""
    written = [_written(f"params[{i}]", param) for i, param in enumerate(params)]
    like = [
        _laid_out(gradient(grad, param, f"grads[{i}]"), param) if grad is not None else None
        for i, (grad, param) in enumerate(zip(grads, written, strict=True))
    ]
    kept = tuple(
        None
        if state is None
        else [_written(f"{label}[{i}]", array) for i, array in enumerate(state)]
        for label, state in zip(_STATES, states, strict=True)
    )
    made = _core.update(config, written, like, kept, *rest)
    if made is NotImplemented:
        raise TypeError("params, grads and state must be arrays of a float type, of one device")
    return bool(made)


def _written(label: str, array: Any) -> Any:
    """Return an array that is written as the native side takes it."""
    try:
        found = device_parameter(array)
        return parameter_array(array) if found is None else found
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("data must", f"{label} must", 1)) from None


def _laid_out(grad: Any, param: Any) -> Any:
    """Return a gradient whose elements lie like those of its parameter."""
    if not isinstance(grad, np.ndarray):
        return grad
    if param.flags.c_contiguous:
        return np.require(grad, requirements=("C", "A"))
    copy = np.empty_like(param, dtype=grad.dtype)
    copy[...] = grad
    return copy
