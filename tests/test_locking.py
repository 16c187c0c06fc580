"""Concurrent calls: with use_locking they equal some serial order, without it they never crash.

No test asserts a time.  Threads meet at barriers and events, and every join has a timeout, so that
a deadlock fails instead of hanging.
"""

import contextlib
import sys
import sysconfig
import threading
import time

import numpy as np
import pytest

import adamas
from helpers import PATIENCE, run_threads
from rules import POLICIES, every

# float32 holds integers only from 2^23 to 2^24, and a step with a constant gradient subtracts the
# learning rate: from here on, updates by integers are exact in any order, and none can get lost.
TOP = 2.0**24 - 1.0


def repeat(count, function, *arguments):
    def repeated():
        for _ in range(count):
            function(*arguments)

    return repeated


def constant_grads(optimizer, value=0.5):
    return tuple(np.full(param.shape, value, param.dtype) for param in optimizer.parameters)


def uneven_grads(optimizer):
    rng = np.random.default_rng(3)
    return tuple(
        rng.standard_normal(param.shape).astype(param.dtype) for param in optimizer.parameters
    )


def over(*arrays, **options):
    """Return an optimizer with locks over arrays, which may be views."""
    params = [adamas.Parameter(array, f"weight{i}") for i, array in enumerate(arrays)]
    return adamas.Adam(params, **{"use_locking": True, **options})


def bits(optimizer):
    arrays = [np.asarray(param) for param in optimizer.parameters]
    arrays += [*optimizer.moment1, *optimizer.moment2, *optimizer.vhat]
    return [array.tobytes() for array in arrays], optimizer.global_step


# One optimizer, many threads

CALLERS, CALLS = 8, 500
RATES = {
    "constant": lambda: 0.013,
    "vector": lambda: np.linspace(0.1, 0.001, CALLERS * CALLS),
    "iterator": lambda: (0.1 / (i + 1) for i in range(CALLERS * CALLS)),
    "schedule": lambda: adamas.ExponentialDecayLR(0.1, 0.5, 700),
}


def small_optimizer(learning_rate, **options):
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (7,))]
    return over(*arrays, learning_rate=learning_rate, weight_decay=0.01, **options)


def check_callers_equal_serial_calls(make, grads_of=uneven_grads):
    together, serial = make(), make()
    grads = grads_of(serial)
    run_threads(*[repeat(CALLS, together, grads)] * CALLERS)
    repeat(CALLERS * CALLS, serial, grads)()
    assert together.global_step == CALLERS * CALLS
    assert bits(together) == bits(serial)


@pytest.mark.parametrize("attempt", range(20))
def test_callers_of_one_optimizer_equal_serial_calls(attempt):
    check_callers_equal_serial_calls(lambda: small_optimizer(0.013))


@pytest.mark.parametrize("rate", RATES)
def test_so_they_do_with_rates_that_change(rate):
    check_callers_equal_serial_calls(lambda: small_optimizer(RATES[rate]()))


@pytest.mark.parametrize(
    "options",
    [
        {"use_amsgrad": True, "use_nesterov": True},
        {"max_grad_norm": 0.5, "skip_nonfinite": True},
        {"weight_decay": lambda step: 0.01 / (step + 1)},
    ],
    ids=["amsgrad_nesterov", "clipped", "scheduled_decay"],
)
def test_so_they_do_with_other_options(options):
    check_callers_equal_serial_calls(lambda: over(np.ones(9, np.float32), **options))


@every("row_policy", POLICIES)
def test_so_they_do_with_sparse_gradients(row_policy):
    def grads_of(optimizer):
        (param,) = optimizer.parameters
        values = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
        return (adamas.RowTensor(np.array([6, 1, 6, 0]), values, param.shape),)

    def make():
        return over(np.ones((8, 3), np.float32), row_policy=row_policy)

    check_callers_equal_serial_calls(make, grads_of)


# Several optimizers, one memory


def shared(count):
    return np.full(count, TOP, np.float32)


