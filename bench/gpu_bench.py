"""Time steps on a GPU against torch's optimizers and the bandwidth of copies, in one run.

    python bench/gpu_bench.py --out bench/results

"x limit" is the time over that of moving the same bytes at the bandwidth of a device-to-device
copy, which is measured first. Times are medians of CUDA events around single steps (at least 50),
after warm-up, on random data. Writes gpu.json and gpu.txt; needs torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adamas
import workloads

REPEATS = 50
Step = Callable[[], object]
Row = dict[str, Any]


def median_ms(step: Step, repeats: int = REPEATS, warm_up: int = 5) -> float:
    """Return the median time of a step on the device."""
    for _ in range(warm_up):
        step()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
    return float(np.median(times))


def copy_bandwidth() -> float:
    """Return bytes read and written per second by a copy of 4 GB."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    seconds = median_ms(lambda: target.copy_(source)) / 1e3
    return 2 * source.nbytes / seconds


def tensors(shapes: Sequence[tuple[int, ...]], offset: int = 0) -> list[torch.Tensor]:
    """Return random tensors, each `offset` elements behind an aligned address."""
    made = []
    for shape in shapes:
        count = math.prod(shape)
        buffer = torch.randn(count + offset, device="cuda").mul_(0.02)
        made.append(buffer[offset:].view(shape))
    return made


def adamas_step(params: list[torch.Tensor], grads: list[torch.Tensor], **options: Any) -> Step:
    """Return a step of adamas."""
    opt = adamas.Adam([adamas.Parameter(p) for p in params], 1e-3, **options)
    views = tuple(grads)
    return lambda: opt(views)


def torch_step(params: list[torch.Tensor], grads: list[torch.Tensor], **options: Any) -> Step:
    """Return a step of torch's Adam."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return torch.optim.Adam(params, 1e-3, **options).step


PEERS: dict[str, dict[str, Any]] = {
    "torch fused": {"fused": True},
    "torch foreach": {"foreach": True},
    "torch capturable": {"foreach": True, "capturable": True},
}


def bench_dense(
    name: str, shapes: Any, bandwidth: float, peers: Sequence[str], offset: int = 0
) -> list[Row]:
    """Time adamas and its peers on a list of float32 tensors."""
    elements = sum(math.prod(shape) for shape in shapes)
    limit = 28 * elements / bandwidth * 1e3
    makers: dict[str, Callable[[Any, Any], Step]] = {"adamas": adamas_step}
    for peer in peers:
        makers[peer] = lambda p, g, peer=peer: torch_step(p, g, **PEERS[peer])
    rows = []
    for peer, make in makers.items():
        params, grads = tensors(shapes, offset), tensors(shapes, offset)
        ms = median_ms(make(params, grads))
        rows.append({"workload": name, "who": peer, "ms": ms, "limit_ms": limit})
        del params, grads
        torch.cuda.empty_cache()
    return rows


def bench_moments(bandwidth: float) -> list[Row]:
    """Time smaller moments on 1e8 elements, against the limit of float32."""
    shapes = [(100_000_000,)]
    rows = []
    for dtype in (None, "bfloat16", "int8"):
        step = adamas_step(tensors(shapes), tensors(shapes), state_dtype=dtype)
        rows.append(
            {
                "workload": f"1e8, moments {dtype or 'float32'}",
                "who": "adamas",
                "ms": median_ms(step),
                "limit_ms": 28e8 / bandwidth * 1e3,
            }
        )
        torch.cuda.empty_cache()
    return rows


def bench_clipping(bandwidth: float) -> list[Row]:
    """Unscale, clip, skip and Adam on GPT-2: one call, against torch's three."""
    shapes = workloads.CONFIGS["gpt2"].shapes
    limit = 32 * sum(math.prod(shape) for shape in shapes) / bandwidth * 1e3
    params, grads = tensors(shapes), tensors(shapes)
    ours = adamas_step(params, grads, max_grad_norm=1.0, skip_nonfinite=True, loss_scale=1024.0)
    rows = [
        {"workload": "gpt2 clip+skip", "who": "adamas", "ms": median_ms(ours), "limit_ms": limit}
    ]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    fused = torch.optim.Adam(params, 1e-3, fused=True)
    inverse = torch.full((), 1 / 1024.0, device="cuda")
    found = torch.zeros((), device="cuda")

    def theirs() -> None:
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, inverse)
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        fused.found_inf = found
        fused.step()

    rows.append(
        {
            "workload": "gpt2 clip+skip",
            "who": "torch fused",
            "ms": median_ms(theirs),
            "limit_ms": limit,
        }
    )
    return rows


def bench_table(name: str, work: workloads.Sparse) -> list[Row]:
    """Lazy steps on a table, against torch's SparseAdam."""
    batches = [torch.from_numpy(batch).cuda() for batch in work.batches()]
    values = torch.randn(work.count, work.width, device="cuda")
    shape = (work.rows, work.width)
    table = torch.randn(shape, device="cuda")
    opt = adamas.Adam([adamas.Parameter(table)], 1e-3, use_lazy=True)
    parameter = torch.nn.Parameter(torch.randn(shape, device="cuda"))
    peer = torch.optim.SparseAdam([parameter], 1e-3)
    step = itertools.count()

    def ours() -> None:
        rows = batches[next(step) % len(batches)]
        opt((adamas.RowTensor(rows, values, shape),))

    def theirs() -> None:
        rows = batches[next(step) % len(batches)]
        parameter.grad = torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)
        peer.step()

    return [
        {"workload": name, "who": who, "ms": median_ms(run), "limit_ms": None}
        for who, run in (("adamas", ours), ("torch SparseAdam", theirs))
    ]


