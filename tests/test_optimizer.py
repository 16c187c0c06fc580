"""How an optimizer behaves: its rates, groups, counters, views, threads and processes."""

import ctypes
import gc
import itertools
import math
import os
import platform
import textwrap

import numpy as np
import pytest

import adamas
from adamas import _core
from helpers import PATIENCE, run_python, run_threads
from rules import every_numerics, every_real

GRAD = 0.5


def parameter(name="weight", shape=(3,), value=1.0):
    return adamas.Parameter(np.full(shape, value, np.float32), name)


def grads_for(optimizer, value=GRAD):
    return [np.full(param.shape, value, param.dtype) for param in optimizer.parameters]


def bits(optimizer):
    arrays = [np.asarray(param) for param in optimizer.parameters]
    return [a.tobytes() for a in (*arrays, *optimizer.moment1, *optimizer.moment2)]


def rates_taken(optimizer, steps, index=0):
    """Return the learning rate of each step, seen in the parameter: with a constant gradient the
    corrected moments are g and g^2, so that each step is the learning rate.
    """
    param = np.asarray(optimizer.parameters[index])
    seen = []
    for _ in range(steps):
        param[...] = 0
        optimizer(grads_for(optimizer))
        seen.append(-float(param.flat[0]))
    return seen


class Counted(adamas.LearningRateSchedule):
    """A schedule that remembers the steps it was asked for."""

    def __init__(self, function=lambda step: 0.25 * (step + 1)):
        self.steps = []
        self.function = function

    def __call__(self, step):
        self.steps.append(step)
        return self.function(step)


# Learning rates


def test_the_first_call_sees_step_0():
    schedule = Counted()
    optimizer = adamas.Adam([parameter()], learning_rate=schedule)
    assert optimizer.global_step == 0
    np.testing.assert_allclose(rates_taken(optimizer, 3), [0.25, 0.5, 0.75], rtol=1e-6)
    assert schedule.steps == [0, 1, 2]
    assert all(type(step) is int for step in schedule.steps)
    assert optimizer.global_step == 3


def test_warm_up_gives_0_at_the_first_call():
    optimizer = adamas.Adam([parameter()], learning_rate=adamas.WarmUpLR(0.5, 2))
    before = bits(optimizer)
    optimizer(grads_for(optimizer))
    after = bits(optimizer)
    assert after[0] == before[0]  # the parameter
    assert after[1] != before[1]
    np.testing.assert_allclose(rates_taken(optimizer, 3), [0.25, 0.5, 0.5], rtol=1e-6)


FORMS = {
    "float": (lambda: 0.25, [0.25, 0.25, 0.25]),
    "int": (lambda: 1, [1.0, 1.0, 1.0]),
    "float32": (lambda: np.float32(0.25), [0.25, 0.25, 0.25]),
    "0-d array": (lambda: np.array(0.25), [0.25, 0.25, 0.25]),
    "0-d array of int": (lambda: np.array(1), [1.0, 1.0, 1.0]),
    "list": (lambda: [0.25, 0.5, 1], [0.25, 0.5, 1.0]),
    "tuple": (lambda: (0.25, 0.5, 1), [0.25, 0.5, 1.0]),
    "array": (lambda: np.array([0.25, 0.5, 1.0]), [0.25, 0.5, 1.0]),
    "array of float32": (lambda: np.array([0.25, 0.5, 1.0], np.float32), [0.25, 0.5, 1.0]),
    "array of int": (lambda: np.array([1, 0, 2]), [1.0, 0.0, 2.0]),
    "generator": (lambda: (rate for rate in (0.25, 0.5, 1.0)), [0.25, 0.5, 1.0]),
    "iterator": (lambda: iter([0.25, np.array(0.5), 1]), [0.25, 0.5, 1.0]),
    "range": (lambda: range(3), [0.0, 1.0, 2.0]),
    "endless": (lambda: itertools.count(1), [1.0, 2.0, 3.0]),
    "list function": (
        lambda: adamas.piecewise_constant_lr([1, 3], [0.25, 0.5]),
        [0.25, 0.5, 0.5],
    ),
    "schedule": (lambda: adamas.ExponentialDecayLR(0.5, 0.5, 1), [0.5, 0.25, 0.125]),
}
forms = pytest.mark.parametrize(("make", "wanted"), FORMS.values(), ids=FORMS)


