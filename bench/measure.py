"""The measuring itself: workers in turn, one sample each, and the rows that come of it.

Every peer runs in a process of its own, so peers may live in different environments and their
thread pools and allocators never meet. Samples are taken in turn (A B C A B C ...) while all other
workers are stopped, so that threads which spin when idle cost nobody. A round's samples are
neighbours in time: ratios within a round, of which the median is taken, cancel what the machine
does slowly.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import limit
import peers
import workloads

ANCHORS = ("limit", "adamas")  # in every group of a round: ratios are taken to them
_SETTLE = 0.001  # seconds for the worker before to come to rest
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Settings:
    """How to measure, whatever the workload."""

    rounds: int = 15
    seconds: float = 0.02  # of work in a sample
    memory: float = 8e9  # bytes that all peers measured together may need
    timeout: float = 180.0  # seconds for one request
    pythons: dict[str, str] = field(default_factory=dict)  # peer or package -> interpreter
    verbose: bool = False  # show what the peers print


@dataclass
class Row:
    """The samples of one peer: seconds per step, and in each round the ratios to the anchors."""

    config: str
    threads: int
    peer: str
    elements: int
    samples: list[float] = field(default_factory=list)
    to_limit: list[float] = field(default_factory=list)
    to_adamas: list[float] = field(default_factory=list)

    def add(self, round_: dict[str, float]) -> None:
        """Add this peer's sample of a round."""
        seconds = round_[self.peer]
        self.samples.append(seconds)
        for anchor, ratios in (("limit", self.to_limit), ("adamas", self.to_adamas)):
            if anchor in round_:
                ratios.append(seconds / round_[anchor])


@dataclass
class BusyRow:
    """Steps of one peer while another process keeps core 0 busy; lists have an entry per round."""

    peer: str
    threads: int
    one_thread: list[float] = field(default_factory=list)  # median seconds of a step
    all_threads: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # of the medians: all threads to one
    mean_ratios: list[float] = field(default_factory=list)  # of the means, which stalls weigh on
    largest: float = 0.0  # of all single steps with all threads

    def add(self, alone: Sequence[float], shared: Sequence[float]) -> None:
        """Add a round: the seconds of single steps with one thread and with all."""
        self.one_thread.append(statistics.median(alone))
        self.all_threads.append(statistics.median(shared))
        self.ratios.append(self.all_threads[-1] / self.one_thread[-1])
        self.mean_ratios.append(statistics.fmean(shared) / statistics.fmean(alone))
        self.largest = max(self.largest, *shared)


class PeerError(Exception):
    """A peer cannot be measured; the message says why."""


