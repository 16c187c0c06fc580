from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy.typing as npt

__version__: str
compiler: str
no_cuda_reason: str

def isas_built() -> list[str]: ...
def isas_supported() -> list[str]: ...
def isa_in_use() -> str: ...
def select_isa(name: str) -> None: ...
def available_threads() -> int: ...

class Numerics(Enum):
    standard = 0
    mindspore = 1

class StateKind(Enum):
    moment1 = 0
    moment2 = 1
    vhat = 2
    master = 3
    row_step = 4
    scale1 = 5
    scale2 = 6

class StateFormat(Enum):
    real = 0
    bfloat16 = 1
    int8 = 2

class RowPolicy(Enum):
    exact = 0
    lazy = 1
    catch_up = 2

class Rates:
    def __init__(self, pairs: Sequence[tuple[float, float]]) -> None: ...

class ParameterSpec:
    def __init__(
        self,
        array: npt.NDArray[Any],
        name: str,
        rates: int,
        centralize: bool,
        dense_only: bool,
    ) -> None: ...

class AdamConfig:
    beta1: float
    beta2: float
    eps: float
    loss_scale: float
    numerics: Numerics
    use_nesterov: bool
    use_amsgrad: bool
    decoupled_weight_decay: bool
    bias_correction: bool
    row_policy: RowPolicy
    state_format: StateFormat
    seed: int
    master_weights: bool
    use_locking: bool
    skip_nonfinite: bool
    max_grad_norm: float
    num_threads: int
    def __init__(self) -> None: ...

class Counters:
    global_step: int
    skipped_steps: int
    loss_scale: float
    last_grad_norm: float
    last_step_skipped: bool
    def __init__(self) -> None: ...

_ArrayCopy = tuple[int, StateKind | None, npt.NDArray[Any]]

class Optimizer:
    def __init__(
        self,
        parameters: Sequence[ParameterSpec],
        config: AdamConfig,
        convert: Callable[
            [object, npt.NDArray[Any], str],
            npt.NDArray[Any] | tuple[npt.NDArray[Any], npt.NDArray[Any]],
        ],
    ) -> None: ...
    def step(self, grads: object, rates: Rates) -> None: ...
    def begin_step(self, rates: Rates) -> None: ...
    def apply(self, index: int, grad: object) -> None: ...
    def end_step(self) -> None: ...
    def cancel_step(self) -> None: ...
    loss_scale: float
    @property
    def last_step_skipped(self) -> bool: ...
    @property
    def skipped_steps(self) -> int: ...
    @property
    def last_grad_norm(self) -> float: ...
    def state(self, kind: StateKind, index: int) -> npt.NDArray[Any] | None: ...
    def stored(self, kind: StateKind, index: int) -> npt.NDArray[Any]: ...
    def save(self, to: Sequence[_ArrayCopy]) -> Counters: ...
    def load(self, from_: Sequence[_ArrayCopy], counters: Counters) -> None: ...
    global_step: int
    @property
    def state_nbytes(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
