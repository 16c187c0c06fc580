"""The native step over the groups and the state of a torch optimizer, for `adamas.torch`.

The native side reads parameters, gradients and state where they lie, anew in every step. What it
can't read as it is gets a substitute here: complex numbers as pairs of reals, local parts of
DTensors, gradients in another order of axes, tensors on devices.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from operator import attrgetter, is_not
from typing import Any

from . import _core, _options
from . import _validation as validation
from ._device_arrays import from_device

# The first says what to do where torch is missing.
# isort: off
from ._torch_tensors import (
    REAL_TYPES,
    count,
    count_type,
    fitting,
    has_gaps,
    in_layout,
    is_unusual,
    local,
    number,
    plain_copy,
)
import torch

# isort: on

# The keys of the state, as torch has them, and in the order of `_core.StateDictStep`.
STEP = "step"
ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "ema")
MOMENTS = ARRAYS[:2]
COPIES = ARRAYS[3:]  # which begin as the parameter, and not at zero

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)

Substitutes = dict[int, tuple[Any, ...]]
# Options, learning rate, weight decay, the list of parameters, what it held, and the state of each.
Group = tuple[_core.AdamConfig, float, float, list[Any], tuple[Any, ...], tuple[Any, ...]]


class _State(defaultdict[Any, dict[str, Any]]):
    """The state by parameter, which knows when an entry has come or gone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.changes = 0
        super().__init__(*args, **kwargs)

    def __missing__(self, key: Any) -> dict[str, Any]:
        value: dict[str, Any] = {}
        self[key] = value
        return value

    def __setitem__(self, key: Any, value: dict[str, Any]) -> None:
        self.changes += 1
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.changes += 1
        super().__delitem__(key)

    def __ior__(self, other: Any) -> _State:  # type: ignore[override, misc]
        self.changes += 1
        return super().__ior__(other)

    def clear(self) -> None:
        self.changes += 1
        super().clear()

    def pop(self, *args: Any) -> Any:
        self.changes += 1
        return super().pop(*args)

    def popitem(self) -> tuple[Any, dict[str, Any]]:
        self.changes += 1
        return super().popitem()

    def setdefault(self, *args: Any) -> Any:
        self.changes += 1
        return super().setdefault(*args)

    def update(self, *args: Any, **kwargs: Any) -> None:
        self.changes += 1
        super().update(*args, **kwargs)


