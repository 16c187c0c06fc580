"""One step over MindSpore's tensors: where they lie now, and the native call.

`adamas.mindspore` calls this. Parameters, state, counters and rates are tensors of MindSpore, read
and written where they lie, and nothing of them is kept here. They may have moved since the last
step (`set_data`, `load_param_into_net`), so that every step asks for all addresses; that also waits
for the operations that MindSpore has queued, which must not see half of an update.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from mindspore import Tensor

from . import _core
from ._arrays import FloatArray, gradient
from ._fork import add_lock
from ._mindspore_count import steps_made
from ._mindspore_rates import Rates
from ._parameter import RowTensor

_address = Tensor.data_ptr
_MOST_STEPS = 2**31 - 1  # of MindSpore's int32


class Step:
    """Makes the steps of one optimizer.

    Parameters
    ----------
    config : AdamConfig
    state : dict of str
        What the optimizer calls the tuples of its state, by what adamas calls them.
    powers : dict of float
        The decay rates whose powers the optimizer keeps, by the names of those powers.
    """

    def __init__(
        self, config: _core.AdamConfig, state: Mapping[str, str], powers: Mapping[str, float]
    ) -> None:
        self._config = config
        self._state = state
        self._powers = powers
        self._bound: _Bound | None = None
        self._lock: AbstractContextManager[object]
        add_lock(self)
        self.last_grad_norm = float("nan")
        self.last_step_skipped = False
        self.skipped_steps = 0
        self.bindings = 0  # how often memory was looked up, for tests

    def forget(self) -> None:
        """Look all tensors up again in the next step."""
        self._bound = None

    def __call__(self, optimizer: Any, grads: Any) -> None:
        """Update all parameters of the optimizer, or raise and change nothing."""
        with self._lock:
            bound = self._bound
            if bound is None or not bound.is_in_place():
                self._bound = None
                bound = _Bound(optimizer, self._config, self._state, self._powers)
                self._bound = bound
                self.bindings += 1
            bound.step(grads)
            if self._config.skip_nonfinite or self._config.max_grad_norm:
                native = bound.native
                self.last_grad_norm = native.last_grad_norm
                self.last_step_skipped = native.last_step_skipped
                self.skipped_steps += native.last_step_skipped


class _Bound:
    """The tensors of an optimizer where they lie, until one of them moves."""

    def __init__(
        self,
        optimizer: Any,
        config: _core.AdamConfig,
        state: Mapping[str, str],
        powers: Mapping[str, float],
    ) -> None:
        self._tensors: list[Any] = []
        self._addresses: list[int] = []
        params = list(optimizer.parameters)
        arrays = [self._array(param) for param in params]
        for param, array in zip(params, arrays, strict=True):
            _check_type(param, array)
        states: list[dict[_core.StateKind, FloatArray]] = [{} for _ in params]
        for kind, name in state.items():
            for i, tensor in enumerate(getattr(optimizer, name)):
                array = self._array(tensor)
                _check_state(tensor, array, params[i], arrays[i])
                states[i][_core.StateKind[kind]] = array
        self._global_step = self._array(optimizer.global_step)
        self._powers = [self._array(getattr(optimizer, name)) for name in powers]
        self._betas = [np.float32(beta) for beta in powers.values()]
        self._left: tuple[float, ...] = ()  # the counters as the last step has left them
        self._rates = Rates(optimizer, self._array)
        flags = optimizer.grad_centralization_flags if optimizer.is_group else [False] * len(params)
        takes_flags = config.bias_correction  # nn.AdamWeightDecay ignores them
        specs = [
            _core.ParameterSpec(array, param.name, place, takes_flags and flag, states=kept)
            for array, param, place, flag, kept in zip(
                arrays, params, self._rates.places, flags, states, strict=True
            )
        ]
        self.native = _core.Optimizer(specs, config, gradient)
        self._skips = config.skip_nonfinite
        pairs = zip(params, arrays, strict=True)
        self._grads = [_Place(param.dtype, array) for param, array in pairs]

    def _array(self, tensor: Any) -> FloatArray:
        """Return the memory of a tensor, and remember where it is."""
        array: FloatArray = tensor.asnumpy()
        address = tensor.data_ptr()
        if address != array.__array_interface__["data"][0]:  # a copy, as of parts of tensors
            if not tensor.is_contiguous():
                raise ValueError(
                    f"{tensor.name!r} must fill its memory without gaps, in the order of its axes: "
                    "an update of a copy would be lost; give it memory of its own, by "
                    "set_data(tensor.contiguous())"
                )
            array = _memory(address, array.shape, array.dtype)
        self._tensors.append(tensor)
        self._addresses.append(address)
        return array

    def is_in_place(self) -> bool:
        """Whether no tensor has moved. Waits for what MindSpore has queued."""
        return list(map(_address, self._tensors)) == self._addresses

    def step(self, grads: Any) -> None:
        number = self._count()
        rates = self._rates.at(number)
        self.native.step(self._views(grads), rates)
        if self._skips and self.native.last_step_skipped:
            return
        self._global_step[...] = number + 1
        for array, beta in zip(self._powers, self._betas, strict=True):
            array[...] = np.float32(array.item()) * beta
        self._left = self._counters()

    def _counters(self) -> tuple[float, ...]:
        return (self._global_step.item(), *(array.item() for array in self._powers))

    def _count(self) -> int:
        """Return `global_step`; if it or a power was set, follow."""
        counters = self._counters()
        number = int(counters[0])
        if counters != self._left:
            if number < 0 or number >= _MOST_STEPS:
                raise ValueError(f"global_step must be in [0, 2**31 - 2], got {number}")
            self.native.global_step = steps_made(number, counters[1:], self._betas)
            self._left = counters
        return number

    def _views(self, grads: Any) -> list[Any]:
        """Return gradients as the native step reads them."""
        if not isinstance(grads, (tuple, list)):
            raise TypeError(
                "gradients must be a tuple or list with one for each parameter, got "
                f"{type(grads).__name__}"
            )
        if len(grads) != len(self._grads):
            raise ValueError(
                f"gradients must hold one for each of the {len(self._grads)} parameters, got "
                f"{len(grads)}"
            )
        return [
            place.view(grad) if type(grad) is Tensor else _converted(grad, f"gradients[{i}]")
            for i, (place, grad) in enumerate(zip(self._grads, grads, strict=True))
        ]


def _memory(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    """Return an array over memory that a tensor holds, without keeping it alive."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory: Any = (ctypes.c_char * nbytes).from_address(address)
    array: FloatArray = np.ndarray(shape, dtype, memory)
    return array


