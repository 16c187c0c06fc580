r"""scikit-learn's multi-layer perceptrons, with their solver "adam" made by adamas.

In the place of `sklearn.neural_network.MLPClassifier` and `MLPRegressor`, which do everything but
the step: arguments, batches, early stopping, gradients. The step is hooked in where they keep
their optimizer; that it has made the steps is checked after each fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

from ._sklearn_step import AdamOptimizer, unknown

try:
    from sklearn import neural_network
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer as _TheirAdam
    from sklearn.utils._param_validation import Interval
except ImportError as error:
    raise ImportError(unknown(f"a part is not where it was: {error}")) from error

__all__ = ["MLPClassifier", "MLPRegressor"]

AdamOptimizer.__module__ = __name__  # in pickles of models

_Init = TypeVar("_Init", bound=Callable[..., None])


def _extends(model: type) -> Callable[[_Init], _Init]:
    """Show the parameters of a class of scikit-learn as those of a constructor, before its own."""

    def with_signature(init: _Init) -> _Init:
        theirs = inspect.signature(model.__init__).parameters.values()  # type: ignore[misc]
        own = [
            parameter
            for parameter in inspect.signature(init).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        init.__signature__ = inspect.Signature([*theirs, *own])  # type: ignore[attr-defined]
        return init

    return with_signature


class _WithAdam:
    """What both estimators share: `_optimizer`, in which scikit-learn keeps its optimizer."""

    # Options of the solver "adam" that change what comes out, and when they do not.
    _neutral: ClassVar[Mapping[str, Any]] = {
        "weight_decay": 0.0,
        "use_amsgrad": False,
        "max_grad_norm": None,
    }
    _own_constraints: ClassVar[Mapping[str, Any]] = {
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "use_amsgrad": ["boolean"],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "num_threads": [Interval(Integral, 1, None, closed="left"), None],
    }

    @property
    def _optimizer(self) -> Any:
        if "_optimizer" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute '_optimizer' before fit")
        made = self.__dict__["_optimizer"]
        if type(made) is _TheirAdam:  # of the state of a model of scikit-learn's
            self._optimizer = made
        return self.__dict__["_optimizer"]

    @_optimizer.setter
    def _optimizer(self, made: Any) -> None:
        if type(made) is _TheirAdam:
            numbers = (made.learning_rate_init, made.beta_1, made.beta_2, made.epsilon)
            options = {name: getattr(self, name) for name in self._own_constraints}
            ours = AdamOptimizer(made.ms, *numbers, **options)
            ours.t, ours.ms, ours.vs = made.t, made.ms, made.vs
            made = ours
        self.__dict__["_optimizer"] = made

    def _fit(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self
        if model.solver != "adam":
            for name, neutral in self._neutral.items():
                value = getattr(model, name)
                if value != neutral:
                    raise ValueError(
                        f"{name} must be {neutral!r} unless solver is 'adam', got {value!r} with "
                        f"solver={model.solver!r}"
                    )
        before = self.__dict__.get("_optimizer")
        fitted = super()._fit(*args, **kwargs)  # type: ignore[misc]
        made = self.__dict__.get("_optimizer")
        if model.solver != "adam" or (made is before and made is not None):
            return fitted  # partial_fit goes on with what it has
        if type(made) is not AdamOptimizer or (made.t == 0 and model.n_iter_ > 0):
            raise RuntimeError(unknown("fit does not make its steps by the model's _optimizer"))
        return fitted


class MLPClassifier(_WithAdam, neural_network.MLPClassifier):
    r"""Multi-layer perceptron classifier, whose solver "adam" is that of adamas.

    `sklearn.neural_network.MLPClassifier` in everything else, and with the same results up to
    rounding: it has the formula

    .. math::

        p = p - lr \sqrt{1 - \beta_2^t} / (1 - \beta_1^t) \cdot m / (\sqrt{v} + epsilon)

    and takes float32 and float64 samples, whose type is that of the weights and of the arithmetic.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate_init, beta_1, beta_2, \
    epsilon, max_iter, random_state, early_stopping, warm_start, ...
        Those of the installed version of scikit-learn, with its defaults. ``solver="sgd"`` and
        ``"lbfgs"`` are scikit-learn's own.
    weight_decay : float, default 0.0, keyword only
        Weight decay >= 0 that is decoupled from the gradient (AdamW; Loshchilov and Hutter, 2019):
        each step multiplies ``coefs_`` by ``1 - learning_rate_init * weight_decay``. Intercepts do
        not decay. ``alpha`` is the L2 penalty, in the loss and the gradients, and has a default
        that is not zero.
    use_amsgrad : bool, default False, keyword only
        Whether the denominator uses the largest :math:`v` so far (Reddi et al., 2018).
    max_grad_norm : float, optional, keyword only
        If the Euclidean norm over all gradients of a step is larger, all are scaled down to it.
    num_threads : int, optional, keyword only
        How many threads a large step uses; the result is the same for any number. By default
        ``ADAMAS_NUM_THREADS`` of the environment, or as many as the BLAS, so that joblib's workers
        and ``threadpoolctl.threadpool_limits`` limit both.

    Raises
    ------
    ValueError
        In `fit` and `partial_fit`: if an option of adamas's is out of its range, or given with
        another solver; if gradients that are to be clipped are not finite; and what scikit-learn
        raises.
    RuntimeError
        If scikit-learn is of a version in which its solver has not been replaced.

    See Also
    --------
    adamas.Adam : The optimizer, with ``epsilon_placement="inside"``.

    Notes
    -----
    As in scikit-learn, `partial_fit` goes on with the options that the first call had.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from adamas.sklearn import MLPClassifier
    >>> samples, labels = load_iris(return_X_y=True)
    >>> model = MLPClassifier(16, learning_rate_init=0.01, max_iter=500, random_state=0)
    >>> bool(model.fit(samples, labels).score(samples, labels) > 0.95)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_WithAdam._own_constraints,
    }

    @_extends(neural_network.MLPClassifier)
    def __init__(
        self,
        *args: Any,
        weight_decay: float = 0.0,
        use_amsgrad: bool = False,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_decay = weight_decay
        self.use_amsgrad = use_amsgrad
        self.max_grad_norm = max_grad_norm
        self.num_threads = num_threads


class MLPRegressor(_WithAdam, neural_network.MLPRegressor):
    """Multi-layer perceptron regressor, whose solver "adam" is that of adamas.

    `sklearn.neural_network.MLPRegressor` in everything else, and with the same results up to
    rounding.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate_init, beta_1, beta_2, \
    epsilon, max_iter, random_state, early_stopping, warm_start, ...
        Those of the installed version of scikit-learn, with its defaults; since 1.7 ``loss`` comes
        first.
    weight_decay, use_amsgrad, max_grad_norm, num_threads
        As in `MLPClassifier`.

    Raises
    ------
    ValueError, RuntimeError
        As `MLPClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from adamas.sklearn import MLPRegressor
    >>> samples, values = make_regression(n_samples=200, n_features=5, random_state=0)
    >>> model = MLPRegressor(tol=0.1, max_iter=1000, learning_rate_init=0.01, random_state=0)
    >>> bool(model.fit(samples, values).score(samples, values) > 0.95)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **_WithAdam._own_constraints,
    }

    @_extends(neural_network.MLPRegressor)
    def __init__(
        self,
        *args: Any,
        weight_decay: float = 0.0,
        use_amsgrad: bool = False,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_decay = weight_decay
        self.use_amsgrad = use_amsgrad
        self.max_grad_norm = max_grad_norm
        self.num_threads = num_threads
