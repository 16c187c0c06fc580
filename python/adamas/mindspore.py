r"""Adam and AdamWeightDecay as optimizers of MindSpore, over the parameters of a Cell.

In the place of `mindspore.nn.Adam` and `mindspore.nn.AdamWeightDecay`, whose arguments, state and
checkpoints they have. PyNative mode, on the CPU.
"""

from __future__ import annotations

import sys
from typing import Any
from typing import NoReturn as Never  # what typing calls it from Python 3.11 on

try:
    import mindspore
    from mindspore.common.initializer import initializer
    from mindspore.nn import Optimizer
except ImportError as error:
    raise ImportError(
        'adamas.mindspore needs MindSpore: pip install "adamas[mindspore]"'
    ) from error

from . import _core, _options
from . import _validation as validation
from ._adam import _config
from ._mindspore_step import Step
from .typing import Numerics

__all__ = ["Adam", "AdamWeightDecay"]

_HALVES = (mindspore.float16, mindspore.bfloat16)


class _Native(Optimizer):  # MindSpore has no types
    """What both optimizers share: `nn.Optimizer` keeps parameters, groups and rates."""

    def __init__(
        self, params: Any, learning_rate: Any, weight_decay: Any, loss_scale: Any = 1.0
    ) -> None:
        target = mindspore.get_context("device_target")
        if target != "CPU":
            raise RuntimeError(
                f"adamas.mindspore.{type(self).__name__} updates parameters in CPU memory, but "
                f"device_target is {target!r}; call mindspore.set_device('CPU') first"
            )
        super().__init__(learning_rate, params, weight_decay, loss_scale)

    def _new_state(self, prefix: str) -> Any:
        """Return zeros for each parameter, named like those of MindSpore's optimizers."""
        made = []
        for param in self.parameters:
            if param.dtype in _HALVES:  # whose arithmetic is float32
                data = initializer("zeros", param.shape, mindspore.float32)
                state = mindspore.Parameter(data, param.name, param.requires_grad)
            else:
                state = param.clone("zeros")
            state.name = f"{prefix}.{param.name}"
            made.append(state)
        return mindspore.ParameterTuple(made)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        step = self.__dict__.get("_step")
        if step is not None:  # a tensor may have been replaced
            step.forget()

    @property
    def _runs_in_python(self) -> bool:
        """Whether `construct` asks, and not the compiler of graphs that reads it."""
        return sys._getframe(1).f_code is _Native.construct.__code__

    def construct(self, gradients: Any) -> bool:
        """Make one step: update every parameter in place.

        Parameters
        ----------
        gradients : tuple or list of Tensor
            One for each of `parameters`, in their order and shapes, of a float type; or sparse: the
            ``indices``, ``values`` and ``dense_shape`` of a RowTensor or of a tuple of three, which
            is how a function under `mindspore.jit` returns a RowTensor.

        Returns
        -------
        bool
            True.

        Raises
        ------
        RuntimeError
            In GRAPH_MODE, or in a function under `mindspore.jit`: a step is not a graph.
        TypeError
            If gradients are no tuple or list, or one is not of a float type; or if state was given
            another type than its parameter's.
        ValueError
            If gradients are not as many as parameters, or one not of its parameter's shape, or
            shares memory with a parameter or the state; if memory that was given to a tensor can't
            be updated in place; if counters contradict each other; or a rate is negative or not
            finite.
        IndexError
            If a row index is outside its parameter, or a vector of learning rates is exhausted.

        Whatever is raised, nothing has changed.

        Notes
        -----
        Waits for all operations that MindSpore has queued, because a forward pass that is still
        under way reads the parameters.
        """
        if not self._runs_in_python:
            raise RuntimeError(
                "the step of adamas.mindspore is not a graph: use mindspore.PYNATIVE_MODE, and "
                "call the optimizer outside of functions under mindspore.jit (which may compute "
                "the gradients)"
            )
        self._step(self, gradients)
        return True

    @Optimizer.target.setter
    def target(self, value: str) -> None:
        """Where the parameters are updated: "CPU"."""
        self._set_base_target(value)

    @property
    def last_grad_norm(self) -> float:
        """The norm over all gradients of the last step, divided by ``loss_scale``, not clipped.

        NaN if no step was made yet or neither ``max_grad_norm`` nor ``skip_nonfinite`` needed it.
        """
        return self._step.last_grad_norm  # type: ignore[no-any-return]

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step changed nothing because of a NaN or infinity."""
        return self._step.last_step_skipped  # type: ignore[no-any-return]

    @property
    def skipped_steps(self) -> int:
        """How many steps changed nothing because of a NaN or infinity (``skip_nonfinite``)."""
        return self._step.skipped_steps  # type: ignore[no-any-return]


class Adam(_Native):
    """`mindspore.nn.Adam`, with the native step of `adamas.Adam`.

    Parameters
    ----------
    params : list of Parameter, or of dict
        As for `mindspore.nn.Adam`: the parameters, or groups of them with ``params``, ``lr``,
        ``weight_decay``, ``grad_centralization`` and ``order_params``. Of float32, float16,
        bfloat16 or float64.
    learning_rate : float, int, Tensor, iterable or LearningRateSchedule, default 1e-3
        A number, also of a 0-d Tensor; a vector, whose i-th value is for step i; or a schedule of
        `mindspore.nn`, called with `global_step` before it advances.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay rates of the moments, in (0, 1).
    eps : float, default 1e-8
        Added to the denominator, > 0.
    use_locking : bool, default False
        Whether steps exclude those of other optimizers with ``use_locking`` that hold the same
        memory.
    use_nesterov : bool, default False
        Whether the numerator looks one step ahead (Dozat, 2016).
    weight_decay : float, int or Cell, default 0.0
        L2 penalty >= 0, or a Cell that returns it for a step. Without groups it skips parameters
        whose name contains "beta" or "gamma".
    loss_scale : float, default 1.0
        Gradients are divided by it; weight decay is not.
    use_amsgrad : bool, default False
        Whether the denominator uses the largest second moment so far (Reddi et al., 2018).
    use_lazy : bool, default False
        Whether a sparse gradient updates its own rows only.
    use_offload : bool, default False
        Accepted: state and update are on the CPU anyway.
    numerics : {"mindspore", "standard"}, keyword only
        The formula: that of MindSpore 2.10's kernels, or that of PyTorch, where ``eps`` is added to
        the bias-corrected root (docs/NUMERICS.md).
    decoupled_weight_decay : bool, default False, keyword only
        Whether ``weight_decay`` shrinks the parameter by ``lr * weight_decay`` instead of being
        added to the gradient: AdamW (Loshchilov and Hutter, 2019).
    max_grad_norm : float or int, optional, keyword only
        If the Euclidean norm over all gradients together (divided by ``loss_scale``) is larger,
        all are scaled down to it (Pascanu et al., 2013).
    skip_nonfinite : bool, default False, keyword only
        Whether a step whose gradients hold a NaN or an infinity changes nothing but `skipped_steps`
        and `last_step_skipped`.
    num_threads : int, optional, keyword only
        How many threads a large step uses; as in `adamas.Adam`.

    Raises
    ------
    TypeError, ValueError, RuntimeError, KeyError
        As `mindspore.nn.Adam`; RuntimeError also if ``device_target`` is not the CPU.

    See Also
    --------
    adamas.Adam : The same over NumPy arrays.

    Notes
    -----
    State is Parameters of this Cell, named as in `mindspore.nn.Adam`: ``moment1.NAME``,
    ``moment2.NAME``, ``vhat.NAME``, ``global_step``, ``beta1_power``, ``beta2_power``,
    ``learning_rate``. Checkpoints go both ways. Moments of float16 and bfloat16 parameters are
    float32 here.

    Examples
    --------
    >>> import numpy as np
    >>> import mindspore
    >>> from adamas.mindspore import Adam
    >>> net = mindspore.nn.Dense(3, 1)
    >>> optimizer = Adam(net.trainable_params(), learning_rate=0.1)
    >>> grad = mindspore.grad(lambda x: net(x).sum(), None, optimizer.parameters)
    >>> optimizer(grad(mindspore.Tensor(np.ones((2, 3), np.float32))))
    True
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        use_locking: bool = False,
        use_nesterov: bool = False,
        weight_decay: Any = 0.0,
        loss_scale: float = 1.0,
        use_amsgrad: bool = False,
        *,
        use_lazy: bool = False,
        use_offload: bool = False,
        numerics: Numerics = "mindspore",
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        num_threads: int | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise KeyError(f"Adam has no argument {next(iter(unknown))!r}")
        config = _config(beta1, beta2, eps, numerics, num_threads)
        config.use_locking = validation.flag("use_locking", use_locking)
        config.use_nesterov = validation.flag("use_nesterov", use_nesterov)
        config.use_amsgrad = validation.flag("use_amsgrad", use_amsgrad)
        lazy = validation.flag("use_lazy", use_lazy)
        config.row_policy = _core.RowPolicy.lazy if lazy else _core.RowPolicy.exact
        config.use_offload = validation.flag("use_offload", use_offload)
        if lazy and use_offload:
            raise ValueError("use_lazy and use_offload must not both be True")
        if use_amsgrad and (lazy or use_offload):
            raise ValueError("use_amsgrad must not be True together with use_lazy or use_offload")
        _set_extras(config, decoupled_weight_decay, max_grad_norm, skip_nonfinite)
        super().__init__(params, learning_rate, weight_decay, loss_scale)
        config.loss_scale = validation.loss_scale("loss_scale", self.loss_scale)
        for name in ("beta1_power", "beta2_power"):
            data = initializer(1, (), mindspore.float32)
            setattr(self, name, mindspore.Parameter(data, name=name))
        state = {"moment1": "moment1", "moment2": "moment2"}
        if use_amsgrad:
            state["vhat"] = "vhat"
        for name in state:
            setattr(self, name, self._new_state(name))
        powers = {"beta1_power": config.beta1, "beta2_power": config.beta2}
        self._step = Step(config, state, powers)


