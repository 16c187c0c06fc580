"""The peers: for each one the function that makes ready what a user of it would, and its step.

A function takes a workload and a number of threads and returns a callable that performs one step,
with everything that a user pays for in each step. It imports its library itself, so that a missing
one costs the others nothing. To add a peer, write such a function and register it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from limit import DenseLimit, RowsLimit
from workloads import Dense, Sparse

Step = Callable[[], object]
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Peer:
    """A competitor: how to make its step, and what it is distributed as."""

    make: Callable[[Any, int], Step]
    package: str
    pinned: bool = False  # ignores the number of threads: one thread means one core


DENSE: dict[str, Peer] = {}
SPARSE: dict[str, Peer] = {}


def _register(table: dict[str, Peer], name: str, package: str, pinned: bool = False) -> Any:
    def register(make: Callable[[Any, int], Step]) -> Callable[[Any, int], Step]:
        table[name] = Peer(make, package, pinned)
        return make

    return register


def dense(name: str, package: str, pinned: bool = False) -> Any:
    """Register a peer for lists of tensors."""
    return _register(DENSE, name, package, pinned)


def sparse(name: str, package: str, pinned: bool = False) -> Any:
    """Register a peer for sparse rows of a table."""
    return _register(SPARSE, name, package, pinned)


# ------------------------------------------------------------------------------------- the limit


def _limit(state_bytes: int) -> Callable[[Dense, int], Step]:
    def make(work: Dense, threads: int) -> Step:
        return DenseLimit(*work.arrays(), threads, state_bytes)

    return make


for _name, _bytes in (("limit", 4), ("limit_bf16", 2), ("limit_int8", 1)):
    dense(_name, "numpy")(_limit(_bytes))


@sparse("limit", "numpy")
def limit_rows(work: Sparse, threads: int) -> Step:
    """The traffic over the distinct rows of each batch; finding them is not part of it."""
    limit, grads = RowsLimit(work.table(), threads), work.grads()
    batches = work.batches()
    if work.zipf:
        batches = [np.unique(batch) for batch in batches]
    following = cycle(batches)
    return lambda: limit(next(following), grads)


# ---------------------------------------------------------------------------------------- adamas


def _adamas(**options: Any) -> Callable[[Dense, int], Step]:
    """Make adamas.Adam over NumPy arrays, one call a step; `dtype` is that of the arrays."""
    options = dict(options)
    dtype = options.pop("dtype", "float32")

    def make(work: Dense, threads: int) -> Step:
        import adamas

        params, grads = (
            [array.astype(_dtype(dtype), copy=False) for array in arrays]
            for arrays in work.arrays()
        )
        named = [adamas.Parameter(param, name=f"p{i}") for i, param in enumerate(params)]
        optimizer = adamas.Adam(named, LR, BETA1, BETA2, EPS, num_threads=threads, **options)
        return lambda: optimizer(grads)

    return make


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _adamas_rows(**options: Any) -> Callable[[Sparse, int], Step]:
    """Make adamas.Adam over row gradients, merging repeated rows in its step."""

    def make(work: Sparse, threads: int) -> Step:
        import adamas

        table, values = work.table(), work.grads()
        optimizer = adamas.Adam(
            [adamas.Parameter(table, name="table")],
            *(LR, BETA1, BETA2, EPS),
            use_lazy=True,
            num_threads=threads,
            **options,
        )
        grads = cycle([(adamas.RowTensor(batch, values, table.shape),) for batch in work.batches()])
        return lambda: optimizer(next(grads))

    return make


STATES: dict[str, dict[str, Any]] = {
    "adamas": {},
    "adamas_bf16": {"state_dtype": "bfloat16"},
    "adamas_int8": {"state_dtype": "int8"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "nesterov": {"use_nesterov": True},
    "amsgrad": {"use_amsgrad": True},
    "l2": {"weight_decay": 0.01},
    "decoupled": {"weight_decay": 0.01, "decoupled_weight_decay": True},
    "mindspore": {"numerics": "mindspore"},
    "clip": {"max_grad_norm": 1.0},
    "float64": {"dtype": "float64"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "bf16 state": STATES["adamas_bf16"],
    "int8 state": STATES["adamas_int8"],
}
for _name, _options in STATES.items():
    dense(_name, "adamas")(_adamas(**_options))
    sparse(_name, "adamas")(_adamas_rows(**_options))
for _name, _options in VARIANTS.items():
    dense(f"adamas:{_name}", "adamas")(_adamas(**_options))


# --------------------------------------------------------------------------------------- PyTorch


def _torch_parameters(work: Dense, threads: int) -> list[Any]:
    """Return parameters in memory of torch's own, as in training, with their gradients."""
    import torch

    torch.set_num_threads(threads)
    params, grads = work.arrays()
    tensors = [torch.nn.Parameter(torch.from_numpy(param).clone()) for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad).clone()
    return tensors


