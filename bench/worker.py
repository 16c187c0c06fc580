"""One peer in a process of its own: `measure.py` starts it and asks for samples, a line each.

    python worker.py PEER THREADS

Requests and answers are JSON objects: {"do": "setup", "config": "n1e4", "seconds": 0.02} makes a
workload ready, {"do": "sample"} times some steps together, {"do": "single", "seconds": 0.2} times
steps one by one, {"do": "free"} forgets the workload.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import signal
import sys
import time
from typing import Any

import peers
import workloads

_MOST_REPEATS = 20_000


class Worker:
    """The state between requests: the step and how often a sample repeats it."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self.free()

    def free(self) -> dict[str, Any]:
        """Forget the workload."""
        self._step: peers.Step | None = None
        self._repeats = 1
        self._warm_repeats = 1
        gc.collect()
        return {}

    def setup(self, config: str, seconds: float) -> dict[str, Any]:
        """Make the step ready, warm it up and choose repeats that fill the time of a sample."""
        self.free()
        work = workloads.CONFIGS[config]
        table = peers.SPARSE if isinstance(work, workloads.Sparse) else peers.DENSE
        peer = table[self._name]
        self._step = peer.make(work, self._threads)
        self._repeat(work.warm_up)
        once = min(self._repeat(1) for _ in range(3))
        self._repeats = max(1, min(_MOST_REPEATS, int(seconds / once)))
        self._warm_repeats = (self._repeats + 3) // 4
        return {"package": peer.package, "version": _version(peer.package)}

    def sample(self) -> dict[str, Any]:
        """Return the mean seconds of a step, after some steps that wake caches and threads."""
        self._repeat(self._warm_repeats)
        return {"seconds": self._repeat(self._repeats) / self._repeats}

    def single(self, seconds: float) -> dict[str, Any]:
        """Return the seconds of each step for about this long."""
        samples = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            samples.append(self._repeat(1))
        return {"samples": samples}

    def _repeat(self, times: int) -> float:
        """Do some steps and return the seconds that all took; `limit` repeats by itself."""
        step = self._step
        assert step is not None
        repeat = getattr(step, "repeat", None)
        start = time.perf_counter()
        if repeat is not None:
            repeat(times)
        else:
            for _ in range(times):
                step()
        return time.perf_counter() - start


def _version(package: str) -> str:
    """Return the version of an imported package, installed or not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return getattr(worker, request.pop("do"))(**request)
    except ImportError as error:
        return {"error": f"not installed ({error.name or error})"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip()[:200]}"}


def _die_with_parent() -> None:
    """Ask Linux to kill this process, stopped or not, when its parent is gone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer requests until there are no more; what libraries print goes to stderr."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        answers.write(json.dumps(_answer(worker, json.loads(line))) + "\n")
        answers.flush()
    os._exit(0)  # some libraries hang in their own clean-up


if __name__ == "__main__":
    main()
