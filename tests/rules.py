"""The one list of what a step can be: types, rules, row policies, formats of moments, ways to run.

Tests iterate over these lists, so that what is added here is tested everywhere; test_rules.py fails
if a member of AdamConfig, or a value of one, is in no list.  Options are those of adamas.Adam; no
number stands at its default.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

import oracle

REALS = (np.float32, np.float64)  # the types of the arithmetic
# Stored only, with their definitions.
HALF_FORMATS = {np.float16: oracle.FLOAT16, ml_dtypes.bfloat16: oracle.BFLOAT16}
HALVES = tuple(HALF_FORMATS)
DTYPES = (*REALS, *HALVES)

NUMBERS = {"learning_rate": 0.013, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
NUMERICS = ("standard", "mindspore")
MOMENTS = {
    "adam": {},
    "nesterov": {"use_nesterov": True},
    "amsgrad": {"use_amsgrad": True},
    "amsgrad_nesterov": {"use_amsgrad": True, "use_nesterov": True},
}
DECAYS = {
    "": {},
    "l2": {"weight_decay": 0.037},
    "decoupled": {"weight_decay": 0.037, "decoupled_weight_decay": True},
}
SCALED = {"loss_scale": 3.0}

# What looks at all gradients before the first is used.
MEASURES = {
    "clip": {"max_grad_norm": 0.5},
    "skip": {"skip_nonfinite": True},
    "clip_skip": {"max_grad_norm": 0.5, "skip_nonfinite": True},
}
# What changes the rule, and has a list of its own because not everything is tested with each.
VARIATIONS = {
    "maximize": {"maximize": True},
    "inside": {"epsilon_placement": "inside"},
    "zero": {"allow_zero": True, "beta1": 0.0, "eps": 0.0},
    "clip_per_array": {"max_grad_norm": 0.5, "clip_per_array": True},
    "clip_after_decay": {"max_grad_norm": 0.5, "clip_after_decay": True, "weight_decay": 0.037},
    "ema": {"ema_decay": 0.9},
    "sum": {"reduction": "sum"},  # of what was accumulated
}
POLICIES = ("exact", "lazy", "catch_up")  # for rows that a sparse gradient does not list
STATE_DTYPES = ("bfloat16", "int8")
# What changes no bit of the result.
THREADS = (1, 2, 3, 7)
WAYS = {
    "threads": {"num_threads": THREADS[-1]},
    "locking": {"use_locking": True},
    "offload": {"use_offload": True},
    "capturable": {"capturable": True},  # on a device only
}


def combined(*lists):
    """Return {names joined: options together} of the product of lists."""
    found = {}
    for chosen in itertools.product(*(options.items() for options in lists)):
        name = "-".join(part for part, _ in chosen if part)
        found[name] = {key: value for _, options in chosen for key, value in options.items()}
    return found


def without(rules, *excluded):
    """Return those of {name: options} that have none of these options."""
    return {name: rule for name, rule in rules.items() if not rule.keys() & set(excluded)}


RULES = combined(MOMENTS, DECAYS)
MINDSPORE_RULES = combined({"mindspore": {"numerics": "mindspore"}}, RULES)

# {name: (element type, options)}: how parameters and their moments are stored.
_MOMENT_TYPES = {
    "": {},
    **{f"in-{name}": {"state_dtype": name, "seed": 3} for name in STATE_DTYPES},
}
_STORAGES = {
    np.float64: {"": {}},
    np.float32: _MOMENT_TYPES,
    **dict.fromkeys(HALVES, combined({"": {}, "master": {"master_weights": True}}, _MOMENT_TYPES)),
}
TYPES = {
    "-".join(filter(None, (np.dtype(dtype).name, name))): (dtype, options)
    for dtype, storages in _STORAGES.items()
    for name, options in storages.items()
}


def every(argument, choices):
    """Return the mark that runs a test with each of a list, or of the options of a dict."""
    if isinstance(choices, dict):
        return pytest.mark.parametrize(argument, choices.values(), ids=choices)
    return pytest.mark.parametrize(argument, choices, ids=lambda c: getattr(c, "__name__", str(c)))


def long(value):
    """Return a value that only `make test-long` tests."""
    return pytest.param(value, marks=pytest.mark.long)


every_real = every("dtype", REALS)
every_dtype = every("dtype", DTYPES)
every_numerics = every("numerics", NUMERICS)
every_policy = every("policy", POLICIES)
every_state_dtype = every("state_dtype", STATE_DTYPES)
