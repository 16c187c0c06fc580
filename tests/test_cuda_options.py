"""Options of groups, absent gradients and steps of parameters on a device have the CPU's bits.

Whether a step is decided by the host or on the device is no matter of the caller's: each test runs
with options of both kinds.
"""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from adamas import functional
from emulation import (
    FakeArray,
    Twins,
    emulated,
    emulator,
    fake,
    on_device,
    same_bits,
    to_host,
)
from helpers import values
from rules import (
    DTYPES,
    HALVES,
    MEASURES,
    NUMBERS,
    POLICIES,
    STATE_DTYPES,
    VARIATIONS,
    every,
    every_numerics,
    every_policy,
    without,
)
from test_cuda_streams import message_of

pytestmark = pytest.mark.usefixtures("device")

SHAPES = ((30, 4), (5000,), (11, 64), (3, 5, 7))
TABLE = 2  # the parameter that has sparse gradients
# Who decides whether a step is made.
DECIDERS = {
    "host": {},
    **MEASURES,
    "clip_per_array": {"max_grad_norm": 0.05, "clip_per_array": True},
    "clip_skip_per_array": {"max_grad_norm": 0.05, "clip_per_array": True, "skip_nonfinite": True},
    "capturable": {"capturable": True},
    "offload": {"use_offload": True},
}
every_decider = every("decider", DECIDERS)


def arrays_of(rng, dtype=np.float32, shapes=SHAPES):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def make_with(**options):
    """Return the constructor with these options; "capturable" is for the device alone."""

    def make(params, on_gpu=None):
        usable = {**NUMBERS, **options}
        if not (params[0].is_on_device if on_gpu is None else on_gpu):
            usable.pop("capturable", None)
        return adamas.Adam(params, **usable)

    return make


def twins_of(rng, dtype=np.float32, shapes=SHAPES, **options):
    return Twins(arrays_of(rng, dtype, shapes), make_with(**options))


def left_out(rng, step, count):
    """Return which parameters step `step` leaves out: each one, all but each one, then any."""
    if step < count:
        return [i == step for i in range(count)]
    if step < 2 * count:
        return [i != step - count for i in range(count)]
    return list(rng.random(count) < 0.5)


def steps_of_twins(rng, twins, count, *, dtype=np.float32, identity=None, spoil=False):
    for step in range(count):
        grads = arrays_of(rng, dtype)
        if spoil and step % 5 == 3:
            grads[0][1, 1] = np.nan
        absent = left_out(rng, step, len(grads))
        twins.step([None if out else grad for grad, out in zip(grads, absent, strict=True)])
        twins.check(identity)


@every_decider
@every_numerics
def test_absent_gradients(decider, numerics, identity):
    rng = np.random.default_rng(1)
    twins = twins_of(rng, numerics=numerics, weight_decay=0.1, **decider)
    steps_of_twins(rng, twins, 20, identity=identity, spoil="skip_nonfinite" in decider)
    assert len(set(twins.gpu.steps)) > 1


@every_decider
@every("dtype", HALVES)
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_absent_gradients_of_stored_types(decider, dtype, state_dtype, identity):
    """The random bits of a parameter go by its own steps."""
    rng = np.random.default_rng(2)
    twins = twins_of(
        rng, dtype, state_dtype=state_dtype, seed=3, master_weights=True, ema_decay=0.8, **decider
    )
    steps_of_twins(rng, twins, 12, dtype=dtype, identity=identity)


def row_tensor(rng, on_gpu):
    """Return the function that makes a sparse gradient for one of the two optimizers."""
    shape = SHAPES[TABLE]
    indices = rng.integers(0, shape[0], 9)
    entries = rng.standard_normal((9, *shape[1:])).astype(np.float32)
    convert = on_device if on_gpu else np.asarray
    return adamas.RowTensor(convert(indices), convert(entries), shape)


