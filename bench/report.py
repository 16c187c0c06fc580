"""Tables of what was measured, and the JSON files in `results/` that keep it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import workloads
from measure import BusyRow, Row

RESULTS = Path(__file__).with_name("results")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores that may be used, memory, system."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        label, _, name = line.partition(":")
        if label.strip() == "model name":
            return name.strip()
    return platform.processor() or platform.machine()


def path_of(name: str) -> Path:
    """Return the file of a name in `results/`; a name that ends in .json is a path already."""
    return Path(name) if name.endswith(".json") else RESULTS / f"{name}.json"


def save(
    path: Path,
    rows: Sequence[Row],
    busy: Sequence[BusyRow],
    versions: dict[str, str],
    skipped: dict[str, str],
) -> None:
    """Write what was measured, with the machine, the versions and the date; times in seconds."""
    document = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions,
        "skipped": skipped,
        "rows": [_rounded(asdict(row)) for row in rows],
        "busy": [_rounded(asdict(row)) for row in busy],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(document) + "\n")


def _text(document: dict[str, Any]) -> str:
    """Return JSON with a line for each entry and for each row of a list."""
    entries = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        entries.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Keep five digits of each number in a list: more are noise."""
    return {
        key: [float(f"{number:.5g}") for number in value] if isinstance(value, list) else value
        for key, value in row.items()
    }


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return a document and its rows."""
    document = json.loads(path.read_text())
    return document, [Row(**row) for row in document["rows"]]


def _median(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "-"


def _quartiles(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low * 1e6:.2f} to {high * 1e6:.2f}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table, the first column to the left and the others to the right."""
    columns = list(zip(head, *lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


def title(config: str, threads: int) -> str:
    """Return the line above a table."""
    work = workloads.CONFIGS[config]
    if isinstance(work, workloads.Dense):
        what = f"{work.elements} elements in {len(work.shapes)} tensor(s)"
    else:
        kind = "Zipf-distributed" if work.zipf else "distinct"
        what = f"{work.count} {kind} rows of a table of {work.rows} x {work.width}"
    return f"\n{config}: {what}, {threads} thread(s)"


def table(rows: Sequence[Row]) -> str:
    """Return the table of one workload: medians, and medians of ratios taken round by round."""
    head = ("peer", "us a step", "quartiles", "ns/element", "x limit", "x adamas")
    lines = [
        (
            row.peer,
            _median([sample * 1e6 for sample in row.samples]),
            _quartiles(row.samples) if len(row.samples) > 1 else "-",
            _median([sample / row.elements * 1e9 for sample in row.samples], 3),
            _median(row.to_limit),
            _median(row.to_adamas),
        )
        for row in rows
    ]
    return aligned(head, lines)


def options_table(rows: Sequence[Row]) -> str:
    """Return the table of adamas's variants."""
    head = ("variant", "ns per element and core", "x adam")
    plain = next(row for row in rows if row.peer == "adamas:adam")
    lines = []
    for row in rows:
        if ":" in row.peer:
            costs = [sample * row.threads / row.elements * 1e9 for sample in row.samples]
            ratios = [a / b for a, b in zip(row.samples, plain.samples, strict=False)]
            lines.append((row.peer.partition(":")[2], _median(costs, 3), _median(ratios)))
    return aligned(head, lines)


def busy_table(rows: Sequence[BusyRow]) -> str:
    """Return the table of steps beside a busy core."""
    head = ("peer", "us, 1 thread", "us, all", "ratio", "ratio of means", "largest us")
    lines = [
        (
            row.peer,
            _median([seconds * 1e6 for seconds in row.one_thread]),
            _median([seconds * 1e6 for seconds in row.all_threads]),
            _median(row.ratios),
            _median(row.mean_ratios),
            f"{row.largest * 1e6:.0f}",
        )
        for row in rows
    ]
    return aligned(head, lines)