class _Kept:
    """A tensor of a state that is loaded, which torch's loading does not look into, nor cast."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


class _Members:
    """The parameters of a group and what their steps need, as of the last look."""

    __slots__ = ("config", "first", "options", "params", "states")

    def __init__(self, params: list[Any], states: list[Any], first: int) -> None:
        self.params = tuple(params)
        self.states = tuple(states)
        self.first = first  # the position of the first of them among all parameters
        self.options: tuple[Any, ...] = ()
        self.config = _core.AdamConfig()


class NativeStep(torch.optim.Optimizer):
    """What the three optimizers do otherwise than torch's: the step, and how state is loaded."""

    # The state of a parameter is what the native step counts and updates.
    state: Any
    _extras: dict[str, Any]
    _base: _core.AdamConfig
    _num_threads: int | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = _State(dict, self.state)

    def _take_extras(self, **extras: Any) -> None:
        """Check and keep the options that torch does not have."""
        self._base = config = _core.AdamConfig()
        config.allow_zero = True
        self._num_threads = extras["num_threads"]
        if self._num_threads is not None:
            validation.integer("num_threads", self._num_threads, minimum=1, maximum=4096)
        self._extras = extras
        self._forget()

    def _forget(self) -> None:
        """Drop what was found out about parameters and state."""
        self._plan: list[_Members] | None = None
        self._plan_of: Any = None  # the state that it was made from
        self._plan_changes = 0
        self._substituted: set[int] = set()
        self._native = _core.StateDictStep(STEP, ARRAYS)

    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step for all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients anew, and returns the loss.

        Returns
        -------
        object
            What the closure returned, or None.

        Raises
        ------
        RuntimeError
            If a gradient is of the wrong kind, sparse or dense, or a tensor has no memory here.
        ValueError
            If an option of a group is out of its range, or an array of the state does not fit its
            parameter. Whatever is raised, no parameter and no moment has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = _scale_of(self)
        if scale is not None:
            self._step(scale)
        return loss

    def _step(self, scale: float) -> None:
        threads = self._num_threads or torch.get_num_threads()
        base = self._base
        if threads != base.num_threads or scale != base.loss_scale:
            self._base = base = base.copy()
            base.num_threads, base.loss_scale = threads, scale
            for members in self._plan or ():
                members.options = ()
        is_complete = False
        unread: set[int] = set()
        for _ in range(5):
            plan = self._current_plan()
            self._substituted |= unread
            groups = [self._described(*pair) for pair in zip(self.param_groups, plan, strict=True)]
            substitutes, copied = self._substitutes(plan) if self._substituted else ({}, ())
            made = self._native.step(base, groups, substitutes)
            if made is None:
                self._plan = None
                unread.clear()
            elif not isinstance(made, list):
                for place, copy in copied:
                    place.copy_(copy)
                return
            elif not is_complete:
                self._complete(plan, made)
                is_complete = True
            else:
                if not self._substituted.isdisjoint(made):
                    _refuse(*_located(plan, min(self._substituted.intersection(made))))
                unread.update(made)
        raise RuntimeError("parameters or state were replaced while step() looked at them")

    def _current_plan(self) -> list[_Members]:
        """Return the parameters of the groups with their state, looked up anew if need be.

        That the list of a group has changed the native step finds out, but not in time for
        substitutes.
        """
        state = self.state
        plan = self._plan
        # A dict that a user has set stays the state, and may have changed.
        changes = state.changes if type(state) is _State else -1
        if (
            plan is not None
            and len(plan) == len(self.param_groups)
            and self._plan_of is state
            and self._plan_changes == changes >= 0
            and not (self._substituted and self._has_other_lists(plan))
        ):
            return plan
        plan = []
        first = 0
        for group in self.param_groups:
            params = group["params"]
            if len(set(map(id, params))) < len(params):
                raise ValueError("the list of a group must not have a parameter twice")
            plan.append(_Members(params, [state.get(param) for param in params], first))
            first += len(params)
        self._substituted = {
            members.first + i
            for members in plan
            for i, param in enumerate(members.params)
            if self._needs_substitute(param)
        }
        self._plan, self._plan_of, self._plan_changes = plan, state, changes
        return plan

    def _has_other_lists(self, plan: list[_Members]) -> bool:
        """Whether the groups have other parameters than they had."""
        return any(
            len(group["params"]) != len(members.params)
            or any(map(is_not, group["params"], members.params))
            for group, members in zip(self.param_groups, plan, strict=True)
        )

    def _described(self, group: dict[str, Any], members: _Members) -> Group:
        """Return a group as the native step reads it."""
        raise NotImplementedError

    def _needs_substitute(self, param: Any) -> bool:
        return is_unusual(param)

    def _substitute(self, param: Any, written: list[Any]) -> tuple[Any, list[Any]]:
        """Return the gradient, and the parameter and state, in forms that go together."""
        grad = local(param.grad.detach(), param)
        if param.is_complex():
            grad = torch.view_as_real(grad.resolve_conj())
        return in_layout(grad.resolve_neg(), written[0]), written

    def _check_grad(self, param: Any) -> None:
        """Refuse gradients of a layout that steps do not take."""
        if param.grad.layout in _SPARSE:
            raise RuntimeError(
                "Adam does not support sparse gradients, please consider SparseAdam instead"
            )

    def _kept(self, param: Any, config: _core.AdamConfig) -> Iterator[str]:
        """Yield the names of the arrays that are kept for a parameter."""
        yield from MOMENTS
        if config.use_amsgrad:
            yield "max_exp_avg_sq"
        if config.master_weights and param.dtype in (torch.float16, torch.bfloat16):
            yield "master"
        if config.ema_decay > 0.0:
            yield "ema"

    def _keeps_copies(self, name: str) -> bool:
        return bool(self._base.master_weights if name == "master" else self._base.ema_decay)

    def _first_count(self) -> Any:
        return torch.zeros((), dtype=count_type(), device="cpu")

    def _state_type(self, param: Any, name: str) -> Any:
        """Return the type that an array of the state has."""
        real = REAL_TYPES.get(param.dtype)
        if real is None:
            raise TypeError(
                "parameters must be of float32, float64, float16, bfloat16, complex64 or "
                f"complex128, got {param.dtype}"
            )
        is_narrow = self._extras.get("state_dtype") == "bfloat16" and name in MOMENTS
        return torch.bfloat16 if is_narrow else real

    def _complete(self, plan: list[_Members], positions: list[int]) -> None:
        """Add the state that is not there, and lay out what is like the parameters."""
        found = [_located(plan, position) for position in positions]
        for members, i in found:
            self._check_grad(members.params[i])
        for members, i in found:
            param = members.params[i]
            state = self.state.setdefault(param, {})
            if state:
                state[STEP] = count(state.get(STEP), f"of parameter {members.first + i}")
            else:
                state[STEP] = self._first_count()
            for name in self._kept(param, members.config):
                dtype = self._state_type(param, name)
                if name in state:
                    label = f"state[{name!r}] of parameter {members.first + i}"
                    state[name] = fitting(state[name], param, dtype, label)
                    continue
                with torch.no_grad():
                    state[name] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
                    if name in COPIES:
                        state[name].copy_(param)

    def _substitutes(self, plan: list[_Members]) -> tuple[Substitutes, list[tuple[Any, Any]]]:
        """Return what stands for parameters that are not read as they are.

        Also those whose memory has gaps, with the copies that are updated in their place.
        """
        substitutes: Substitutes = {}
        copied: list[tuple[Any, Any]] = []
        for position in sorted(self._substituted):
            members, i = _located(plan, position)
            param, state = members.params[i], members.states[i]
            if param.grad is None or not state:
                continue
            self._check_grad(param)
            if hasattr(param, "to_local") and self._base.max_grad_norm > 0.0:
                raise RuntimeError(
                    f"max_grad_norm does not go with DTensors, whose norm is over all parts: "
                    f"parameter {position}; call torch.nn.utils.clip_grad_norm_"
                )
            written = [local(param.detach())]
            written += [local(state[name]) if name in state else None for name in ARRAYS]
            if param.is_complex():
                written = [a if a is None else torch.view_as_real(a) for a in written]
            if written[0].is_neg() or has_gaps(written[0]):
                place, written[0] = written[0], plain_copy(written[0], position)
                copied.append((place, written[0]))
            grad, written = self._substitute(param, written)
            if written[0].device.type == "cuda":
                grad = tuple(map(from_device, grad)) if type(grad) is tuple else from_device(grad)
                written = [a if a is None else from_device(a) for a in written]
            substitutes[position] = (written[0], grad, *written[1:])
        return substitutes, copied

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state that another such optimizer, or one of torch's, has returned.

        Parameters
        ----------
        state_dict : dict
            What ``state_dict()`` of this class, or of that of the same name of ``torch.optim``, has
            returned. Its tensors are copied. They get the types that steps keep here: float32
            moments of a bfloat16 parameter stay float32, where torch would cast them.

        Raises
        ------
        ValueError
            If it is of other groups or shapes. Nothing has changed then.
        """
        keep = self.register_load_state_dict_pre_hook(_keep_types)
        try:
            super().load_state_dict(state_dict)
        finally:
            keep.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_extras": dict(self._extras)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "_extras" in state:  # copied or pickled: the tensors, perhaps of shared memory, stay
            self._take_extras(**state.pop("_extras"))
        elif "state" in state:
            loaded = ((key, self._loaded(key, entry)) for key, entry in state["state"].items())
            state["state"] = _State(dict, loaded)
        super().__setstate__(state)
        self._forget()

    def _loaded(self, param: Any, entry: Any) -> Any:
        """Bring an entry of a state from elsewhere into the form that it has here."""
        if not isinstance(entry, dict) or not isinstance(param, torch.Tensor):
            return entry
        entry = {
            key: value.tensor if isinstance(value, _Kept) else value for key, value in entry.items()
        }
        if entry and STEP not in entry:
            raise ValueError(
                f"the state of a parameter must hold {STEP!r}, got {sorted(map(str, entry))}"
            )
        for name in COPIES:
            # As of the last step that kept it: it would undo what was trained since.
            if name in entry and not self._keeps_copies(name):
                del entry[name]
        for name in set(ARRAYS).intersection(entry):
            like = entry[name].to(dtype=self._state_type(param, name), copy=True)
            entry[name] = fitting(like, param, like.dtype, f"the state {name!r}")
        if STEP in entry:
            entry[STEP] = count(entry[STEP], "that is loaded")
        return entry


class DenseStep(NativeStep):
    """The step of `Adam` and `AdamW`."""

    _is_decoupled = False  # else what a key of the groups says

    def _take_extras(self, **extras: Any) -> None:
        super()._take_extras(**extras)
        config = self._base
        config.master_weights = validation.flag("master_weights", extras["master_weights"])
        config.max_grad_norm = _options.max_grad_norm("max_grad_norm", extras["max_grad_norm"])
        config.seed = validation.integer("seed", extras["seed"], minimum=0, maximum=2**64 - 1)
        if extras["state_dtype"] is not None:
            allowed = ("float32", "bfloat16")
            name = validation.choice("state_dtype", extras["state_dtype"], allowed)
            config.state_format = _options.STATE_FORMATS[name]
        if extras["ema_decay"] is not None:
            decay = validation.real("ema_decay", extras["ema_decay"], above=0.0, below=1.0)
            config.ema_decay = decay

    @property
    def last_grad_norm(self) -> float:
        """The norm over all gradients of the last step before clipping, if there was clipping."""
        return self._native.grad_norm

    def _described(self, group: dict[str, Any], members: _Members) -> Group:
        beta1, beta2 = group["betas"]
        rate, decay, eps = group["lr"], group["weight_decay"], group["eps"]
        options = (
            beta1 if type(beta1) is float else number("betas[0]", beta1),
            beta2 if type(beta2) is float else number("betas[1]", beta2),
            eps if type(eps) is float else number("eps", eps),
            group["amsgrad"],
            group["maximize"],
            self._is_decoupled or group.get("decoupled_weight_decay", False),
            group["capturable"],
            group["differentiable"],
        )
        if options != members.options:
            members.config = self._config_of(*options)
            members.options = options
        return (
            members.config,
            rate if type(rate) is float else number("lr", rate),
            decay if type(decay) is float else number("weight_decay", decay),
            group["params"],
            members.params,
            members.states,
        )

    def _config_of(
        self,
        beta1: float,
        beta2: float,
        eps: float,
        amsgrad: bool,
        maximize: bool,
        is_decoupled: bool,
        capturable: bool,
        differentiable: bool,
    ) -> _core.AdamConfig:
        """Return the options of a group with those of the optimizer."""
        refuse_modes(capturable, differentiable)
        config = _core.default_group(self._base)
        config.beta1, config.beta2 = checked_beta(0, beta1), checked_beta(1, beta2)
        config.eps = eps
        config.use_amsgrad, config.maximize = bool(amsgrad), bool(maximize)
        config.decoupled_weight_decay = bool(is_decoupled)
        return config


class RowStep(NativeStep):
    """The step of `SparseAdam`."""

    def _take_extras(self, **extras: Any) -> None:
        super()._take_extras(**extras)
        self._base.row_policy = _core.RowPolicy["lazy"]
        self._base.epsilon_placement = _core.EpsilonPlacement["inside"]

    def _described(self, group: dict[str, Any], members: _Members) -> Group:
        beta1, beta2 = (number(f"betas[{k}]", group["betas"][k]) for k in range(2))
        options = (beta1, beta2, number("eps", group["eps"]), group.get("maximize", False))
        if options != members.options:
            members.config = self._config_of(*options)
            members.options = options
        rate = number("lr", group["lr"])
        return (members.config, rate, 0.0, group["params"], members.params, members.states)

    def _config_of(
        self, beta1: float, beta2: float, eps: float, maximize: bool
    ) -> _core.AdamConfig:
        config = _core.default_group(self._base)
        config.beta1, config.beta2 = checked_beta(0, beta1), checked_beta(1, beta2)
        config.eps, config.maximize = eps, bool(maximize)
        return config

    def _needs_substitute(self, param: Any) -> bool:  # noqa: ARG002
        return True

    def _check_grad(self, param: Any) -> None:
        if param.grad.layout != torch.sparse_coo:
            raise RuntimeError(
                "SparseAdam does not support dense gradients, please consider Adam instead"
            )

    def _first_count(self) -> Any:
        return 0

    def _substitute(self, param: Any, written: list[Any]) -> tuple[Any, list[Any]]:
        grad = param.grad
        axes = grad.sparse_dim()
        if not written[0].is_contiguous():
            raise ValueError(
                "parameters of SparseAdam must be contiguous, got one of strides "
                f"{tuple(param.stride())}"
            )
        indices = grad._indices()
        if axes == 1:
            rows = indices[0]
        else:
            lengths = param.shape[:axes]
            ends = indices.new_tensor(lengths)[:, None]
            if bool(((indices < 0) | (indices >= ends)).any()):
                raise IndexError(
                    f"a row index of a sparse gradient is outside its parameter of shape "
                    f"{tuple(param.shape)}"
                )
            steps = [math.prod(lengths[k + 1 :]) for k in range(axes)]
            rows = (indices * indices.new_tensor(steps)[:, None]).sum(0)
            shape = (math.prod(lengths), *param.shape[axes:])
            written = [a if a is None else a.view(shape) for a in written]
        values = grad._values().detach().resolve_neg().contiguous()
        rows = rows.contiguous()
        return (rows.numpy() if rows.device.type == "cpu" else rows, values), written


def refuse_modes(capturable: bool, differentiable: bool) -> None:
    """Refuse what needs steps that are made of torch's operations."""
    if capturable:
        raise RuntimeError(
            "capturable=True is not supported by adamas.torch: a step reads its options anew"
        )
    if differentiable:
        raise RuntimeError(
            "differentiable=True is not supported by adamas.torch: autograd does not see its steps"
        )