@forms
def test_every_form_of_learning_rate(make, wanted):
    optimizer = adamas.Adam([parameter()], learning_rate=make())
    np.testing.assert_allclose(rates_taken(optimizer, 3), wanted, rtol=1e-6)


@forms
def test_every_form_in_a_group(make, wanted):
    groups = [{"params": [parameter("a")]}, {"params": [parameter("b")], "lr": make()}]
    optimizer = adamas.Adam(groups, learning_rate=0.125)
    assert optimizer.get_lr() == (0.125, wanted[0])
    np.testing.assert_allclose(rates_taken(optimizer, 3, index=1), wanted, rtol=1e-6)


def test_an_array_of_rates_is_copied():
    rates = np.array([0.25, 0.5])
    optimizer = adamas.Adam([parameter()], learning_rate=rates)
    rates[...] = 8
    np.testing.assert_allclose(rates_taken(optimizer, 2), [0.25, 0.5], rtol=1e-6)


class Pulls:
    """An endless iterator that counts."""

    def __init__(self):
        self.pulled = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.pulled += 1
        return 0.125 * self.pulled


def test_an_iterator_is_pulled_lazily_and_remembered():
    pulls = Pulls()
    optimizer = adamas.Adam([parameter()], learning_rate=pulls)
    assert pulls.pulled == 0
    for step in range(4):
        assert optimizer.get_lr() == 0.125 * (step + 1)
        with pytest.raises(ValueError, match="shape"):  # takes nothing away
            optimizer([np.zeros(7, np.float32)])
        assert optimizer(grads_for(optimizer))
        assert optimizer.get_lr_parameter(optimizer.parameters[0]) == 0.125 * (step + 2)
        assert pulls.pulled == step + 2
    optimizer.global_step = 1
    assert optimizer.get_lr() == 0.25
    optimizer(grads_for(optimizer))
    assert optimizer.get_lr() == 0.375
    assert pulls.pulled == 5


def test_groups_that_share_an_iterator_see_the_same_values():
    pulls = Pulls()
    groups = [{"params": [parameter(name)], "lr": pulls} for name in "ab"]
    optimizer = adamas.Adam(groups)
    for step in range(3):
        assert optimizer.get_lr() == (0.125 * (step + 1),) * 2
        optimizer(grads_for(optimizer))
    assert pulls.pulled == 3


def test_each_distinct_schedule_is_asked_once_per_step():
    rate, decay, other = Counted(), Counted(), Counted()
    groups = [
        {"params": [parameter("a"), parameter("b")]},
        {"params": [parameter("c")], "lr": other},
        {"params": [parameter("d")], "lr": other, "weight_decay": 0.5},
        {"params": [parameter("e")], "weight_decay": decay},
    ]
    optimizer = adamas.Adam(groups, learning_rate=rate, weight_decay=decay)
    assert rate.steps == decay.steps == other.steps == []
    for _ in range(3):
        optimizer(grads_for(optimizer))
    assert rate.steps == decay.steps == other.steps == [0, 1, 2]


def test_a_call_that_is_refused_does_not_advance_schedules():
    rate = Counted()
    optimizer = adamas.Adam([parameter()], learning_rate=rate)
    for bad in ([], [np.zeros(7, np.float32)], ["none"]):
        with pytest.raises((TypeError, ValueError)):
            optimizer(bad)
    optimizer(grads_for(optimizer))
    assert set(rate.steps) == {0}