@every_policy
@every_numerics
@every("decider", {name: DECIDERS[name] for name in ("host", "clip_skip", "clip_per_array")})
def test_absent_gradients_beside_sparse_ones(policy, numerics, decider, identity):
    rng = np.random.default_rng(3)
    options = {"exact": {}, "lazy": {"use_lazy": True}, "catch_up": {"row_policy": "catch_up"}}
    twins = twins_of(rng, numerics=numerics, weight_decay=0.1, **options[policy], **decider)
    for step in range(16):
        grads = arrays_of(rng)
        absent = left_out(rng, step, len(grads))
        for which, optimizer in twins.optimizers.items():
            given = [np.asarray(g) if which == "cpu" else on_device(g) for g in grads]
            if step % 3 != 1:
                rows = np.random.default_rng(step)
                given[TABLE] = row_tensor(rows, which == "gpu")
            optimizer([None if out else g for g, out in zip(given, absent, strict=True)])
        twins.check(identity)
    assert len(set(twins.gpu.steps)) > 1


@every_numerics
@every_policy
def test_parts_that_leave_parameters_out(numerics, policy, identity):
    rng = np.random.default_rng(4)
    twins = twins_of(rng, numerics=numerics, row_policy=policy)
    for chosen in ([2, 0], [1], [], [3, 2, 1, 0], [3]):
        grads = arrays_of(rng)
        for which, optimizer in twins.optimizers.items():
            optimizer.begin_step()
            for i in chosen:
                grad = grads[i] if which == "cpu" else on_device(grads[i])
                optimizer.apply(optimizer.parameters[i], grad)
            optimizer.end_step(missing="skip")
        twins.check(identity)
    assert twins.gpu.steps == [2, 2, 2, 2]
    assert twins.gpu.global_step == 5


@every("variation", VARIATIONS)
@every("dtype", DTYPES)
@pytest.mark.parametrize("skips", [False, True])
def test_variations(variation, dtype, skips, identity):
    rng = np.random.default_rng(5)
    twins = twins_of(rng, dtype, skip_nonfinite=skips, **{"weight_decay": 0.02, **variation})
    for step in range(5):
        grads = arrays_of(rng, dtype)
        if skips and step == 2:
            grads[3][0, 0, 0] = np.inf
        twins.step(grads)
        twins.check(identity)
    assert twins.gpu.skipped_steps == skips


# Of groups, one parameter each; what differs between the steps as well.
GROUPS = (
    {"beta1": 0.5, "use_nesterov": True, "max_grad_norm": 0.2},
    {"beta2": 0.7, "use_amsgrad": True, "decoupled_weight_decay": True},
    {"eps": 0.01, "maximize": True, "max_grad_norm": 0.05, "clip_per_array": True},
    {"clip_after_decay": True, "max_grad_norm": 2.0, "lr": 0.1},
)


def make_groups(**options):
    """Return the constructor with GROUPS; AMSGrad does not go with use_offload."""
    excluded = {"use_amsgrad"} if options.get("use_offload") else set()

    def make(params):
        groups = [
            {"params": [p], **{key: own[key] for key in own.keys() - excluded}}
            for p, own in zip(params, GROUPS, strict=True)
        ]
        return make_with(**options)(groups, params[0].is_on_device)

    return make


def change(optimizer, step):
    """Give the groups of an optimizer other options."""
    first, second, third, last = optimizer.groups
    first.beta1 = 0.5 + 0.04 * step
    second.beta2 = 0.9 + 0.01 * step
    second.use_nesterov = step % 2 == 1
    second.lr = 0.01 * (1 + step)
    third.maximize = step % 3 == 0
    third.max_grad_norm = None if step == 2 else 0.05
    third.clip_per_array = step != 3
    last.decoupled_weight_decay = step == 4
    last.clip_after_decay = step % 2 == 0
    last.eps = 1e-5 * (1 + step)


@every_numerics
@every("dtype", DTYPES)
@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_options_of_groups_that_change(numerics, dtype, offload, clip, identity):
    rng = np.random.default_rng(6)
    make = make_groups(
        numerics=numerics,
        weight_decay=0.1,
        max_grad_norm=clip,
        skip_nonfinite=clip is not None,
        use_offload=offload,
    )
    twins = Twins(arrays_of(rng, dtype), make)
    for step in range(7):
        grads = arrays_of(rng, dtype)
        if clip is not None and step == 4:
            grads[1][7] = np.nan
        twins.step([None if step % 4 == i else grad for i, grad in enumerate(grads)])
        twins.check(identity)
        for optimizer in twins.optimizers.values():
            change(optimizer, step)
    assert len(set(twins.gpu.steps)) > 1