def test_two_optimizers_over_one_array_lose_no_update():
    array = shared(64)
    one, two = over(array, learning_rate=1.0), over(array, learning_rate=2.0)
    run_threads(
        *[repeat(500, one, constant_grads(one))] * 2, *[repeat(500, two, constant_grads(two))] * 2
    )
    np.testing.assert_array_equal(array, TOP - 1000 * 1 - 1000 * 2)
    assert one.global_step == two.global_step == 1000


def test_overlapping_views_lose_no_update():
    array = shared(90)
    left, right = over(array[:60], learning_rate=1.0), over(array[30:], learning_rate=2.0)
    middle = over(array[20:40], array[50:70], learning_rate=3.0)
    optimizers = (left, right, middle)
    run_threads(*[repeat(500, one, constant_grads(one)) for one in optimizers for _ in range(2)])
    wanted = np.full(90, TOP)
    wanted[:60] -= 1000 * 1
    wanted[30:] -= 1000 * 2
    wanted[20:40] -= 1000 * 3
    wanted[50:70] -= 1000 * 3
    np.testing.assert_array_equal(array, wanted)


def test_large_overlapping_views_on_many_threads_lose_no_update():
    array = shared(150_001)
    left = over(array[:100_003], learning_rate=1.0, num_threads=2)
    right = over(array[49_999:], learning_rate=2.0, num_threads=3)
    run_threads(repeat(40, left, constant_grads(left)), repeat(40, right, constant_grads(right)))
    wanted = np.full(array.shape, TOP)
    wanted[:100_003] -= 40 * 1
    wanted[49_999:] -= 40 * 2
    np.testing.assert_array_equal(array, wanted)


def test_optimizers_that_come_and_go_lose_no_update():
    array = shared(50)
    lasting = over(array, learning_rate=1.0)

    def come_and_go():
        passing = over(array[10:40], learning_rate=2.0)
        passing(constant_grads(passing))

    run_threads(
        *[repeat(300, lasting, constant_grads(lasting))] * 2, *[repeat(100, come_and_go)] * 2
    )
    wanted = np.full(50, TOP - 600)
    wanted[10:40] -= 200 * 2
    np.testing.assert_array_equal(array, wanted)


def test_applying_one_parameter_locks_it():
    a, b = shared(40), shared(40)
    whole, parts = over(a, b, learning_rate=1.0), over(b, a, learning_rate=2.0)
    grads = constant_grads(whole)

    def in_parts():
        parts.begin_step()
        for param in parts.parameters:
            parts.apply(param, grads[0])
        parts.end_step()

    run_threads(*[repeat(500, whole, grads)] * 2, repeat(500, in_parts))
    for array in (a, b):
        np.testing.assert_array_equal(array, TOP - 1000 * 1 - 500 * 2)


PAIRS_OF_FOUR = [(i, k) for i in range(4) for k in range(i + 1, 4)]


def test_few_calls_equal_one_of_all_serial_orders():
    """Two optimizers with decay, whose steps do not commute: four steps, two each."""

    def make():
        array = np.linspace(-1, 1, 40_009).astype(np.float32)
        options = {"weight_decay": 0.5, "num_threads": 2}
        return array, over(array, learning_rate=0.5, **options), over(array, **options)

    def serial(order):
        array, *optimizers = make()
        grads = uneven_grads(optimizers[0])
        for i in order:
            optimizers[i](grads)
        return array.tobytes()

    orders = [tuple(1 if i in ones else 0 for i in range(4)) for ones in PAIRS_OF_FOUR]
    allowed = {serial(order) for order in orders}
    assert len(allowed) == len(orders)
    for _ in range(20):
        array, one, two = make()
        grads = uneven_grads(one)
        run_threads(repeat(2, one, grads), repeat(2, two, grads))
        assert array.tobytes() in allowed


def test_opposite_orders_do_not_deadlock():
    a, b = shared(30), shared(30)
    forward, backward = over(a, b, learning_rate=1.0), over(b, a, learning_rate=2.0)
    grads = constant_grads(forward)
    run_threads(*[repeat(1000, forward, grads)] * 2, *[repeat(1000, backward, grads)] * 2)
    for array in (a, b):
        np.testing.assert_array_equal(array, TOP - 2000 * 1 - 2000 * 2)


