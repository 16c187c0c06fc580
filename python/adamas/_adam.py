"""Adam and AdamWeightDecay: the arguments of the specification and their checks."""

from __future__ import annotations

from typing import Any, get_args
from typing import NoReturn as Never  # what typing calls it from Python 3.11 on

from . import _core, _options
from . import _validation as validation
from ._optimizer import Optimizer
from ._options import STATE_FORMATS
from .typing import (
    EpsilonPlacement,
    LearningRate,
    Numerics,
    Params,
    Reduction,
    RowPolicy,
    StateDtype,
    WeightDecay,
)

_MAX_THREADS = 4096


def _row_policy(name: Any, lazy: bool) -> _core.RowPolicy:
    if name is None:
        return _core.RowPolicy.lazy if lazy else _core.RowPolicy.exact
    policy = _core.RowPolicy[validation.choice("row_policy", name, get_args(RowPolicy))]
    if lazy and policy is not _core.RowPolicy.lazy:
        raise ValueError(f"use_lazy must not be True together with row_policy={name!r}")
    return policy


def _check_comm(comm: Any, use_amsgrad: bool) -> None:
    """Refuse communicators of several processes."""
    if not callable(getattr(comm, "Get_size", None)):
        raise TypeError(f"comm must have a method Get_size(), got {validation.shown(comm)}")
    size = int(comm.Get_size())
    if size > 1 and use_amsgrad:
        raise ValueError(f"use_amsgrad must not be True with a comm of {size} processes")
    if size > 1:
        raise NotImplementedError(
            f"comm must have one process, got {size}: state is not sharded over processes yet"
        )


def _config(
    beta1: Any, beta2: Any, eps: Any, numerics: Any, num_threads: Any, allow_zero: bool = False
) -> _core.AdamConfig:
    """Check the options that both optimizers have."""
    config = _core.AdamConfig()
    config.numerics = _core.Numerics[validation.choice("numerics", numerics, get_args(Numerics))]
    config.allow_zero = allow_zero
    config.beta1 = _options.decay_rate("beta1", beta1, allow_zero=allow_zero)
    config.beta2 = _options.decay_rate("beta2", beta2, allow_zero=allow_zero)
    config.eps = _options.eps("eps", eps, allow_zero=allow_zero)
    if num_threads is not None:
        config.num_threads = validation.integer(
            "num_threads", num_threads, minimum=1, maximum=_MAX_THREADS
        )
    return config