class AdamWeightDecay(_Native):
    r"""`mindspore.nn.AdamWeightDecay`, with the native step of `adamas.AdamWeightDecay`.

    .. math::

        m &= \beta_1 m + (1 - \beta_1) g \\
        v &= \beta_2 v + (1 - \beta_2) g^2 \\
        p &= p - lr \cdot (m / (\sqrt{v} + eps) + weight\_decay \cdot p)

    Parameters
    ----------
    params, learning_rate, beta1, beta2, weight_decay
        As in `Adam`; ``grad_centralization`` of groups is ignored, as MindSpore does here.
    eps : float, default 1e-6
        Added to the denominator, > 0.
    numerics, max_grad_norm, skip_nonfinite, num_threads
        As in `Adam`, keyword only.

    Raises
    ------
    TypeError, ValueError, RuntimeError, KeyError
        As `Adam`.

    Notes
    -----
    State is Parameters named as in `mindspore.nn.AdamWeightDecay`: ``adam_m.NAME``,
    ``adam_v.NAME``, ``global_step``, ``learning_rate``.

    Examples
    --------
    >>> import mindspore
    >>> from adamas.mindspore import AdamWeightDecay
    >>> net = mindspore.nn.Dense(3, 1)
    >>> optimizer = AdamWeightDecay(net.trainable_params(), weight_decay=0.01)
    >>> optimizer([mindspore.ops.ones_like(param) for param in optimizer.parameters])
    True
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: Any = 0.0,
        *,
        numerics: Numerics = "mindspore",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        num_threads: int | None = None,
    ) -> None:
        config = _config(beta1, beta2, eps, numerics, num_threads)
        config.bias_correction = False
        _set_extras(config, True, max_grad_norm, skip_nonfinite)
        super().__init__(params, learning_rate, weight_decay)
        self.moments1 = self._new_state("adam_m")
        self.moments2 = self._new_state("adam_v")
        self._step = Step(config, {"moment1": "moments1", "moment2": "moments2"}, {})


def _set_extras(
    config: _core.AdamConfig, decoupled_weight_decay: Any, max_grad_norm: Any, skip_nonfinite: Any
) -> None:
    """Check and set what MindSpore's optimizers do not have."""
    config.decoupled_weight_decay = validation.flag(
        "decoupled_weight_decay", decoupled_weight_decay
    )
    config.max_grad_norm = _options.max_grad_norm("max_grad_norm", max_grad_norm)
    config.skip_nonfinite = validation.flag("skip_nonfinite", skip_nonfinite)
