"""thinc's optimizer, and so spaCy's, with its step of Adam made by adamas.

For configs that say ``@optimizers = "adamas.Adam.v1"`` and programs that import it by name.  The
state is thinc's: the dicts `mom1`, `mom2`, `averages` and `nr_update`, of flat arrays by key.  No
annotation here may be a string: confection reads them from the signature, to check a config.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from . import _validation as validation
from ._thinc_state import (
    State,
    averages_decay,
    check_apart,
    check_kind,
    config_of,
    real_of,
    renamed,
)
from .functional import _update_any
from .typing import FloatArray

try:
    from thinc import optimizers as _host
except ImportError as error:
    raise ImportError(
        'adamas.thinc needs thinc, which could not be imported: pip install "adamas[thinc]"'
    ) from error

__all__ = ["Adam", "Optimizer"]

if TYPE_CHECKING:
    from collections.abc import Iterator

    Rate = float | list[float] | Iterator[float] | Callable[..., float]
else:  # thinc 9 has schedules, thinc 8 generators
    Rate = getattr(_host, "ScheduleT", None) or _host.FloatOrSeq

Key = tuple[int, str]

# thinc 9 calls its options with the step and the key, thinc 8 stores numbers.
_CALLS_SCHEDULES = hasattr(_host.Optimizer, "step")


class Optimizer(_host.Optimizer):
    r"""thinc's optimizer, whose steps of Adam are made by adamas.

    With :math:`t` the number of updates of the key, :math:`lr` the product of ``learn_rate`` and
    ``lr_scale``, and :math:`g` the gradient, first with ``L2`` times the weights added (unless
    ``L2_is_weight_decay``), then scaled down to the norm ``grad_clip`` if it is longer:

    .. math::

        m &= \beta_1 m + (1 - \beta_1) g \\
        v &= \beta_2 v + (1 - \beta_2) g^2 \\
        w &= w - lr \sqrt{1 - \beta_2^t} / (1 - \beta_1^t) \cdot m / (\sqrt{v} + eps) \\
        w &= w - lr \cdot L2 \cdot w \quad \text{(L2\_is\_weight\_decay)} \\
        a &= a + (1 - \min(0.9999, (1 + t) / (10 + t))) (w - a) \quad \text{(use\_averages)}

    Parameters
    ----------
    learn_rate, L2, beta1, beta2, eps, grad_clip : float, list, generator or schedule
        As in thinc's own: a list or generator gives its next value at each `step_schedules`;
        thinc 9 takes its `Schedule` too.  Numbers >= 0, ``beta1`` and ``beta2`` below 1.
    use_averages : bool, default True
        Whether moving averages of the weights are kept in `averages`; they begin at zero.
    use_radam : bool, default False
        Whether to make steps of RAdam. Those, and those with a ``beta1`` or ``beta2`` of 0, which
        thinc takes for plain gradient descent, are made by thinc's own code.
    L2_is_weight_decay : bool, default True
        Whether ``L2`` shrinks the weights after the step (AdamW) instead of adding to the gradient.
    num_threads : int, optional
        How many threads the update of a large array uses, as in `adamas.Adam`. The result has the
        same bits for any number.

    Raises
    ------
    ValueError
        If a schedule has no value, or ``num_threads`` is not positive.
    TypeError
        If ``num_threads`` is not an int.

    See Also
    --------
    Adam : What is registered as "adamas.Adam.v1".

    Notes
    -----
    `mom1` and `mom2` hold flat arrays and `averages` arrays of the weights' shape, zeros before
    the first update and updated in place, float64 for float64 weights (which thinc's own refuses),
    else float32. They can be moved from and to thinc's own optimizer, and so can `nr_update`.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas.thinc import Optimizer
    >>> optimizer = Optimizer(0.1, use_averages=False)
    >>> weights, gradient = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    >>> weights, gradient = optimizer((0, "W"), weights, gradient)
    >>> weights.round(3), gradient
    (array([0.9, 0.9, 0.9], dtype=float32), array([0., 0., 0.], dtype=float32))
    """

    __slots__ = ("_states", "num_threads")

    num_threads: int | None
    _states: dict[Key, State]

    def __init__(
        self,
        learn_rate: Rate,
        *,
        L2: Rate = 0.0,  # noqa: N803
        beta1: Rate = 0.9,
        beta2: Rate = 0.999,
        eps: Rate = 1e-8,
        grad_clip: Rate = 1.0,
        use_averages: bool = True,
        use_radam: bool = False,
        L2_is_weight_decay: bool = True,  # noqa: N803
        num_threads: int | None = None,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            use_averages=use_averages,
            use_radam=use_radam,
            L2_is_weight_decay=L2_is_weight_decay,
        )
        if num_threads is not None:
            num_threads = validation.integer("num_threads", num_threads, minimum=1, maximum=4096)
        self.num_threads = num_threads
        self._states = {}

    def __call__(
        self, key: Key, weights: FloatArray, gradient: FloatArray, *, lr_scale: float = 1.0
    ) -> tuple[FloatArray, FloatArray]:
        """Update weights in place, and set their gradient to zero.

        Parameters
        ----------
        key : tuple of int and str
            What names the parameter: the node's number and the parameter's name. Weights may
            appear under a new key at any time, and lie elsewhere at each call.
        weights : array of float32 or float64
            NumPy's, of any shape.
        gradient : array
            Of the same size; of another float type if need be. If it is empty, nothing is done.
        lr_scale : float, default 1.0
            Multiplies ``learn_rate`` in this call.

        Returns
        -------
        weights, gradient : array
            Those that were given.

        Raises
        ------
        TypeError
            If weights or gradient are no NumPy arrays (those on a GPU are not: there thinc's own
            "Adam.v1" is the choice), or not of a float type.
        ValueError
            If an array is read-only, sizes differ, arrays share memory, a rate is out of its
            range, or ``learn_rate * lr_scale * L2`` as weight decay is 1 or more.

        Whatever is raised, nothing has changed.
        """
        if _CALLS_SCHEDULES:
            rates = self._scheduled(key)
        else:
            rates = self.learn_rate, self.b1, self.b2, self.eps, self.grad_clip, self.L2
        if self.use_radam or not (rates[1] > 0.0 and rates[2] > 0.0):
            updated: tuple[FloatArray, FloatArray] = super().__call__(
                key, weights, gradient, lr_scale=lr_scale
            )
            return updated
        if type(weights) is not np.ndarray or type(gradient) is not np.ndarray:
            check_kind(weights, gradient)
        if gradient.size:
            if not gradient.flags.writeable:
                raise ValueError(f"gradient must be writable, for it is set to zero (key {key!r})")
            try:
                self._make_step(key, weights, gradient, lr_scale, rates)
            except (TypeError, ValueError):
                self._make_step_of_any(key, weights, gradient, lr_scale, rates)
            gradient.fill(0)
        return weights, gradient

    def _scheduled(self, key: Key) -> tuple[float, ...]:
        """Return the rates of a call: thinc 9 gives schedules the step, the key and the score."""
        step, known = self.step, {"key": key, "last_score": self.last_score}
        schedules = self.learn_rate, self.b1, self.b2, self.eps, self.grad_clip, self.L2
        return tuple(schedule(step, **known) for schedule in schedules)

    def _make_step(
        self,
        key: Key,
        weights: FloatArray,
        gradient: FloatArray,
        lr_scale: float,
        rates: tuple[float, ...],
    ) -> None:
        """Make a step, or raise and change nothing."""
        rate, beta1, beta2, eps, grad_clip, decay = rates
        rate *= lr_scale
        shrinks = bool(decay and self.L2_is_weight_decay)
        if shrinks:
            # thinc shrinks what the step has made: (w - s) (1 - c) = w (1 - c) - (1 - c) s.
            shrunk = rate * decay
            if not shrunk < 1.0:
                raise ValueError(f"learn_rate times L2 must be below 1, got {shrunk!r}")
            rate *= 1.0 - shrunk
            decay /= 1.0 - shrunk
        state, is_kept = self._state_of(key, weights)
        steps = [self.nr_update.get(key, 0)]
        averages = self.averages
        average = kept_decay = None
        if averages is not None:
            average = averages.get(key)
            if average is None:
                average, is_kept = np.zeros(weights.shape, real_of(weights)), False
            kept_decay = averages_decay(steps[0] + 1)
        call = (
            config_of(beta1, beta2, eps, grad_clip, shrinks, kept_decay, self.num_threads),
            (weights,),
            (gradient,),
            ((state.moment1,), (state.moment2,), None, None, (average,), None)
            if averages is not None
            else ((state.moment1,), (state.moment2,), None, None, None, None),
            steps,
            rate,
            decay,
            False,
            None,
        )
        if _core.update(*call) is NotImplemented:
            check_apart(weights, gradient)
            _update_any(*call)
        self.nr_update[key] = steps[0]
        if is_kept:
            return
        self._states[key] = state
        self.mom1[key], self.mom2[key] = state.flat1, state.flat2
        if averages is not None:
            averages[key] = average

    def _state_of(self, key: Key, weights: FloatArray) -> tuple[State, bool]:
        """Return the moments of a key, and whether they are kept already."""
        flat1, flat2 = self.mom1.get(key), self.mom2.get(key)
        state = self._states.get(key)
        if state is not None and state.belongs_to(flat1, flat2, weights):
            return state, True
        return State(flat1, flat2, weights), False

    def _make_step_of_any(
        self,
        key: Key,
        weights: FloatArray,
        gradient: FloatArray,
        lr_scale: float,
        rates: tuple[float, ...],
    ) -> None:
        """Make a step on arrays that `_make_step` has refused, or say what is wrong."""
        try:
            check_apart(weights, gradient)
            if not weights.flags.writeable:
                raise ValueError("weights must be writable")
            if gradient.shape != weights.shape and gradient.size == weights.size:
                gradient = gradient.reshape(weights.shape)
            is_laid_out = weights.flags.c_contiguous  # as the moments are, in thinc too
            used = weights if is_laid_out else np.ascontiguousarray(weights)
            self._make_step(key, used, gradient, lr_scale, tuple(map(float, rates)))
        except (TypeError, ValueError) as error:
            raise renamed(error, key) from None
        if not is_laid_out:
            weights[...] = used

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the views, which would part from their arrays in a copy."""
        names = [name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())]
        kept = {name: getattr(self, name) for name in names if hasattr(self, name)}
        del kept["_states"]
        return {**kept, **getattr(self, "__dict__", {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._states = {}
        for name, value in state.items():
            setattr(self, name, value)


def Adam(  # noqa: N802
    learn_rate: Rate = 0.001,
    *,
    L2: Rate = 0.0,  # noqa: N803
    beta1: Rate = 0.9,
    beta2: Rate = 0.999,
    eps: Rate = 1e-8,
    grad_clip: Rate = 1.0,
    L2_is_weight_decay: bool = True,  # noqa: N803
    use_averages: bool = True,
    num_threads: int | None = None,
) -> Optimizer:
    """Return an `Optimizer`: what ``@optimizers = "adamas.Adam.v1"`` stands for in a config.

    Parameters
    ----------
    learn_rate, L2, beta1, beta2, eps, grad_clip, L2_is_weight_decay, use_averages
        As in `Optimizer`; names and defaults are those of ``thinc.api.Adam``.
    num_threads : int, optional
        As in `Optimizer`.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError, TypeError
        As `Optimizer`.

    Examples
    --------
    >>> from thinc.api import Linear
    >>> import numpy as np
    >>> from adamas.thinc import Adam
    >>> model = Linear(1, 1).initialize()
    >>> optimizer = Adam(0.1, use_averages=False)
    >>> inputs = np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1)
    >>> for _ in range(100):
    ...     outputs, backprop = model.begin_update(inputs)
    ...     _ = backprop((outputs - (3 * inputs + 1)) / 8)
    ...     model.finish_update(optimizer)
    >>> float(model.predict(inputs[-1:])[0, 0].round(1))
    4.0
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
        num_threads=num_threads,
    )