@every_numerics
def test_groups_that_begin_to_clip(numerics, identity):
    """Where all gradients are measured; they did not need places of their own before."""
    rng = np.random.default_rng(7)
    twins = twins_of(rng, numerics=numerics, max_grad_norm=2.0, weight_decay=0.3)
    for options in (
        {},
        {"max_grad_norm": 0.3},
        {"max_grad_norm": None},
        {"clip_after_decay": True},
    ):
        for optimizer in twins.optimizers.values():
            for name, value in options.items():
                setattr(optimizer.groups[0], name, value)
        twins.step(arrays_of(rng))
        twins.check(identity)


@every("options", {"plain": {}, "capturable": {"capturable": True}})
def test_clipping_can_not_begin_where_nothing_is_measured(options, identity):
    rng = np.random.default_rng(8)
    twins = twins_of(rng, **options)
    twins.step(arrays_of(rng))
    with pytest.raises(RuntimeError, match="turned on"):
        twins.gpu.groups[0].max_grad_norm = 1.0
    assert twins.gpu.groups[0].max_grad_norm is None
    twins.step(arrays_of(rng))
    twins.check(identity)


@pytest.mark.parametrize(
    ("decider", "policy"),
    [(d, p) for d in DECIDERS for p in POLICIES if p == "exact" or d != "offload"],
)
def test_steps_that_are_set(decider, policy, identity):
    rng = np.random.default_rng(9)
    twins = twins_of(rng, row_policy=policy, **DECIDERS[decider])
    twins.step(arrays_of(rng))
    actions = (
        lambda opt: setattr(opt, "steps", [5, 0, 900, 1]),
        lambda opt: setattr(opt, "global_step", 3),
        lambda opt: setattr(opt, "global_step", 0),
        lambda opt: setattr(opt, "steps", [0, 0, 0, 0]),
        lambda opt: setattr(opt, "steps", [1, 2, 3, 2**62]),
        lambda opt: setattr(opt, "global_step", 2**62 - 9),
    )
    for action in actions:
        for optimizer in twins.optimizers.values():
            action(optimizer)
        assert twins.gpu.steps == twins.cpu.steps
        twins.step([None, *arrays_of(rng)[1:]])
        twins.check(identity)


@pytest.mark.parametrize("steps", [[1, 2, 3], [1, 2, 3, -1], [1, 2, 3, 2**62 + 1]])
@every_decider
def test_steps_that_are_refused(decider, steps, identity):
    rng = np.random.default_rng(10)
    twins = twins_of(rng, **decider)
    twins.step([None, *arrays_of(rng)[1:]])
    with pytest.raises(ValueError, match="steps"):
        twins.gpu.steps = steps
    assert twins.gpu.steps == [0, 1, 1, 1]
    twins.step(arrays_of(rng))
    twins.check(identity)


@every_decider
@pytest.mark.parametrize("differs", [False, True])
def test_states_with_steps_move_between_devices(decider, differs, identity):
    rng = np.random.default_rng(11)
    first = twins_of(rng, weight_decay=0.1, **decider)
    for step in range(4):
        first.step([None if step == i else grad for i, grad in enumerate(arrays_of(rng))])
    for source in ("cpu", "gpu"):
        second = twins_of(rng, weight_decay=0.1, **decider)
        if differs:  # in steps that are forgotten
            second.step([None, *arrays_of(rng)[1:]])
        state = first.optimizers[source].state_dict(parameters=True)
        for optimizer in second.optimizers.values():
            optimizer.load_state_dict(state)
            assert optimizer.steps == [3, 3, 3, 3]
        second.check(identity)
        second.step(arrays_of(rng))
        second.check(identity)