def test_circles_of_overlapping_views_do_not_deadlock():
    array = shared(60)
    circle = [
        over(array[:30], array[40:], learning_rate=1.0),
        over(array[20:50], learning_rate=1.0),
        over(array[45:], array[:25], learning_rate=1.0),
    ]
    run_threads(*[repeat(1000, one, constant_grads(one)) for one in circle])
    wanted = np.full(60, TOP)
    for one in circle:
        for param in one.parameters:
            begin = (np.asarray(param).ctypes.data - array.ctypes.data) // 4
            wanted[begin : begin + param.size] -= 1000
    np.testing.assert_array_equal(array, wanted)


# Who does not wait for whom


class Gate(adamas.LearningRateSchedule):
    """A schedule that waits inside a step until it is opened."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _step):
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        return 0.125


@pytest.mark.parametrize("locks", [(True, True), (True, False), (False, True), (False, False)])
def test_optimizers_over_different_arrays_do_not_wait(locks):
    gate = Gate()
    waiting = over(np.ones(5, np.float32), learning_rate=gate, use_locking=locks[0])
    free = over(np.ones(5, np.float32), use_locking=locks[1])

    def pass_by():
        assert gate.reached.wait(PATIENCE)
        for _ in range(10):
            free(constant_grads(free))
        assert waiting.global_step == 0  # it is still inside its first step
        gate.opened.set()

    run_threads(repeat(1, waiting, constant_grads(waiting)), pass_by)
    assert waiting.global_step == 1
    assert free.global_step == 10


def test_a_schedule_that_waits_holds_no_memory():
    """Locks on memory are taken when the rates are known: another optimizer may go first."""
    gate = Gate()
    array = shared(20)
    waiting = over(array, learning_rate=gate)
    other = over(array[10:], learning_rate=1.0)

    def pass_by():
        assert gate.reached.wait(PATIENCE)
        other(constant_grads(other))
        gate.opened.set()

    run_threads(repeat(1, waiting, constant_grads(waiting)), pass_by)
    np.testing.assert_array_equal(array[10:], TOP - 1)


def test_a_schedule_may_look_at_its_optimizer():
    seen = []

    class Looking(adamas.LearningRateSchedule):
        def __call__(self, _step):
            if optimizer is not None:
                seen.append((optimizer.global_step, len(optimizer.moment1)))
            return 0.125

    optimizer = None
    optimizer = over(np.ones(3, np.float32), learning_rate=Looking())
    run_threads(repeat(3, optimizer, constant_grads(optimizer)))
    assert seen == [(0, 1), (1, 1), (2, 1)]


@pytest.fixture
def no_forced_switches():
    """Let a thread have the interpreter only when another gives it up by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE)
    yield
    sys.setswitchinterval(interval)


class Counter:
    """A thread that counts whenever it has the interpreter, and gives it up each time."""

    def __init__(self):
        self.count, self.stopped = 0, False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.stopped:
            self.count += 1
            time.sleep(0)

    def counted_during(self, function):
        before = self.count
        function()
        return self.count - before

    def __enter__(self):
        self._thread.start()
        while self.count == 0:
            time.sleep(0)
        return self

    def __exit__(self, *error):
        self.stopped = True
        self._thread.join(PATIENCE)