class Adam(Optimizer):
    r"""Adam (Kingma and Ba, 2015), with its Nesterov, AMSGrad and AdamW variants.

    With :math:`g` the gradient divided by ``loss_scale`` plus ``weight_decay`` times the parameter
    and :math:`t` the number of the step, counted from 1:

    .. math::

        m &= \beta_1 m + (1 - \beta_1) g \\
        v &= \beta_2 v + (1 - \beta_2) g^2 \\
        p &= p - lr / (1 - \beta_1^t) \cdot m / (\sqrt{v / (1 - \beta_2^t)} + eps)

    Parameters
    ----------
    params : iterable of Parameter, of array or of dict; or dict of array
        What to update: Parameters, or groups of them. A group is a dict with ``params`` and
        optionally ``lr``, ``weight_decay``, ``grad_centralization`` (bool: subtract from each
        gradient of three or more axes its mean over all axes but the first; Yong et al., 2020)
        and options of its own: those that `ParameterGroup` has; what it lacks it takes from the
        optimizer. One dict may hold ``order_params`` alone, a list of all parameters in the order
        in which gradients will come. Arrays may stand for Parameters, and a dict of them, or of
        such dicts, for a list: their names are its keys, joined by dots.
    learning_rate : float, int, array, iterable or LearningRateSchedule, default 1e-3
        A number >= 0; a 1-D array or an iterable whose i-th value is for step i, an iterator being
        pulled one value per step; or a schedule, called with ``global_step`` before it advances.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay rates of the moments, in (0, 1).
    eps : float, default 1e-8
        Added to the denominator, > 0.
    use_locking : bool, default False
        Whether concurrent calls give the result of some serial order, bit for bit, schedules
        included: calls on this optimizer, and on others with ``use_locking`` that hold the same
        memory or views of it. Without it such calls may interleave.
    use_nesterov : bool, default False
        Whether the numerator looks one step ahead: :math:`\beta_1 m + (1 - \beta_1) g`
        (Dozat, 2016).
    weight_decay : float, int or callable, default 0.0
        L2 penalty >= 0, or a callable of the step that returns one. Without groups it skips
        parameters whose name contains "beta" or "gamma".
    loss_scale : float or int, default 1.0
        Gradients are divided by it; weight decay is not. In [2**-126, 2**126].
    use_amsgrad : bool, default False
        Whether the denominator uses the largest :math:`v` so far (Reddi et al., 2018).
    use_lazy : bool, default False
        Whether a sparse gradient updates its own rows only: ``row_policy="lazy"``.
    use_offload : bool, default False
        Whether the moments live and the update runs on the host, which for parameters in CPU
        memory is the case anyway. For those on a CUDA device, gradients and updates then travel
        through pinned memory, of which each parameter takes as much as itself and its gradient.
    numerics : {"standard", "mindspore"}, keyword only
        "mindspore" does what MindSpore 2.10's kernels do, so that a training run moves over
        unchanged: bias correction on the step size (``eps`` weighs differently), hyper-parameters
        rounded to float32, and its exceptions on centralization and Nesterov (docs/NUMERICS.md).
    epsilon_placement : {"outside", "inside"}, keyword only
        Whether ``eps`` is added to the root of the bias-corrected :math:`v`, as above, or to that
        of :math:`v` itself, before the correction is applied to the step size: Kingma and Ba's
        second form, which Keras, thinc and scikit-learn have, and "mindspore" numerics always.
    allow_zero : bool, default False, keyword only
        Whether ``beta1``, ``beta2`` and ``eps`` may be 0.
    decoupled_weight_decay : bool, default False, keyword only
        Whether ``weight_decay`` shrinks the parameter by ``lr * weight_decay`` instead of being
        added to the gradient: AdamW (Loshchilov and Hutter, 2019).
    maximize : bool, default False, keyword only
        Whether parameters go along their gradients, not against them.
    row_policy : {"exact", "lazy", "catch_up"}, optional, keyword only
        What a step does with the rows that a sparse gradient does not list. "exact", the default:
        they get the gradient zero, so that the result has the bits of the dense call; moments
        decay, and the row moves. "lazy": nothing, as in torch's SparseAdam. "catch_up": nothing
        until they are listed again; then their moments first decay by ``beta**n`` for the n steps
        missed, and so equal those of "exact" up to rounding (without L2 weight decay), while the
        parameter has not moved in between.
    max_grad_norm : float or int, optional, keyword only
        If the Euclidean norm over all gradients together (divided by ``loss_scale``) is larger,
        all are scaled down to it (Pascanu et al., 2013). Costs one more read of the gradients.
    clip_per_array : bool, default False, keyword only
        Whether ``max_grad_norm`` is for each gradient by itself.
    clip_after_decay : bool, default False, keyword only
        Whether gradients are clipped with L2 weight decay in them, as thinc does.
    skip_nonfinite : bool, default False, keyword only
        Whether a step whose gradients hold a NaN or an infinity changes nothing but
        `skipped_steps` and `last_step_skipped`.
    state_dtype : {None, "float32", "bfloat16", "int8"}, keyword only
        How the moments are stored; None means in the type of the arithmetic. "bfloat16" halves
        them; "int8" keeps 8-bit floats with a scale for each block of 64 to 256 elements
        (docs/NUMERICS.md). Both refuse float64 parameters, and are rounded stochastically, so that
        small changes are not lost on average. `moment1` and `moment2` are then read-only float32
        copies.
    seed : int, default 0, keyword only
        Chooses the random bits of stochastic rounding. They depend on the seed, the step, the
        parameter's name (or its ``key``) and the element alone: a run can be repeated, with any
        threads.
    master_weights : bool, default False, keyword only
        Whether float32 copies of 16-bit parameters are kept and updated, from which the parameter
        is rounded to nearest even. They start from the parameter and rule from then on.
    ema_decay : float, optional, keyword only
        In (0, 1): keep averages of the parameters in `ema`, each step multiplying them by this and
        adding the rest of the parameter.
    reduction : {"mean", "sum"}, keyword only
        What a step makes of gradients that were accumulated (`accumulate`).
    comm : communicator, optional, keyword only
        An mpi4py communicator, or anything with ``Get_size()``, of one process.
    num_threads : int, optional, keyword only
        How many threads a large step uses. By default ``ADAMAS_NUM_THREADS`` of the environment, or
        all cores of the process, divided by the processes of the machine if a launcher tells their
        number. The result has the same bits for any number.
    capturable : bool, default False, keyword only
        For parameters on a CUDA device: whether a step can be captured in a CUDA graph. The number
        of the step, learning rates and weight decays are then kept on the device, and each replay
        makes one step, with the bits that a call would have given. First make a step with gradients
        of the same types; send new rates between replays by `refresh_rates`.

    Raises
    ------
    TypeError
        If an argument has another type than those above; bool is never a number here, and
        ``beta1``, ``beta2`` and ``eps`` must be float.
    ValueError
        If a value is out of its range, NaN or infinite; if flags exclude each other (``use_lazy``
        with ``use_offload`` or another ``row_policy``, ``use_amsgrad`` with either or with a
        ``comm`` of more than one process); if a parameter stands twice in a list or
        shares memory with another.
    KeyError
        If a keyword or the key of a group is unknown.
    RuntimeError
        If a parameter stands in two groups.
    NotImplementedError
        If ``comm`` has more than one process.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas import Parameter
    >>> weight = np.ones((2, 3), np.float32)
    >>> optimizer = Adam([Parameter(weight, name="weight")], learning_rate=0.1)
    >>> optimizer((np.full((2, 3), 0.5, np.float32),))
    True
    >>> weight[0].round(3)
    array([0.9, 0.9, 0.9], dtype=float32)
    """

    __slots__ = ()

    def __init__(
        self,
        params: Params,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        use_locking: bool = False,
        use_nesterov: bool = False,
        weight_decay: WeightDecay = 0.0,
        loss_scale: float = 1.0,
        use_amsgrad: bool = False,
        *,
        use_lazy: bool = False,
        use_offload: bool = False,
        numerics: Numerics = "standard",
        epsilon_placement: EpsilonPlacement = "outside",
        allow_zero: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        row_policy: RowPolicy | None = None,
        max_grad_norm: float | None = None,
        clip_per_array: bool = False,
        clip_after_decay: bool = False,
        skip_nonfinite: bool = False,
        state_dtype: StateDtype | None = None,
        seed: int = 0,
        master_weights: bool = False,
        ema_decay: float | None = None,
        reduction: Reduction = "mean",
        comm: Any = None,
        num_threads: int | None = None,
        capturable: bool = False,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise KeyError(f"Adam has no argument {next(iter(unknown))!r}")
        allow_zero = validation.flag("allow_zero", allow_zero)
        config = _config(beta1, beta2, eps, numerics, num_threads, allow_zero)
        config.epsilon_placement = _core.EpsilonPlacement[
            validation.choice("epsilon_placement", epsilon_placement, get_args(EpsilonPlacement))
        ]
        config.loss_scale = validation.loss_scale("loss_scale", loss_scale)
        config.use_amsgrad = validation.flag("use_amsgrad", use_amsgrad)
        config.use_nesterov = validation.flag("use_nesterov", use_nesterov)
        config.decoupled_weight_decay = validation.flag(
            "decoupled_weight_decay", decoupled_weight_decay
        )
        config.maximize = validation.flag("maximize", maximize)
        config.use_locking = validation.flag("use_locking", use_locking)
        config.skip_nonfinite = validation.flag("skip_nonfinite", skip_nonfinite)
        config.capturable = validation.flag("capturable", capturable)
        config.master_weights = validation.flag("master_weights", master_weights)
        if state_dtype is not None:
            name = validation.choice("state_dtype", state_dtype, get_args(StateDtype))
            config.state_format = STATE_FORMATS[name]
        config.seed = validation.integer("seed", seed, minimum=0, maximum=2**64 - 1)
        config.max_grad_norm = _options.max_grad_norm("max_grad_norm", max_grad_norm)
        config.clip_per_array = validation.flag("clip_per_array", clip_per_array)
        config.clip_after_decay = validation.flag("clip_after_decay", clip_after_decay)
        if ema_decay is not None:
            config.ema_decay = validation.real("ema_decay", ema_decay, above=0.0, below=1.0)
        config.reduction = _core.Reduction[
            validation.choice("reduction", reduction, get_args(Reduction))
        ]
        lazy = validation.flag("use_lazy", use_lazy)
        offload = validation.flag("use_offload", use_offload)
        config.use_offload = offload
        if lazy and offload:
            raise ValueError("use_lazy and use_offload must not both be True")
        config.row_policy = _row_policy(row_policy, lazy)
        if comm is not None:
            _check_comm(comm, config.use_amsgrad)
        super().__init__(params, learning_rate, weight_decay, config)


_OPTIONS_WITHOUT_BIAS_CORRECTION = {
    **Optimizer._usual_options,
    "eps": 1e-6,
    "numerics": "mindspore",
    "bias_correction": False,
    "decoupled_weight_decay": True,
}


class AdamWeightDecay(Optimizer):
    r"""Adam with decoupled weight decay and without bias correction, as in BERT's training.

    .. math::

        m &= \beta_1 m + (1 - \beta_1) g \\
        v &= \beta_2 v + (1 - \beta_2) g^2 \\
        p &= p - lr \cdot (m / (\sqrt{v} + eps) + weight\_decay \cdot p)

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        As in `Adam`.
    learning_rate : float, int, array, iterable or LearningRateSchedule, default 1e-3
        As in `Adam`.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay rates of the moments, in (0, 1).
    eps : float, default 1e-6
        Added to the denominator, > 0.
    weight_decay : float, int or callable, default 0.0
        As in `Adam`, but taken from the parameter, not added to the gradient.
    numerics : {"mindspore", "standard"}, keyword only
        Without bias correction the two differ only in that "mindspore" rounds the hyper-parameters
        to float32 first, and in which gradients ``grad_centralization`` means.
    num_threads : int, optional, keyword only
        As in `Adam`.

    Raises
    ------
    TypeError, ValueError, KeyError, RuntimeError
        As `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas import Parameter
    >>> weight = np.ones(3, np.float32)
    >>> optimizer = AdamWeightDecay([Parameter(weight, name="weight")], weight_decay=0.01)
    >>> optimizer((np.full(3, 0.5, np.float32),))
    True
    """

    __slots__ = ()
    _usual_options = _OPTIONS_WITHOUT_BIAS_CORRECTION

    def __init__(
        self,
        params: Params,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: WeightDecay = 0.0,
        *,
        numerics: Numerics = "mindspore",
        num_threads: int | None = None,
    ) -> None:
        config = _config(beta1, beta2, eps, numerics, num_threads)
        config.bias_correction = False
        config.decoupled_weight_decay = True
        super().__init__(params, learning_rate, weight_decay, config)