def checked_beta(k: int, beta: float) -> float:
    """Return a decay rate that may be, or say what torch says."""
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"Invalid beta parameter at index {k}: {beta}")
    return beta


def _scale_of(optimizer: Any) -> float | None:
    """Return what a GradScaler lets gradients be divided by, or None if it found infinities."""
    found = getattr(optimizer, "found_inf", None)
    if found is not None and float(found) != 0.0:
        return None
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _located(plan: list[_Members], position: int) -> tuple[_Members, int]:
    """Return the group of a parameter, and its place there."""
    members = plan[bisect_right(plan, position, key=attrgetter("first")) - 1]
    return members, position - members.first


def _refuse(members: _Members, i: int) -> None:
    """Say what is wrong with a parameter that can't be read."""
    param, position = members.params[i], members.first + i
    raise RuntimeError(
        f"parameter {position} and its gradient must be tensors with memory of their own on the "
        f"CPU or on a CUDA device, got {type(param).__name__} of {param.dtype}, layout "
        f"{param.layout}, on {param.device}, with a gradient of {param.grad.dtype}, layout "
        f"{param.grad.layout}, on {param.grad.device}"
    )


def _keep_types(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Hide the tensors of a state from torch, which would cast them to the parameters' types."""
    hidden = {
        key: {
            name: _Kept(value) if isinstance(value, torch.Tensor) else value
            for name, value in entry.items()
        }
        if isinstance(entry, dict)
        else entry
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": hidden}