def bench_submission() -> list[Row]:
    """The host's time to submit 300 tensors, while the device has nothing else to do."""
    shapes = [(64,)] * 300
    rows = []
    for who, make in (
        ("adamas", adamas_step),
        ("torch fused", lambda p, g: torch_step(p, g, fused=True)),
    ):
        step = make(tensors(shapes), tensors(shapes))
        times = []
        for _ in range(REPEATS + 5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        rows.append(
            {
                "workload": "submit 300 tensors",
                "who": who,
                "ms": float(np.median(times[5:])),
                "limit_ms": None,
            }
        )
    return rows


def wall_ms(step: Step, repeats: int) -> float:
    """Return the median time of a step on the host's clock, the device's work included."""
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[2:]))


def bench_offload() -> list[Row]:
    """Steps with the state on the host; the limit is the slowest of what it does at once."""
    shapes = workloads.CONFIGS["gpt2"].shapes
    params, grads = tensors(shapes), tensors(shapes)
    on_host = [torch.zeros(p.shape).pin_memory() for p in params]

    def down() -> None:
        for source in (params, grads):
            for there, here in zip(source, on_host, strict=True):
                here.copy_(there, non_blocking=True)

    def up() -> None:
        for there, here in zip(params, on_host, strict=True):
            there.copy_(here, non_blocking=True)

    arrays = [host.numpy() for host in on_host]
    update = adamas.Adam([adamas.Parameter(a) for a in arrays], 1e-3)
    zeros = tuple(np.full_like(a, 1e-3) for a in arrays)
    stages = {"down": down, "up": up, "update": lambda: update(zeros)}
    times = {name: wall_ms(stage, 10) for name, stage in stages.items()}
    limit = max(times.values())
    slowest = max(times, key=lambda name: times[name])
    ms = wall_ms(adamas_step(params, grads, use_offload=True), 10)
    name = f"gpt2 offload ({slowest})"
    return [{"workload": name, "who": "adamas", "ms": ms, "limit_ms": limit}]


def table_of(rows: list[Row]) -> str:
    """Lay the results out as text."""
    ours = {row["workload"]: row["ms"] for row in rows if row["who"] == "adamas"}
    lines = [f"{'workload':<28}{'who':<20}{'ms':>10}{'x limit':>10}{'x adamas':>10}"]
    for row in rows:
        limit = f"{row['ms'] / row['limit_ms']:10.3f}" if row["limit_ms"] else f"{'-':>10}"
        against = f"{row['ms'] / ours[row['workload']]:10.2f}"
        lines.append(f"{row['workload']:<28}{row['who']:<20}{row['ms']:10.4f}{limit}{against}")
    return "\n".join(lines)


def commit() -> str:
    """Return the commit of the working tree, if git is there and knows it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def write(out: Path, head: str, rows: list[Row], failures: list[str]) -> None:
    """Write what has been measured so far."""
    text = "\n".join([head, table_of(rows), *failures])
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.txt").write_text(text + "\n")
    results = {"machine": head, "rows": rows, "failures": failures}
    (out / "gpu.json").write_text(json.dumps(results, indent=1))


def run(jobs: list[Callable[[], list[Row]]], end: float, out: Path, head: str) -> list[str]:
    """Do what can be begun before `end`, writing after each; return what went wrong."""
    rows: list[Row] = []
    failures: list[str] = []
    for number, job in enumerate(jobs):
        if time.monotonic() > end:
            failures.append(f"job {number} was left out: no time")
        else:
            try:
                rows += job()
            except Exception as error:
                failures.append(f"job {number} failed: {error!r}")
                traceback.print_exc()
            torch.cuda.empty_cache()
        write(out, head, rows, failures)
    return failures


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="start nothing new after these"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() or not adamas.cuda.is_available():
        raise SystemExit(f"no GPU to measure: {adamas.cuda.why_unavailable() or 'torch has none'}")
    began = time.monotonic()
    bandwidth = copy_bandwidth()
    fused, every = ["torch fused"], list(PEERS)
    gpt2, resnet50 = (workloads.CONFIGS[name].shapes for name in ("gpt2", "resnet50"))
    jobs: list[Callable[[], list[Row]]] = [
        lambda: bench_dense("1e9", [(1_000_000_000,)], bandwidth, fused),
        lambda: bench_dense("gpt2", gpt2, bandwidth, every),
        lambda: bench_dense("resnet50", resnet50, bandwidth, every),
        lambda: bench_dense("10000 x 1000", [(1000,)] * 10000, bandwidth, fused),
        lambda: bench_dense("1e8, 4 bytes off", [(99_999_989,)], bandwidth, fused, offset=1),
        lambda: bench_clipping(bandwidth),
        lambda: bench_table("4096 unique rows", workloads.CONFIGS["uniq4096"]),
        lambda: bench_table("65536 Zipf rows", workloads.CONFIGS["zipf65536"]),
        lambda: bench_moments(bandwidth),
        bench_submission,
        bench_offload,
    ]
    head = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, adamas {adamas.__version__} "
        f"at {commit()}, copies at {bandwidth / 1e9:.0f} GB/s"
    )
    failures = run(jobs, began + options.seconds, options.out, head)
    print((options.out / "gpu.txt").read_text(), end="")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
