"""The CUDA backend on a real GPU; skipped where there is none.

What the emulated device can't show: the compiled kernels, streams, graphs, memory beyond 2^31
elements.  bench/gpu_check.sh runs this.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import adamas
from helpers import bits, run_python

try:
    import torch
except ImportError:
    torch = None

pytestmark = pytest.mark.skipif(
    torch is None or not torch.cuda.is_available() or not adamas.cuda.is_available(),
    reason="needs a GPU, torch and libadamas_cuda.so",
)

HERE = Path(__file__).parent


def tensor(array):
    return torch.from_numpy(np.array(array)).cuda()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def check(tensors, arrays):
    for one, other in zip(tensors, arrays, strict=True):
        assert np.array_equal(bits(one.cpu().numpy()), bits(other))


@pytest.mark.parametrize("suite", ["test_cuda.py", "test_cuda_sums.py"])
def test_the_suites_of_the_emulated_device(suite):
    """In a process of its own, since the emulated device replaces the real one."""
    done = run_python(
        *("-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", str(HERE / suite)),
        ADAMAS_TEST_CUDA="real",
        timeout=400,
    )
    print(done.stdout[-2000:], file=sys.stderr)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "0 mismatches" in done.stdout


def test_cupy_arrays():
    cupy = pytest.importorskip("cupy")
    weight, grad = normal(1, 100, 7), normal(2, 100, 7)
    there, grad_there = cupy.asarray(weight), cupy.asarray(grad)
    opt = adamas.Adam([adamas.Parameter(there)], 0.01)
    cpu = adamas.Adam([adamas.Parameter(weight)], 0.01)
    for _ in range(3):
        opt((grad_there,))
        cpu((grad,))
    assert np.array_equal(cupy.asnumpy(there), weight)
    moment = cupy.asarray(opt.moment1[0])
    assert np.array_equal(cupy.asnumpy(moment), cpu.moment1[0])


def test_steps_on_a_side_stream_wait_for_the_gradient():
    """The gradient is ready late, on another stream than the default one."""
    weight, grad = normal(1, 1 << 20), normal(2, 1 << 20)
    parameter = torch.zeros(1 << 20, device="cuda")
    parameter.copy_(torch.from_numpy(weight))
    late = torch.zeros_like(parameter)
    ready = tensor(grad)
    opt = adamas.Adam([adamas.Parameter(parameter)], 0.01)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(ready)
        opt((late,))
        late.zero_()
    cpu = adamas.Adam([adamas.Parameter(weight)], 0.01)
    cpu((grad,))
    torch.cuda.synchronize()
    check([parameter], [weight])


def test_sparse_steps_on_a_side_stream_wait_for_the_gradient():
    table, values, rows = normal(1, 5000, 64), normal(2, 700, 64), np.arange(700) * 7
    parameter, ready = tensor(table), tensor(values)
    late, late_rows = torch.zeros_like(ready), torch.zeros(700, dtype=torch.int64, device="cuda")
    ready_rows = tensor(rows)
    opt = adamas.Adam([adamas.Parameter(parameter)], 0.01, use_lazy=True)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(ready)
        late_rows.copy_(ready_rows)
        opt((adamas.RowTensor(late_rows, late, table.shape),))
        after = parameter.clone()
        late.zero_()
    cpu = adamas.Adam([adamas.Parameter(table)], 0.01, use_lazy=True)
    cpu((adamas.RowTensor(rows, values, table.shape),))
    torch.cuda.synchronize()
    check([parameter, after], [table, table])


def test_the_counter_and_the_state_wait_for_replays():
    parameter, grad = torch.ones(1 << 20, device="cuda"), torch.ones(1 << 20, device="cuda")
    opt = adamas.Adam([adamas.Parameter(parameter)], 0.01, capturable=True)
    opt((grad,))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt((grad,))
    cpu = adamas.Adam([adamas.Parameter(np.ones(1 << 20, np.float32))], 0.01)
    ones = np.ones(1 << 20, np.float32)
    cpu((ones,))
    for step in (2, 3):
        torch.cuda._sleep(50_000_000)
        graph.replay()
        cpu((ones,))
        if step == 2:
            assert opt.global_step == step
        else:
            assert np.array_equal(opt.moment1[0].numpy(), cpu.moment1[0])


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1, "skip_nonfinite": True}])
def test_graphs(options):
    arrays = [normal(k, 1000 + k) for k in range(20)]
    parameters = [tensor(a) for a in arrays]
    grads = [torch.zeros_like(p) for p in parameters]
    opt = adamas.Adam(
        [adamas.Parameter(p) for p in parameters],
        0.01,
        weight_decay=0.1,
        capturable=True,
        **options,
    )
    cpu = adamas.Adam([adamas.Parameter(a) for a in arrays], 0.01, weight_decay=0.1, **options)

    def fill(k):
        values = [normal(100 * k + i, a.size) for i, a in enumerate(arrays)]
        for grad, value in zip(grads, values, strict=True):
            grad.copy_(torch.from_numpy(value))
        return tuple(values)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        cpu(fill(0))
        opt(grads)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt(grads)
    for k in range(1, 5):
        cpu(fill(k))
        graph.replay()
    torch.cuda.synchronize()
    check(parameters, arrays)
    assert opt.global_step == 5
    cpu(fill(9))
    opt(grads)
    cpu(fill(10))
    graph.replay()
    torch.cuda.synchronize()
    check(parameters, arrays)


def test_sparse_steps_repeat_bitwise():
    rng = np.random.default_rng(1)
    rows = (rng.zipf(1.2, 100_000) % 5000).astype(np.int64)
    values = normal(2, len(rows), 64)
    results = []
    for _ in range(2):
        table = torch.ones(5000, 64, device="cuda")
        opt = adamas.Adam([adamas.Parameter(table)], 0.01, use_lazy=True)
        for _ in range(3):
            opt((adamas.RowTensor(tensor(rows), tensor(values), (5000, 64)),))
        results.append(table.cpu().numpy())
    table = np.ones((5000, 64), np.float32)
    cpu = adamas.Adam([adamas.Parameter(table)], 0.01, use_lazy=True)
    for _ in range(3):
        cpu((adamas.RowTensor(rows, values, (5000, 64)),))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], table)


def test_an_index_outside_is_found():
    table = torch.ones(8, 3, device="cuda")
    opt = adamas.Adam([adamas.Parameter(table)], 0.01)
    with pytest.raises(IndexError):
        opt((adamas.RowTensor(tensor(np.array([8])), tensor(normal(1, 1, 3)), (8, 3)),))
    assert bool((table == 1).all())


def test_more_elements_than_2_to_the_31():
    count = (1 << 31) + 4099
    if torch.cuda.mem_get_info()[0] < 3 * count:
        pytest.skip("too little memory")
    parameter = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    grad = torch.ones(count, dtype=torch.bfloat16, device="cuda")
    if torch.cuda.mem_get_info()[0] < 5 * count:
        pytest.skip("too little memory for the moments")
    opt = adamas.Adam([adamas.Parameter(parameter)], 0.5, state_dtype="bfloat16")
    opt((grad,))
    torch.cuda.synchronize()
    assert float(parameter.float().min() if count < 1 << 20 else parameter.min()) == -0.5
    assert float(parameter.max()) == -0.5


def test_offload():
    arrays = [normal(k, 100_000 + k) for k in range(10)]
    parameters = [tensor(a) for a in arrays]
    opt = adamas.Adam([adamas.Parameter(p) for p in parameters], 0.01, use_offload=True)
    cpu = adamas.Adam([adamas.Parameter(a) for a in arrays], 0.01)
    for k in range(3):
        grads = [normal(10 * k + i, a.size) for i, a in enumerate(arrays)]
        opt([tensor(g) for g in grads])
        cpu(grads)
    check(parameters, arrays)
    opt.begin_step()
    for parameter, array in zip(opt.parameters, arrays, strict=True):
        opt.submit(parameter, tensor(array))
    opt.end_step()
    cpu([a.copy() for a in arrays])
    torch.cuda.synchronize()
    check(parameters, arrays)


def test_a_moved_parameter_is_refused():
    parameter = torch.nn.Parameter(torch.ones(5, device="cuda"))
    opt = adamas.Adam([adamas.Parameter(parameter)], 0.5)
    opt((torch.ones(5, device="cuda"),))
    parameter.data = torch.ones(5, device="cuda")
    with pytest.raises(ValueError, match="moved"):
        opt((torch.ones(5, device="cuda"),))


def test_nothing_is_left_behind():
    """Torch's own error state and current device are as before."""
    before = torch.cuda.current_device()
    opt = adamas.Adam([adamas.Parameter(torch.ones(5, device="cuda"))], 0.5)
    opt((torch.ones(5, device="cuda"),))
    torch.cuda.synchronize()
    assert torch.cuda.current_device() == before