@pytest.mark.skipif(sysconfig.get_config_var("Py_GIL_DISABLED") == 1, reason="Python has no GIL")
@pytest.mark.parametrize("use_locking", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_gil_is_released_during_a_step(use_locking, num_threads, no_forced_switches):
    optimizer = over(
        np.ones(1_000_003, np.float32), num_threads=num_threads, use_locking=use_locking
    )
    grads = constant_grads(optimizer)
    with Counter() as counter:
        assert (
            counter.counted_during(lambda: sum(range(100_000))) == 0
        )  # the counter can be kept out
        deadline = time.monotonic() + PATIENCE  # the system may not run the counter at once
        while counter.counted_during(lambda: optimizer(grads)) == 0:
            assert time.monotonic() < deadline


class Meeting(adamas.LearningRateSchedule):
    """A schedule that lets others pass while it is asked for the first time, if they can."""

    def __init__(self):
        self.steps, self.reached, self.passed = [], threading.Event(), threading.Event()

    def __call__(self, step):
        self.steps.append(step)
        if len(self.steps) == 1:
            self.reached.set()
            self.passed.wait(1.0)  # they can't: the call is not over
        return float(step + 1)

    def pass_by(self, function):
        def passing():
            assert self.reached.wait(PATIENCE)
            function()
            self.passed.set()

        return passing


def test_setting_global_step_waits_for_the_call():
    meeting = Meeting()
    optimizer = over(np.ones(3, np.float32), learning_rate=meeting)

    def set_step():
        optimizer.global_step = 10

    run_threads(repeat(1, optimizer, constant_grads(optimizer)), meeting.pass_by(set_step))
    assert (meeting.steps, optimizer.global_step) in [([0], 10), ([10], 11)]


def test_begin_step_takes_the_rates_of_its_step():
    meeting = Meeting()
    optimizer = over(np.ones(3, np.float32), learning_rate=meeting)

    def whole_step():
        with contextlib.suppress(RuntimeError):  # refused, if the step in parts is open
            optimizer(constant_grads(optimizer))

    run_threads(optimizer.begin_step, meeting.pass_by(whole_step))
    optimizer.apply(optimizer.parameters[0], constant_grads(optimizer)[0])
    optimizer.end_step()
    assert meeting.steps[: optimizer.global_step] == list(range(optimizer.global_step))


# Errors and threads


class Failing(adamas.LearningRateSchedule):
    """Raises at every other question."""

    def __init__(self):
        self.asked = 0

    def __call__(self, _step):
        self.asked += 1
        if self.asked % 2 == 1:
            raise ArithmeticError("not now")
        return 1.0


def test_calls_that_raise_leave_locks_released():
    array = shared(16)
    failing = over(array, learning_rate=Failing())
    other = over(array, learning_rate=1.0)
    raised = []

    def call():
        for _ in range(200):
            try:
                failing(constant_grads(failing))
            except ArithmeticError:
                raised.append(1)

    run_threads(*[call] * 4, repeat(200, other, constant_grads(other)))
    assert len(raised) == 400
    assert failing.global_step == 400
    np.testing.assert_array_equal(array, TOP - 400 - 200)


@pytest.mark.parametrize("error", ["shape", "index", "nonfinite"])
def test_refused_gradients_leave_locks_released(error):
    array = shared(12).reshape(4, 3)
    picky = over(array, learning_rate=1.0, max_grad_norm=1e30)
    other = over(array, learning_rate=2.0)
    grads, kind = {
        "shape": (np.ones(5, np.float32), ValueError),
        "index": (adamas.RowTensor(np.array([4]), np.ones((1, 3), np.float32), (4, 3)), IndexError),
        "nonfinite": (np.full((4, 3), np.nan, np.float32), ValueError),
    }[error]

    def refused():
        for _ in range(200):
            with pytest.raises(kind):
                picky((grads,))

    run_threads(
        refused,
        repeat(200, picky, constant_grads(picky)),
        repeat(200, other, constant_grads(other)),
    )
    assert picky.global_step == 200
    np.testing.assert_array_equal(array, TOP - 200 * 1 - 200 * 2)


# Without locks


def test_without_locks_nothing_crashes_and_counters_are_right():
    """Hogwild: parameters may interleave, but each step counts and every value stays finite."""
    array = np.ones(40_009, np.float32)
    optimizers = [
        over(array, use_locking=False, num_threads=2),
        over(array[5_000:30_000], use_locking=False, num_threads=3),
        over(array, use_locking=False, weight_decay=0.01),
    ]
    run_threads(*[repeat(50, one, uneven_grads(one)) for one in optimizers for _ in range(2)])
    for optimizer in optimizers:
        assert optimizer.global_step == 100
        assert all(np.isfinite(moment).all() for moment in optimizer.moment1)
    assert np.isfinite(array).all()


def test_without_locks_skipped_steps_are_counted():
    optimizer = over(np.ones(100, np.float32), use_locking=False, skip_nonfinite=True)
    good, bad = constant_grads(optimizer), constant_grads(optimizer, np.nan)
    run_threads(*[repeat(300, optimizer, good)] * 2, *[repeat(200, optimizer, bad)] * 2)
    assert optimizer.global_step == 600
    assert optimizer.skipped_steps == 400