@pytest.mark.parametrize("kind", ["float", "int", "schedule", "function"])
def test_every_form_of_weight_decay(kind):
    weight_decay, wanted = {
        "float": (0.5, [0.5, 0.5, 0.5]),
        "int": (1, [1.0, 1.0, 1.0]),
        "schedule": (Counted(), [0.25, 0.5, 0.75]),
        "function": (lambda step: 0.25 * step, [0.0, 0.25, 0.5]),
    }[kind]
    optimizer = adamas.Adam(
        [parameter()], learning_rate=0.125, weight_decay=weight_decay, decoupled_weight_decay=True
    )
    for decay in wanted:
        assert optimizer.get_weight_decay() == decay
        np.asarray(optimizer.parameters[0])[...] = 1
        optimizer(grads_for(optimizer, value=0.0))
        np.testing.assert_allclose(np.asarray(optimizer.parameters[0]), 1 - 0.125 * decay)


# Groups


def test_groups_take_what_they_lack_from_the_optimizer():
    a, b, c, d = (parameter(name) for name in "abcd")
    groups = [
        {"params": [a], "lr": 0.5, "weight_decay": 0.25},
        {"params": [b], "lr": 0.5},
        {"params": (x for x in [c]), "weight_decay": 0.25},
        {"params": [d]},
    ]
    optimizer = adamas.Adam(groups, learning_rate=0.125, weight_decay=0.0625)
    assert optimizer.parameters == [a, b, c, d]
    assert optimizer.get_lr() == (0.5, 0.5, 0.125, 0.125)
    assert optimizer.get_weight_decay() == (0.25, 0.0625, 0.25, 0.0625)
    assert optimizer.get_lr_parameter(c) == 0.125
    assert optimizer.get_lr_parameter([d, a]) == [0.125, 0.5]
    assert optimizer.get_lr_parameter((b,)) == [0.5]
    assert optimizer.get_lr_parameter([]) == []


def test_getters_without_groups():
    params = [parameter("weight"), parameter("beta")]
    optimizer = adamas.Adam(params, learning_rate=[0.125, 0.25], weight_decay=0.5)
    assert optimizer.get_lr() == 0.125
    assert optimizer.get_weight_decay() == 0.5
    optimizer(grads_for(optimizer))
    assert optimizer.get_lr() == 0.25
    assert optimizer.get_lr_parameter(params) == [0.25, 0.25]


def test_mindspore_numerics_round_the_learning_rate_to_float32():
    optimizer = adamas.Adam([parameter()], learning_rate=0.1, numerics="mindspore")
    assert optimizer.get_lr() == float(np.float32(0.1))


NAMES = ["weight", "beta", "layer.gamma", "alphabeta2", "Beta", "GAMMA", "bias", None]


def decayed(optimizer):
    """Return which parameters a step with zero gradients changes: the decayed ones."""
    before = [np.asarray(param).copy() for param in optimizer.parameters]
    optimizer(grads_for(optimizer, value=0.0))
    return [
        bool((np.asarray(param) != old).all())
        for param, old in zip(optimizer.parameters, before, strict=True)
    ]


@pytest.mark.parametrize("make", [adamas.Adam, adamas.AdamWeightDecay])
def test_beta_and_gamma_are_not_decayed_without_groups(make):
    skipped = [False, True, True, True, False, False, False, False]
    optimizer = make([parameter(name) for name in NAMES], 0.5, weight_decay=0.5)
    assert decayed(optimizer) == [not skip for skip in skipped]
    optimizer = make([{"params": [parameter(name) for name in NAMES]}], 0.5, weight_decay=0.5)
    assert decayed(optimizer) == [True] * len(NAMES)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_params_reorders_with_the_options(order):
    params = [parameter(name, shape=(i + 1,)) for i, name in enumerate("abc")]
    rates = [0.125, 0.25, 0.5]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]
    groups.insert(1, {"order_params": [params[i] for i in order]})
    optimizer = adamas.Adam(groups)
    assert optimizer.parameters == [params[i] for i in order]
    assert optimizer.get_lr() == tuple(rates[i] for i in order)
    assert [m.shape for m in optimizer.moment1] == [(i + 1,) for i in order]
    optimizer(grads_for(optimizer))
    for param, lr in zip(params, rates, strict=True):
        np.testing.assert_allclose(np.asarray(param), 1 - lr, rtol=1e-6)


