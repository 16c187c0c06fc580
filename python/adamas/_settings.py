"""What the steps of an optimizer are made with: its groups, rates and options, read and set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, overload

from . import _core, _options
from . import _validation as validation
from ._groups import GroupOptions, Member
from ._parameter import Parameter
from ._parameter_group import ParameterGroup
from ._rates import Rate, RateBook
from ._step_rates import StepRates
from ._strict import Strict
from .typing import LearningRate, WeightDecay


class Settings(Strict):
    """Base of `Optimizer`, which makes it."""

    __slots__ = (
        "_book",
        "_config",
        "_configs",
        "_defaults",
        "_given",
        "_grouped",
        "_index",
        "_lock",
        "_members",
        "_native",
        "_rates",
    )

    _book: RateBook
    _config: _core.AdamConfig  # what steps compute with, as far as groups do not differ
    _configs: list[_core.AdamConfig]  # of each group, as they were given
    _defaults: GroupOptions  # of groups that say nothing else
    _given: _core.AdamConfig
    _grouped: bool
    _index: dict[int, int]  # of the parameters' positions, by id
    _lock: AbstractContextManager[object]
    _members: list[Member]
    _native: _core.Optimizer
    _rates: StepRates

    @property
    def groups(self) -> list[ParameterGroup]:
        """The groups in the order in which they were given: live views, whose options can be set.

        All parameters are one group where no groups were given.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam, Parameter
        >>> optimizer = Adam([Parameter(np.ones(2, np.float32), name="weight")])
        >>> optimizer.groups[0].lr = 3e-4
        >>> optimizer.get_lr()
        0.0003
        """
        return [ParameterGroup(self, i) for i in range(len(self._rates.learning_rates))]

    @property
    def learning_rate(self) -> LearningRate:
        """The learning rate, as it was given. Set, it is that of all groups from the next step on.

        It takes all forms that the constructor takes; step i of a vector is still `global_step` i.
        AttributeError if groups have different ones: look at `groups` then.
        """
        shared: LearningRate = self._common(
            "lr", [rate.source for rate in self._rates.learning_rates]
        )
        return shared

    @learning_rate.setter
    def learning_rate(self, value: LearningRate) -> None:
        rate = self._book.learning_rate("learning_rate", value)
        with self._lock:
            self._defaults.learning_rate = rate
            self._rates.set_learning_rates(range(len(self._rates.learning_rates)), rate)

    @property
    def weight_decay(self) -> WeightDecay:
        """The weight decay, as `learning_rate`."""
        shared: WeightDecay = self._common(
            "weight_decay", [rate.source for rate in self._rates.weight_decays]
        )
        return shared

    @weight_decay.setter
    def weight_decay(self, value: WeightDecay) -> None:
        rate = self._book.weight_decay("weight_decay", value)
        with self._lock:
            self._defaults.weight_decay = rate
            self._rates.set_weight_decays(range(len(self._rates.weight_decays)), rate)

    @property
    def beta1(self) -> float:
        """The decay rate of the first moment. Set, it is that of all groups from the next step on.

        AttributeError if groups have different ones: look at `groups` then.
        """
        shared: float = self._common("beta1", [config.beta1 for config in self._configs])
        return shared

    @beta1.setter
    def beta1(self, value: float) -> None:
        self._set_option("beta1", value)

    @property
    def beta2(self) -> float:
        """The decay rate of the second moment, as `beta1`."""
        shared: float = self._common("beta2", [config.beta2 for config in self._configs])
        return shared

    @beta2.setter
    def beta2(self, value: float) -> None:
        self._set_option("beta2", value)

    @property
    def eps(self) -> float:
        """What is added to the denominator, as `beta1`."""
        shared: float = self._common("eps", [config.eps for config in self._configs])
        return shared

    @eps.setter
    def eps(self, value: float) -> None:
        self._set_option("eps", value)

    def _set_option(self, name: str, value: Any, group: int | None = None) -> None:
        """Set an option of a group, or of all of them and of those to come."""
        label = name if group is None else f"groups[{group}].{name}"
        allow_zero = self._given.allow_zero
        checked = _options.of_group(name, label, value, allow_zero=allow_zero)
        with self._lock:
            groups = range(len(self._configs)) if group is None else [group]
            self._check_group_norm(name, checked, groups)
            self._change(groups, name, checked)
            if group is None:
                setattr(self._given, name, checked)
                setattr(self._defaults.config, name, checked)

    def _change(self, groups: Sequence[int], name: str, value: Any) -> None:
        """Give all of these groups another option, or none of them."""
        former = self._configs
        changed = list(former)
        done = []
        try:
            for group in groups:
                changed[group] = former[group].copy()
                setattr(changed[group], name, value)
                for index in self._rates.indices_of(group):
                    self._native.set_group(index, changed[group])
                    done.append((index, group))
        except BaseException:
            for index, group in done:
                self._native.set_group(index, former[group])
            raise
        self._configs = changed

    def _check_group_norm(self, name: str, value: Any, groups: Sequence[int]) -> None:
        """Refuse the norm of a group whose parameters the native side has at two indices."""
        if name not in ("max_grad_norm", "clip_per_array"):
            return
        for group in groups:
            config = self._configs[group].copy()
            setattr(config, name, value)
            is_split = len(self._rates.indices_of(group)) > 1
            if is_split and config.max_grad_norm and not config.clip_per_array:
                raise ValueError(
                    f"groups[{group}].{name} must be None: there are parameters named beta or "
                    "gamma, which are not decayed; give max_grad_norm to the optimizer, put the "
                    "parameters into groups, or set clip_per_array first"
                )

    def _common(self, name: str, values: Sequence[Any]) -> Any:
        if all(value is values[0] or value == values[0] for value in values):
            return values[0]
        raise AttributeError(f"groups have different ones: see groups[i].{name}")

    def get_lr(self) -> float | tuple[float, ...]:
        """Return the learning rate that the next step uses.

        One float, or with groups a tuple of one for each parameter in update order.
        """
        step = self._native.global_step
        rates = self._rates.learning_rates
        if not self._grouped:
            return self._lr_at(rates[0], step)
        return tuple(self._lr_at(rates[member.group], step) for member in self._members)

    def get_weight_decay(self) -> float | tuple[float, ...]:
        """Return the weight decay that the next step uses, not multiplied by the loss scale.

        One float, or with groups a tuple of one for each parameter in update order. Without
        groups, parameters named "beta" or "gamma" are not decayed whatever this says.
        """
        step = self._native.global_step
        rates = self._rates.weight_decays
        if not self._grouped:
            return rates[0].at(step)
        return tuple(rates[member.group].at(step) for member in self._members)

    @overload
    def get_lr_parameter(self, param: Parameter) -> float: ...
    @overload
    def get_lr_parameter(self, param: Sequence[Parameter]) -> list[float]: ...
    def get_lr_parameter(self, param: Parameter | Sequence[Parameter]) -> float | list[float]:
        """Return the learning rate that the next step uses for a parameter, or a list of them.

        Parameters
        ----------
        param : Parameter or list or tuple of Parameter
            What to look up.

        Raises
        ------
        TypeError
            If something else is given.
        ValueError
            If a parameter does not belong to this optimizer.
        """
        if isinstance(param, (list, tuple)):
            return [self._lr_of(one) for one in param]
        return self._lr_of(param)

    @property
    def loss_scale(self) -> float:
        """What the gradients of the next step are divided by; can be set between steps.

        A dynamic loss scale goes here: ``opt.loss_scale = manager.get_loss_scale()``.
        """
        return self._native.loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        scale = validation.loss_scale("loss_scale", value)
        with self._lock:
            self._native.loss_scale = scale

    def _next_rates(self) -> _core.Rates:
        """Return the learning rates and weight decays of the next step."""
        return self._rates.constant or self._rates.at(self._native.global_step)

    def _lr_at(self, rate: Rate, step: int) -> float:
        return self._native.used_learning_rate(rate.at(step))

    def _lr_of(self, param: Any) -> float:
        member = self._members[self._position(param)]
        return self._lr_at(self._rates.learning_rates[member.group], self._native.global_step)

    def _position(self, param: Any) -> int:
        """Return where a parameter stands in update order."""
        if not isinstance(param, Parameter):
            raise TypeError(f"param must be a Parameter, got {validation.shown(param)}")
        if id(param) not in self._index:
            raise ValueError(f"param must belong to this optimizer, got {param!r}")
        return self._index[id(param)]