class PeerProcess:
    """The parent's end of one worker; stopped whenever it has nothing to do."""

    def __init__(self, peer: str, threads: int, settings: Settings) -> None:
        self.peer = peer
        self._timeout = settings.timeout
        entry = peers.DENSE.get(peer) or peers.SPARSE[peer]
        python = settings.pythons.get(peer) or settings.pythons.get(entry.package, sys.executable)
        command = [python, str(Path(__file__).with_name("worker.py")), peer, str(threads)]
        if threads == 1 and entry.pinned:
            command = ["taskset", "-c", "0", *command]
        variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if settings.verbose else subprocess.DEVNULL,
            env={**os.environ, **variables, "JAX_PLATFORMS": "cpu", "GLOG_v": "3"},
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer; PeerError if there is none."""
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._read())
            self._process.send_signal(signal.SIGSTOP)
        except (BrokenPipeError, ValueError):  # it died, or its pipes are closed
            raise PeerError("its process died") from None
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _read(self) -> bytes:
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            self.kill()
            raise PeerError(f"no answer in {self._timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError("its process died")
        return line

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; it holds nothing worth keeping."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Bench:
    """Measures workloads with one number of threads; a context that ends its workers.

    `skipped` says of each peer that could not be measured why, and `versions` what was used.
    """

    def __init__(self, threads: int, settings: Settings) -> None:
        limit.build()
        self._threads, self._settings = threads, settings
        self._workers: dict[str, PeerProcess] = {}
        self.skipped: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers.values():
            with suppress(BrokenPipeError):
                worker.kill()

    def measure(self, config: str, names: Sequence[str]) -> list[Row]:
        """Measure a workload, as many peers at a time as the memory allows."""
        work = workloads.CONFIGS[config]
        rows = {
            name: Row(config, self._threads, name, work.elements)
            for name in dict.fromkeys((*ANCHORS, *names))
        }
        for group in self._groups(work, names):
            ready = [worker for name in group if (worker := self._set_up(name, config))]
            for _ in range(self._settings.rounds):
                sampled = self._round(ready)
                for name in sampled:
                    rows[name].add(sampled)
            self._free(ready)
        return [row for row in rows.values() if row.samples]

    def _groups(
        self, work: workloads.Dense | workloads.Sparse, names: Sequence[str]
    ) -> Iterator[list[str]]:
        table = peers.SPARSE if isinstance(work, workloads.Sparse) else peers.DENSE
        others = [name for name in names if name in table and name not in ANCHORS]
        room = max(1, int(self._settings.memory / work.memory) - len(ANCHORS))
        for start in range(0, max(1, len(others)), room):
            yield [*ANCHORS, *others[start : start + room]]

    def _set_up(self, name: str, config: str) -> PeerProcess | None:
        if name in self.skipped:
            return None  # its package is missing
        worker = self._workers.get(name)
        if worker is None or not worker.alive:
            worker = self._workers[name] = PeerProcess(name, self._threads, self._settings)
        try:
            answer = worker.ask("setup", config=config, seconds=self._settings.seconds)
        except PeerError as error:
            self._skip(name, config, error)
            return None
        self.versions[answer["package"]] = answer["version"]
        return worker

    def _skip(self, name: str, config: str, error: PeerError) -> None:
        missing = str(error).startswith("not installed")
        self.skipped[name if missing else f"{name} ({config}, {self._threads})"] = str(error)

    def _round(self, workers: Sequence[PeerProcess]) -> dict[str, float]:
        """Return one sample of each worker; those that fail are left out."""
        sampled = {}
        for worker in workers:
            time.sleep(_SETTLE)
            with suppress(PeerError):
                sampled[worker.peer] = worker.ask("sample")["seconds"]
        return sampled

    def _free(self, workers: Sequence[PeerProcess]) -> None:
        for worker in workers:
            with suppress(PeerError):
                worker.ask("free")

    def singles(self, name: str, seconds: float) -> list[float] | None:
        """Return the seconds of single steps of a peer that is set up; None if it is not."""
        try:
            time.sleep(_SETTLE)
            return self._workers[name].ask("single", seconds=seconds)["samples"]
        except (KeyError, PeerError):
            return None

    def set_up_busy(self, name: str) -> bool:
        """Make the workload of the busy machine ready and say whether that went well."""
        return self._set_up(name, workloads.BUSY) is not None


# Ends by itself when the benchmark has gone, however that came about.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_core(core: int = 0) -> Iterator[None]:
    """Keep a core busy with a loop in another process."""
    loop = subprocess.Popen([sys.executable, "-c", _SPIN, str(core)])
    time.sleep(0.5)
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def measure_busy(
    names: Sequence[str], threads: int, settings: Settings, seconds: float = 0.2
) -> tuple[list[BusyRow], dict[str, str]]:
    """Measure steps with one and with all threads while core 0 is busy; also what was skipped."""
    rows = []
    with Bench(1, settings) as one, Bench(threads, settings) as many, busy_core():
        for name in names:
            if not (one.set_up_busy(name) and many.set_up_busy(name)):
                continue
            row = BusyRow(name, threads)
            for _ in range(settings.rounds):
                alone, shared = one.singles(name, seconds), many.singles(name, seconds)
                if alone and shared:
                    row.add(alone, shared)
            if row.ratios:
                rows.append(row)
        return rows, {**one.skipped, **many.skipped}