def test_other_keys_beside_order_params_are_ignored_with_a_warning():
    a, b = parameter("a"), parameter("b")
    groups = [{"params": [a, b]}, {"order_params": [b, a], "lr": "ignored"}]
    with pytest.warns(UserWarning, match="'lr'") as caught:
        optimizer = adamas.Adam(groups, learning_rate=0.125)
    assert caught[0].filename == __file__
    assert optimizer.parameters == [b, a]
    assert optimizer.get_lr() == (0.125, 0.125)


def test_parameters_may_come_from_a_generator():
    optimizer = adamas.Adam(parameter(name) for name in "ab")
    assert [param.name for param in optimizer.parameters] == ["a", "b"]


def test_what_is_given_is_not_changed():
    a, b = parameter("a"), parameter("b")
    groups = [{"params": [a], "lr": [0.1, 0.2]}, {"params": [b]}, {"order_params": [b, a]}]
    optimizer = adamas.Adam(groups)
    optimizer(grads_for(optimizer))
    assert groups == [{"params": [a], "lr": [0.1, 0.2]}, {"params": [b]}, {"order_params": [b, a]}]
    optimizer.parameters.clear()
    assert optimizer.parameters == [b, a]


def test_centralization_is_for_three_axes_and_more():
    shapes = [(4, 3, 2), (4, 3, 2, 2), (4, 3), (4,), ()]
    groups = [{"params": [parameter(str(shape), shape)]} for shape in shapes]
    for group in groups:
        group["grad_centralization"] = True
    optimizer = adamas.Adam(groups)
    optimizer(grads_for(optimizer))
    assert [bool((m == 0).all()) for m in optimizer.moment1] == [True, True, False, False, False]


# Counters and views


def test_setting_global_step_moves_schedules_and_bias_correction():
    schedule = Counted(lambda _: 0.125)
    twins = [adamas.Adam([parameter()], learning_rate=schedule, beta1=0.5) for _ in range(2)]
    for _ in range(5):
        twins[0](grads_for(twins[0]))
    twins[1].global_step = 5
    assert twins[1].global_step == 5
    for kind in ("moment1", "moment2"):
        getattr(twins[1], kind)[0][...] = getattr(twins[0], kind)[0]
    np.asarray(twins[1].parameters[0])[...] = np.asarray(twins[0].parameters[0])
    for twin in twins:
        twin(grads_for(twin))
    assert bits(twins[0]) == bits(twins[1])
    assert schedule.steps == [0, 1, 2, 3, 4, 5, 5]
    twins[0].global_step = np.int64(0)
    assert twins[0].global_step == 0


@every_numerics
def test_going_back_and_forth_in_steps(numerics):
    steps = [0, 7, 3, 1000, 2, 10**6, 0]
    optimizer = adamas.Adam([parameter()], 0.125, numerics=numerics)
    for step in steps:
        fresh = adamas.Adam([parameter()], 0.125, numerics=numerics)
        for array in (np.asarray(optimizer.parameters[0]), *optimizer.moment1, *optimizer.moment2):
            array[...] = 0
        np.asarray(optimizer.parameters[0])[...] = 1
        for each in (optimizer, fresh):
            each.global_step = step
            each(grads_for(each))
        assert bits(optimizer) == bits(fresh), step


def test_views_are_live_and_writable():
    optimizer = adamas.Adam([parameter(), parameter("other", (2, 2))], use_amsgrad=True)
    views = optimizer.moment1[1], optimizer.moment2[1], optimizer.vhat[1]
    optimizer(grads_for(optimizer))
    for view in views:
        assert view.shape == (2, 2)
        assert (view != 0).all()
    views[0][...] = 7
    assert (optimizer.moment1[1] == 7).all()
    assert len(optimizer.vhat) == 2
    assert adamas.Adam([parameter()]).vhat == []


