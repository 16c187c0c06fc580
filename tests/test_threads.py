"""How many threads there are, and how long they live.

What counts the threads of a process runs in one of its own.
"""

import os
import textwrap

import numpy as np
import pytest

import adamas
from adamas import _core
from helpers import run_python

LAUNCHERS = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_NTASKS_PER_NODE",
)
NOTHING_SAID = dict.fromkeys(("ADAMAS_NUM_THREADS", *LAUNCHERS), "")
CORES = len(os.sched_getaffinity(0))

COUNT = """
import gc, os, sys, threading, time
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's threads end at a fork
import numpy as np
import adamas

def steps(threads):
    params = [adamas.Parameter(np.ones(100_003, np.float32))]
    optimizer = adamas.Adam(params, num_threads=threads)
    optimizer((np.full(100_003, 0.5, np.float32),))
    return optimizer

def threads():
    return len(os.listdir("/proc/self/task"))

def become(wanted):
    gc.collect()
    deadline = time.monotonic() + 20
    while threads() != wanted and time.monotonic() < deadline:
        time.sleep(0.001)  # one that was joined is listed for a moment longer
    return threads() - alone

alone = threads()
"""


def counted(script):
    """Return what a script prints that begins as above."""
    source = COUNT + textwrap.dedent(script)
    done = run_python("-W", "ignore::DeprecationWarning", "-c", source)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_threads_end_with_the_last_optimizer_that_uses_them():
    script = """
    first, second, other = steps(3), steps(3), steps(2)
    print(threads() - alone)
    del first
    print(become(alone + 3))
    second((np.ones(100_003, np.float32),))
    print(threads() - alone)
    del second
    print(become(alone + 1))
    del other
    print(become(alone))
    for _ in range(20):
        steps(4)
    print(become(alone))
    """
    assert counted(script) == ["3", "3", "3", "1", "0", "0"]


def test_an_optimizer_that_makes_no_large_step_has_no_threads():
    script = """
    optimizer = adamas.Adam([adamas.Parameter(np.ones(100, np.float32))], num_threads=3)
    optimizer((np.ones(100, np.float32),))
    one = steps(1)
    print(threads() - alone)
    """
    assert counted(script) == ["0"]


def test_views_of_many_gradients_keep_the_threads_of_their_optimizer():
    script = """
    arrays = [np.ones(3, np.float32) for _ in range(2000)]
    optimizer = adamas.Adam([adamas.Parameter(array) for array in arrays], num_threads=3)
    optimizer(tuple(array.copy() for array in arrays))
    print(threads() - alone)
    del optimizer
    print(become(alone))
    """
    assert counted(script) == ["2", "0"]


def test_an_optimizer_goes_while_another_steps():
    script = """
    stop = threading.Event()

    def train():
        optimizer = steps(3)
        while not stop.is_set():
            optimizer((np.ones(100_003, np.float32),))

    trainers = [threading.Thread(target=train) for _ in range(2)]
    for trainer in trainers:
        trainer.start()
    for _ in range(100):
        steps(3)
    stop.set()
    for trainer in trainers:
        trainer.join()
    print(become(alone))
    """
    assert counted(script) == ["0"]


def test_threads_of_a_forked_child():
    script = """
    optimizer = steps(3)
    child = os.fork()
    if child == 0:
        before = threads()
        optimizer((np.ones(100_003, np.float32),))
        during = threads()
        del optimizer
        os._exit(10 * before + during if become(before) + alone == before else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(threads() - alone)
    del optimizer
    print(become(alone))
    """
    assert counted(script) == ["13", "2", "0"]


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)", "del optimizer; sys.exit(3)"])
@pytest.mark.parametrize("beside", ["", "threading.Thread(target=forever, daemon=True).start()"])
def test_exit(end, beside):
    """A daemon thread may be inside a step."""
    script = f"""
    optimizer, another = steps(3), steps(3)

    def forever():
        while True:
            another((np.ones(100_003, np.float32),))

    {beside}
    time.sleep(0.01)
    {end}
    """
    source = COUNT + textwrap.dedent(script)
    done = run_python("-c", source)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def said(*arguments, **environment):
    """Return the finished process that has just this in its environment."""
    return run_python(*arguments, **{**NOTHING_SAID, **environment})


USED = """
import numpy as np
import adamas
from adamas import _core
params = [adamas.Parameter(np.ones(3, np.float32))]
optimizers = [adamas.Adam(params, num_threads=count)._native for count in (None, 7)]
print(_core.available_threads(), *(one.num_threads for one in optimizers))
"""


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, CORES),
        ({"ADAMAS_NUM_THREADS": "5"}, 5),
        ({"ADAMAS_NUM_THREADS": "5", "LOCAL_WORLD_SIZE": "2"}, 5),
        *(({name: str(4 * CORES)}, 1) for name in LAUNCHERS),
        ({"SLURM_NTASKS_PER_NODE": f"{CORES}(x2)"}, 1),
        ({"LOCAL_WORLD_SIZE": "1"}, CORES),
        ({"LOCAL_WORLD_SIZE": "many"}, CORES),
    ],
)
def test_the_number_of_threads(environment, threads):
    done = said("-c", USED, **environment)
    assert (done.returncode, done.stdout.split()) == (0, [str(threads), str(threads), "7"])


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, f"{CORES} (the cores that this process may use)"),
        ({"ADAMAS_NUM_THREADS": "5"}, "5 (ADAMAS_NUM_THREADS is set)"),
        (
            {"LOCAL_WORLD_SIZE": str(CORES)},
            "1 (the cores that this process may use)"
            if CORES == 1
            else f"1 ({CORES} cores for {CORES} processes, says LOCAL_WORLD_SIZE)",
        ),
    ],
)
def test_the_report_says_why(environment, why):
    lines = said("-m", "adamas", **environment).stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("threads")] == [why]


@pytest.mark.skipif(CORES < 2, reason="one core can't be divided")
def test_a_launcher_that_binds_has_divided():
    one = min(os.sched_getaffinity(0))
    script = f"""
    import os
    os.sched_setaffinity(0, {{{one}}})
    from adamas import _core
    print(*_core.default_threads())
    """
    done = said("-c", textwrap.dedent(script), LOCAL_WORLD_SIZE="2")
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "1", "None"])


@pytest.mark.parametrize("value", ["0", "-1", "two", "2.0", " 2", "4097"])
def test_a_wrong_number_fails_at_import(value):
    done = said("-c", "import adamas", ADAMAS_NUM_THREADS=value)
    assert done.returncode != 0
    for part in ("ImportError", "ADAMAS_NUM_THREADS", f"'{value}'", "from 1 to 4096"):
        assert part in done.stderr


def test_a_wrong_number_set_later_is_refused(monkeypatch):
    monkeypatch.setenv("ADAMAS_NUM_THREADS", "many")
    params = [adamas.Parameter(np.ones(3, np.float32))]
    with pytest.raises(ValueError, match="ADAMAS_NUM_THREADS must be a whole number"):
        adamas.Adam(params)
    with pytest.raises(ValueError, match="ADAMAS_NUM_THREADS"):
        _core.default_threads()
    assert _core.available_threads() == CORES
    adamas.Adam(params, num_threads=2)