@every("decider", {name: DECIDERS[name] for name in ("host", "clip")})
def test_a_state_without_differing_steps_is_loaded_over_one_with(decider, identity):
    rng = np.random.default_rng(12)
    twins = twins_of(rng, **decider)
    twins.step(arrays_of(rng))
    state = twins.cpu.state_dict(parameters=True)
    twins.step([None, *arrays_of(rng)[1:]])
    for optimizer in twins.optimizers.values():
        optimizer.load_state_dict(state)
    for _ in range(2):
        twins.step(arrays_of(rng))
        twins.check(identity)
    assert twins.gpu.steps == [3, 3, 3, 3]


@every_decider
@every_numerics
def test_parameters_that_come_when_steps_differ(decider, numerics, identity):
    rng = np.random.default_rng(20)
    twins = twins_of(rng, numerics=numerics, **decider)
    for step in range(3):
        twins.step([None if step == i else grad for i, grad in enumerate(arrays_of(rng))])
    later = arrays_of(rng, shapes=((9,), (2, 300)))
    for which, optimizer in twins.optimizers.items():
        arrays = [np.array(a) if which == "cpu" else on_device(a) for a in later]
        params = [adamas.Parameter(array, f"later{i}") for i, array in enumerate(arrays)]
        own = {"max_grad_norm": 0.1} if "max_grad_norm" in decider else {}
        optimizer.add({"params": params, "beta1": 0.5, **own})
        twins.arrays[which].extend(arrays)
    assert twins.gpu.steps == [2, 2, 2, 3, 0, 0]
    for absent in (4, 0, 9):
        grads = arrays_of(rng) + arrays_of(rng, shapes=((9,), (2, 300)))
        twins.step([None if absent == i else grad for i, grad in enumerate(grads)])
        twins.check(identity)


# Graphs


class Captured:
    """A twin whose steps on the device are replays of one graph, over gradients that it owns."""

    def __init__(self, rng, *, absent=(), **options):
        self.twins = twins_of(rng, weight_decay=0.1, capturable=True, **options)
        self.grads = arrays_of(rng)
        self.views = [FakeArray(grad) for grad in self.grads]
        self.absent = absent

    def given(self, arrays):
        return [None if i in self.absent else array for i, array in enumerate(arrays)]

    def step(self, rng):
        """Make a step by calls."""
        self.fill(rng)
        self.twins.cpu(self.given(self.grads))
        self.twins.gpu(self.given(self.views), stream=16)

    def fill(self, rng, spoil=False):
        for grad in self.grads:
            grad[...] = values(rng, np.float32, grad.shape, "mild")
        if spoil:
            self.grads[-1][0, 0, 0] = np.inf

    def capture(self):
        number = emulator().adamas_emulated_begin_capture(16)
        try:
            self.twins.gpu(self.given(self.views), stream=16)
        finally:
            emulator().adamas_emulated_end_capture()
        self.number = number

    def replay(self, rng, spoil=False):
        self.fill(rng, spoil)
        self.twins.cpu(self.given(self.grads))
        self.twins.gpu.refresh_rates(stream=16)
        assert emulator().adamas_emulated_replay(self.number) == 0
        self.twins.check()


GRAPHS = {
    "plain": {},
    "clip_skip": MEASURES["clip_skip"],
    "clip_per_array": DECIDERS["clip_skip_per_array"],
    "ema": {"ema_decay": 0.9, "maximize": True, "epsilon_placement": "inside"},
}


@emulated
@every_numerics
@every("options", GRAPHS)
def test_a_captured_step_leaves_parameters_out(numerics, options):
    rng = np.random.default_rng(13)
    captured = Captured(rng, absent=(1, 3), numerics=numerics, **options)
    twins = captured.twins
    twins.step(arrays_of(rng))  # a graph has kernels for all gradients that ever come
    captured.step(rng)
    captured.capture()
    for _ in range(4):
        captured.replay(rng)
    assert twins.gpu.steps == [6, 1, 6, 1]
    # Calls with other parameters between replays.
    for absent in ((), (0,), (1, 3)):
        captured.absent = absent
        captured.step(rng)
        twins.check()
    captured.replay(rng)
    for optimizer in twins.optimizers.values():
        optimizer.steps = [9, 8, 7, 6]
    captured.replay(rng)
    assert twins.gpu.steps == [10, 8, 8, 6]


