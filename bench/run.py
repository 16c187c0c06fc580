"""Measure steps of adamas and of its peers against the limit of the memory system.

    python bench/run.py                                        every workload, 1 and all threads
    python bench/run.py --configs n1e6 gpt2 busy --threads 2 --rounds 15
    python bench/run.py --peers torch_fused --python torch=venv/bin/python
    python bench/run.py --configs n1e4 --options               the variants of adamas

"x limit" and "x adamas" are medians of ratios taken round by round, above 1 meaning slower; the
limit moves the same bytes as a float32 step and computes nothing. Peers that are not installed are
skipped. Results go to bench/results, from which plot.py draws pictures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import measure
import peers
import report
import workloads

Skipped = dict[str, str]
_BUSY = "busy"
_PEERS = [name for name in dict.fromkeys((*peers.DENSE, *peers.SPARSE)) if ":" not in name]


def add_measuring_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that guard.py has too."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=rounds, help="samples of each peer")
    parser.add_argument("--seconds", type=float, default=0.02, help="of work in a sample")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, cores}), help="default: 1 and all"
    )
    parser.add_argument("--memory", type=float, default=8.0, help="GB for all peers together")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter of a peer, or of all peers of a package, in another environment",
    )
    parser.add_argument("--verbose", action="store_true", help="show what the peers print")


def settings_of(options: argparse.Namespace) -> measure.Settings:
    """Return the settings that the options ask for."""
    return measure.Settings(
        rounds=options.rounds,
        seconds=options.seconds,
        memory=options.memory * 1e9,
        pythons=dict(pair.split("=", 1) for pair in options.python),
        verbose=options.verbose,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    configs = [*workloads.CONFIGS, _BUSY]
    parser.add_argument("--configs", nargs="+", choices=configs, metavar="NAME", default=configs)
    parser.add_argument("--peers", nargs="+", choices=_PEERS, metavar="NAME", default=_PEERS)
    parser.add_argument(
        "--options", action="store_true", help="the variants of adamas instead of the peers"
    )
    parser.add_argument(
        "--json", default="latest", metavar="NAME", help="results/NAME.json, or a path"
    )
    add_measuring_options(parser, rounds=15)
    return parser.parse_args()


def _print_skipped(skipped: Skipped, already: set[str]) -> None:
    for name, reason in skipped.items():
        if name not in already:
            print(f"skipped {name}: {reason}")
            already.add(name)


class Run:
    """One run of the benchmark: measures, prints, and saves after every workload."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._settings = settings_of(options)
        self._rows: list[measure.Row] = []
        self._busy: list[measure.BusyRow] = []
        self._versions: dict[str, str] = {}
        self._skipped: Skipped = {}
        self._told: set[str] = set()

    def run(self) -> None:
        """Measure all that was asked for."""
        configs = [name for name in self._options.configs if name != _BUSY]
        for threads in self._options.threads:
            with measure.Bench(threads, self._settings) as bench:
                for config in configs:
                    self._measure(bench, config, threads)
        if _BUSY in self._options.configs:
            self._measure_busy(max(self._options.threads))

    def _measure(self, bench: measure.Bench, config: str, threads: int) -> None:
        print(report.title(config, threads), flush=True)
        rows = bench.measure(config, self._peers())
        print(report.options_table(rows) if self._options.options else report.table(rows))
        self._rows += rows
        self._versions |= bench.versions
        self._finish(bench.skipped)

    def _measure_busy(self, threads: int) -> None:
        print(f"\nbusy: {workloads.BUSY}, {threads} thread(s), beside a loop on core 0", flush=True)
        names = [name for name in self._peers() if name in peers.DENSE]
        self._busy, skipped = measure.measure_busy(names, threads, self._settings)
        print(report.busy_table(self._busy))
        self._finish(skipped)

    def _peers(self) -> Sequence[str]:
        if self._options.options:
            return [f"adamas:{variant}" for variant in peers.VARIANTS]
        return list(dict.fromkeys((*measure.ANCHORS, *self._options.peers)))

    def _finish(self, skipped: Skipped) -> None:
        """Say what was skipped and save what there is."""
        self._skipped |= skipped
        _print_skipped(skipped, self._told)
        path = report.path_of(self._options.json)
        report.save(path, self._rows, self._busy, self._versions, self._skipped)


if __name__ == "__main__":
    Run(_parse()).run()
