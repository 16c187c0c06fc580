"""Exit with status 1 if adamas has become slower than results/baseline.json says.

    python bench/guard.py --tolerance 15 --rounds 7

Measures the main workloads again and compares the ratios to the limit, which depend much less on
the day than times do; they do depend on the machine, so a baseline of another one is only a hint. A
row that looks slower is measured once more with three times the rounds before it counts.
`run.py --json baseline` makes a new baseline.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import measure
import report
from run import add_measuring_options, settings_of

_CONFIGS = (
    *("n1e3", "n1e4", "n1e5", "n1e6", "n1e7", "1000x1000", "10000x100"),
    *("resnet50", "uniq4096", "zipf65536"),
)
_PEERS = ("adamas", "adamas_bf16", "adamas_int8")
Key = tuple[str, int, str]  # config, threads, peer
Ratios = dict[Key, float]


@dataclass(frozen=True)
class Comparison:
    """One row: its ratio to the limit then and now."""

    key: Key
    before: float
    now: float

    def slower(self, tolerance: float) -> bool:
        """Whether it is slower by more than the tolerance, a fraction."""
        return self.now > self.before * (1 + tolerance)


def _ratios(rows: Sequence[measure.Row]) -> Ratios:
    return {
        (row.config, row.threads, row.peer): statistics.median(row.to_limit)
        for row in rows
        if row.peer in _PEERS and row.config in _CONFIGS and row.to_limit
    }


def _measure(keys: Sequence[Key], settings: measure.Settings) -> Ratios:
    """Measure these rows."""
    rows = []
    for threads in sorted({threads for _, threads, _ in keys}):
        with measure.Bench(threads, settings) as bench:
            for config in dict.fromkeys(key[0] for key in keys if key[1] == threads):
                names = [peer for name, count, peer in keys if (name, count) == (config, threads)]
                rows += bench.measure(config, names)
    return _ratios(rows)


def _compare(before: Ratios, options: argparse.Namespace) -> list[Comparison]:
    """Measure, measure again what looks slower, and return all rows."""
    settings = settings_of(options)
    tolerance = options.tolerance / 100
    now = _measure(list(before), settings)
    suspects = [
        key
        for key in now
        if key in before and Comparison(key, before[key], now[key]).slower(tolerance)
    ]
    settings.rounds *= 3
    again = _measure(suspects, settings)
    now |= {key: min(now[key], again[key]) for key in suspects if key in again}
    return [Comparison(key, before[key], now.get(key, float("inf"))) for key in before]


def _table(comparisons: Sequence[Comparison], tolerance: float) -> str:
    head = ("workload", "threads", "peer", "x limit before", "now", "change", "")
    return report.aligned(
        head,
        [
            (
                *map(str, comparison.key),
                f"{comparison.before:.2f}",
                f"{comparison.now:.2f}",
                f"{comparison.now / comparison.before - 1:+.0%}"
                if comparison.now < float("inf")
                else "not measured",
                "SLOWER" if comparison.slower(tolerance) else "",
            )
            for comparison in comparisons
        ],
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tolerance", type=float, default=15.0, help="per cent, default 15")
    parser.add_argument("--baseline", default="baseline", metavar="NAME")
    parser.add_argument("--configs", nargs="+", choices=_CONFIGS, metavar="NAME", default=_CONFIGS)
    add_measuring_options(parser, rounds=7)
    return parser.parse_args()


def main() -> int:
    """Compare and return the exit status: 1 slower, 2 nothing to compare with."""
    options = _parse()
    path = report.path_of(options.baseline)
    if not path.exists():
        print(f"there is no {path.name}: run.py --json {options.baseline} makes one")
        return 2
    document, rows = report.load(path)
    cpu = report.machine()["cpu"]
    if cpu != document["machine"]["cpu"]:
        print(f"the baseline is from {document['machine']['cpu']}, this is {cpu}")
    before = {
        key: ratio
        for key, ratio in _ratios(rows).items()
        if key[0] in options.configs and key[1] in options.threads
    }
    if not before:
        print("the baseline has no row of these workloads and threads")
        return 2
    comparisons = _compare(before, options)
    print(_table(comparisons, options.tolerance / 100))
    return int(any(comparison.slower(options.tolerance / 100) for comparison in comparisons))


if __name__ == "__main__":
    sys.exit(main())
