"""The state of an optimizer: its arrays, and all of it as a dictionary of plain arrays and numbers.

`Optimizer.state_dict` and `Optimizer.load_state_dict` document the dictionary; `_checkpoint.py`
puts it into files. Loading checks everything first; then one native call copies all, as one call
among the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, _options
from . import _validation as validation

if TYPE_CHECKING:
    from ._optimizer import Optimizer

VERSION = 2

_Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class OptimizerState:
    """Moments and what else decides later steps, of one optimizer; made for each look at them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._native = optimizer._native
        self._config = optimizer._config
        self._members = optimizer._members
        self._keys = optimizer._keys

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
        entries: dict[str, dict[str, Any]] = {}
        copies = []
        for i, member in enumerate(self._members):
            entry = self._description(i)
            for kind, (shape, dtype) in self._layout(i, parameters).items():
                entry[kind] = np.empty(shape, dtype)
                copies.append((i, _kind(kind), entry[kind]))
            entries[member.name] = entry
        counters, steps = self._native.save(copies)
        for entry, step in zip(entries.values(), steps, strict=True):
            entry["step"] = step
        return {
            "version": VERSION,
            "global_step": counters.global_step,
            "skipped_steps": counters.skipped_steps,
            "last_step_skipped": counters.last_step_skipped,
            "last_grad_norm": counters.last_grad_norm,
            "loss_scale": counters.loss_scale,
            "options": _options.plain(self._config, _options.OPTIMIZER_OPTIONS),
            "groups": self._groups(),
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
        state = _current(state)
        wanted = _options.plain(self._config, _options.OPTIMIZER_OPTIONS)
        _check_equal("state['options']", state["options"], wanted)
        entries = _mapping("state['parameters']", state["parameters"])
        groups = self._groups()
        _check_names(entries, [member.name for member in self._members])
        _check_groups(state["groups"], groups)
        _check_order(list(entries), [member.name for member in self._members], wanted, groups)
        with_param = any(
            "param" in _mapping(_label(name), entry) for name, entry in entries.items()
        )
        copies, steps, keys = [], [], []
        for i, member in enumerate(self._members):
            entry = entries[member.name]
            layout = self._layout(i, with_param)
            _check_entry(member.name, entry, self._description(i), layout)
            copies += [(i, _kind(kind), np.require(entry[kind], None, "C")) for kind in layout]
            steps.append(_number(member.name, entry, "step", 2**62))
            keys.append(_number(member.name, entry, "key", 2**63 - 1) if "key" in entry else -1)
        counters = _counters(state)
        if self._is_random and keys != self._keys:
            self._load_with_keys(keys, copies, counters, steps)
        else:
            self._native.load(copies, counters, steps)

    def _load_with_keys(self, keys: list[int], *loaded: Any) -> None:
        """Load into a new native optimizer, whose keys are these, and let it take the place."""
        self._native.save([])  # which an open step refuses
        native = self._optimizer._made(keys)
        native.load(*loaded)
        self._optimizer._use(native, keys)

    @property
    def _is_random(self) -> bool:
        return self._config.state_format is not _core.StateFormat.real

    def _groups(self) -> list[dict[str, Any]]:
        """Return which parameters have options in common, and the options."""
        groups: dict[int, dict[str, Any]] = {}
        places = self._optimizer._rates.places
        for member in self._members:
            if member.group not in groups:
                used = self._native.group(places[member.group, member.decays])
                options = _options.plain(used, _options.GROUP_OPTIONS)
                groups[member.group] = {"parameters": [], **options}
            groups[member.group]["parameters"].append(member.name)
        return [groups[place] for place in sorted(groups)]

    def _layout(self, position: int, with_param: bool) -> _Layout:
        """Return the shape and type of each array that belongs to a parameter, as it is stored."""
        layout = {kind.name: place for kind, place in self._native.layout(position).items()}
        if with_param:
            parameter = self._members[position].parameter
            layout["param"] = parameter.shape, parameter.dtype
        return layout

    def _description(self, position: int) -> dict[str, Any]:
        """Return what is not in arrays, but for the steps made."""
        description = {
            "dtype": self._members[position].parameter.dtype.name,
            "grad_centralization": self._native.centralizes(position),
        }
        if self._is_random:
            description["key"] = self._keys[position]
        return description


def _kind(name: str) -> _core.StateKind | None:
    """Return the native name of an array; None is the parameter itself."""
    return None if name == "param" else _core.StateKind[name]


# Earlier versions


def _current(state: Any) -> Mapping[str, Any]:
    """Return the state in the form of this version, its outermost keys checked."""
    version = _mapping("state", state).get("version")
    if version == 1 and type(version) is int:
        _check_keys("state", state, [key for key in _KEYS if key != "groups"])
        return _from_version_1(state)
    if version != VERSION:
        raise ValueError(f"state['version'] must be 1 or {VERSION}, got {version!r}")
    _check_keys("state", state, _KEYS)
    current: Mapping[str, Any] = state
    return current


_KEYS = (
    "version",
    "global_step",
    "skipped_steps",
    "last_step_skipped",
    "last_grad_norm",
    "loss_scale",
    "options",
    "groups",
    "parameters",
)


_OPTIONS_OF_VERSION_1 = (
    *("numerics", "beta1", "beta2", "eps", "use_nesterov", "use_amsgrad"),
    *("decoupled_weight_decay", "bias_correction", "row_policy", "max_grad_norm"),
    *("skip_nonfinite", "state_dtype", "seed", "master_weights"),
)


def _from_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state of 0.1.0 means: one step for all, one group, keys by position."""
    found = _mapping("state['options']", state["options"])
    _check_keys("state['options']", found, _OPTIONS_OF_VERSION_1)
    options = {**_options.plain(_core.AdamConfig()), **found}
    entries = _mapping("state['parameters']", state["parameters"])
    is_random = options["state_dtype"] != "float32"
    group = {name: options[name] for name in _options.GROUP_OPTIONS}
    names = map(_options.users_name, _options.OPTIMIZER_OPTIONS)
    more = [
        {"step": state["global_step"], **({"key": i} if is_random else {})}
        for i in range(len(entries))
    ]
    return {
        **state,
        "version": VERSION,
        "options": {name: options[name] for name in names},
        "groups": [{"parameters": list(entries), **group, "max_grad_norm": None}],
        "parameters": {
            name: {**_mapping(_label(name), entry), **added}
            for (name, entry), added in zip(entries.items(), more, strict=True)
        },
    }


# The checks


def _label(name: str) -> str:
    return f"state['parameters'][{name!r}]"


def _mapping(label: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} must be a mapping, got {validation.shown(value)}")
    return value


def _check_keys(label: str, found: Mapping[str, Any], wanted: Iterable[str]) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in set(wanted)]
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}"
        raise ValueError(f"{label} must have the keys {sorted(wanted)}; it {wrong}")


def _check_equal(label: str, found: Any, wanted: Mapping[str, Any]) -> None:
    _check_keys(label, _mapping(label, found), wanted)
    _check_values(label, found, wanted)


def _check_values(label: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(
                f"{label}[{key!r}] must be {value!r}, as this optimizer has it, "
                f"got {validation.shown(found[key])}"
            )


def _check_names(entries: Mapping[str, Any], wanted: list[str]) -> None:
    """Check which parameters there are."""
    missing = [name for name in wanted if name not in entries]
    extra = [name for name in entries if name not in set(wanted)]
    if missing or extra:
        raise ValueError(
            f"state['parameters'] must hold the {len(wanted)} parameters of this optimizer, got "
            f"{len(entries)}; missing: {missing[:3]}, not of this optimizer: {extra[:3]}"
        )


def _check_groups(found: Any, wanted: list[dict[str, Any]]) -> None:
    """Check that each parameter has the options that it has in this optimizer."""
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"state['groups'] must be a list, got {validation.shown(found)}")
    places: dict[str, int] = {}
    for place, group in enumerate(found):
        label = f"state['groups'][{place}]"
        _check_keys(label, _mapping(label, group), wanted[0])
        if not isinstance(group["parameters"], (list, tuple)):
            raise TypeError(
                f"{label}['parameters'] must be a list of names, got "
                f"{validation.shown(group['parameters'])}"
            )
        for name in group["parameters"]:
            if places.setdefault(name, place) != place:
                raise ValueError(f"state['groups'] must hold parameter {name!r} once; two do")
    for group in wanted:
        names = group["parameters"]
        for name in names:
            if name not in places:
                raise ValueError(f"state['groups'] must hold parameter {name!r}; none does")
            label = f"state['groups'][{places[name]}]"
            options = {key: value for key, value in group.items() if key != "parameters"}
            _check_values(label, found[places[name]], options)
        if group["max_grad_norm"] and not group["clip_per_array"]:
            members = found[places[names[0]]]["parameters"]
            if set(members) != set(names):
                raise ValueError(
                    f"{label}['parameters'] must be {names}, whose norm max_grad_norm is for, got "
                    f"{members}"
                )


def _check_order(
    found: list[str], wanted: list[str], options: Mapping[str, Any], groups: list[dict[str, Any]]
) -> None:
    """Check the order where it matters, which is that of the sums of norms."""
    has_norm = any(one["max_grad_norm"] and not one["clip_per_array"] for one in (options, *groups))
    if has_norm and found != wanted:
        i = next(i for i in range(len(wanted)) if found[i] != wanted[i])
        raise ValueError(
            "state['parameters'] must be in the order of this optimizer, because max_grad_norm "
            f"depends on it; position {i} must be {wanted[i]!r}, got {found[i]!r}"
        )


def _check_entry(
    name: str, entry: Mapping[str, Any], description: Mapping[str, Any], layout: _Layout
) -> None:
    label = _label(name)
    _check_keys(label, entry, [*description, "step", *layout])
    _check_values(label, entry, {k: v for k, v in description.items() if k != "key"})
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


def _number(name: str, entry: Mapping[str, Any], key: str, maximum: int) -> int:
    return validation.integer(f"{_label(name)}[{key!r}]", entry[key], minimum=0, maximum=maximum)


def _norm(name: str, value: Any) -> float:
    """Check a norm, which is NaN if there is none and may be infinite."""
    if isinstance(value, (float, np.floating)) and (math.isnan(value) or value == math.inf):
        return float(value)
    return validation.real(name, value, minimum=0.0)
