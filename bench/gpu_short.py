"""A short run of every kernel with CuPy arrays, for compute-sanitizer; compares with the CPU."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

import adamas

SHAPES = ((3,), (4097,), (33, 65), (5, 4, 20), (2, 3, 17000))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_grad_norm": 0.5, "skip_nonfinite": True, "use_amsgrad": True, "weight_decay": 0.1},
    {"state_dtype": "bfloat16", "use_nesterov": True},
    {"state_dtype": "int8"},
)


def dense(options: dict[str, Any]) -> int:
    """Return how many arrays differ after three steps."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    there = [cupy.asarray(array) for array in arrays]

    def optimizer(list_: list[Any]) -> adamas.Adam:
        centralize = options.get("state_dtype") != "int8"
        params = [adamas.Parameter(array) for array in list_]
        return adamas.Adam([{"params": params, "grad_centralization": centralize}], 0.01, **options)

    cpu, gpu = optimizer(arrays), optimizer(there)
    for _ in range(3):
        grads = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
        cpu(grads)
        gpu([cupy.asarray(grad) for grad in grads])
    return sum(not np.array_equal(a, cupy.asnumpy(b)) for a, b in zip(arrays, there, strict=True))


def sparse(policy: str, options: dict[str, Any]) -> int:
    """Return whether the table differs after three steps of sparse gradients."""
    rng = np.random.default_rng(2)
    table = rng.standard_normal((500, 64)).astype(np.float32)
    there = cupy.asarray(table)
    cpu = adamas.Adam([adamas.Parameter(table)], 0.01, row_policy=policy, **options)
    gpu = adamas.Adam([adamas.Parameter(there)], 0.01, row_policy=policy, **options)
    for _ in range(3):
        rows = rng.integers(0, 500, 700)
        values = rng.standard_normal((700, 64)).astype(np.float32)
        cpu((adamas.RowTensor(rows, values, table.shape),))
        gpu((adamas.RowTensor(cupy.asarray(rows), cupy.asarray(values), table.shape),))
    return int(not np.array_equal(table, cupy.asnumpy(there)))


def main() -> None:
    """Run everything once."""
    differing = sum(dense(options) for options in OPTIONS)
    for policy in ("exact", "lazy", "catch_up"):
        differing += sparse(policy, {}) + sparse(policy, {"max_grad_norm": 0.1})
    differing += sparse("lazy", {"state_dtype": "int8"})
    print(f"{differing} arrays differ from the CPU's")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
