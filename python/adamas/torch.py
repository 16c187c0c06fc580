"""``torch.optim`` with the native step: `Adam`, `AdamW` and `SparseAdam`.

They are torch's optimizers in all but the step: constructors, parameter groups, state dicts, hooks
and schedulers are torch's own, and the state is that of ``optimizer.state``, updated where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

# The first says what to do where torch is missing.
# isort: off
from ._torch_step import DenseStep, RowStep, refuse_modes
import torch

# isort: on

__all__ = ["Adam", "AdamW", "SparseAdam"]

Params = Iterable[Any]


class Adam(DenseStep, torch.optim.Adam):
    r"""``torch.optim.Adam`` with the native step.

    Adam (Kingma and Ba, 2015, Algorithm 1), or AMSGrad (Reddi et al., 2018), as `adamas.Adam`
    computes it: the same bits for any number of threads.

    Parameters
    ----------
    params : iterable of Tensor, of dict, or of (str, Tensor)
        What ``torch.optim.Adam`` takes: float32, float64, float16, bfloat16 or complex tensors on
        the CPU or on CUDA devices, and DTensors, whose local parts are updated.
    lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
        As in ``torch.optim.Adam``. They are read from ``param_groups`` in every step.
    foreach, fused : bool, optional
        Taken and of no effect, but that ``fused=True`` leaves unscaling to the step where a
        ``GradScaler`` is used, which then leaves the gradients scaled.
    capturable, differentiable : bool, default False
        Refused if True.
    state_dtype : {"float32", "bfloat16"}, optional
        How the moments are kept. By default in float64 for float64 parameters, else in float32;
        "bfloat16" rounds stochastically, from ``seed``.
    master_weights : bool, default False
        Keep float32 copies of float16 and bfloat16 parameters (``state[p]["master"]``), which are
        what is updated.
    max_grad_norm : float, optional
        Clip the norm over all gradients to this, in the same pass.
    num_threads : int, optional
        Default: what ``torch.get_num_threads()`` says at each step.
    ema_decay : float, optional
        Keep moving averages of the parameters in ``state[p]["ema"]``.
    seed : int, default 0
        Of the random bits of ``state_dtype="bfloat16"``.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        What ``torch.optim.Adam`` raises, and for ``capturable=True`` or ``differentiable=True``.

    Notes
    -----
    ``state[p]`` holds ``step``, ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` as torch's does,
    but for the types: moments of 16-bit parameters are float32. State dicts of torch's class and of
    this one load into each other.

    Examples
    --------
    >>> import torch
    >>> from adamas.torch import Adam
    >>> layer = torch.nn.Linear(3, 1)
    >>> optimizer = Adam(layer.parameters(), lr=0.01)
    >>> layer(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[layer.bias]["exp_avg"]
    tensor([0.2000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Any = 1e-3,
        betas: tuple[float | Any, float | Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        state_dtype: Literal["float32", "bfloat16"] | None = None,
        master_weights: bool = False,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        self._take_extras(
            state_dtype=state_dtype,
            master_weights=master_weights,
            max_grad_norm=max_grad_norm,
            num_threads=num_threads,
            ema_decay=ema_decay,
            seed=seed,
        )
        refuse_modes(capturable, differentiable and not fused)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(DenseStep, torch.optim.AdamW):
    """``torch.optim.AdamW`` with the native step (Loshchilov and Hutter, 2019).

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize
        As in ``torch.optim.AdamW``; ``weight_decay`` is 0.01 by default.
    foreach, fused, capturable, differentiable
        As in `Adam`, and so are ``state_dtype``, ``master_weights``, ``max_grad_norm``,
        ``num_threads``, ``ema_decay`` and ``seed``.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As in `Adam`.

    Examples
    --------
    >>> import torch
    >>> from adamas.torch import AdamW
    >>> layer = torch.nn.Linear(3, 1)
    >>> optimizer = AdamW(layer.parameters(), lr=0.01)
    >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    >>> layer(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> scheduler.step()
    """

    _is_decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float | Any = 1e-3,
        betas: tuple[float | Any, float | Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: Literal["float32", "bfloat16"] | None = None,
        master_weights: bool = False,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        self._take_extras(
            state_dtype=state_dtype,
            master_weights=master_weights,
            max_grad_norm=max_grad_norm,
            num_threads=num_threads,
            ema_decay=ema_decay,
            seed=seed,
        )
        refuse_modes(capturable, differentiable and not fused)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


class SparseAdam(RowStep, torch.optim.SparseAdam):
    """``torch.optim.SparseAdam`` with the native step.

    Of each parameter, and of its moments, only the rows that the gradient lists are touched. The
    rates are computed in double precision.

    Parameters
    ----------
    params : iterable of Tensor, of dict, or of (str, Tensor)
        Dense tensors whose gradients are sparse (``torch.nn.Embedding(sparse=True)``), on the CPU.
    lr, betas, eps, maximize
        As in ``torch.optim.SparseAdam``.
    num_threads : int, optional
        Default: what ``torch.get_num_threads()`` says at each step.

    Raises
    ------
    ValueError
        What ``torch.optim.SparseAdam`` raises.

    Notes
    -----
    ``state[p]`` holds ``step``, ``exp_avg`` and ``exp_avg_sq``. Gradients need not be coalesced:
    rows that appear more than once are summed, in their order.

    Examples
    --------
    >>> import torch
    >>> from adamas.torch import SparseAdam
    >>> embedding = torch.nn.Embedding(100, 4, sparse=True)
    >>> optimizer = SparseAdam(embedding.parameters(), lr=0.01)
    >>> embedding(torch.tensor([3, 5, 3])).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[embedding.weight]["exp_avg"][:6, 0]
    tensor([0.0000, 0.0000, 0.0000, 0.2000, 0.0000, 0.1000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        num_threads: int | None = None,
    ) -> None:
        self._take_extras(num_threads=num_threads)
        super().__init__(params, lr, betas, eps, maximize)
