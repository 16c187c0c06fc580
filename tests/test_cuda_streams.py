"""Streams, events, locks, errors and graphs of the CUDA backend, on the emulated device."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import adamas
from emulation import (
    ExchangeTensor,
    FakeArray,
    FakeTensor,
    InterfaceTensor,
    Twins,
    emulated,
    emulator,
    fake,
    on_device,
)
from helpers import Falling, Rising, run_threads, values
from rules import every_numerics

pytestmark = [emulated, pytest.mark.usefixtures("device")]


def trace():
    """Return the operations since the last call: tuples of a name and numbers."""
    lines = emulator().adamas_emulated_trace().decode().splitlines()
    return [(line.split()[0], *map(int, line.split()[1:])) for line in lines]


def optimizer_of(weight, **options):
    return adamas.Adam([adamas.Parameter(weight)], 0.1, **options)


def launch_streams(operations):
    return {rest[1] for name, *rest in operations if name == "launch"}


class Stream:
    def __init__(self, number):
        self.ptr = number


class ProtocolStream:
    def __cuda_stream__(self):
        return 0, 48


@pytest.mark.parametrize(
    ("stream", "number"), [(16, 16), (Stream(32), 32), (ProtocolStream(), 48), (None, 0)]
)
def test_all_is_queued_on_the_stream(stream, number):
    opt = optimizer_of(fake())
    trace()
    opt((fake(),), stream=stream)
    assert launch_streams(trace()) == {number}


@pytest.mark.parametrize("stream", ["16", 1.5, True, object()])
def test_streams_that_are_refused(stream):
    opt = optimizer_of(fake())
    with pytest.raises(TypeError, match="stream"):
        opt((fake(),), stream=stream)
    assert opt.global_step == 0


def test_the_stream_that_a_producer_names():
    opt = optimizer_of(fake())
    trace()
    opt((fake(stream=80),))
    assert launch_streams(trace()) == {80}


def test_producers_on_other_streams_are_waited_for():
    opt = adamas.Adam([adamas.Parameter(fake()), adamas.Parameter(fake())], 0.1)
    trace()
    opt((fake(stream=80), fake(stream=96)), stream=112)
    operations = trace()
    for producer in (80, 96):
        at = next(
            k
            for k, (name, *rest) in enumerate(operations)
            if name == "record" and rest[1] == producer
        )
        assert operations[at + 1] == ("wait", operations[at][1], 112)
        assert at < min(k for k, (name, *_) in enumerate(operations) if name == "launch")
    assert launch_streams(operations) == {112}


def test_the_stream_on_which_a_library_works(monkeypatch):
    opt = optimizer_of(fake())
    grad = ExchangeTensor(np.ones((3, 2), np.float32))
    monkeypatch.setattr(ExchangeTensor, "current_stream", 80)
    trace()
    opt((grad,))
    assert launch_streams(trace()) == {80}


def test_sparse_gradients_are_read_on_the_stream_on_which_a_library_works(monkeypatch):
    opt = optimizer_of(fake((5, 4)))
    rows = InterfaceTensor(np.array([1, 3]))
    grad = adamas.RowTensor(rows, InterfaceTensor(np.ones((2, 4), np.float32)), (5, 4))
    monkeypatch.setattr(ExchangeTensor, "current_stream", 80)
    trace()
    opt((grad,))
    assert launch_streams(trace()) == {80}


def test_parameters_are_first_read_after_the_stream_on_which_a_library_works(monkeypatch):
    monkeypatch.setattr(ExchangeTensor, "current_stream", 80)
    weight = InterfaceTensor(np.ones((3, 2), np.float16))
    trace()
    adamas.Adam([adamas.Parameter(weight)], 0.1, master_weights=True)
    operations = trace()
    at = next(k for k, (name, *rest) in enumerate(operations) if name == "record" and rest[1] == 80)
    assert operations[at + 1][:2] == ("wait", operations[at][1])
    assert at < min(k for k, (name, *_) in enumerate(operations) if name == "launch")


def test_a_library_is_told_the_stream_on_which_it_works(monkeypatch):
    monkeypatch.setattr(ExchangeTensor, "current_stream", 80)
    weight = ExchangeTensor(np.ones((3, 2), np.float32))
    adamas.Parameter(weight)
    assert weight.streams == [80]


def test_dlpack_producers_are_told_a_stream():
    grad = FakeTensor(np.ones((3, 2), np.float32))
    opt = optimizer_of(fake())
    trace()
    opt((grad,))
    assert grad.streams == [1]  # DLPack's name of the default stream
    assert launch_streams(trace()) == {1}
    opt((grad,), stream=16)
    operations = trace()
    assert launch_streams(operations) == {16}
    assert any(name == "record" and rest[1] == 1 for name, *rest in operations)


@pytest.mark.parametrize("stream", [32, 16])
def test_a_step_comes_after_the_last(stream):
    """Of the same handle too: 2 names another stream in each thread, and addresses are reused."""
    opt = optimizer_of(fake())
    opt((fake(),), stream=16)
    trace()
    opt((fake(),), stream=stream)
    operations = trace()
    waits = [operation for operation in operations if operation[0] == "wait"]
    assert waits == operations[:1]
    assert waits[0][2] == stream
    assert operations[-1] == ("record", waits[0][1], stream)


@pytest.mark.parametrize("locking", [False, True])
def test_locking_orders_optimizers_that_share_memory(locking):
    weight = np.ones(64, np.float32)
    first = optimizer_of(FakeArray(weight), use_locking=locking)
    second = optimizer_of(FakeArray(weight[16:48]), use_locking=locking)
    other = optimizer_of(fake((8,)), use_locking=locking)
    first((fake((64,)),), stream=16)
    event = trace()[-1][1]
    other((fake((8,)),), stream=32)
    assert ("wait", event, 32) not in trace()
    second((fake((32,)),), stream=32)
    assert (("wait", event, 32) in trace()) == locking
    del first
    second((fake((32,)),), stream=32)


def test_calls_from_many_threads_are_some_serial_order():
    weight = np.zeros(5000, np.float32)
    opt = optimizer_of(FakeArray(weight), use_locking=True)
    wanted = np.zeros(5000, np.float32)
    cpu = adamas.Adam([adamas.Parameter(wanted)], 0.1)
    grad = np.linspace(-1, 1, 5000, dtype=np.float32)

    def work(stream):
        for _ in range(10):
            opt((FakeArray(grad),), stream=stream)

    run_threads(*[partial(work, 16 * k) for k in range(1, 5)])
    for _ in range(40):
        cpu((grad,))
    assert opt.global_step == 40
    assert np.array_equal(weight, wanted)


def rows_for(k):
    indices = np.array([k % 5, 2, k % 5])
    there = on_device(np.full((3, 4), 0.5, np.float32))
    return adamas.RowTensor(on_device(indices), there, (5, 4))


def message_of(call):
    """Return what a call raises as RuntimeError, or None."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return None


