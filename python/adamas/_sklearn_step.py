"""What steps for the models of adamas.sklearn, in the place of scikit-learn's AdamOptimizer.

How scikit-learn calls its optimizers is no public API. What it must look like is checked here, when
this is imported.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np

from . import _core
from ._adam import Adam
from ._parameter import Parameter
from .typing import FloatArray

try:
    import sklearn
    from threadpoolctl import threadpool_info  # which scikit-learn needs
except ImportError as error:
    raise ImportError(
        "adamas.sklearn needs scikit-learn, which could not be imported: "
        'pip install "adamas[sklearn]"'
    ) from error

_TESTED = "1.3 to 1.9"


def unknown(what: str) -> str:
    return (
        f"adamas.sklearn was tested with scikit-learn {_TESTED}; in {sklearn.__version__} {what}, "
        'so that its solver can\'t be replaced: pip install "adamas[sklearn]" chooses a version'
    )


try:
    from sklearn import neural_network
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer as _TheirAdam
    from sklearn.neural_network._stochastic_optimizers import BaseOptimizer as _TheirOptimizer
except ImportError as error:
    raise ImportError(unknown(f"there is no {error.name}: {error}")) from error


def _check_host() -> None:
    """Refuse a scikit-learn that calls its optimizers in another way."""
    wanted = {
        (_TheirAdam, "__init__"): ["params", "learning_rate_init", "beta_1", "beta_2", "epsilon"],
        (_TheirAdam, "update_params"): ["params", "grads"],
        (_TheirOptimizer, "__init__"): ["learning_rate_init"],
    }
    for (owner, name), arguments in wanted.items():
        found = list(inspect.signature(getattr(owner, name, lambda: None)).parameters)[1:]
        if found != arguments:
            called = f"{owner.__name__}.{name}"
            raise ImportError(unknown(f"{called} takes {found} instead of {arguments}"))
    for estimator in (neural_network.MLPClassifier, neural_network.MLPRegressor):
        if not hasattr(estimator, "_fit"):
            raise ImportError(unknown(f"{estimator.__name__} has no _fit"))


_check_host()


def _num_threads() -> int | None:
    """Return as many threads as the BLAS uses, which joblib and threadpoolctl may have limited."""
    if "ADAMAS_NUM_THREADS" in os.environ:
        return None
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    usual = _core.default_threads()[0]
    return max(1, min(usual, max(blas, default=usual)))


class AdamOptimizer(_TheirOptimizer):
    """What a fitted model keeps as ``_optimizer``, in the place of scikit-learn's class.

    ``t``, ``ms`` and ``vs`` are the step and the moments, as there; ``vhats`` those of AMSGrad.
    They are what `adamas.Adam` works on; it is not pickled, but made from them when needed.
    """

    def __init__(
        self,
        params: Sequence[FloatArray],
        learning_rate_init: float = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        use_amsgrad: bool = False,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(learning_rate_init)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.use_amsgrad = use_amsgrad
        self.max_grad_norm = max_grad_norm
        self.num_threads = num_threads
        self.t = 0
        self.ms = [np.zeros_like(param) for param in params]
        self.vs = [np.zeros_like(param) for param in params]
        self.vhats = [np.zeros_like(param) for param in params] if use_amsgrad else []
        self._adam: Adam | None = None
        self._threads: int | None = None
        self._used: tuple[tuple[Any, ...], list[Any]] = ((), [])

    def update_params(self, params: Sequence[FloatArray], grads: Sequence[FloatArray]) -> None:
        """Make one step, in place.

        Parameters
        ----------
        params, grads : list of ndarray
            ``coefs_`` and ``intercepts_``, and the gradient of each.
        """
        adam = self._adam
        arrays = [*params, *self.ms, *self.vs, *self.vhats]
        numbers, used = self._used
        if (
            adam is None
            or numbers != self._numbers()
            or self.t != adam.global_step
            or len(used) != len(arrays)
            or not all(map(is_, used, arrays))
        ):
            adam = self._bound_to(params)
        adam(grads)
        self.t += 1

    def _numbers(self) -> tuple[Any, ...]:
        """Return what may be set between steps."""
        return (self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _bound_to(self, params: Sequence[FloatArray]) -> Adam:
        """Return an optimizer over these parameters and this state, which is kept for later."""
        self.ms, self.vs, self.vhats = (
            [_like(*pair) for pair in zip(params, state, strict=True)] if state else []
            for state in (self.ms, self.vs, self.vhats)
        )
        kinds: dict[str, Any] = {"moment1": self.ms, "moment2": self.vs, "vhat": self.vhats}
        made = [
            _parameter(param, name, {kind: kept[i] for kind, kept in kinds.items() if kept})
            for i, (param, name) in enumerate(zip(params, _names(len(params)), strict=True))
        ]
        # Intercepts do not decay: scikit-learn's alpha leaves them alone, too.
        groups: list[Any] = [
            {"params": [one], "weight_decay": float(self.weight_decay) * (one.data.ndim > 1)}
            for one in made
        ]
        if self._threads is None:
            self._threads = int(self.num_threads or 0) or _num_threads()
        learning_rate, beta1, beta2, eps = map(float, self._numbers())
        adam = Adam(
            groups if self.weight_decay else made,
            learning_rate,
            beta1,
            beta2,
            eps,
            epsilon_placement="inside",
            allow_zero=True,
            decoupled_weight_decay=True,
            use_amsgrad=bool(self.use_amsgrad),
            max_grad_norm=self.max_grad_norm,
            num_threads=self._threads,
        )
        adam.global_step = self.t
        self._adam = adam
        self._used = (self._numbers(), [*params, *self.ms, *self.vs, *self.vhats])
        return adam

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy.deepcopy take: the state, without what works on it."""
        return {**self.__dict__, "_adam": None, "_threads": None, "_used": ((), [])}


def _names(count: int) -> list[str]:
    """Return what messages call the parameters: first the coefficients, then the intercepts."""
    kinds = [f"coefs_[{i}]" for i in range(count // 2)]
    more = [f"intercepts_[{i}]" for i in range(count - len(kinds))]
    return [*kinds, *more]


def _parameter(param: FloatArray, name: str, states: dict[str, Any]) -> Parameter:
    try:
        return Parameter(param, name, **states)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("data must", f"{name} must", 1)) from None


def _like(param: FloatArray, state: FloatArray) -> FloatArray:
    """Return state of a parameter's type and layout: scikit-learn's own may have another one."""
    if state.dtype == param.dtype and state.strides == param.strides:
        return state
    if state.shape != param.shape:
        raise ValueError(f"moments must have shape {param.shape}, got {state.shape}")
    made = np.empty_like(param)
    made[...] = state
    return made
