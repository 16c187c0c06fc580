"""``python -m adamas bench`` in a short form, and its limit, which must change nothing."""

import re

import numpy as np
import pytest

from adamas import _bench, _core
from helpers import run_python


def test_the_table():
    done = run_python("-m", "adamas", "bench", "--seconds", "0.5", "--max-elements", "1e5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, header, rows = done.stdout.rpartition("elements threads")
    threads = sorted({1, _core.available_threads()})
    lines = rows.splitlines()[1:]
    assert header
    assert [tuple(map(float, line.split()[:2])) for line in lines] == [
        (size, count) for size in (1e3, 1e5) for count in threads
    ]
    for line in lines:
        times = re.findall(r"([\d.]+) (?:us|ms|s)\b", line)
        assert len(times) >= len(_bench.STATES)
        assert all(float(time) > 0 for time in times)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_limit_reads_and_writes_what_is_there(threads):
    arrays = [np.random.default_rng(i).standard_normal(1001, np.float32) for i in range(3)]
    copies = [array.copy() for array in arrays]
    limit = _bench.Limit(*arrays, threads)
    limit()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array.view(np.uint32), copy.view(np.uint32))


def test_a_limit_where_there_is_one(monkeypatch):
    monkeypatch.setattr(_bench, "IN_MEMORY", 1000)
    steps = _bench.contestants(1000, 2)
    assert steps.keys() >= {_bench.LIMIT, *_bench.STATES}
    samples = _bench.measure(steps, 0.0)
    assert len(samples[_bench.LIMIT]) == _bench.ROUNDS[0]
    assert re.fullmatch(r"[\d.]+ us [\d.]+x", _bench.cell(samples, "float32"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-7, "0.250 us"), (1.234e-6, "1.23 us"), (0.0456, "45.6 ms"), (12.34, "12.3 s")],
)
def test_times_have_three_digits(seconds, text):
    assert _bench.shown(seconds) == text


def test_too_little_memory_is_said():
    done = run_python("-m", "adamas", "bench", "--max-elements", "10")
    assert done.returncode == 2
    assert "--max-elements" in done.stderr