def _torch(**options: Any) -> Callable[[Dense, int], Step]:
    def make(work: Dense, threads: int) -> Step:
        import torch

        tensors = _torch_parameters(work, threads)
        return torch.optim.Adam(tensors, LR, (BETA1, BETA2), EPS, **options).step

    return make


dense("torch_fused", "torch")(_torch(fused=True))
dense("torch_foreach", "torch")(_torch(foreach=True))


@dense("adamas_torch", "torch")
def adamas_torch(work: Dense, threads: int) -> Step:
    """adamas.Adam over torch's tensors instead of NumPy's arrays."""
    import adamas

    tensors = _torch_parameters(work, threads)
    named = [adamas.Parameter(tensor, name=f"p{i}") for i, tensor in enumerate(tensors)]
    optimizer = adamas.Adam(named, LR, BETA1, BETA2, EPS, num_threads=threads)
    return lambda: optimizer([tensor.grad for tensor in tensors])


@sparse("torch_sparse", "torch")
def torch_sparse(work: Sparse, threads: int) -> Step:
    """torch.optim.SparseAdam; merging repeated rows is part of its step."""
    import torch

    torch.set_num_threads(threads)
    table, values = torch.nn.Parameter(torch.from_numpy(work.table())), work.grads()
    grads = cycle(
        [
            torch.sparse_coo_tensor(
                torch.from_numpy(batch)[None],
                torch.from_numpy(values),
                tuple(table.shape),
                check_invariants=False,
            )
            for batch in work.batches()
        ]
    )
    optimizer = torch.optim.SparseAdam([table], LR, (BETA1, BETA2), EPS)

    def step() -> None:
        table.grad = next(grads)
        optimizer.step()

    return step