def test_views_keep_their_memory_alive():
    optimizer = adamas.Adam([parameter(shape=(100_000,))])
    optimizer(grads_for(optimizer))
    view = optimizer.moment1[0]
    wanted = view.copy()
    del optimizer
    gc.collect()
    others = [adamas.Adam([parameter(shape=(100_000,))]) for _ in range(8)]
    for other in others:
        other.moment1[0][...] = 9
    assert view.tobytes() == wanted.tobytes()
    view[...] = 5
    assert (view == 5).all()


def test_the_optimizer_keeps_the_parameters_alive():
    optimizer = adamas.Adam([adamas.Parameter(np.ones(100_000, np.float32))])
    gc.collect()
    optimizer(grads_for(optimizer))
    assert (optimizer.parameters[0].data < 1).all()


def test_state_nbytes():
    params = [parameter("a", (3,)), parameter("b", (5, 7))]
    assert adamas.Adam(params).state_nbytes == 2 * 4 * 38
    assert adamas.Adam(params, use_amsgrad=True).state_nbytes == 3 * 4 * 38


def test_float32_and_float64_side_by_side():
    arrays = [np.ones(3, np.float32), np.ones(3)]
    optimizer = adamas.Adam([adamas.Parameter(a, n) for a, n in zip(arrays, "ab", strict=True)])
    optimizer(grads_for(optimizer))
    assert [m.dtype for m in optimizer.moment1] == [np.float32, np.float64]
    alone = adamas.Adam([adamas.Parameter(np.ones(3), "b")])
    alone(grads_for(alone))
    assert alone.parameters[0].data.tobytes() == arrays[1].tobytes()


def test_parameter_attributes():
    data = np.ones((3, 2), np.float32)
    param = adamas.Parameter(data, name="fc.weight")
    assert param.data is data
    assert (param.name, param.shape, param.dtype, param.size) == ("fc.weight", (3, 2), "f4", 6)
    assert "fc.weight" in repr(param)
    assert np.shares_memory(np.asarray(param), data)
    assert adamas.Parameter(data).name is None


# Threads


@pytest.mark.parametrize("use_locking", [False, True])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_that_call_one_optimizer(use_locking, num_threads):
    """All give the same gradients, so every serial order has the same bits."""
    shape, callers, calls = (40_009,), 2, 50

    def make():
        schedule = adamas.ExponentialDecayLR(0.125, 0.5, 10)
        return adamas.Adam(
            [parameter(shape=shape)],
            schedule if use_locking else 0.125,  # without locks two calls may see one step
            use_locking=use_locking,
            num_threads=num_threads,
        )

    together, serial = make(), make()
    grads = grads_for(serial)
    run_threads(*[lambda: [together(grads) for _ in range(calls)]] * callers)
    for _ in range(callers * calls):
        serial(grads)
    assert together.global_step == callers * calls
    assert bits(together) == bits(serial)


def test_refused_calls_beside_good_ones():
    optimizer, serial = (adamas.Adam([parameter(shape=(40_009,))]) for _ in range(2))
    grads = grads_for(optimizer)

    def good():
        for _ in range(50):
            optimizer(grads)

    def refused():
        for _ in range(50):
            with pytest.raises(ValueError, match="shape"):
                optimizer([np.zeros(3, np.float32)])

    run_threads(good, refused)
    for _ in range(50):
        serial(grads)
    assert optimizer.global_step == 50
    assert bits(optimizer) == bits(serial)


def test_optimizers_in_threads_do_not_disturb_each_other():
    def make():
        return adamas.Adam([parameter(shape=(40_009,))], num_threads=2)

    optimizers, serial = [make() for _ in range(4)], make()
    grads = grads_for(serial)
    run_threads(*[lambda one=one: [one(grads) for _ in range(20)] for one in optimizers])
    for _ in range(20):
        serial(grads)
    assert all(bits(optimizer) == bits(serial) for optimizer in optimizers)


# The process