@emulated
def test_skipped_replays_count_for_no_parameter():
    rng = np.random.default_rng(14)
    captured = Captured(rng, absent=(1,), skip_nonfinite=True)
    captured.step(rng)
    captured.capture()
    for spoil in (False, True, False):
        captured.replay(rng, spoil)
    assert captured.twins.gpu.steps == [3, 0, 3, 3]
    assert captured.twins.gpu.skipped_steps == 1


@emulated
@every("options", {"plain": {}, "clip": {"max_grad_norm": 0.5}})
def test_steps_can_not_begin_to_differ_in_or_after_a_capture(options):
    rng = np.random.default_rng(15)
    captured = Captured(rng, **options)
    captured.step(rng)
    captured.absent = (1,)
    with pytest.raises(RuntimeError, match="before one is captured"):
        captured.capture()
    captured.absent = ()
    captured.capture()
    captured.replay(rng)
    gpu = captured.twins.gpu
    for refused in (
        lambda: gpu((None, *captured.views[1:]), stream=16),
        lambda: setattr(gpu, "steps", [1, 2, 3, 4]),
    ):
        with pytest.raises(RuntimeError, match="begin to differ"):
            refused()
        captured.twins.check()
    captured.replay(rng)


@emulated
@every_numerics
def test_options_that_change_between_replays(numerics):
    rng = np.random.default_rng(16)
    captured = Captured(rng, numerics=numerics, max_grad_norm=2.0, skip_nonfinite=True)
    for optimizer in captured.twins.optimizers.values():
        optimizer.groups[0].max_grad_norm = 0.5
    captured.step(rng)
    captured.capture()
    changes = (
        {"beta1": 0.5},
        {"beta2": 0.9, "eps": 1e-3},
        {"use_nesterov": True, "maximize": True},
        {"max_grad_norm": 0.1, "clip_per_array": True},
        {"decoupled_weight_decay": True},
    )
    for change_of_step in changes:
        for optimizer in captured.twins.optimizers.values():
            for name, value in change_of_step.items():
                setattr(optimizer.groups[0], name, value)
        captured.replay(rng)
    with pytest.raises(RuntimeError, match="how groups are clipped"):
        captured.twins.gpu.groups[0].max_grad_norm = None
    captured.replay(rng)


# Without an optimizer, and state of the caller's


class Held:
    """Parameters and their state on the CPU and on the device, for functional.adam."""

    def __init__(self, rng, dtype, **more):
        arrays = {"params": arrays_of(rng, dtype)}
        real = np.float64 if dtype is np.float64 else np.float32
        for kind in ("moment1", "moment2", *more.pop("kinds", ())):
            arrays[kind] = [np.zeros(shape, real) for shape in SHAPES]
        self.cpu = arrays
        self.gpu = {kind: [on_device(a, 8) for a in some] for kind, some in arrays.items()}
        self.steps = {"cpu": [0, 3, 0, 7], "gpu": np.array([0, 3, 0, 7])}
        self.options = {**NUMBERS, "weight_decay": 0.1, **more}

    def step(self, grads):
        # The CPU last, for what a thread keeps of its last call: nothing of the device stays.
        made = (("gpu", [None if g is None else on_device(g) for g in grads]), ("cpu", grads))
        for which, given in made:
            functional.adam(
                **getattr(self, which), grads=given, steps=self.steps[which], **self.options
            )
        assert self.steps["cpu"] == list(self.steps["gpu"])
        for kind, wanted in self.cpu.items():
            for mine, other in zip(self.gpu[kind], wanted, strict=True):
                assert same_bits(to_host(mine), other), kind


FUNCTIONAL = {
    "": {},
    "mindspore": {"numerics": "mindspore"},
    "amsgrad": {"kinds": ("vhat",)},
    "ema": {"kinds": ("ema",), "ema_decay": 0.9, "maximize": True},
    "inside": {"epsilon_placement": "inside", "use_nesterov": True},
}


