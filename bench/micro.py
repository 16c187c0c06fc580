"""Micro-benchmarks of single kernels: 16384 elements in the L2 cache, one thread.

    python -m pytest bench/micro.py                 every kernel on every instruction set
    python -m pytest bench/micro.py -k avx512 --benchmark-sort=name

Divide by 16384 for the time of an element. The call from Python, about a microsecond, is part of
it.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import adamas
from adamas import _core

COUNT = 16384
VARIANTS = {
    "adam": {},
    "weight_decay": {"weight_decay": 0.01},
    "nesterov": {"use_nesterov": True},
    "amsgrad": {"use_amsgrad": True},
    "clip": {"max_grad_norm": 1.0},
    "moments_bfloat16": {"state_dtype": "bfloat16"},
    "moments_int8": {"state_dtype": "int8"},
}
DTYPES = {
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


@pytest.fixture(params=_core.isas_supported())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select an instruction set for one measurement."""
    chosen = _core.isa_in_use()
    _core.select_isa(request.param)
    yield request.param
    _core.select_isa(chosen)


def _measure(benchmark: BenchmarkFixture, dtype: type, options: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    param, grad = (rng.standard_normal(COUNT).astype(dtype) for _ in range(2))
    optimizer = adamas.Adam([adamas.Parameter(param)], num_threads=1, **options)
    benchmark.extra_info["elements"] = COUNT
    benchmark(optimizer, (grad,))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(benchmark: BenchmarkFixture, variant: str) -> None:
    """A step of float32 parameters."""
    _measure(benchmark, np.float32, VARIANTS[variant])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype(benchmark: BenchmarkFixture, dtype: str) -> None:
    """A plain step of parameters of another type."""
    _measure(benchmark, DTYPES[dtype], {})
