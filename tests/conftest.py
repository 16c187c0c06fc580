"""Fixtures that several test files use, and the count of the identity test in the summary."""

from types import SimpleNamespace

import pytest

from adamas import _core

_IDENTITY = pytest.StashKey[SimpleNamespace]()


def pytest_configure(config):
    config.stash[_IDENTITY] = SimpleNamespace(compared=0, mismatches=0)


def pytest_terminal_summary(terminalreporter, config):
    identity = config.stash[_IDENTITY]
    if identity.compared:
        terminalreporter.write_line(
            f"identity: {identity.compared} combinations compared, {identity.mismatches} mismatches"
        )


@pytest.fixture
def identity(request):
    """Return the counters of combinations that were compared bit for bit."""
    return request.config.stash[_IDENTITY]


@pytest.fixture
def select_isa():
    """Return the function that selects an instruction set; the first choice is restored."""
    chosen = _core.isa_in_use()
    yield _core.select_isa
    _core.select_isa(chosen)
