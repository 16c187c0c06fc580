"""The step as a foreign function of XLA, and what JAX must know to transform a call of it.

`adamas.jax` calls it with what `_jax_trees` has checked. What depends on numbers (a learning rate
that is NaN) is refused by the step itself, when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _core, _options, functional

try:
    import jax
    from jax import numpy as jnp
    from jax.custom_batching import custom_vmap
    from jax.experimental.custom_partitioning import custom_partitioning
except ImportError as error:
    raise ImportError('adamas.jax needs JAX: pip install "adamas[jax]"') from error
if not hasattr(getattr(jax, "ffi", None), "ffi_call"):
    raise ImportError(
        f'adamas.jax needs JAX >= 0.5.3, got {jax.__version__}: pip install -U "adamas[jax]"'
    )
try:
    from . import _jax
except ImportError as error:
    raise ImportError(
        "this adamas was built without the headers of jaxlib, and so without adamas.jax; build it "
        "where they are: ADAMAS_JAX=ON pip install --no-binary adamas --force-reinstall adamas"
    ) from error


def _check_version(header: Path) -> None:
    """Raise ImportError if the step was compiled for a newer JAX, which would then have no CPU."""
    if not header.exists():  # the step is refused when it is registered, if it must be
        return
    found = re.findall(r"#define XLA_FFI_API_M..OR (\d+)", header.read_text())
    if tuple(map(int, found)) < _jax.API_VERSION:
        raise ImportError(
            f"this adamas was built with the headers of a newer jaxlib than {jax.__version__}: "
            "pip install -U jax, or build it anew with those of the installed one"
        )


_check_version(Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h"))

__all__ = [
    "KINDS",
    "NUMBERS",
    "Arrays",
    "attributes",
    "call",
    "config_of",
    "is_array",
    "jax",
    "jnp",
]

# At most so many parameters in one call: XLA needs a time to compile that grows with its cube.
_MOST = 192

NUMBERS: tuple[str, ...] = _jax.NUMBERS
"""The options that may be traced, in the order in which the call takes them."""

KINDS = ("moment1", "moment2", "vhat", "master", "ema")
"""Of state, in the order in which the call takes them."""


class Arrays(NamedTuple):
    """Pytrees as lists of one length; None in the place of state that a parameter does not have."""

    params: list[Any]
    grads: list[Any]
    states: dict[str, list[Any]]


def is_array(value: Any) -> bool:
    """Whether a number is one of JAX, which may be traced and so have no value."""
    return isinstance(value, jax.Array)


def config_of(given: Mapping[str, Any], out: str) -> _core.AdamConfig:
    """Check options as `adamas.functional.adam` does; traced numbers are checked when they run."""
    defaults = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "loss_scale": 1.0}
    options = {name: given.get(name) for name in functional._NAMES}
    for name, value in defaults.items():
        if is_array(options[name]):
            options[name] = value
    options |= {"row_policy": "exact", "out": out, "has_ema": given["ema_decay"] is not None}
    return functional._config(tuple(options[name] for name in functional._NAMES))


def attributes(config: _core.AdamConfig) -> dict[str, Any]:
    """Return the options that a program is compiled with, as JAX passes them on."""
    found = {}
    for name in _options.MEMBERS:
        if name not in NUMBERS:
            found[name] = _attribute(getattr(config, name))
    return found


def _attribute(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, Enum):
        value = value.value
    return np.int64(value - 2**64 if value >= 2**63 else value)


def call(
    options: Mapping[str, Any], decays: Sequence[bool], numbers: Sequence[Any], arrays: Arrays
) -> tuple[Any, list[Any], dict[str, list[Any]]]:
    """Make the step: return the number of steps, parameters (or their changes), and the state.

    Parameters
    ----------
    options
        `attributes`, and ``grad_centralization``.
    decays
        Whether each parameter has weight decay.
    numbers
        The number of steps, and `NUMBERS` as operands.
    arrays
        Of the options. As they come out, lists are as long and have None in the same places.
    """
    _register()
    size = len(arrays.params)
    count, made = numbers[0], numbers[0] + 1  # without parameters
    changed: list[Any] = []
    states: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    calls = 1 if _looks_at_all(options) else -(-size // _MOST)
    after = count
    for k in range(calls if size > 0 else 0):
        part = slice(size * k // calls, size * (k + 1) // calls)
        flags = np.array(decays[part], np.int32).tobytes()
        kept = [
            (owner, array)
            for kind in KINDS
            for owner, array in enumerate(arrays.states[kind][part])
            if array is not None
        ]
        given = (*sorted(options.items()), ("first", np.int64(part.start)))
        step = _foreign(given, flags, tuple(owner for owner, _ in kept))
        state = [array for _, array in kept]
        made, *rest = step(*numbers, after, *arrays.params[part], *arrays.grads[part], *state)
        after = made
        changed += rest[: part.stop - part.start]
        new = iter(rest[part.stop - part.start :])
        for kind in KINDS:
            states[kind] += [a if a is None else next(new) for a in arrays.states[kind][part]]
    return made, changed, states


@lru_cache(maxsize=1)
def _register() -> None:
    """Let XLA know the step: not before it has a CPU, which it would not get if it refused."""
    jax.local_devices(backend="cpu")
    jax.ffi.register_ffi_target(_jax.TARGET, _jax.handler(), platform="cpu")


def _looks_at_all(options: Mapping[str, Any]) -> bool:
    """Whether the gradients of all parameters decide what becomes of each."""
    is_clipped = options["max_grad_norm"] > 0 and not options["clip_per_array"]
    return bool(options["skip_nonfinite"] or is_clipped)


def _looks_beyond_elements(options: Mapping[str, Any]) -> bool:
    """Whether what becomes of an element depends on others, or on its position in the array."""
    return bool(
        options["skip_nonfinite"]
        or options["max_grad_norm"] > 0
        or options["grad_centralization"]
        or options["state_format"] != _core.StateFormat.real.value
    )


@lru_cache(maxsize=256)
def _foreign(
    options: tuple[tuple[str, Any], ...], flags: bytes, owners: tuple[int, ...]
) -> Callable[..., Sequence[Any]]:
    """Return the function of flat operands; the same one for the same options.

    ``owners``: the positions of the parameters to which the arrays of state belong.
    """
    given = dict(options, decays=np.frombuffer(flags, np.int32))
    size = len(given["decays"])
    first = 2 + len(NUMBERS)  # of the parameters among the operands
    aliased = first + size if given["writes_delta"] else first

    def written(operands: Sequence[Any]) -> list[Any]:
        """Return the operands that the results are like."""
        return [operands[0], *operands[first : first + size], *operands[first + 2 * size :]]

    def on_one_device(*operands: Any) -> Sequence[Any]:
        results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in written(operands)]
        aliases = {0: 0}
        aliases |= {aliased + i: 1 + i for i in range(size)}
        aliases |= {first + size - 1 + i: i for i in range(1 + size, len(results))}
        aliases = {
            i: k for i, k in aliases.items() if operands[i].dtype == results[k].dtype
        }  # the gradient that a change replaces may be of another type
        made = jax.ffi.ffi_call(_jax.TARGET, results, input_output_aliases=aliases)
        return list(made(*operands, **given))

    def step(*operands: Any) -> Sequence[Any]:
        partitioned = custom_partitioning(on_one_device)
        partitioned.def_partition(
            partition=partition,
            infer_sharding_from_operands=infer,
            sharding_rule=_sharding_rule(operands[first : first + size], first, owners),
        )
        return list(partitioned(*operands))

    of_arrays = (*range(size), *range(size), *owners)

    def infer(mesh: Any, operands: Sequence[Any], _results: Any) -> list[Any]:
        """Return how results lie, for the partitioner before Shardy."""
        here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return [array.sharding or here for array in written(operands)]

    def partition(mesh: Any, operands: Sequence[Any], _results: Any) -> tuple[Any, ...]:
        """Let each device make the step of its part: all arrays lie as their parameters do."""
        params = [array.sharding for array in operands[first : first + size]]
        if _looks_beyond_elements(given) and not all(s.is_fully_replicated for s in params):
            raise NotImplementedError(
                "parameters lie in parts on several devices, and max_grad_norm, skip_nonfinite, "
                "grad_centralization and state_dtype='bfloat16' need whole arrays: clip with "
                "optax, or replicate the parameters"
            )
        here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        lie = [here] * first + [params[i] for i in of_arrays]
        return mesh, on_one_device, written(lie), tuple(lie)

    batched = custom_vmap(step)
    batched.def_vmap(_refuse_vmap)
    differentiated: Any = jax.custom_jvp(batched)
    differentiated.defjvp(_refuse_jvp)
    return lambda *operands: list(differentiated(*operands))


def _sharding_rule(params: Sequence[Any], first: int, owners: Sequence[int]) -> str:
    """Return in the notation of Shardy that all arrays lie as their parameters do."""
    axes = [" ".join(f"p{i}a{k}" for k in range(one.ndim)) for i, one in enumerate(params)]
    numbers = ["" if i in (0, first - 1) else f"n{i}" for i in range(first)]
    state = [axes[i] for i in owners]
    return f"{', '.join([*numbers, *axes, *axes, *state])} -> {', '.join(['', *axes, *state])}"


def _refuse_vmap(*_: Any) -> Any:
    raise NotImplementedError(
        "a step of adamas.jax must be outside jax.vmap: Adam acts on each element by itself, so "
        "stack the arrays of all models and make one step with them"
    )


def _refuse_jvp(*_: Any) -> Any:
    raise NotImplementedError(
        "a step of adamas.jax can't be differentiated: take the gradients before it, or use optax "
        "where they must go through the optimizer"
    )