class _Place:
    """Where the gradient of a parameter was last.

    `asnumpy` takes 4 us for each tensor, most of a step of a small model. MindSpore's pool gives
    gradients the same memory again and again, so that the array made for the last one mostly does.
    It keeps no memory alive, and is read only while its gradient lives.
    """

    __slots__ = ("_address", "_array", "_dtype", "_item", "_shape")

    def __init__(self, dtype: Any, parameter: FloatArray) -> None:
        self._dtype = dtype
        self._shape = parameter.shape
        self._item = parameter.dtype
        self._address = 0
        self._array: FloatArray = parameter

    def view(self, grad: Any) -> FloatArray:
        address: int = grad.data_ptr()
        is_usual = (
            address != 0
            and grad.dtype is self._dtype
            and grad.shape == self._shape
            and grad.is_contiguous()
        )
        if not is_usual:
            array: FloatArray = grad.asnumpy()  # which copies what has gaps
            return array
        if address != self._address:
            self._array = _memory(address, self._shape, self._item)
            self._address = address
        return self._array


def _converted(grad: Any, label: str) -> Any:
    """Return what is no plain tensor, as the native step reads it."""
    if grad is None:
        raise TypeError(
            f"{label} must be a tensor, got None: every parameter has its gradient, of zeros where "
            "the loss does not depend on it"
        )
    if isinstance(grad, Tensor):  # a Parameter
        return grad.asnumpy()
    if isinstance(grad, (tuple, list)):  # what a function under mindspore.jit makes of a RowTensor
        return _rows(*_three(grad, label))
    if all(hasattr(grad, name) for name in ("indices", "values", "dense_shape")):
        return _rows(grad.indices, grad.values, grad.dense_shape)
    return grad


def _three(parts: Sequence[Any], label: str) -> Sequence[Any]:
    if len(parts) == 3:
        return parts
    raise TypeError(
        f"{label} must be a tensor, or the indices, values and dense_shape of rows, got "
        f"{len(parts)} things"
    )


def _rows(indices: Any, values: Any, dense_shape: Any) -> RowTensor:
    shape = _numpy(dense_shape)
    return RowTensor(_numpy(indices), _numpy(values), tuple(int(length) for length in shape))


def _numpy(part: Any) -> Any:
    return part.asnumpy() if isinstance(part, Tensor) else part


def _check_type(param: Any, memory: FloatArray) -> None:
    if memory.dtype.name not in _core.DTYPES:
        raise TypeError(
            f"parameter {param.name!r} must be {_core.DTYPE_NAMES}, got {memory.dtype.name}"
        )


def _check_state(tensor: Any, array: FloatArray, param: Any, memory: FloatArray) -> None:
    """Refuse state that does not go with its parameter: the native side takes its word for it."""
    real = _core.gradient_dtypes(memory.dtype.name)[0]
    if array.dtype.name != real:
        raise TypeError(
            f"{tensor.name!r} must be {real}, as goes with parameter {param.name!r} of "
            f"{memory.dtype.name}, got {array.dtype.name}"
        )
    if array.shape != memory.shape:
        raise ValueError(
            f"{tensor.name!r} must have the shape {memory.shape} of parameter {param.name!r}, got "
            f"{array.shape}"
        )
