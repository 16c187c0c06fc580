"""Fixtures that several test files use, and what they have counted in the summary."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from adamas import _core

_COMPARED = ("identity", "resume")
_COUNTS = pytest.StashKey[dict[str, SimpleNamespace]]()


def pytest_configure(config):
    config.stash[_COUNTS] = {
        **{name: SimpleNamespace(compared=0, mismatches=0) for name in _COMPARED},
        "kills": SimpleNamespace(made=0, in_a_write=0, torn=0),
    }


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


@pytest.fixture
def folder(tmp_path):
    """Return a folder in memory if there is one: thousands of files need not reach a disk."""
    shared = Path("/dev/shm")  # noqa: S108
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as path:
        yield Path(path)
