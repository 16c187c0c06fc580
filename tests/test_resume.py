"""A resumed run has the bits of one that never stopped (promise P6).

A combination is one (rule, types, gradients, rates, manager, stop): a training of some steps that
is saved to a file, loaded into new objects whose parameters hold something else, and finished, with
another number of threads, against the same training in one go. At the end both save: the files,
which hold every bit that decides later steps, must be equal. The summary of the run prints how many
combinations were compared.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

import adamas
from helpers import Falling, Rising, row_tensor
from rules import MEASURES, MOMENTS, POLICIES, TYPES, VARIATIONS, long

STEPS = 5
STOPS = (0, 2, 4)
OVERFLOWS = (1, 3)  # the steps with a gradient that is not finite, if those are skipped
SHAPES = ((7, 64), (5,), (), (2, 3, 16), (0, 3))

STEP_RULES = {
    **MOMENTS,
    **MEASURES,
    "decoupled": {"decoupled_weight_decay": True},
    "clip_skip_amsgrad": {**MEASURES["clip_skip"], "use_amsgrad": True},
    "mindspore": {"numerics": "mindspore"},
    "mindspore_amsgrad": {"numerics": "mindspore", "use_amsgrad": True},
    "mindspore_skip": {"numerics": "mindspore", "skip_nonfinite": True},
    **{  # rates have their own weight decay
        name: {key: value for key, value in options.items() if key != "weight_decay"}
        for name, options in VARIATIONS.items()
    },
    "absent": {},
    "absent_mindspore_clip": {"numerics": "mindspore", **MEASURES["clip"]},
    "adam_weight_decay": None,
}


def endless():
    rate = 0.02
    while True:
        yield rate
        rate *= 0.75


RATES = {
    "constant": lambda: {"learning_rate": 0.013, "weight_decay": 0.03},
    "schedule": lambda: {"learning_rate": Falling(), "weight_decay": Rising()},
    "warm_up": lambda: {"learning_rate": adamas.WarmUpLR(0.02, 3)},
    "list": lambda: {"learning_rate": [0.03, 0.01, 0.02, 0.005, 0.04]},
    "iterator": lambda: {"learning_rate": endless(), "weight_decay": 0.02},
}

MANAGERS = {
    "none": lambda: None,
    "fixed": lambda: adamas.FixedLossScaleManager(64.0),
    "dynamic": lambda: adamas.DynamicLossScaleManager(256.0, scale_window=2),
}


@dataclass(frozen=True)
class Case:
    rule: str
    types: str
    policy: str | None  # None: dense gradients
    rates: str
    manager: str

    @property
    def options(self):
        return STEP_RULES[self.rule] or {}

    @property
    def is_possible(self):
        types = TYPES[self.types][1]
        if self.options.get("use_amsgrad") and self.policy == "lazy":
            return False
        if self.options.get("clip_after_decay") and self.policy:
            return False
        if STEP_RULES[self.rule] is None:
            return not types and self.policy in (None, "exact") and self.manager == "none"
        return not ("state_dtype" in types and self.policy == "catch_up")

    def training(self, **more):
        return Training(self, **more)


class Training:
    """The objects of a run; `seed` fills the parameters."""

    def __init__(self, case, *, seed=0, num_threads=1, **more):
        self.case = case
        dtype, types = TYPES[case.types]
        rng = np.random.default_rng(seed)
        params = [
            adamas.Parameter(rng.standard_normal(shape).astype(dtype), name=f"weight{i}")
            for i, shape in enumerate(SHAPES)
        ]
        self.manager = MANAGERS[case.manager]()
        rates = RATES[case.rates]()
        groups = [
            {"params": params[1:3], "lr": 0.5 if case.rates == "constant" else Falling()},
            {"params": [params[0], params[4]]},
            {"params": [params[3]], "grad_centralization": True},
            {"order_params": params},
        ]
        if STEP_RULES[case.rule] is None:
            self.optimizer = adamas.AdamWeightDecay(groups, num_threads=num_threads, **rates)
            return
        if case.policy:
            more["row_policy"] = case.policy
        self.optimizer = adamas.Adam(
            groups, num_threads=num_threads, **rates, **types, **self.case.options, **more
        )

    def run(self, steps):
        for step in steps:
            self.step(step)

    def step(self, step):
        rng = np.random.default_rng(100 + step)
        dtype = TYPES[self.case.types][0]
        scale = self.manager.get_loss_scale() if self.manager else 1.0
        if self.manager:
            self.optimizer.loss_scale = scale
        grads = [(rng.standard_normal(shape) * scale).astype(dtype) for shape in SHAPES]
        if self.case.policy:
            rows = rng.integers(0, SHAPES[0][0], 4)
            real = np.float64 if dtype is np.float64 else np.float32
            grads[0] = row_tensor(rng, SHAPES[0], rows, real)
        overflow = bool(self.case.options.get("skip_nonfinite")) and step in OVERFLOWS
        if overflow:
            grads[1][2] = np.nan
        if self.case.rule.startswith("absent"):
            grads[step % 3] = None
        self.optimizer(grads)
        assert self.optimizer.last_step_skipped is overflow
        if self.manager:
            self.manager.update_loss_scale(overflow)

    def save(self, path):
        adamas.save_checkpoint(path, self.optimizer, loss_scale_manager=self.manager)

    def load(self, path):
        adamas.load_checkpoint(path, self.optimizer, loss_scale_manager=self.manager)


CASES = [
    case
    for case in itertools.starmap(
        Case, itertools.product(STEP_RULES, TYPES, (None, *POLICIES), RATES, MANAGERS)
    )
    if case.is_possible
]


def uninterrupted(case, paths):
    """Run in one go; save at the stops and at the end."""
    training = case.training()
    for step in range(STEPS):
        if step in STOPS:
            training.save(paths[step])
        training.step(step)
    training.save(paths["end"])


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("rule", STEP_RULES)
@pytest.mark.parametrize("stride", [long(1), 13])
def test_a_resumed_run_has_the_same_bits(rule, types, stride, folder, resume):
    paths = {stop: folder / f"{stop}.safetensors" for stop in (*STOPS, "end", "resumed")}
    cases = [case for case in CASES if (case.rule, case.types) == (rule, types)]
    for case in cases[::stride]:
        uninterrupted(case, paths)
        wanted = paths["end"].read_bytes()
        for stop in STOPS:
            resumed = case.training(seed=1, num_threads=3)
            resumed.load(paths[stop])
            resumed.run(range(stop, STEPS))
            resumed.save(paths["resumed"])
            resume.compared += 1
            same = paths["resumed"].read_bytes() == wanted
            resume.mismatches += not same
            assert same, (case, stop)


def test_there_are_enough_combinations():
    assert len(CASES) * len(STOPS) > 10_000


def test_the_end_depends_on_what_is_saved(folder):
    """The comparison can fail: a run that goes on without its moments ends elsewhere."""
    case = Case("mindspore", "bfloat16", None, "iterator", "none")
    paths = {stop: folder / str(stop) for stop in (*STOPS, "end", "other")}
    uninterrupted(case, paths)
    for forgotten in ("moment1", "moment2", "global_step", "steps"):
        resumed = case.training(seed=1)
        resumed.load(paths[2])
        if forgotten == "global_step":
            resumed.optimizer.global_step = 1
        elif forgotten == "steps":
            resumed.optimizer.steps = [2, 2, 1, 2, 2]
        else:
            getattr(resumed.optimizer, forgotten)[1][...] = 0
        resumed.run(range(2, STEPS))
        if forgotten == "global_step":
            resumed.optimizer.global_step = STEPS
        if forgotten == "steps":
            resumed.optimizer.steps = [STEPS] * len(SHAPES)
        resumed.save(paths["other"])
        assert paths["other"].read_bytes() != paths["end"].read_bytes()


@pytest.mark.parametrize("types", ["float32", "float16-master", "float32-in-int8"])
def test_going_back_in_the_same_optimizer(types, folder, resume):
    case = Case("mindspore", types, None, "iterator", "dynamic")
    paths = {stop: folder / str(stop) for stop in (*STOPS, "end", "again")}
    uninterrupted(case, paths)
    training = case.training(use_locking=True)
    for stop in (4, 0, 2):
        training.load(paths[stop])
        training.run(range(stop, STEPS))
        training.save(paths["again"])
        resume.compared += 1
        assert paths["again"].read_bytes() == paths["end"].read_bytes()