class FloatEnvironment:
    """Sets flush-to-zero and denormals-are-zero in the calling thread (x86-64 glibc)."""

    FTZ_AND_DAZ = 0x8040

    def __init__(self):
        self._libm = ctypes.CDLL("libm.so.6")
        self._saved = self._get()

    def _get(self):
        environment = (ctypes.c_uint32 * 8)()  # fenv_t: 28 bytes of x87, then MXCSR
        assert self._libm.fegetenv(environment) == 0
        return environment

    @property
    def control(self):
        return self._get()[7]

    def __enter__(self):
        changed = self._get()
        changed[7] |= self.FTZ_AND_DAZ
        assert self._libm.fesetenv(changed) == 0
        return self

    def __exit__(self, *_):
        assert self._libm.fesetenv(self._saved) == 0


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="sets MXCSR through glibc's fenv_t on x86-64",
)
@pytest.mark.parametrize("num_threads", [1, 3])
@every_real
def test_flush_to_zero_changes_no_bit_and_stays_set(dtype, num_threads):
    tiny = 1000 * np.finfo(dtype).smallest_subnormal
    shape = (50, 1, 811)
    runs = []
    for _ in range(2):
        group = {"params": [adamas.Parameter(np.full(shape, tiny))], "grad_centralization": True}
        runs.append(adamas.Adam([group], 1e-3, weight_decay=0.5, num_threads=num_threads))
    grad = np.full(shape, tiny)
    grad[::2, :, ::3] *= -1
    plain, flushed = runs
    for _ in range(3):
        plain([grad])
    with FloatEnvironment() as environment:
        before = environment.control
        for _ in range(3):
            flushed([grad])
        after = environment.control
    assert before & environment.FTZ_AND_DAZ == environment.FTZ_AND_DAZ
    assert after == before
    assert bits(plain) == bits(flushed)
    assert (plain.moment1[0] != 0).any()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="sets MXCSR through glibc's fenv_t on x86-64",
)
def test_flush_to_zero_changes_no_moment_that_is_read():
    param = adamas.Parameter(np.ones(64, np.float32))
    opt = adamas.Adam([param], 1e-3, state_dtype="int8")
    opt([np.full(64, 1e-19, np.float32)])
    wanted = opt.moment2[0]
    with FloatEnvironment():
        flushed = opt.moment2[0]
    assert 0 < wanted.max() < np.finfo(np.float32).smallest_normal
    assert flushed.tobytes() == wanted.tobytes()


