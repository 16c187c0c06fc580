"""Parameters on the emulated CUDA device whose moments and update are on the host (use_offload)."""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from emulation import FakeArray, Twins, emulated, fake, on_device
from helpers import ROW_SETS, Falling, half_values, values
from rules import HALVES, every, every_numerics
from test_cuda_streams import launch_streams, message_of, trace
from test_cuda_sums import arrays_of, sparse, step_rows

pytestmark = [emulated, pytest.mark.usefixtures("device")]

SHAPES = ((5,), (40, 1025), (0,), (3, 4, 5))
OPTIONS = (
    {},
    {"max_grad_norm": 0.1, "skip_nonfinite": True},
    {"state_dtype": "int8", "seed": 3},
    {"use_nesterov": True, "decoupled_weight_decay": True},
    {"use_locking": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@every_numerics
def test_the_bits_of_the_cpu(options, numerics, identity):
    rng = np.random.default_rng(1)
    twins = Twins(
        arrays_of(rng, SHAPES),
        lambda p: adamas.Adam(
            p, Falling(), weight_decay=0.1, use_offload=True, numerics=numerics, **options
        ),
    )
    for k in range(4):
        grads = arrays_of(rng, SHAPES)
        if k == 2 and "skip_nonfinite" in options:
            grads[0][0] = np.inf
        twins.step(grads)
        twins.check(identity)
    assert twins.gpu.target == "CPU"
    assert isinstance(twins.gpu.moment1[0], np.ndarray)


@every("dtype", HALVES)
def test_master_weights(dtype, identity):
    rng = np.random.default_rng(2)
    arrays = [half_values(rng, dtype, shape, finite=True) for shape in SHAPES]
    twins = Twins(arrays, lambda p: adamas.Adam(p, 0.01, use_offload=True, master_weights=True))
    for _ in range(3):
        twins.step(arrays_of(rng, SHAPES))
        twins.check(identity)


@pytest.mark.parametrize("policy", ["exact", "catch_up"])
def test_sparse_gradients(policy, identity):
    rng = np.random.default_rng(3)
    twins = Twins(
        [values(rng, np.float32, (23, 7), "mild"), np.ones(4, np.float32)],
        lambda p: adamas.Adam(p, 0.01, row_policy=policy, use_offload=True),
    )
    for rows in ROW_SETS:
        indices = rows(rng, 23)
        entries = values(rng, np.float32, (len(indices), 7), "mild")
        step_rows(twins, [sparse(indices, entries, (23, 7)), np.ones(4, np.float32)])
        twins.check(identity)


def test_a_parameter_that_was_changed_on_the_device_is_read_again():
    weight = np.ones(3, np.float32)
    opt = adamas.Adam([adamas.Parameter(FakeArray(weight))], 0.5, use_offload=True)
    opt((fake((3,)),))
    weight[...] = 8
    opt((fake((3,)),))
    assert np.allclose(weight, 7.5)


@pytest.mark.parametrize("submits", [False, True])
def test_steps_in_parts(submits, identity):
    rng = np.random.default_rng(4)
    twins = Twins(
        arrays_of(rng, SHAPES), lambda p: adamas.Adam(p, Falling(), 0.9, use_offload=True)
    )
    for _ in range(3):
        grads = arrays_of(rng, SHAPES)
        for name, optimizer in twins.optimizers.items():
            optimizer.begin_step()
            for i in (2, 0, 3, 1):
                grad = grads[i] if name == "cpu" else on_device(grads[i])
                call = optimizer.submit if submits else optimizer.apply
                call(optimizer.parameters[i], grad)
            optimizer.end_step()
        twins.check(identity)


def test_what_is_wrong_with_a_submitted_gradient():
    opt = adamas.Adam([adamas.Parameter(fake((3,)))], 0.5, use_offload=True)
    opt.begin_step()
    opt.submit(opt.parameters[0], fake((4,)))
    with pytest.raises(ValueError, match="shape"):
        opt.end_step()
    opt.submit(opt.parameters[0], fake((3,)))
    opt.end_step()
    assert opt.global_step == 1


def test_refusals():
    weight = fake((8, 3))
    opt = adamas.Adam([adamas.Parameter(weight)], 0.5, use_offload=True, max_grad_norm=1.0)
    _, bad = sparse(np.array([8]), np.ones((1, 3), np.float32), (8, 3))
    with pytest.raises(IndexError):
        opt((bad,))
    with pytest.raises(ValueError, match="shares memory"):
        opt((weight,))
    with pytest.raises(ValueError, match="NaN"):
        opt((FakeArray(np.full((8, 3), np.nan, np.float32)),))
    assert np.all(weight.host == 1)
    assert opt.global_step == 0
    with pytest.raises(ValueError, match="capturable"):
        adamas.Adam([adamas.Parameter(weight)], use_offload=True, capturable=True)
    shared = [adamas.Parameter(FakeArray(weight.host[k:])) for k in (0, 1)]
    with pytest.raises(ValueError, match="shares memory"):
        adamas.Adam(shared, use_offload=True)


def test_streams_are_ordered():
    opt = adamas.Adam([adamas.Parameter(fake())], 0.5, use_offload=True)
    trace()
    opt((fake(stream=80),), stream=16)
    operations = trace()
    assert launch_streams(operations) == set()
    recorded = [rest[1] for name, *rest in operations if name == "record"]
    assert recorded[0] == 16
    assert 80 in recorded
    assert operations[-1][0] == "wait"
    assert operations[-1][2] == 16


def test_parameters_are_first_read_after_their_producers():
    trace()
    adamas.Adam([adamas.Parameter(fake(stream=80))], 0.5, use_offload=True)
    operations = trace()
    event = next(rest[0] for name, *rest in operations if name == "record" and rest[1] == 80)
    assert any(name == "wait" and rest[0] == event for name, *rest in operations)


def test_locking_orders_a_step_after_one_that_a_device_has_queued():
    weight = FakeArray(np.ones(64, np.float32))
    queued = adamas.Adam([adamas.Parameter(weight)], 0.5, use_locking=True)
    offloaded = adamas.Adam([adamas.Parameter(weight)], 0.5, use_locking=True, use_offload=True)
    queued((fake((64,)),), stream=16)
    event = trace()[-1][1]
    offloaded((fake((64,)),), stream=32)
    assert ("wait_for_event", event) in trace()


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1}], ids=["plain", "clips"])
def test_whatever_call_of_the_device_fails(options, device):
    broken = intact = 0
    for n in range(1, 100):
        weights = [np.ones(4, np.float32), np.ones(5, np.float32)]
        params = [adamas.Parameter(FakeArray(weight)) for weight in weights]
        opt = adamas.Adam(params, 0.1, use_offload=True, **options)
        grads = (fake((4,)), fake((5,)))
        opt(grads)
        device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: opt(grads))  # noqa: B023
        device.adamas_emulated_fail_at(0)
        if failure is None:
            break
        assert "planned" in failure
        refusal = message_of(lambda: opt(grads))  # noqa: B023
        if refusal is None:
            intact += 1
            assert opt.global_step == 2
            assert len({*weights[0], *weights[1]}) == 1
        else:
            assert "make a new optimizer" in refusal
            broken += 1
    assert broken > 0
    assert intact > 0
