"""The definition of every rule, executable: plain NumPy, one function per formula.

Used by the accuracy tests, and meant to be read.  `param`, `grad` and the moments are arrays; they
are computed in float64, or in numpy.longdouble where float64 itself is to be checked.  Nothing is
rounded to the type of the parameter on the way, and hyper-parameters are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class Rule:
    """Which of the formulas apply."""

    use_nesterov: bool = False
    use_amsgrad: bool = False
    decoupled_weight_decay: bool = False
    grad_centralization: bool = False
    bias_correction: bool = True  # AdamWeightDecay has none


@dataclass(frozen=True)
class HyperParameters:
    """The numbers of one step."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float = 0.0
    loss_scale: float = 1.0


@dataclass
class State:
    """One parameter and its moments, in the precision of the oracle."""

    param: Array
    moment1: Array
    moment2: Array
    vhat: Array = field(default_factory=lambda: np.zeros(()))

    def astype(self, dtype: Any) -> State:
        """Return a copy of another precision."""
        return State(*(np.array(x, dtype=dtype) for x in vars(self).values()))


def unscaled(grad: Array, loss_scale: float) -> Array:
    """Return the gradient of the loss itself: g = grad / loss_scale."""
    return grad / loss_scale


def with_l2(grad: Array, param: Array, weight_decay: float) -> Array:
    """Return g + weight_decay * param."""
    return grad + weight_decay * param


def row_means(grad: Array) -> Array:
    """Return the mean over all axes but the first, shaped to broadcast."""
    return grad.mean(axis=tuple(range(1, grad.ndim)), keepdims=True)


def centralized(grad: Array) -> Array:
    """Return g - mean(g over axes 1..n-1); gradients of less than three axes stay as they are."""
    return grad - row_means(grad) if grad.ndim >= 3 else grad


def next_moment1(moment1: Array, grad: Array, beta1: float) -> Array:
    """Return beta1 m + (1 - beta1) g."""
    return beta1 * moment1 + (1 - beta1) * grad


def next_moment2(moment2: Array, grad: Array, beta2: float) -> Array:
    """Return beta2 v + (1 - beta2) g^2."""
    return beta2 * moment2 + (1 - beta2) * grad**2


def numerator(moment1: Array, grad: Array, beta1: float, *, use_nesterov: bool) -> Array:
    """Return the new m, or Nesterov's beta1 m + (1 - beta1) g."""
    return next_moment1(moment1, grad, beta1) if use_nesterov else moment1


def bias_correction(beta: Any, step: int) -> Any:
    """Return 1 - beta^t for the 1-based step t; beta is a scalar of the oracle's precision."""
    return -np.expm1(step * np.log(beta))


def gradient(rule: Rule, hyper: HyperParameters, param: Array, grad: Array) -> Array:
    """Return the gradient that enters the moments."""
    g = unscaled(grad, hyper.loss_scale)
    if not rule.decoupled_weight_decay:
        g = with_l2(g, param, hyper.weight_decay)
    if rule.grad_centralization:
        g = centralized(g)
    return g


def update(rule: Rule, hyper: HyperParameters, num: Array, second: Array, step: int) -> Array:
    """Return what is subtracted: lr / (1 - beta1^t) * num / (sqrt(vhat / (1 - beta2^t)) + eps)."""
    correction1 = correction2 = 1
    if rule.bias_correction:
        correction1 = bias_correction(hyper.beta1, step)
        correction2 = bias_correction(hyper.beta2, step)
    denominator = np.sqrt(second / correction2) + hyper.eps
    return hyper.learning_rate / correction1 * num / denominator


def next_state(rule: Rule, hyper: HyperParameters, state: State, grad: Array, step: int) -> State:
    """Return the state after the 1-based step ``step``; ``state`` stays as it is."""
    dtype = state.param.dtype.type
    hyper = HyperParameters(*(dtype(value) for value in vars(hyper).values()))
    param = state.param

    g = gradient(rule, hyper, param, grad.astype(dtype))
    moment1 = next_moment1(state.moment1, g, hyper.beta1)
    moment2 = next_moment2(state.moment2, g, hyper.beta2)
    vhat = np.maximum(state.vhat, moment2) if rule.use_amsgrad else state.vhat
    second = vhat if rule.use_amsgrad else moment2
    num = numerator(moment1, g, hyper.beta1, use_nesterov=rule.use_nesterov)

    if rule.decoupled_weight_decay:
        param = param - hyper.learning_rate * hyper.weight_decay * param
    param = param - update(rule, hyper, num, second, step)
    return State(param, moment1, moment2, vhat)


# Sparse gradients.  `indices` and `values` are those of a RowTensor.


def summed_rows(indices: Array, values: Array) -> tuple[Array, Array]:
    """Return the listed rows, ascending, and for each the sum of its values in their order."""
    rows, first, position = np.unique(indices, return_index=True, return_inverse=True)
    repeats = np.setdiff1d(np.arange(len(indices)), first)
    sums = values[first]
    np.add.at(sums, position[repeats], values[repeats])  # one after the other
    return rows, sums


def dense_gradient(indices: Array, values: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient that the exact policy means: zero but for the listed rows."""
    rows, sums = summed_rows(indices, values)
    grad = np.zeros(shape, values.dtype)
    grad[rows] = sums
    return grad


def rows_of(state: State, rows: Array) -> State:
    """Return some rows as a state of their own: what the lazy policy steps."""
    return State(*(x[rows] if x.ndim else x for x in vars(state).values()))


def caught_up(hyper: HyperParameters, state: State, missed: Array) -> State:
    """Return the state as the policy "catch_up" finds it: each row has missed so many steps."""
    missed = missed.reshape(-1, *[1] * (state.param.ndim - 1))
    moment1 = state.moment1 * hyper.beta1**missed
    moment2 = state.moment2 * hyper.beta2**missed
    return State(state.param, moment1, moment2, state.vhat)


# Clipping.


def global_norm(grads: list[Array], loss_scale: float) -> Any:
    """Return the Euclidean norm of all gradients together; duplicate rows are summed before."""
    return np.sqrt(sum(np.square(grad.astype(np.longdouble)).sum() for grad in grads)) / loss_scale


def clip_factor(norm: Any, max_grad_norm: float) -> Any:
    """Return what every gradient is multiplied with."""
    return max_grad_norm / norm if norm > max_grad_norm else 1.0


# 16-bit types.


@dataclass(frozen=True)
class HalfFormat:
    """A binary floating-point type of 16 bits."""

    digits: int  # of the significand, the hidden one included
    smallest_exponent: int  # of the smallest normal number
    largest: float


FLOAT16 = HalfFormat(digits=11, smallest_exponent=-14, largest=65504.0)
BFLOAT16 = HalfFormat(digits=8, smallest_exponent=-126, largest=(2 - 2.0**-7) * 2.0**127)


def rounded(half: HalfFormat, values: Array) -> Array:
    """Return float32 values rounded to nearest even: to infinity if the result is too large."""
    wide = np.asarray(values, np.float64)
    exponent = np.frexp(wide)[1] - 1
    last_place = np.ldexp(1.0, np.maximum(exponent, half.smallest_exponent) - half.digits + 1)
    nearest = np.rint(wide / last_place) * last_place
    return np.where(abs(nearest) > half.largest, np.copysign(np.inf, wide), nearest)
