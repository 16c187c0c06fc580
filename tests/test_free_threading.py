"""Threads that share what the bindings and the Python layer share: types, rates, optimizers.

Without the GIL (a free-threaded Python) these are races that the interpreter does not prevent; with
it, most of them are merely rare.
"""

import sys
import sysconfig
from functools import partial

import numpy as np
import pytest

import adamas
from helpers import run_python, run_threads, states_of

THREADS = 8
ROUNDS = 60


def together(work):
    """Run work(number of the thread) on all threads, starting at once."""
    run_threads(*[partial(work, number) for number in range(THREADS)])


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="Python has a GIL")
def test_the_module_leaves_the_gil_off():
    code = "import sys, adamas; print(sys._is_gil_enabled())"
    assert run_python("-c", code).stdout == "False\n"
    assert not sys._is_gil_enabled()


FIRST_USE = """
import threading
import numpy as np
import adamas
start = threading.Barrier(8)
done = []
def work(dtype):
    array, grad = np.ones(100, dtype), np.ones(100, dtype)
    start.wait()
    opt = adamas.Adam([adamas.Parameter(array)])
    opt([grad])
    done.append(float(array[0]))
threads = [threading.Thread(target=work, args=(t,)) for t in ("f2", "f4", "f8", "f4") * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done), all(abs(value - 0.999) < 1e-3 for value in done))
"""


def test_the_first_use_of_each_type():
    """The bindings remember the type objects that they meet first."""
    for _ in range(3):
        assert run_python("-c", FIRST_USE).stdout == "8 True\n"


def test_optimizers_of_their_own():
    """Eight trainings side by side have the bits of one alone."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((40, 16)).astype(np.float32)
    grads = rng.standard_normal((ROUNDS, 40, 16)).astype(np.float32)
    sparse = adamas.RowTensor(np.array([3, 1, 3]), grads[0, :3], (40, 16))

    def train():
        opt = adamas.Adam([adamas.Parameter(start.copy())], max_grad_norm=1.0, num_threads=2)
        for grad in grads:
            opt([grad])
            opt([sparse])
            opt([grad.astype(np.float64)])  # converted
        return states_of(opt)

    alone = train()
    trained = [None] * THREADS
    together(lambda number: trained.__setitem__(number, train()))
    for states in trained:
        for kind, arrays in states.items():
            np.testing.assert_array_equal(arrays, alone[kind])


def test_one_optimizer_with_a_lock():
    """Every step counts, once, whatever else is read and set meanwhile."""
    array = np.zeros(1000, np.float32)
    rates = iter(np.full(THREADS * ROUNDS, 0.25).tolist())
    opt = adamas.Adam([adamas.Parameter(array)], learning_rate=rates, eps=1e-30, use_locking=True)
    grad = np.ones(1000, np.float32)

    def work(number):
        for i in range(ROUNDS):
            opt([grad])
            if number == 0:
                opt.loss_scale = 2.0 ** (i % 5)
                assert len(opt.moment1[0]) == 1000
                assert opt.skipped_steps == 0

    together(work)
    assert opt.global_step == THREADS * ROUNDS
    assert np.isfinite(array).all()
    assert (array == array[0]).all()


def test_one_optimizer_without_a_lock():
    """Steps may interleave, but each is made, and an iterator loses no value."""
    taken = []

    def rates():
        for i in range(10**9):
            taken.append(i)
            yield 1e-3

    array, grad = np.ones(512, np.float32), np.ones(512, np.float32)
    opt = adamas.Adam([adamas.Parameter(array)], learning_rate=rates())

    def work(_):
        for _ in range(ROUNDS):
            opt([grad])

    together(work)
    assert opt.global_step == THREADS * ROUNDS
    assert taken == list(range(len(taken)))
    assert len(taken) <= THREADS * ROUNDS


def test_a_list_of_gradients_that_changes_meanwhile():
    """A step reads the gradients that were in the list at one moment, or refuses their number."""
    array = np.ones(64, np.float32)
    opt = adamas.Adam([adamas.Parameter(array)])
    grads = [np.ones(64, np.float32)]
    steps, refusals = [], []

    def work(number):
        for _ in range(ROUNDS):
            if number % 2:
                grads[:] = [np.ones(64, np.float32)] * (1 + number % 3)
            else:
                try:
                    steps.append(opt(list(grads) if number == 2 else grads))
                except ValueError as error:
                    refusals.append(str(error))

    together(work)
    assert all("one gradient for each" in text for text in refusals)
    assert opt.global_step == len(steps)
    assert np.isfinite(array).all()