@dense("deepspeed", "deepspeed")
def deepspeed(work: Dense, threads: int) -> Step:
    """DeepSpeedCPUAdam, which compiles itself on first use and needs ninja on the path."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    tensors = _torch_parameters(work, threads)
    return DeepSpeedCPUAdam(tensors, lr=LR, betas=(BETA1, BETA2), eps=EPS, adamw_mode=True).step


# ---------------------------------------------------------------------------------------- others


@dense("thinc", "thinc")
def thinc(work: Dense, _threads: int) -> Step:
    """Adam of thinc, in one thread. It zeroes the gradient in its step, which its users pay too."""
    from thinc.api import Adam

    optimizer = Adam(
        LR, beta1=BETA1, beta2=BETA2, eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False
    )
    params, grads = work.arrays()
    items = [
        ((i, "W"), param.ravel(), grad.ravel())
        for i, (param, grad) in enumerate(zip(params, grads, strict=True))
    ]

    def step() -> None:
        for key, param, grad in items:
            optimizer(key, param, grad)
        optimizer.step_schedules()

    return step


@dense("optax", "optax", pinned=True)
def optax(work: Dense, _threads: int) -> Step:
    """optax.adam and apply_updates in one jit that gives parameters and state away."""
    import jax
    import optax as library

    params, grads = (jax.device_put(arrays) for arrays in work.arrays())
    optimizer = library.adam(LR, b1=BETA1, b2=BETA2, eps=EPS)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return library.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    state = jax.jit(optimizer.init)(params)

    def step() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(compiled(params, state, grads))

    return step


def _mindspore() -> tuple[Any, Callable[[], object]]:
    """Return the module, set up for the CPU, and a function that waits for its work."""
    import mindspore

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    mindspore.set_device("CPU")
    mindspore.runtime.set_cpu_affinity(False)
    return mindspore, mindspore.runtime.synchronize


def _mindspore_state(mindspore: Any, array: np.ndarray, number: int) -> list[Any]:
    """Return a parameter and its two moments."""
    zeros = np.zeros_like(array)
    return [
        mindspore.Parameter(mindspore.Tensor(data), name=f"{kind}{number}")
        for kind, data in (("param", array), ("moment1_", zeros), ("moment2_", zeros))
    ]


def _mindspore_scalars(mindspore: Any) -> list[Any]:
    """Return what its kernels want: both beta powers, lr, both betas, eps."""
    numbers = (BETA1, BETA2, LR, BETA1, BETA2, EPS)
    return [mindspore.Tensor(number, mindspore.float32) for number in numbers]


@dense("mindspore", "mindspore", pinned=True)
def mindspore_dense(work: Dense, _threads: int) -> Step:
    """ops.Adam of MindSpore, one call for each tensor."""
    mindspore, wait = _mindspore()
    update, scalars = mindspore.ops.Adam(), _mindspore_scalars(mindspore)
    items = [
        (_mindspore_state(mindspore, param, i), mindspore.Tensor(grad))
        for i, (param, grad) in enumerate(zip(*work.arrays(), strict=True))
    ]

    def step() -> None:
        for state, grad in items:
            update(*state, *scalars, grad)
        wait()

    return step


@sparse("mindspore", "mindspore", pinned=True)
def mindspore_sparse(work: Sparse, _threads: int) -> Step:
    """FusedSparseLazyAdam of MindSpore, which merges repeated rows."""
    mindspore, wait = _mindspore()
    update, scalars = (
        mindspore.ops.operations.FusedSparseLazyAdam(),
        _mindspore_scalars(mindspore),
    )
    state = _mindspore_state(mindspore, work.table(), 0)
    values = mindspore.Tensor(work.grads())
    batches = cycle([mindspore.Tensor(batch.astype(np.int32)) for batch in work.batches()])

    def step() -> None:
        update(*state, *scalars, values, next(batches))
        wait()

    return step


@dense("numpy", "numpy")
def numpy_dense(work: Dense, _threads: int) -> Step:
    """The formula written with NumPy, in place, with two scratch arrays for each shape."""
    params, grads = work.arrays()
    tensors = [
        (p, g, np.zeros_like(p), np.zeros_like(p)) for p, g in zip(params, grads, strict=True)
    ]
    scratch = {p.shape: (np.empty_like(p), np.empty_like(p)) for p in params}
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        rate = np.float32(LR / (1 - BETA1**steps))
        root = np.float32((1 - BETA2**steps) ** -0.5)
        for param, grad, moment1, moment2 in tensors:
            x, y = scratch[param.shape]
            np.multiply(moment1, np.float32(BETA1), out=moment1)
            np.multiply(grad, np.float32(1 - BETA1), out=x)
            np.add(moment1, x, out=moment1)
            np.multiply(moment2, np.float32(BETA2), out=moment2)
            np.multiply(grad, grad, out=x)
            np.multiply(x, np.float32(1 - BETA2), out=x)
            np.add(moment2, x, out=moment2)
            np.sqrt(moment2, out=x)
            np.multiply(x, root, out=x)
            np.add(x, np.float32(EPS), out=x)
            np.divide(moment1, x, out=y)
            np.multiply(y, rate, out=y)
            np.subtract(param, y, out=param)

    return step


@sparse("numpy", "numpy")
def numpy_sparse(work: Sparse, _threads: int) -> Step:
    """NumPy: unique, add.at, and the formula over the rows found."""
    table, values = work.table(), work.grads()
    moment1, moment2 = np.zeros_like(table), np.zeros_like(table)
    batches = cycle(work.batches())
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        rows, places = np.unique(next(batches), return_inverse=True)
        grads = np.zeros((rows.size, work.width), np.float32)
        np.add.at(grads, places, values)
        first = moment1[rows] * np.float32(BETA1) + grads * np.float32(1 - BETA1)
        second = moment2[rows] * np.float32(BETA2) + grads * grads * np.float32(1 - BETA2)
        moment1[rows], moment2[rows] = first, second
        root = np.sqrt(second) * np.float32((1 - BETA2**steps) ** -0.5) + np.float32(EPS)
        table[rows] -= np.float32(LR / (1 - BETA1**steps)) * first / root

    return step
