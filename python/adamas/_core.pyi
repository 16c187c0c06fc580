from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, final

import numpy as np
import numpy.typing as npt

__version__: str
compiler: str

DTYPES: tuple[str, ...]
DTYPE_NAMES: str
DECIDING_OPTIONS: tuple[str, ...]
GROUP_OPTIONS: tuple[str, ...]

def default_group(config: AdamConfig) -> AdamConfig: ...

MIN_LOSS_SCALE: float
MAX_LOSS_SCALE: float

def gradient_dtypes(parameter: str) -> list[str]: ...
def isas_built() -> list[str]: ...
def isas_supported() -> list[str]: ...
def isa_in_use() -> str: ...
def select_isa(name: str) -> None: ...
def available_threads() -> int: ...
def default_threads() -> tuple[int, int, int, str | None]: ...
def cuda_unavailable_reason() -> str | None: ...
def cuda_devices() -> int: ...
def device_of(data: int) -> int: ...
def load_cuda_library(path: str) -> None: ...

class DeviceArray:
    def __init__(
        self,
        data: int,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        device: int,
        readonly: bool,
        stream: int,
        owner: object,
    ) -> None: ...
    @staticmethod
    def from_dlpack(capsule: object, stream: int, owner: object) -> DeviceArray: ...
    @staticmethod
    def current_stream_of(array: object) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def owner(self) -> object: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def numpy(self) -> npt.NDArray[Any]: ...
    def assign(self, values: npt.ArrayLike) -> None: ...

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
    ema = 7

class Reduction(Enum):
    mean = 0
    sum = 1

class EpsilonPlacement(Enum):
    outside = 0
    inside = 1

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
    def with_learning_rate(self, indices: Sequence[int], value: float) -> Rates: ...
    def with_weight_decay(self, indices: Sequence[int], value: float) -> Rates: ...

class ParameterSpec:
    def __init__(
        self,
        array: npt.NDArray[Any] | DeviceArray,
        name: str,
        rates: int,
        centralize: bool,
        states: Mapping[StateKind, npt.NDArray[Any] | DeviceArray] = ...,
        key: int = -1,
        source: object = None,
    ) -> None: ...

def note_rebinding() -> None: ...

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
    capturable: bool
    use_offload: bool
    maximize: bool
    epsilon_placement: EpsilonPlacement
    allow_zero: bool
    clip_per_array: bool
    clip_after_decay: bool
    ema_decay: float
    writes_delta: bool
    reduction: Reduction
    def __init__(self) -> None: ...
    def copy(self) -> AdamConfig: ...

class Counters:
    global_step: int
    skipped_steps: int
    loss_scale: float
    last_grad_norm: float
    last_step_skipped: bool
    def __init__(self) -> None: ...

_ArrayCopy = tuple[int, StateKind | None, npt.NDArray[Any]]

@final
class RepeatedCall:
    def __new__(cls, function: Callable[..., Any], /) -> RepeatedCall: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

def update(
    config: AdamConfig,
    params: Sequence[Any],
    grads: Sequence[Any],
    states: tuple[Sequence[Any] | None, ...],
    steps: npt.NDArray[np.int64] | list[int],
    learning_rate: float,
    weight_decay: float,
    centralize: bool,
    keys: Sequence[int] | None,
    /,
) -> Any: ...

class StateDictStep:
    def __init__(self, step: str, keys: Sequence[str]) -> None: ...
    def step(
        self,
        config: AdamConfig,
        groups: Sequence[
            tuple[AdamConfig, float, float, list[Any], tuple[Any, ...], tuple[Any, ...]]
        ],
        substitutes: dict[int, tuple[Any, ...]],
    ) -> bool | list[int] | None: ...
    @property
    def grad_norm(self) -> float: ...

class Optimizer:
    def __init__(
        self,
        parameters: Sequence[ParameterSpec],
        config: AdamConfig,
        convert: Callable[[object, Any, str], object],
        groups: Sequence[AdamConfig] = (),
    ) -> None: ...
    def add(self, parameters: Sequence[ParameterSpec], groups: Sequence[AdamConfig]) -> None: ...
    def step(self, grads: object, rates: Rates, stream: int | None = None) -> None: ...
    def accumulate(self, grads: object, stream: int | None = None) -> None: ...
    def step_accumulated(self, rates: Rates, stream: int | None = None) -> None: ...
    @property
    def accumulated(self) -> int: ...
    def discard_accumulated(self) -> None: ...
    def begin_step(self, rates: Rates) -> None: ...
    def apply(self, index: int, grad: object, stream: int | None = None) -> None: ...
    def set_rates(self, rates: Rates, stream: int) -> None: ...
    def is_capturing(self, grads: object, stream: int | None) -> bool: ...
    def end_step(self, skip_missing: bool = False) -> None: ...
    def cancel_step(self) -> None: ...
    loss_scale: float
    @property
    def last_step_skipped(self) -> bool: ...
    @property
    def skipped_steps(self) -> int: ...
    @property
    def last_grad_norm(self) -> float: ...
    def state(self, kind: StateKind, index: int) -> Any: ...
    def stored(self, kind: StateKind, index: int) -> npt.NDArray[Any]: ...
    def layout(self, index: int) -> dict[StateKind, tuple[tuple[int, ...], np.dtype[Any]]]: ...
    def centralizes(self, index: int) -> bool: ...
    @property
    def config(self) -> AdamConfig: ...
    def used_learning_rate(self, learning_rate: float) -> float: ...
    def read_device(self, array: DeviceArray, host: npt.NDArray[Any]) -> None: ...
    def write_device(self, array: DeviceArray, host: npt.NDArray[Any]) -> None: ...
    def save(self, to: Sequence[_ArrayCopy]) -> tuple[Counters, list[int]]: ...
    def load(
        self, from_: Sequence[_ArrayCopy], counters: Counters, steps: Sequence[int] = ()
    ) -> None: ...
    def group(self, index: int) -> AdamConfig: ...
    def set_group(self, index: int, group: AdamConfig) -> None: ...
    steps: list[int]
    global_step: int
    @property
    def state_nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
