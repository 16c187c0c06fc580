"""States move between the CPU and the emulated CUDA device without losing a bit."""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from emulation import Twins, on_device, to_host
from helpers import Falling
from rules import HALVES
from test_cuda_sums import arrays_of, sparse, step_rows

pytestmark = pytest.mark.usefixtures("device")

SHAPES = ((5,), (40, 64), (3, 4, 5))
OPTIONS = (
    {},
    {"max_grad_norm": 0.1, "skip_nonfinite": True, "numerics": "mindspore"},
    {"state_dtype": "int8", "seed": 3},
    {"state_dtype": "bfloat16", "use_amsgrad": True},
    {"use_offload": True, "master_weights": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("dtype", [np.float32, HALVES[1]], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("with_parameters", [False, True])
def test_states_go_both_ways(options, dtype, with_parameters, identity):
    rng = np.random.default_rng(1)

    def make(params):
        return adamas.Adam(params, Falling(), weight_decay=0.1, loss_scale=2.0, **options)

    twins = Twins(arrays_of(rng, SHAPES, dtype), make)
    for _ in range(3):
        twins.step(arrays_of(rng, SHAPES))
    twins.check(identity)
    # Each goes on with the other's state.
    states = {name: twins.optimizers[name].state_dict(parameters=True) for name in ("cpu", "gpu")}
    assert repr(states["cpu"]) == repr(states["gpu"])
    others = [to_host(a).copy() if with_parameters else a for a in twins.arrays["gpu"]]
    fresh = Twins([np.array(to_host(a)) for a in others], make)
    for name, other in (("cpu", "gpu"), ("gpu", "cpu")):
        state = twins.optimizers[other].state_dict(parameters=with_parameters)
        fresh.optimizers[name].load_state_dict(state)
    for both in (twins, fresh):
        rng = np.random.default_rng(2)
        for _ in range(2):
            both.step(arrays_of(rng, SHAPES))
            both.check(identity)
    for mine, wanted in zip(fresh.arrays["gpu"], twins.arrays["cpu"], strict=True):
        assert np.array_equal(to_host(mine), wanted)


def test_loading_parameters_writes_to_the_device():
    weight = np.zeros(3, np.float32)
    for options in ({}, {"use_offload": True}):
        there = on_device(weight)
        opt = adamas.Adam([adamas.Parameter(there, "w")], **options)
        state = opt.state_dict(parameters=True)
        state["parameters"]["w"]["param"] = np.array([1, 2, 3], np.float32)
        opt.load_state_dict(state)
        assert np.array_equal(to_host(there), [1, 2, 3])
        assert np.array_equal(
            opt.state_dict(parameters=True)["parameters"]["w"]["param"], [1, 2, 3]
        )


def test_rows_that_are_to_catch_up(identity):
    def make(params):
        return adamas.Adam(params, 0.01, row_policy="catch_up")

    rng = np.random.default_rng(3)
    twins = Twins([np.ones((9, 4), np.float32)], make)

    def step(both):
        indices = rng.integers(0, 9, 4)
        entries = rng.standard_normal((4, 4)).astype(np.float32)
        step_rows(both, [sparse(indices, entries, (9, 4))])

    for _ in range(3):
        step(twins)
    state = twins.cpu.state_dict(parameters=True)
    twins.gpu.load_state_dict(state)
    for _ in range(3):
        step(twins)
        twins.check(identity)


def test_rows_keep_their_distance_to_a_step_that_is_set(identity):
    """Whoever counts: with skip_nonfinite the device does, and its steps differ from the calls."""
    rng = np.random.default_rng(4)
    twins = Twins(
        [np.ones((9, 4), np.float32)],
        lambda params: adamas.Adam(params, 0.01, row_policy="catch_up", skip_nonfinite=True),
    )

    def step(first=1.0):
        indices = rng.integers(0, 9, 4)
        entries = rng.standard_normal((4, 4)).astype(np.float32)
        entries[0, 0] *= first
        step_rows(twins, [sparse(indices, entries, (9, 4))])

    for first in (1.0, np.nan, 1.0, 1.0):
        step(first)
    assert twins.gpu.skipped_steps == 1
    twins.cpu.global_step = twins.gpu.global_step = 50
    for _ in range(3):
        step()
        twins.check(identity)