@every("options", FUNCTIONAL)
@every("dtype", DTYPES)
def test_steps_without_an_optimizer(options, dtype):
    rng = np.random.default_rng(17)
    held = Held(rng, dtype, **dict(options))
    for step in range(8):
        absent = left_out(rng, step, len(SHAPES))
        grads = arrays_of(rng, dtype)
        held.step([None if out else grad for grad, out in zip(grads, absent, strict=True)])
    held.steps = {"cpu": [4] * 4, "gpu": np.array([4] * 4)}
    held.step(arrays_of(rng, dtype))


@emulated
@every("options", {name: MEASURES[name] for name in ("clip", "skip")})
def test_steps_without_an_optimizer_that_the_device_would_decide(options):
    rng = np.random.default_rng(18)
    held = Held(rng, np.float32)
    before = [np.array(array.host) for array in held.gpu["params"]]
    with pytest.raises(ValueError, match="optimizer on a device"):
        functional.adam(
            **held.gpu, grads=[fake(shape) for shape in SHAPES], steps=held.steps["gpu"], **options
        )
    assert list(held.steps["gpu"]) == [0, 3, 0, 7]
    assert all(same_bits(a.host, b) for a, b in zip(held.gpu["params"], before, strict=True))
    held.step(arrays_of(rng))


@emulated
@every("decider", without(DECIDERS, "use_offload"))
def test_state_of_the_callers_on_the_device(decider):
    rng = np.random.default_rng(19)
    initial = arrays_of(rng)
    plain = [adamas.Parameter(on_device(array), f"w{i}") for i, array in enumerate(initial)]
    states = [{k: fake(s) for k in ("moment1", "moment2")} for s in SHAPES]
    for one in states:
        for array in one.values():
            array.host[...] = 0
    given = [
        adamas.Parameter(on_device(array), f"w{i}", **states[i]) for i, array in enumerate(initial)
    ]
    own, adopting = (adamas.Adam(params, **NUMBERS, **decider) for params in (plain, given))
    for step in range(6):
        grads = [on_device(grad) for grad in arrays_of(rng)]
        chosen = [None if step == i else grad for i, grad in enumerate(grads)]
        for optimizer in (own, adopting):
            optimizer(chosen)
    assert own.steps == adopting.steps
    for i, one in enumerate(states):
        assert same_bits(plain[i].data.host, given[i].data.host)
        assert same_bits(own.moment1[i].numpy(), one["moment1"].host)
        assert same_bits(own.moment2[i].numpy(), one["moment2"].host)


# What fails on the way


ACTIONS = {
    "an absent gradient": lambda opt: opt((None, fake((700,)))),
    "steps": lambda opt: setattr(opt, "steps", [7, 3]),
    "a norm": lambda opt: setattr(opt.groups[0], "max_grad_norm", 0.05),
}
UNMEASURED = ("a norm", "host")  # which is refused


@emulated
@pytest.mark.parametrize(
    ("action", "decider"),
    [(a, d) for a in ACTIONS for d in ("host", "clip", "clip_per_array") if (a, d) != UNMEASURED],
)
def test_whatever_call_of_the_device_fails(action, decider, device):
    """An error is raised; then either nothing has changed, or all later calls refuse."""
    options = DECIDERS[decider]
    shapes = ((5, 4), (700,))

    def make():
        arrays = [fake(shape) for shape in shapes]
        opt = adamas.Adam([adamas.Parameter(array) for array in arrays], 0.1, **options)
        opt(tuple(fake(shape) for shape in shapes))
        return arrays, opt

    def finish(opt):
        ACTIONS[action](opt)
        opt((fake((5, 4)), None))

    intact = 0
    for n in range(1, 200):
        arrays, opt = make()
        device.adamas_emulated_fail_at(n)
        failure = message_of(lambda: ACTIONS[action](opt))  # noqa: B023
        device.adamas_emulated_fail_at(0)
        if failure is None:
            break
        assert "planned" in failure
        refusal = message_of(lambda: finish(opt))  # noqa: B023
        if refusal is not None:
            assert "make a new optimizer" in refusal
            continue
        intact += 1
        others, other = make()
        finish(other)
        assert other.steps == opt.steps
        assert all(same_bits(a.host, b.host) for a, b in zip(arrays, others, strict=True))
    else:
        pytest.fail("the action makes more calls than expected")
    assert n == 1 or intact > 0
