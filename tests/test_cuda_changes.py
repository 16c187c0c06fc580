"""What changes between steps on a device: added parameters, sums of gradients, arrays of a call.

Each of them reserves or gives up memory there, and comes after what is still queued.
"""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from adamas import functional
from emulation import FakeArray, Twins, emulated, emulator, fake, on_device, same_bits, to_host
from rules import DTYPES, HALVES, every
from test_cuda_streams import trace

pytestmark = pytest.mark.usefixtures("device")

FIRST = ((30, 4), (700,))
LATER = (5, 3)
DECIDERS = {
    "host": {},
    "clip": {"max_grad_norm": 0.5},
    "clip_per_array": {"max_grad_norm": 0.5, "clip_per_array": True},
    "offload": {"use_offload": True},
}


def message_of(call):
    """Return what a call of the device is refused with, or None."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        return str(error)
    return None


def random(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def parameter(array, name="w"):
    return adamas.Parameter(array, name)


# Parameters that are added


@emulated
def test_a_refused_step_is_reported_after_parameters_were_added():
    opt = adamas.Adam([parameter(fake((3, 2)))], 0.1, max_grad_norm=1.0)
    opt((FakeArray(np.full((3, 2), np.inf, np.float32)),))
    opt.add([parameter(fake(LATER), "later")])
    grads = (fake((3, 2)), fake(LATER))
    with pytest.raises(ValueError, match="earlier step"):
        opt(grads)
    assert opt.steps == [0, 0]
    opt(grads)
    assert opt.steps == [1, 1]


@emulated
def test_parameters_are_added_after_clipping_was_turned_off():
    """A device that has counted the steps so far, refused ones not among them, goes on."""
    rng = np.random.default_rng(1)
    weights = [random(rng, shape) for shape in FIRST]
    twins = Twins(weights, lambda params: adamas.Adam([{"params": params, "max_grad_norm": 0.5}]))
    grads = [random(rng, shape) for shape in FIRST]
    twins.step(grads)
    bad = [np.full(shape, np.inf, np.float32) for shape in FIRST]
    with pytest.raises(ValueError, match="clipped"):
        twins.cpu(bad)
    twins.gpu([on_device(grad) for grad in bad])
    with pytest.raises(ValueError, match="earlier step"):
        twins.gpu([on_device(grad) for grad in grads])
    new = random(rng, LATER)
    for which, convert in (("cpu", np.array), ("gpu", on_device)):
        optimizer = twins.optimizers[which]
        optimizer.groups[0].max_grad_norm = None
        twins.arrays[which].append(convert(new))
        optimizer.add([parameter(twins.arrays[which][-1], "later")])
        assert optimizer.steps == [1, 1, 0]
    twins.check()
    for absent in (0, 2, None):
        given = [*grads, random(rng, LATER)]
        twins.step([None if i == absent else grad for i, grad in enumerate(given)])
        twins.check()


@emulated
@every("decider", DECIDERS)
def test_parameters_that_are_refused_leave_no_memory(decider, device):
    weight = fake((3, 2))
    opt = adamas.Adam([parameter(weight)], 0.1, **decider)
    opt((fake((3, 2)),))
    before = device.adamas_emulated_allocations()
    for _ in range(3):
        with pytest.raises(ValueError, match="shares memory"):
            opt.add([parameter(fake(LATER), "new"), parameter(FakeArray(weight.host[1:]), "part")])
    assert device.adamas_emulated_allocations() == before


@emulated
@every("decider", DECIDERS)
def test_whatever_call_of_the_device_fails_when_parameters_are_added(decider, device):
    """An error leaves no memory behind; then add() can be called again, or all is refused."""

    def make():
        arrays = [fake(shape) for shape in (*FIRST, LATER)]
        opt = adamas.Adam([parameter(a, f"w{i}") for i, a in enumerate(arrays[:2])], 0.1, **decider)
        opt((fake(FIRST[0]), None))
        return arrays, opt

    def add(arrays, opt):
        opt.add([parameter(arrays[2], "later")])

    def finish(opt):
        opt((fake(FIRST[0]), None, fake(LATER)))
        opt([fake(shape) for shape in (*FIRST, LATER)])

    intact = 0
    for n in range(1, 200):
        arrays, opt = make()
        before = device.adamas_emulated_allocations()
        device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: add(arrays, opt))  # noqa: B023
        device.adamas_emulated_fail_at(0)
        if failure is None:
            break
        assert "planned" in failure or "no memory" in failure
        assert device.adamas_emulated_allocations() == before
        add(arrays, opt)
        finish(opt)
        others, other = make()
        add(others, other)
        finish(other)
        assert opt.steps == other.steps == [3, 1, 2]
        assert all(same_bits(a.host, b.host) for a, b in zip(arrays, others, strict=True))
        intact += 1
    else:
        pytest.fail("add() makes more calls than expected")
    assert intact > 0


# Sums of gradients


@emulated
@every("offload", {"": {}, "offload": {"use_offload": True}})
def test_sums_are_given_back_when_parameters_are_added(offload, device):
    opt = adamas.Adam([parameter(fake(LATER))], 0.1, **offload)
    count = []
    for step in range(4):
        grads = [fake(LATER) for _ in opt.parameters]
        opt.accumulate(grads)
        opt()
        count.append(device.adamas_emulated_allocations())
        opt.add([parameter(fake(LATER), f"w{step}")])
    # Steps differ from the second on.  Then each parameter adds what is its own: its state, or with
    # use_offload copies of it and of its gradient, and an event.
    assert set(np.diff(count[1:])) == {3 if offload else 1}
    assert opt.steps == [4, 3, 2, 1, 0]


@emulated
@every("decider", DECIDERS)
def test_whatever_call_of_the_device_fails_when_gradients_are_summed(decider, device):
    def make():
        arrays = [fake(shape) for shape in FIRST]
        opt = adamas.Adam([parameter(a, f"w{i}") for i, a in enumerate(arrays)], 0.1, **decider)
        return arrays, opt

    def sum_once(opt):
        opt.accumulate([fake(FIRST[0]), None])

    intact = 0
    for n in range(1, 200):
        arrays, opt = make()
        device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: sum_once(opt))  # noqa: B023
        device.adamas_emulated_fail_at(0)
        if failure is None:
            break
        assert "planned" in failure or "no memory" in failure
        assert opt.accumulated == 0
        refusal = message_of(lambda: sum_once(opt))  # noqa: B023
        if refusal is not None:
            assert "make a new optimizer" in refusal
            continue
        opt()
        others, other = make()
        sum_once(other)
        other()
        assert opt.steps == other.steps == [1, 0]
        assert all(same_bits(a.host, b.host) for a, b in zip(arrays, others, strict=True))
        intact += 1
    else:
        pytest.fail("accumulate() makes more calls than expected")
    assert intact > 0


@emulated
def test_sums_on_the_host_need_no_parameters():
    """With use_offload, the gradients alone are copied."""
    opt = adamas.Adam([parameter(fake(FIRST[0]))], 0.1, use_offload=True)
    opt.accumulate([fake(FIRST[0])])
    before = emulator().adamas_emulated_calls()
    opt.accumulate([fake(FIRST[0])])
    calls = emulator().adamas_emulated_calls() - before
    opt()
    before = emulator().adamas_emulated_calls()
    opt((fake(FIRST[0]),))
    # A step copies its parameter down and up, and waits for that: five calls more.
    assert emulator().adamas_emulated_calls() - before == calls + 5


# Arrays of a call without an optimizer


@pytest.fixture
def functional_device(device):
    """Have the thread forget what it keeps of its last call, which is on the device."""
    yield device
    one = np.zeros(1, np.float32)
    functional.adam([one], [one.copy()], [one.copy()], [one.copy()], steps=[0])


class Held:
    """The arrays of calls, on the CPU and on the device."""

    def __init__(self, rng, dtype, kinds=("moment1", "moment2"), **options):
        real = np.float64 if dtype is np.float64 else np.float32
        shapes = (*FIRST, LATER, (64, 11))
        arrays = {"params": [random(rng, shape, dtype) for shape in shapes]}
        arrays |= {kind: [np.zeros(shape, real) for shape in shapes] for kind in kinds}
        self.arrays = {
            "cpu": arrays,
            "gpu": {kind: [on_device(a, 8) for a in some] for kind, some in arrays.items()},
        }
        self.steps = {which: [0, 3, 0, 7] for which in self.arrays}
        self.options = {"learning_rate": 0.1, "weight_decay": 0.1, **options}

    def call(self, which, indices, grads):
        some = {kind: [a[i] for i in indices] for kind, a in self.arrays[which].items()}
        steps = [self.steps[which][i] for i in indices]
        functional.adam(**some, grads=grads, steps=steps, **self.options)
        for i, step in zip(indices, steps, strict=True):
            self.steps[which][i] = step

    def check(self, identity):
        assert self.steps["cpu"] == self.steps["gpu"]
        for kind, wanted in self.arrays["cpu"].items():
            for mine, other in zip(self.arrays["gpu"][kind], wanted, strict=True):
                identity.compared += 1
                same = same_bits(to_host(mine), other)
                identity.mismatches += not same
                assert same, kind


CALLS = {
    "one by one": ([0], [1], [2], [3]),
    "the list": ([0, 1, 2, 3],),
    "parts": ([0, 2], [3], [1]),
    "another order": ([3, 1], [0, 2]),
}
OPTIONS = {
    "": {},
    "mindspore": {"numerics": "mindspore"},
    "amsgrad": {"kinds": ("moment1", "moment2", "vhat"), "maximize": True},
    "ema": {"kinds": ("moment1", "moment2", "ema"), "ema_decay": 0.9},
    "centralized": {"grad_centralization": True, "numerics": "mindspore"},
}


@every("options", OPTIONS)
@every("dtype", [*DTYPES, *HALVES])
def test_calls_over_changing_arrays(options, dtype, functional_device, identity):
    rng = np.random.default_rng(2)
    held = Held(rng, dtype, **options)
    for calls in (*CALLS.values(), *CALLS.values()):
        for indices in calls:
            shapes = [held.arrays["cpu"]["params"][i].shape for i in indices]
            grads = [random(rng, shape, dtype) for shape in shapes]
            held.call("gpu", indices, [on_device(grad) for grad in grads])
            held.call("cpu", indices, grads)
            if rng.random() < 0.5:  # another that stays on the device
                held.call("gpu", [1], [None])
        held.check(identity)


def test_sparse_gradients_of_changing_arrays(functional_device, identity):
    rng = np.random.default_rng(3)
    held = Held(rng, np.float32)
    for i in (0, 3, 3, 2, 0):
        rows, length = held.arrays["cpu"]["params"][i].shape
        indices = rng.integers(0, rows, 6)
        entries = random(rng, (6, length))
        for which, convert in (("cpu", np.array), ("gpu", on_device)):
            shape = (rows, length)
            grad = adamas.RowTensor(convert(indices), convert(entries), shape)
            held.call(which, [i], [grad])
            held.call(which, [1], [convert(random(np.random.default_rng(i), FIRST[1]))])
    held.check(identity)


@every("dtype", [np.float32, np.float64, HALVES[0]])
def test_changes_are_written_where_the_caller_wants_them(dtype, functional_device, identity):
    rng = np.random.default_rng(5)
    held = Held(rng, dtype, kinds=("moment1", "moment2", "delta"), out="delta")
    held.arrays["cpu"]["delta"] = [a.astype(dtype) for a in held.arrays["cpu"]["delta"]]
    held.arrays["gpu"]["delta"] = [on_device(a, 8) for a in held.arrays["cpu"]["delta"]]
    for indices in (*CALLS["the list"], *CALLS["one by one"]):
        shapes = [held.arrays["cpu"]["params"][i].shape for i in indices]
        grads = [random(rng, shape, dtype) for shape in shapes]
        held.call("gpu", indices, [on_device(grad) for grad in grads])
        held.call("cpu", indices, grads)
    held.check(identity)


@emulated
def test_changes_have_no_place_on_a_device_by_default():
    arrays = [[fake()] for _ in range(4)]
    with pytest.raises(ValueError, match="delta must be given"):
        functional.adam(*arrays, steps=[0], out="delta")


@emulated
def test_other_arrays_take_the_place_of_the_last_ones(functional_device):
    """In the same memory of the device, once the former call is done with it."""
    arrays = [[fake((100,), stream=80) for _ in range(4)] for _ in range(3)]

    def call(some):
        functional.adam(*([array] for array in some), steps=[1])

    call(arrays[0])
    before = functional_device.adamas_emulated_allocations()
    trace()
    call(arrays[1])
    (last,) = {rest[0] for name, *rest in trace() if name == "record" and rest[1] == 80}
    call(arrays[2])
    operations = trace()
    assert functional_device.adamas_emulated_allocations() == before
    launches = [rest[1] for name, *rest in operations if name == "launch"]
    assert launches[-1] == 80
    own = launches[0]
    assert set(launches) == {own, 80}
    names = [(name, *rest) for name, *rest in operations]
    first = next(k for k, (name, *_) in enumerate(names) if name == "launch")
    assert ("wait", last, own) in names[:first]


@emulated
def test_whatever_call_of_the_device_fails_without_an_optimizer(functional_device):
    """The arrays are the caller's, who can go on with them."""
    rng = np.random.default_rng(4)
    held = Held(rng, np.float32)
    grads = [random(rng, FIRST[0]), random(rng, FIRST[1])]
    start = {kind: [a.copy() for a in some] for kind, some in held.arrays["cpu"].items()}
    held.call("cpu", [0, 1], grads)
    failures = 0
    for n in range(1, 200):
        for kind, some in start.items():
            for array, initial in zip(held.arrays["gpu"][kind], some, strict=True):
                array.host[...] = initial
        held.steps["gpu"] = [0, 3, 0, 7]
        held.call("gpu", [2], [None])  # other arrays, so that all is prepared anew
        functional_device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: held.call("gpu", [0, 1], [on_device(grad) for grad in grads]))
        functional_device.adamas_emulated_fail_at(0)
        if failure is not None:
            assert "planned" in failure or "no memory" in failure
            assert held.steps["gpu"] == [0, 3, 0, 7]
            failures += 1
            for kind, some in start.items():
                for array, initial in zip(held.arrays["gpu"][kind], some, strict=True):
                    array.host[...] = initial
            held.call("gpu", [0, 1], [on_device(grad) for grad in grads])
        for kind, wanted in held.arrays["cpu"].items():
            for i in (0, 1):
                assert same_bits(held.arrays["gpu"][kind][i].host, wanted[i]), (n, kind)
        if failure is None:
            break
    else:
        pytest.fail("the call makes more calls than expected")
    assert failures > 10