TRAIN = """
    import os, sys
    import numpy as np
    import adamas

    def make():
        params = [adamas.Parameter(np.linspace(-1, 1, 100_003, dtype=np.float32), "weight")]
        return adamas.Adam(params, 0.125, num_threads=3)

    def state(optimizer):
        arrays = [p.data for p in optimizer.parameters] + optimizer.moment1 + optimizer.moment2
        return b"".join(a.tobytes() for a in arrays)

    grads = [np.linspace(1, -1, 100_003, dtype=np.float32)]
    optimizer = make()
    optimizer(grads)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_step():
    script = """
    sys.stdout.flush()
    child = os.fork()
    optimizer(grads)
    fresh = make()
    fresh(grads)
    fresh(grads)
    same = state(optimizer) == state(fresh) and optimizer.global_step == 2
    if child == 0:
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    print(same, os.waitstatus_to_exitcode(status))
    """
    # Python warns of forks beside threads, which is what is tested.
    source = textwrap.dedent(TRAIN) + textwrap.dedent(script)
    done = run_python("-W", "ignore::DeprecationWarning", "-c", source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("use_locking", [False, True])
def test_a_child_forked_beside_steps_inherits_whole_ones(use_locking):
    # All elements are alike, so a step that was only half done shows.
    script = f"""
    params = [adamas.Parameter(np.zeros(500_000, np.float32))]
    optimizer = adamas.Adam(params, 0.125, num_threads=2, use_locking={use_locking})
    grads = (np.ones(500_000, np.float32),)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            optimizer(grads)

    def in_child():
        signal.alarm({PATIENCE // 2})  # a child that waits for a thread it has not
        for _ in range(2):
            arrays = [params[0].data, *optimizer.moment1, *optimizer.moment2]
            if not all((array == array[0]).all() for array in arrays):
                return 1
            optimizer(grads)
        return 0

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = set()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(in_child())
        codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    print(codes)
    """
    source = "import os, signal, threading\nimport numpy as np\nimport adamas\n"
    done = run_python("-W", "ignore::DeprecationWarning", "-c", source + textwrap.dedent(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "{0}\n", "")


def test_nothing_is_printed():
    done = run_python("-W", "error", "-c", textwrap.dedent(TRAIN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_right_after_a_threaded_step_is_clean():
    for _ in range(5):
        done = run_python("-c", textwrap.dedent(TRAIN) + "sys.exit(3)")
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_the_report_names_what_is_used():
    done = run_python("-m", "adamas")
    assert done.returncode == 0
    assert done.stderr == ""
    for fragment in (adamas.__version__, _core.isas_supported()[-1], _core.compiler, "CUDA"):
        assert fragment in done.stdout


@pytest.mark.parametrize("isa", _core.isas_supported())
def test_the_environment_selects_the_isa(isa):
    source = "from adamas import _core; print(_core.isa_in_use())"
    done = run_python("-c", source, ADAMAS_ISA=isa)
    assert (done.returncode, done.stdout) == (0, f"{isa}\n")
    assert f"ADAMAS_ISA={isa}" in run_python("-m", "adamas", ADAMAS_ISA=isa).stdout


@pytest.mark.parametrize("isa", ["nonsense", "AVX2", "avx", "sca", " scalar"])
def test_a_wrong_isa_fails_at_import(isa):
    done = run_python("-c", "import adamas", ADAMAS_ISA=isa)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "ADAMAS_ISA" in done.stderr
    assert isa in done.stderr


def test_an_empty_isa_is_none():
    assert run_python("-c", "import adamas", ADAMAS_ISA="").returncode == 0


@pytest.mark.parametrize("isa", ["nonsense", "", "AVX2"])
def test_selecting_a_wrong_isa_changes_nothing(isa):
    before = _core.isa_in_use()
    with pytest.raises(ValueError, match="instruction set"):
        _core.select_isa(isa)
    assert _core.isa_in_use() == before


def test_steps_as_large_as_they_get():
    optimizer = adamas.Adam([parameter()], 0.125)
    optimizer.global_step = 2**62 - 1
    assert optimizer(grads_for(optimizer)) is True
    assert optimizer.global_step == 2**62
    assert math.isfinite(float(np.asarray(optimizer.parameters[0])[0]))


def test_the_loss_scale_can_be_set():
    scaled, plain = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer = adamas.Adam([adamas.Parameter(scaled)])
    other = adamas.Adam([adamas.Parameter(plain)])
    grad = np.array([0.1, -0.2, 0.3], np.float32)
    for scale in (1.0, 1024.0, 512.0):
        optimizer.loss_scale = scale
        assert optimizer.loss_scale == scale
        optimizer((grad * np.float32(scale),))
        other((grad,))
    assert scaled.tobytes() == plain.tobytes()
    for bad, error in ((0.0, ValueError), (math.nan, ValueError), (True, TypeError)):
        with pytest.raises(error, match="loss_scale"):
            optimizer.loss_scale = bad
    assert optimizer.loss_scale == 512.0


def test_exit_while_a_daemon_thread_steps():
    script = """
        import threading, time
        import numpy as np
        import adamas

        grad = np.ones(200_000, np.float32)
        optimizer = adamas.Adam([adamas.Parameter(np.ones(200_000, np.float32))])

        def work():
            while True:
                optimizer((grad,))

        threading.Thread(target=work, daemon=True).start()
        while optimizer.global_step < 2:
            time.sleep(0.001)
    """
    result = run_python("-c", textwrap.dedent(script))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_instruction_set_without_a_name():
    with pytest.raises((TypeError, ValueError)):
        _core.select_isa(None)
