"""Fixtures that several test files use, and what they have counted in the summary.

With pytest-xdist (`make test`) the tests run in several processes, the workers: what each of them
has counted is added up, and what is costly to make is made once for all.
"""

import gc
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

import emulation
from adamas import _core
from helpers import once

# No test depends on the speed of the machine.
hypothesis.settings.register_profile(
    "adamas", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("adamas")

_COMPARED = ("identity", "resume")
_COUNTS = pytest.StashKey[dict[str, SimpleNamespace]]()


def pytest_configure(config):
    config.stash[_COUNTS] = {
        **{name: SimpleNamespace(compared=0, mismatches=0) for name in _COMPARED},
        "kills": SimpleNamespace(made=0, in_a_write=0, torn=0),
    }


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):  # this process is a worker
        config.workeroutput["counts"] = {k: vars(v) for k, v in config.stash[_COUNTS].items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add what a worker has counted; one that crashed has told nothing."""
    for name, counts in getattr(node, "workeroutput", {}).get("counts", {}).items():
        total = vars(node.config.stash[_COUNTS][name])
        for key, count in counts.items():
            total[key] += count


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash[_COUNTS]
    for name in _COMPARED:
        if counts[name].compared:
            terminalreporter.write_line(
                f"{name}: {counts[name].compared} combinations compared, "
                f"{counts[name].mismatches} mismatches"
            )
    kills = counts["kills"]
    if kills.made:
        terminalreporter.write_line(
            f"kills: {kills.made} while saving in a loop, {kills.in_a_write} of them in the middle "
            f"of a write, {kills.torn} torn files"
        )


@pytest.fixture
def identity(request):
    """Return the counters of combinations that were compared bit for bit."""
    return request.config.stash[_COUNTS]["identity"]


@pytest.fixture
def resume(request):
    """Return the counters of resumed runs that were compared bit for bit."""
    return request.config.stash[_COUNTS]["resume"]


@pytest.fixture
def kills(request):
    """Return the counters of processes that were killed while they saved."""
    return request.config.stash[_COUNTS]["kills"]


@pytest.fixture
def select_isa():
    """Return the function that selects an instruction set; the first choice is restored."""
    chosen = _core.isa_in_use()
    yield _core.select_isa
    _core.select_isa(chosen)


@pytest.fixture(scope="session")
def emulated_device(tmp_path_factory):
    """Return the library of the emulated device, in use; it is compiled once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    once(folder, lambda: emulation.compile_in(folder))
    return emulation.load_from(folder)


@pytest.fixture
def device(request):
    """Return the library of the emulated device, in use, or None: the GPU of this machine is."""
    if emulation.IS_REAL:
        yield None
        return
    library = request.getfixturevalue("emulated_device")
    before = library.adamas_emulated_allocations()
    yield library
    gc.collect()
    assert library.adamas_emulated_allocations() == before  # nothing leaks


@pytest.fixture
def folder(tmp_path):
    """Return a folder in memory if there is one: thousands of files need not reach a disk."""
    shared = Path("/dev/shm")  # noqa: S108
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as path:
        yield Path(path)
