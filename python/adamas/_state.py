"""The state of an optimizer: its arrays, and all of it as a dictionary of plain arrays and numbers.

`Optimizer.state_dict` and `Optimizer.load_state_dict` document the dictionary; `_checkpoint.py`
puts it into files. Loading checks everything first; then one native call copies all, as one call
among the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _core, _options
from . import _validation as validation
from ._groups import Member

VERSION = 1

_Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class OptimizerState:
    """Moments and what else decides later steps, of one optimizer.

    Parameters
    ----------
    native, members
        The parts of the optimizer.
    """

    def __init__(self, native: _core.Optimizer, members: Sequence[Member]) -> None:
        self._native = native
        self._config = native.config
        self._members = members

    def arrays(self, kind: _core.StateKind) -> list[Any]:
        """Return one kind of state of each parameter, in update order; None where it has none."""
        return [self._native.state(kind, i) for i in range(len(self._members))]

    def take(self, *, parameters: bool) -> dict[str, Any]:
        """Return a copy of everything that decides later steps.

        Parameters
        ----------
        parameters
            Whether the parameters themselves are copied too, as "param".

        Raises
        ------
        RuntimeError
            If a step in parts is open.
        """
        native, config = self._native, self._config
        entries: dict[str, dict[str, Any]] = {}
        copies = []
        for i, member in enumerate(self._members):
            entry = _description(native, member, i)
            for kind, (shape, dtype) in _layout(native, member, i, parameters).items():
                entry[kind] = np.empty(shape, dtype)
                copies.append((i, _kind(kind), entry[kind]))
            entries[member.name] = entry
        counters, _ = native.save(copies)
        return {
            "version": VERSION,
            "global_step": counters.global_step,
            "skipped_steps": counters.skipped_steps,
            "last_step_skipped": counters.last_step_skipped,
            "last_grad_norm": counters.last_grad_norm,
            "loss_scale": counters.loss_scale,
            "options": _options.plain(config, _core.DECIDING_OPTIONS),
            "parameters": entries,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `take` returned, or raise and change nothing.

        Raises
        ------
        TypeError
            If the state, or a counter in it, has another type.
        ValueError
            If it is not the state of an optimizer like this one; the message names the entry.
        RuntimeError
            If a step in parts is open.
        """
        native, config = self._native, self._config
        _check_state(state)
        _check_equal(
            "state['options']", state["options"], _options.plain(config, _core.DECIDING_OPTIONS)
        )
        entries = state["parameters"]
        _check_names(entries, [member.name for member in self._members], config)
        with_param = any(
            "param" in _mapping(_label(name), entry) for name, entry in entries.items()
        )
        copies = []
        for i, member in enumerate(self._members):
            entry = entries[member.name]
            layout = _layout(native, member, i, with_param)
            _check_entry(member.name, entry, _description(native, member, i), layout)
            copies += [(i, _kind(kind), np.require(entry[kind], None, "C")) for kind in layout]
        native.load(copies, _counters(state))


def _kind(name: str) -> _core.StateKind | None:
    """Return the native name of an array; None is the parameter itself."""
    return None if name == "param" else _core.StateKind[name]


def _layout(native: _core.Optimizer, member: Member, position: int, with_param: bool) -> _Layout:
    """Return the shape and type of each array that belongs to a parameter, as it is stored."""
    layout = {kind.name: place for kind, place in native.layout(position).items()}
    if with_param:
        layout["param"] = member.parameter.shape, member.parameter.dtype
    return layout


def _description(native: _core.Optimizer, member: Member, position: int) -> dict[str, Any]:
    return {
        "dtype": member.parameter.dtype.name,
        "grad_centralization": native.centralizes(position),
    }


# The checks


def _label(name: str) -> str:
    return f"state['parameters'][{name!r}]"


def _mapping(label: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} must be a mapping, got {validation.shown(value)}")
    return value


def _check_state(state: Any) -> None:
    """Check that it is a state of this version, by its outermost keys."""
    _mapping("state", state)
    if state.get("version") != VERSION:
        raise ValueError(f"state['version'] must be {VERSION}, got {state.get('version')!r}")
    _check_keys(
        "state",
        state,
        (
            "version",
            "global_step",
            "skipped_steps",
            "last_step_skipped",
            "last_grad_norm",
            "loss_scale",
            "options",
            "parameters",
        ),
    )


def _check_keys(label: str, found: Mapping[str, Any], wanted: Iterable[str]) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in set(wanted)]
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}"
        raise ValueError(f"{label} must have the keys {sorted(wanted)}; it {wrong}")


def _check_equal(label: str, found: Any, wanted: Mapping[str, Any]) -> None:
    _check_keys(label, _mapping(label, found), wanted)
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(
                f"{label}[{key!r}] must be {value!r}, as this optimizer has it, "
                f"got {validation.shown(found[key])}"
            )


def _check_names(entries: Any, wanted: list[str], config: _core.AdamConfig) -> None:
    """Check which parameters there are, and where their positions matter also their order."""
    found = list(_mapping("state['parameters']", entries))
    missing = [name for name in wanted if name not in entries]
    extra = [name for name in found if name not in set(wanted)]
    if missing or extra:
        raise ValueError(
            f"state['parameters'] must hold the {len(wanted)} parameters of this optimizer, got "
            f"{len(found)}; missing: {missing[:3]}, not of this optimizer: {extra[:3]}"
        )
    has_positions = config.max_grad_norm > 0 or config.state_format is not _core.StateFormat.real
    if has_positions and found != wanted:
        i = next(i for i in range(len(wanted)) if found[i] != wanted[i])
        raise ValueError(
            "state['parameters'] must be in the order of this optimizer, because max_grad_norm and "
            f"state_dtype depend on it; position {i} must be {wanted[i]!r}, got {found[i]!r}"
        )


def _check_entry(
    name: str, entry: Mapping[str, Any], description: Mapping[str, Any], layout: _Layout
) -> None:
    label = _label(name)
    _check_keys(label, entry, [*description, *layout])
    _check_equal(label, {key: entry[key] for key in description}, description)
    for kind, (shape, dtype) in layout.items():
        array = entry[kind]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{label}[{kind!r}] must be an array, got {validation.shown(array)}")
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{label}[{kind!r}] must be {_shown(shape, dtype)}, "
                f"got {_shown(array.shape, array.dtype)}"
            )


def _shown(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype if dtype.isnative else dtype.str} of shape {shape}"


def _counters(state: Mapping[str, Any]) -> _core.Counters:
    counters = _core.Counters()
    counters.global_step = validation.integer(
        "state['global_step']", state["global_step"], minimum=0, maximum=2**62
    )
    counters.skipped_steps = validation.integer(
        "state['skipped_steps']", state["skipped_steps"], minimum=0, maximum=2**63 - 1
    )
    counters.last_step_skipped = validation.flag(
        "state['last_step_skipped']", state["last_step_skipped"]
    )
    counters.last_grad_norm = _norm("state['last_grad_norm']", state["last_grad_norm"])
    counters.loss_scale = validation.loss_scale("state['loss_scale']", state["loss_scale"])
    return counters


def _norm(name: str, value: Any) -> float:
    """Check a norm, which is NaN if there is none and may be infinite."""
    if isinstance(value, (float, np.floating)) and (math.isnan(value) or value == math.inf):
        return float(value)
    return validation.real(name, value, minimum=0.0)
