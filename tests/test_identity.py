"""The same bits on every instruction set, thread count, array offset and split (promise P1).

A combination is one (rule, dtype, size, offset, threads, ISA) whose param, moment1, moment2, vhat
and moving average are compared bit for bit, NaN counting as NaN, with the reference: scalar, one
thread, offset 0.  Parameters of many sizes stand in one optimizer; that this changes nothing is a
test of its own. The summary of the run prints how many combinations were compared.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import adamas
import rules
from adamas import _core
from helpers import ISAS, KINDS, LINE, Arena, bits, values
from rules import NUMBERS, REALS, THREADS, every, every_real, long

SMALL_SIZES = (*range(131), 1009, 16381, 16411)  # in all, more than two blocks of 16384
LARGE_SIZES = (65537, 131071)
HUGE_SIZES = (1000003,)
CENTRALIZED_LARGE_SIZES = (32771, 40009)  # rows of several blocks
STEPS = 2


@dataclass(frozen=True)
class Rule:
    """How an optimizer is made; `centralize` is an option of its groups."""

    make: type
    options: tuple
    centralize: bool = False

    def optimizer(self, params, **more):
        groups = [{"params": params, "grad_centralization": self.centralize}]
        return self.make(groups, **{**NUMBERS, **dict(self.options), **more})


def adam(centralize, **options):
    options.setdefault("loss_scale", 3.0)
    return Rule(adamas.Adam, tuple(options.items()), centralize)


def all_rules():
    for centralize in (False, True):
        for name, options in rules.RULES.items():
            yield f"{name}-centralized" if centralize else name, adam(centralize, **options)
    for name in ("maximize", "inside", "zero", "ema"):
        yield name, adam(False, weight_decay=0.037, **rules.VARIATIONS[name])
    yield "maximize-ema-centralized", adam(True, maximize=True, **rules.VARIATIONS["ema"])
    yield "mindspore-l2", adam(False, **rules.MINDSPORE_RULES["mindspore-adam-l2"])
    yield "adam_weight_decay", Rule(adamas.AdamWeightDecay, (("weight_decay", 0.037),))


RULES = dict(all_rules())
every_rule = every("rule", RULES)


@dataclass(frozen=True)
class Problem:
    """Parameters, initial states and gradients of one dtype.

    Centralized ones have a row of each kind of values, because a mean carries what is huge,
    infinite or NaN to its whole row.
    """

    shapes: tuple
    param: tuple
    moment1: tuple
    moment2: tuple
    vhat: tuple
    grads: tuple  # of each step

    @staticmethod
    def make(dtype, sizes, *, centralize, seed=1):
        rng = np.random.default_rng(seed)

        def one(size):
            if not centralize:
                return values(rng, dtype, size, "any")
            return np.stack([values(rng, dtype, size, kind) for kind in KINDS])[:, :, None]

        def all_sizes():
            return tuple(one(size) for size in sizes)

        def second_moments():
            arrays = tuple(abs(array) for array in all_sizes())
            if not centralize:  # a negative one makes a NaN, which L2 and a mean would spread
                for array in arrays:
                    array[rng.random(array.shape) < 0.05] *= -1
            return arrays

        param = all_sizes()
        return Problem(
            shapes=tuple(array.shape for array in param),
            param=param,
            moment1=all_sizes(),
            moment2=second_moments(),
            vhat=second_moments(),
            grads=tuple(all_sizes() for _ in range(STEPS)),
        )


@cache
def problem(dtype, sizes, *, centralize):
    return Problem.make(dtype, sizes, centralize=centralize)


def step_all(rule, data, *, threads=1, offset=0, grad_offset=0, steps=STEPS):
    """Return {kind: the arrays after some steps from the initial state}."""
    params = Arena(data.param, offset).views
    optimizer = rule.optimizer([adamas.Parameter(p) for p in params], num_threads=threads)
    kinds = {"param": params, "moment1": optimizer.moment1, "moment2": optimizer.moment2}
    if optimizer.vhat:
        kinds["vhat"] = optimizer.vhat
    for kind, arrays in kinds.items():
        for array, initial in zip(arrays, getattr(data, kind), strict=True):
            array[...] = initial
    if optimizer.ema:
        kinds["ema"] = optimizer.ema
    for grads in data.grads[:steps]:
        optimizer(tuple(Arena(grads, grad_offset).views))
    assert optimizer.global_step == min(steps, len(data.grads))
    return kinds


def all_bits(kinds):
    return {
        kind: bits(np.concatenate([array.ravel() for array in arrays]))
        for kind, arrays in kinds.items()
    }


def compare(got, wanted, data, identity, what):
    """Compare all parameters of a run; count each of them."""
    identity.compared += len(data.shapes)
    got = all_bits(got)
    assert got.keys() == wanted.keys()
    differing = {kind: np.flatnonzero(got[kind] != wanted[kind]) for kind in wanted}
    differing = {kind: places for kind, places in differing.items() if places.size}
    if not differing:
        return
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in data.shapes])
    found = {
        kind: sorted({data.shapes[np.searchsorted(ends, place, "right")] for place in places})
        for kind, places in differing.items()
    }
    identity.mismatches += len(set().union(*found.values()))
    pytest.fail(f"{what}: other bits in shapes {found}")


def offsets(dtype):
    return range(0, LINE, np.dtype(dtype).itemsize)


def combinations(dtype):
    """Return the (ISA, threads, offset) of the small sizes: each pair of two of them occurs."""
    return [
        (isa, threads, offset)
        for isa in ISAS
        for i, offset in enumerate(offsets(dtype))
        for j, threads in enumerate(THREADS)
        if threads == 1 or (i + j) % 2 == 0
    ]


def large_combinations(dtype):
    """Return the (ISA, threads, offset) of the large sizes: each thread count at one offset."""
    every = offsets(dtype)
    return [
        (isa, threads, every[(5 * i + 3 * j + 1) % len(every)])
        for i, isa in enumerate(ISAS)
        for j, threads in enumerate(THREADS)
    ]


def check(rule, dtype, sizes, wanted_combinations, select_isa, identity, *, steps=STEPS):
    data = problem(dtype, sizes, centralize=rule.centralize)
    select_isa("scalar")
    wanted = all_bits(step_all(rule, data, steps=steps))
    for isa, threads, offset in wanted_combinations:
        select_isa(isa)
        grad_offset = (3 * offset + 2 * np.dtype(dtype).itemsize) % LINE
        got = step_all(
            rule, data, threads=threads, offset=offset, grad_offset=grad_offset, steps=steps
        )
        compare(got, wanted, data, identity, f"{isa}, {threads} threads, offset {offset}")


@every_rule
@every_real
@pytest.mark.parametrize("stride", [long(1), 7])
def test_every_small_size(rule, dtype, stride, select_isa, identity):
    check(rule, dtype, SMALL_SIZES, combinations(dtype)[::stride], select_isa, identity)


@every_rule
@every_real
def test_large_primes(rule, dtype, select_isa, identity):
    sizes = CENTRALIZED_LARGE_SIZES if rule.centralize else LARGE_SIZES
    check(rule, dtype, sizes, large_combinations(dtype), select_isa, identity, steps=1)


@pytest.mark.parametrize("name", ["adam-l2", "amsgrad_nesterov-l2-centralized"])
@every_real
def test_a_million_elements(name, dtype, select_isa, identity):
    check(RULES[name], dtype, HUGE_SIZES, large_combinations(dtype), select_isa, identity, steps=1)


def test_there_are_enough_combinations():
    planned = len(RULES) * len(SMALL_SIZES) * sum(len(combinations(dtype)) for dtype in REALS)
    assert planned >= 20_000
    assert "scalar" in ISAS


def part_of(data, chosen):
    """Return the problem of some of the parameters."""

    def pick(arrays):
        return tuple(arrays[i] for i in chosen)

    return Problem(
        pick(data.shapes),
        pick(data.param),
        pick(data.moment1),
        pick(data.moment2),
        pick(data.vhat),
        tuple(pick(grads) for grads in data.grads),
    )


@every_rule
@every_real
def test_each_parameter_alone_and_in_any_company(rule, dtype, identity):
    sizes = (0, 1, 7, 16, 33, 127, 1009, 16381, 16411, 40009)
    data = problem(dtype, sizes, centralize=rule.centralize)
    together = step_all(rule, data, threads=3)
    order = np.random.default_rng(3).permutation(len(sizes))
    splits = [[i] for i in range(len(sizes))] + [list(order[:4]), list(order[4:])]
    for chosen in splits:
        wanted = all_bits({kind: [arrays[i] for i in chosen] for kind, arrays in together.items()})
        part = part_of(data, chosen)
        compare(step_all(rule, part, threads=2), wanted, part, identity, f"parameters {chosen}")


@every_real
def test_groups_with_the_same_options_are_as_one(dtype, identity):
    data = problem(dtype, (5, 64, 1009, 16411), centralize=False)
    rule = adam(False, weight_decay=0.037)
    wanted = all_bits(step_all(rule, data))

    class Split:
        def optimizer(self, params, **more):
            groups = [
                {"params": params[:1], "lr": NUMBERS["learning_rate"]},
                {"params": params[1:3], "weight_decay": 0.037, "grad_centralization": True},
                {"params": params[3:]},
            ]
            return adamas.Adam(groups, **{**NUMBERS, **dict(rule.options), **more})

    compare(step_all(Split(), data), wanted, data, identity, "three groups")


@every_real
def test_many_short_rows_and_rows_across_blocks(dtype, select_isa, identity):
    rule = RULES["nesterov-l2-centralized"]
    rng = np.random.default_rng(11)
    shapes = ((5000, 3, 1), (1, 17, 2411), (331, 7, 19), (40, 1, 1, 1009), (3, 16384, 1), (9, 0, 4))

    def arrays():
        return tuple(
            values(rng, dtype, int(np.prod(shape)), "mild").reshape(shape) for shape in shapes
        )

    moments = tuple(abs(array) for array in arrays())
    data = Problem(shapes, arrays(), arrays(), moments, moments, (arrays(), arrays()))
    select_isa("scalar")
    wanted = all_bits(step_all(rule, data))
    for isa, threads, offset in large_combinations(dtype):
        select_isa(isa)
        got = step_all(rule, data, threads=threads, offset=offset)
        compare(got, wanted, data, identity, f"{isa}, {threads} threads, offset {offset}")


def any_bits(dtype, shape):
    """Return a strategy of arrays of arbitrary bit patterns, every kind of NaN included."""
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    return hnp.arrays(unsigned, shape).map(lambda array: array.view(dtype))


@st.composite
def random_cases(draw):
    dtype = draw(st.sampled_from(REALS))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=23))
    arrays = [draw(any_bits(dtype, shape)) for _ in range(5)]
    fraction = st.floats(1e-3, 1 - 1e-3)
    numbers = {
        "learning_rate": draw(st.floats(0.0, 10.0)),
        "beta1": draw(fraction),
        "beta2": draw(fraction),
        "eps": draw(st.floats(1e-30, 1e3)),
        "weight_decay": draw(st.sampled_from([0.0, 0.037, 1.5])),
        "loss_scale": draw(st.floats(2.0**-20, 2.0**20)),
        "use_nesterov": draw(st.booleans()),
        "use_amsgrad": draw(st.booleans()),
        "decoupled_weight_decay": draw(st.booleans()),
    }
    rule = Rule(adamas.Adam, tuple(numbers.items()), draw(st.booleans()))
    param, moment1, moment2, vhat, grad = ((array,) for array in arrays)
    return rule, Problem((shape,), param, moment1, moment2, vhat, (grad,))


@settings(max_examples=150)
@given(random_cases(), st.integers(0, 7), st.sampled_from(THREADS))
def test_any_bits_any_shape_any_numbers(case, offset, threads):
    rule, data = case
    chosen = _core.isa_in_use()
    try:
        _core.select_isa("scalar")
        wanted = all_bits(step_all(rule, data))
        for isa in ISAS:
            _core.select_isa(isa)
            got = all_bits(step_all(rule, data, threads=threads, offset=8 * offset))
            for kind in wanted:
                np.testing.assert_array_equal(got[kind], wanted[kind], err_msg=f"{kind}, {isa}")
    finally:
        _core.select_isa(chosen)