CONFIGS = {
    "plain": {},
    "clips": {"max_grad_norm": 0.1},
    "lazy": {"use_lazy": True},
    "exact": {"max_grad_norm": 0.1, "skip_nonfinite": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_call_of_the_device_fails(name, device):
    """An error is raised; then either nothing has changed, or all later calls refuse."""
    sparse = name in ("lazy", "exact")
    shapes = [(5, 4), (700,)]

    def grads(k):
        first = rows_for(k) if sparse else fake((5, 4))
        return (first, fake((700,)))

    broken = intact = 0
    for n in range(1, 200):
        arrays = [np.ones(shape, np.float32) for shape in shapes]
        opt = adamas.Adam([adamas.Parameter(FakeArray(a)) for a in arrays], 0.1, **CONFIGS[name])
        opt(grads(0))
        before = [a.copy() for a in arrays]
        device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: opt(grads(1)))  # noqa: B023
        device.adamas_emulated_fail_at(0)
        if failure is None:
            break
        assert "planned" in failure
        refusal = message_of(lambda: opt(grads(1)))  # noqa: B023
        if refusal is not None:
            assert "make a new optimizer" in refusal
            broken += 1
            continue
        intact += 1
        assert opt.global_step == 2
        again = [np.ones(shape, np.float32) for shape in shapes]
        other = adamas.Adam([adamas.Parameter(FakeArray(a)) for a in again], 0.1, **CONFIGS[name])
        other(grads(0))
        assert all(np.array_equal(a, b) for a, b in zip(again, before, strict=True))
        other(grads(1))
        assert all(np.array_equal(a, b) for a, b in zip(again, arrays, strict=True))
    else:
        pytest.fail("the step makes more calls than expected")
    assert broken > 0
    assert intact > 0


def test_an_optimizer_that_can_not_be_made(device):
    for n in range(1, 200):
        params = [adamas.Parameter(fake((5, 4, 3)))]
        device.adamas_emulated_fail_at(n)
        try:
            adamas.Adam([{"params": params, "grad_centralization": True}], 0.1)
        except (RuntimeError, MemoryError):
            device.adamas_emulated_fail_at(0)
            continue
        device.adamas_emulated_fail_at(0)
        assert n > 5
        return
    pytest.fail("the constructor makes more calls than expected")


class Graph:
    """What is queued on a stream, to be replayed."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.number = emulator().adamas_emulated_begin_capture(self.stream)
        return self

    def __exit__(self, *_):
        emulator().adamas_emulated_end_capture()

    def replay(self):
        assert emulator().adamas_emulated_replay(self.number) == 0


@every_numerics
@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.5, "skip_nonfinite": True}, {"state_dtype": "int8", "seed": 3}],
    ids=["plain", "clips", "int8"],
)
def test_replays_have_the_bits_of_calls(numerics, options, identity):
    rng = np.random.default_rng(1)
    shapes = [(30, 64), (5000,), (3,)]
    twins = Twins(
        [values(rng, np.float32, s, "mild") for s in shapes],
        lambda p: adamas.Adam(
            p,
            Falling(),
            weight_decay=Rising(),
            numerics=numerics,
            loss_scale=2.0,
            capturable=p[0].is_on_device,
            **options,
        ),
    )
    grads = [np.zeros(s, np.float32) for s in shapes]
    views = tuple(FakeArray(g) for g in grads)

    def fill(k):
        for grad in grads:
            grad[...] = values(rng, np.float32, grad.shape, "mild")
        if k == 3 and "skip_nonfinite" in options:
            grads[0][1, 1] = np.nan

    fill(0)
    twins.cpu(tuple(grads))
    twins.gpu(views, stream=16)
    with Graph(16) as graph:
        twins.gpu(views, stream=16)
    twins.check(identity)  # nothing was done yet
    for k in range(1, 6):
        fill(k)
        twins.cpu(tuple(grads))
        twins.gpu.refresh_rates(stream=16)
        graph.replay()
        twins.check(identity)
    # A call between replays, with gradients elsewhere.
    for _ in range(2):
        fill(0)
        twins.step(grads)
        twins.check(identity)
        fill(0)
        twins.cpu(tuple(grads))
        twins.gpu.refresh_rates(stream=16)
        graph.replay()
        twins.check(identity)


def test_a_capture_is_found_by_the_stream_of_a_library(monkeypatch):
    weight, other = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    opt = optimizer_of(FakeArray(weight), capturable=True, weight_decay=Rising())
    cpu = optimizer_of(other, weight_decay=Rising())
    grad = ExchangeTensor(np.ones((3, 2), np.float32))
    monkeypatch.setattr(ExchangeTensor, "current_stream", 80)
    opt((grad,))
    cpu((grad.host,))
    with Graph(80) as graph:
        opt((grad,))
    for _ in range(2):
        cpu((grad.host,))
        opt.refresh_rates(stream=80)
        graph.replay()
        assert np.array_equal(weight, other)


READS = {
    "step": lambda opt: opt.global_step,
    "moment": lambda opt: opt.moment1[0].numpy(),
    "assign": lambda opt: opt.moment1[0].assign(0),
    "set step": lambda opt: setattr(opt, "global_step", 7),
    "state": lambda opt: opt.state_dict(),
    "rates": lambda opt: opt.refresh_rates(),
}


@pytest.mark.parametrize("what", READS)
def test_the_host_waits_for_replays_on_any_stream(what):
    opt = optimizer_of(fake(), capturable=True, weight_decay=Rising())
    opt((fake(),), stream=16)
    trace()
    READS[what](opt)
    assert ("wait_for_device",) not in trace()
    with Graph(16) as graph:
        opt((fake(),), stream=16)
    graph.replay()
    trace()
    READS[what](opt)
    assert ("wait_for_device",) in trace()
    trace()
    del opt
    assert ("wait_for_device",) in trace()


def test_what_can_not_be_captured():
    plain = optimizer_of(fake())
    plain((fake(),), stream=16)
    with Graph(16), pytest.raises(RuntimeError, match="capturable"):
        plain((fake(),), stream=16)
    opt = optimizer_of(fake(), capturable=True)
    with Graph(16), pytest.raises(RuntimeError, match="make a step"):
        opt((fake(),), stream=16)
    opt((fake(),), stream=16)
    with Graph(16):
        opt((fake(),), stream=16)
    with pytest.raises(RuntimeError, match="must not change"):
        opt((fake(dtype=np.float16),), stream=16)
    with pytest.raises(RuntimeError, match="whole steps"):
        opt.begin_step()
    table = optimizer_of(fake((5, 4)), capturable=True)
    table((fake((5, 4)),))
    with Graph(16), pytest.raises(RuntimeError, match="sparse"):
        table((rows_for(0),), stream=16)
    with pytest.raises(RuntimeError, match="not capturable"):
        plain.refresh_rates()
    with pytest.raises(ValueError, match="capturable"):
        optimizer_of(np.ones(3, np.float32), capturable=True)
