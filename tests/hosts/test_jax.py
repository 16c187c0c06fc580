"""adamas.jax inside jax.jit: the bits of adamas.functional, in the memory of what is donated."""

import copy
import doctest
import pickle
import re
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from jax_cases import (
    CALL,
    DTYPES,
    RATES,
    SHAPES,
    Reference,
    adamas,
    enable_x64,
    functional,
    jax,
    jnp,
    normal,
    numbers,
    pointers,
    same,
    tree,
)

import rules
from helpers import run_python, run_threads
from rules import every

STEPS = 3
VARIANTS = {
    **rules.RULES,
    "mindspore": {"numerics": "mindspore", "weight_decay": 0.037, "use_nesterov": True},
    "inside": {"epsilon_placement": "inside"},
    "maximize": {"maximize": True, "weight_decay": 0.037},
    "zero": {"allow_zero": True, "beta1": 0.0, "eps": 0.0},
    "uncorrected": {"bias_correction": False},
    "centralized": {"grad_centralization": True},
    "scaled": {"loss_scale": 3.0},
    "ema": {"ema_decay": 0.97},
    "clip": {"max_grad_norm": 0.5},
    "clip_per_array": {"max_grad_norm": 0.3, "clip_per_array": True},
    "clip_after_decay": {"max_grad_norm": 0.5, "clip_after_decay": True, "weight_decay": 0.1},
    "skip": {"skip_nonfinite": True},
    "bfloat16": {"state_dtype": "bfloat16", "seed": 2**64 - 3},
    "threads": {"num_threads": 3},
}
MASTERS = {
    "master": {"master_weights": True},
    "master_ema": {"master_weights": True, "ema_decay": 0.9, "use_amsgrad": True},
}


def optimizer_of(variant):
    return adamas.jax.Adam(**{**RATES, **CALL, **variant})


def reference_options(variant):
    kept = ("use_amsgrad", "master_weights")  # functional.adam knows them by their arrays
    options = {**RATES, **CALL, **variant}
    return {name: value for name, value in options.items() if name not in kept}


def check_steps(variant, dtype, identity, steps=STEPS):
    rng = np.random.default_rng(5)
    optimizer = optimizer_of(variant)
    params = tree(normal(rng, dtype, special=True))
    state = optimizer.init(params)
    reference = Reference(params, state)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    before = pointers(params, state)
    for _ in range(steps):
        grads = tree(normal(rng, dtype, special=True))
        reference.step(grads, **reference_options(variant))
        params, state = step(params, grads, state)
        identity.compared += 1
        identity.mismatches += not reference.is_same(params, state)
        assert reference.is_same(params, state)
        assert pointers(params, state) == before
    assert step._cache_size() == 1


@every("dtype", DTYPES)
@every("variant", VARIANTS)
def test_the_bits_of_the_functional_step_in_the_same_memory(variant, dtype, identity):
    check_steps(variant, dtype, identity)


@every("dtype", rules.HALVES)
@every("variant", MASTERS)
def test_master_weights(variant, dtype, identity):
    check_steps(variant, dtype, identity)


@every("variant", {name: VARIANTS[name] for name in ("amsgrad-l2", "clip", "ema", "mindspore")})
def test_float64(variant, identity):
    with enable_x64(True):
        check_steps(variant, np.float64, identity)


def test_all_types_together_and_gradients_of_another_type(identity):
    rng = np.random.default_rng(6)
    params = {kind.__name__: normal(rng, kind)((37,)) for kind in (np.float32, *rules.HALVES)} | {
        "last": normal(rng, np.float32)((3, 3))
    }
    optimizer = optimizer_of({"master_weights": True, "ema_decay": 0.9, "weight_decay": 0.1})
    state = optimizer.init(params)
    assert state.master["float32"] is None
    assert state.master["float16"].dtype == np.float32
    reference = Reference(params, state)
    reference.states["master"] = [  # in the order of the parameters
        None if leaf is None else np.array(leaf)
        for leaf in jax.tree.leaves(state.master, is_leaf=lambda leaf: leaf is None)
    ]
    # functional.adam takes masters for all or none: one call for each type.
    for _ in range(STEPS):
        grads = {
            "float32": normal(rng, ml_dtypes.bfloat16)((37,)),
            "float16": normal(rng, np.float32)((37,)),
            "bfloat16": normal(rng, np.float16)((37,)),
            "last": normal(rng, np.float32)((3, 3)),
        }
        for i, grad in enumerate(jax.tree.leaves(grads)):
            one = {k: a[i : i + 1] for k, a in reference.states.items() if a[i] is not None}
            functional.adam(
                reference.params[i : i + 1],
                [np.array(grad)],
                steps=[reference.steps[i]],
                **one,
                **reference_options({"ema_decay": 0.9, "weight_decay": 0.1}),
            )
            reference.steps[i] += 1
        params, state = jax.jit(optimizer.update)(params, grads, state)
        assert reference.is_same(params, state)
        identity.compared += 1


def problem(variant=None, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(7)
    optimizer = optimizer_of(variant or {"weight_decay": 0.037})
    params, grads = (tree(normal(rng, dtype), shapes) for _ in range(2))
    return optimizer, params, grads, optimizer.init(params)


def test_what_is_not_donated_stays_as_it_is():
    optimizer, params, grads, state = problem({"ema_decay": 0.9, "use_amsgrad": True})
    before = numbers((params, grads, state))
    jitted = jax.jit(optimizer.update)(params, grads, state)
    assert same((params, grads, state), before)
    assert not set(pointers(jitted)) & set(pointers(params, grads, state))
    eager = optimizer.update(params, grads, state)
    donated = jax.jit(optimizer.update, donate_argnums=(0, 2))(params, grads, state)
    assert same(jitted, eager, donated)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


def test_a_program_that_is_given_its_arrays_copies_none():
    """Not even to bring them back: equal addresses alone would not show that."""
    optimizer, params, grads, state = problem({"use_amsgrad": True, "ema_decay": 0.9})
    found = []
    for donated in ((0, 2), ()):
        step = jax.jit(optimizer.update, donate_argnums=donated)
        program = step.lower(params, grads, state).compile()
        # XLA makes one constant of all arrays without elements: those do not count.
        found.append(len(re.findall(r"= f32\[(?!0,).*\bcopy\(", program.as_text())))
        assert program.memory_analysis().temp_size_in_bytes < 1000
    assert found[0] == 0
    assert found[1] > len(jax.tree.leaves(params))


def test_parameters_alone_are_donated():
    optimizer, params, grads, state = problem()
    before = pointers(params)
    moments = numbers(state)
    wanted = optimizer.update(params, grads, state)
    found = jax.jit(optimizer.update, donate_argnums=0)(params, grads, state)
    assert pointers(found[0]) == before
    assert same(state, moments)
    assert same(found, wanted)


@pytest.mark.parametrize("donated", [(), (0, 1)])
def test_one_array_in_several_places(donated):
    optimizer = optimizer_of({})
    weight = jnp.arange(1.0, 6.0)
    state = optimizer.init({"a": weight, "b": weight})
    apart = {"a": weight + 0, "b": weight + 0}
    wanted = optimizer.update(apart, {"a": weight * 1, "b": weight * 1}, state)

    @partial(jax.jit, donate_argnums=donated)
    def step(weight, state):
        tied = {"a": weight, "b": weight}
        return optimizer.update(tied, tied, state)  # which are the gradients too

    assert same(step(weight, state), wanted)


def test_moments_that_are_one_array():
    optimizer, params, grads, state = problem()
    zeros = state.moment1
    shared = adamas.jax.AdamState(state.count, zeros, zeros)
    assert same(optimizer.update(params, grads, shared), optimizer.update(params, grads, state))


def test_init_inside_jit_returns_memory_of_its_own():
    variant = {"ema_decay": 0.9, "use_amsgrad": True, "master_weights": True}
    optimizer, params, grads, state = problem(variant, ml_dtypes.bfloat16)
    made = jax.jit(optimizer.init)(params)
    assert same(made, state)
    wanted = optimizer.update(params, grads, state)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    assert same(step(params, grads, made), wanted)


def test_rates_of_each_step_compile_nothing_anew():
    optimizer, params, grads, state = problem({"weight_decay": 0.037})
    reference = Reference(params, state)

    @jax.jit
    def step(params, grads, state, rates):
        return optimizer.update(params, grads, state, **rates)

    for k in range(1, 4):
        rates = {"learning_rate": 0.01 / k, "weight_decay": 0.1 * k, "loss_scale": 2.0**k}
        rates = {name: np.float32(value) for name, value in rates.items()}
        reference.step(grads, **{**CALL, **{n: float(r) for n, r in rates.items()}})
        params, state = step(params, grads, state, rates)
        assert reference.is_same(params, state)
    assert step._cache_size() == 1


def test_a_number_of_a_program_is_a_double():
    _, params, grads, _ = problem()
    made = [
        jax.jit(adamas.jax.Adam(rate).update)(params, grads, adamas.jax.Adam().init(params))[0]
        for rate in (1e-3, np.float64(1e-3), np.float32(1e-3), np.array(1e-3), jnp.float32(1e-3))
    ]
    narrow = jax.tree.leaves(made[2])
    wide = [np.array(leaf) for leaf in jax.tree.leaves(made[0])]
    zeros = [np.zeros_like(leaf) for leaf in wide], [np.zeros_like(leaf) for leaf in wide]
    reference = [np.array(leaf) for leaf in jax.tree.leaves(params)]
    arrays = [np.array(leaf) for leaf in jax.tree.leaves(grads)]
    functional.adam(reference, arrays, *zeros, steps=[0] * len(wide), learning_rate=1e-3)
    assert same(wide, reference)
    assert same(made[0], made[1], made[3])
    assert same(made[2], made[4])
    assert not same(wide, narrow)


def test_rates_that_are_functions_of_the_count():
    optimizer = adamas.jax.Adam(lambda count: 0.1 / (1 + count), weight_decay=lambda c: 0.01 * c)
    _, params, grads, _ = problem()
    state = optimizer.init(params)
    reference = Reference(params, state)
    step = jax.jit(optimizer.update)
    for k in range(3):
        rates = {"learning_rate": np.float32(0.1) / np.float32(1 + k)}
        rates["weight_decay"] = np.float32(0.01) * np.float32(k)
        reference.step(grads, **{name: float(rate) for name, rate in rates.items()})
        params, state = step(params, grads, state)
        assert reference.is_same(params, state)


@every("variant", {"all": {"max_grad_norm": 0.5}, "parts": {"state_dtype": "bfloat16", "seed": 9}})
def test_long_lists(variant, identity):
    shapes = [(1 + i % 7,) for i in range(401)]
    optimizer, params, grads, state = problem({**variant, "weight_decay": 0.1}, shapes=shapes)
    reference = Reference(params, state)
    before = pointers(params, state)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    text = step.lower(params, grads, state).as_text()
    assert text.count("stablehlo.custom_call @adamas_step") == (
        1 if "max_grad_norm" in variant else 3
    )
    for _ in range(2):
        reference.step(grads, **reference_options({**variant, "weight_decay": 0.1}))
        params, state = step(params, grads, state)
    assert reference.is_same(params, state)
    assert pointers(params, state) == before
    identity.compared += 1


def test_weights_that_do_not_decay():
    mask = {"weight": True, "norm": {"scale": False, "bias": False}}
    shapes = {"weight": (5, 3), "norm": {"scale": (3,), "bias": (3,)}}
    for given in (mask, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)):
        optimizer, params, grads, state = problem(
            {"weight_decay": 0.3, "decoupled_weight_decay": True, "mask": given}, shapes=shapes
        )
        found, _ = jax.jit(optimizer.update)(params, grads, state)
        for decay, name in ((0.3, "weight"), (0.0, "norm")):
            reference = Reference(params, state)
            options = {"decoupled_weight_decay": True, "weight_decay": decay}
            reference.step(grads, **reference_options(options))
            whole = jax.tree.unflatten(jax.tree.structure(params), reference.params)
            assert same(found[name], whole[name])


def test_a_skipped_step_changes_nothing():
    optimizer, params, grads, state = problem({"skip_nonfinite": True, "max_grad_norm": 0.5})
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    params, state = step(params, grads, state)
    before = numbers((params, state))
    bad = jax.tree.map(lambda grad: grad.at[...].set(jnp.nan), grads)
    params, state = step(params, bad, state)
    assert same((params, state), before)
    params, state = step(params, grads, state)
    assert int(state.count) == 2


@every("steps", (2**31 - 3, 2**31 - 2, 2**31 - 1))
def test_the_count_stands_still_at_its_end(steps):
    optimizer, params, grads, state = problem()
    _, state = optimizer.update(params, grads, state._replace(count=jnp.int32(steps)))
    assert int(state.count) == min(steps + 1, 2**31 - 1)


def test_a_count_of_64_bits():
    with enable_x64(True):
        optimizer, params, grads, state = problem()
        state = state._replace(count=jnp.int64(2**40))
        reference = Reference(params, state)
        reference.step(grads, **reference_options({"weight_decay": 0.037}))
        params, state = jax.jit(optimizer.update)(params, grads, state)
        assert state.count.dtype == np.int64
        assert reference.is_same(params, state)


@every("params", ({}, [], {"a": None}, {"a": jnp.zeros((0, 3))}, jnp.float32(2.0), 2.0))
def test_trees_of_little_or_nothing(params):
    optimizer = adamas.jax.Adam(0.1)
    state = optimizer.init(params)
    found, state = jax.jit(optimizer.update)(params, params, state)
    assert int(state.count) == 1
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for leaf in jax.tree.leaves(found):
        assert leaf.size == 0 or abs(float(leaf) - 1.9) < 1e-6


def looped(optimizer, params, state, inputs):
    for grad in inputs:
        params, state = jax.jit(optimizer.update)(params, {"w": grad}, state)
    return params, state


def test_loops_and_conditions_of_jax():
    optimizer = adamas.jax.Adam(0.1, weight_decay=0.1)
    params, inputs = {"w": jnp.arange(5.0)}, jnp.linspace(-1, 1, 20).reshape(4, 5)
    state = optimizer.init(params)
    wanted = looped(optimizer, params, state, inputs)

    def body(carry, grad):
        return optimizer.update(carry[0], {"w": grad}, carry[1]), None

    scanned, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, inputs))((params, state))
    assert same(scanned, wanted)

    def turn(k, carry):
        return body(carry, inputs[k])[0]

    assert same(jax.jit(partial(jax.lax.fori_loop, 0, 4, turn))((params, state)), wanted)

    @partial(jax.jit, donate_argnums=(1, 2))
    def maybe(does, params, state):
        step = lambda: optimizer.update(params, {"w": inputs[0]}, state)  # noqa: E731
        return jax.lax.cond(does, step, lambda: (params, state))

    copies = jax.tree.map(jnp.copy, (params, state))
    assert same(maybe(False, *copies), (params, state))
    copies = jax.tree.map(jnp.copy, (params, state))
    assert same(maybe(True, *copies), optimizer.update(params, {"w": inputs[0]}, state))


def test_accumulated_gradients():
    optimizer = adamas.jax.Adam(0.1)
    params = {"w": jnp.linspace(-1, 1, 7)}
    batches = jnp.asarray(np.random.default_rng(8).standard_normal((4, 7)), jnp.float32)

    def loss(params, batch):
        return jnp.sum((params["w"] * batch - 1) ** 2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        def add(sums, batch):
            grads = jax.grad(loss)(params, batch)
            return jax.tree.map(jnp.add, sums, grads), None

        sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batches)
        return optimizer.update(params, sums, state, loss_scale=4.0), sums

    state = optimizer.init(params)
    reference = Reference(params, state)
    before = pointers(params)
    (params, state), sums = step(params, state)
    reference.step(sums, learning_rate=0.1, loss_scale=4.0)
    assert reference.is_same(params, state)
    assert pointers(params) == before


def test_threads_take_steps_at_the_same_time():
    optimizer, params, grads, state = problem({"num_threads": 2}, shapes=[(200_003,), (7,)])
    step = jax.jit(optimizer.update)
    wanted = params, state
    for _ in range(5):
        wanted = step(wanted[0], grads, wanted[1])
    jax.block_until_ready(wanted)
    found = []

    def run():
        mine = params, state
        for _ in range(5):
            mine = step(mine[0], grads, mine[1])
        found.append(jax.block_until_ready(mine))

    run_threads(*[run] * 4)
    assert same(wanted, *found)


def test_more_models_than_are_remembered():
    models = []
    for k in range(20):
        optimizer, params, grads, state = problem(shapes=[(5 + k,), (3,)])
        step = jax.jit(optimizer.update, donate_argnums=(0, 2))
        models.append([step, params, grads, state, Reference(params, state)])
    for _ in range(3):
        for model in models:
            step, params, grads, state, reference = model
            reference.step(grads, **reference_options({"weight_decay": 0.037}))
            model[1], model[3] = step(params, grads, state)
    for _, params, _, state, reference in models:
        assert reference.is_same(params, state)


def test_optimizers_are_values():
    one = adamas.jax.Adam(1e-2, weight_decay=0.1)
    same_one = pickle.loads(pickle.dumps(one))  # noqa: S301
    assert same_one == one == copy.deepcopy(one)
    assert hash(same_one) == hash(one)
    assert one != adamas.jax.Adam(1e-2, weight_decay=0.2)
    _, params, grads, _ = problem()
    state = one.init(params)
    saved = pickle.loads(pickle.dumps(state))  # noqa: S301
    assert isinstance(saved, adamas.jax.AdamState)
    # As a static argument, equal ones compile once.
    step = jax.jit(lambda optimizer, *args: optimizer.update(*args), static_argnums=0)
    assert same(step(one, params, grads, state), step(same_one, params, grads, saved))
    assert step._cache_size() == 1


def test_the_examples_of_the_reference():
    found = doctest.testmod(adamas.jax)
    assert found.attempted > 10
    assert found.failed == 0


SHARDED = """
import numpy as np, jax, jax.numpy as jnp, adamas.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
rng = np.random.default_rng(0)
make = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
shapes = {"a": (8, 6), "b": (5,), "c": (), "d": (4, 2, 3), "e": (4,)}
specs = {"a": P("x", "y"), "b": P(), "c": P(), "d": P(None, "y"), "e": P(("x", "y"))}
params, grads = ({k: make(s) for k, s in shapes.items()} for _ in range(2))
lie = {k: NamedSharding(mesh, s) for k, s in specs.items()}


def parts(tree):
    return [part.data.unsafe_buffer_pointer()
            for leaf in jax.tree.leaves(tree) for part in leaf.addressable_shards]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


for options in ({}, {"use_amsgrad": True, "ema_decay": 0.9}):
    optimizer = adamas.jax.Adam(0.1, weight_decay=0.1, **options)
    wanted = jax.jit(optimizer.update)(params, grads, optimizer.init(params))
    copies = jax.tree.map(jnp.copy, params)
    ours, theirs = jax.device_put(copies, lie), jax.device_put(grads, lie)
    state = optimizer.init(ours)
    before = parts((ours, state.moment1, state.moment2))
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    text = step.lower(ours, theirs, state).compile().as_text()
    assert "adamas_step" in text and "all-gather" not in text and "all-reduce" not in text
    ours, state = step(ours, theirs, state)
    assert parts((ours, state.moment1, state.moment2)) == before
    assert ours["a"].sharding == lie["a"]
    assert state.moment1["d"].sharding.is_equivalent_to(lie["d"], 3)
    assert bits((ours, state)) == bits(wanted)

for options in (
    {"max_grad_norm": 0.5}, {"skip_nonfinite": True}, {"grad_centralization": True},
    {"state_dtype": "bfloat16"}, {"max_grad_norm": 0.5, "clip_per_array": True},
):
    optimizer = adamas.jax.Adam(0.1, **options)
    copies = jax.tree.map(jnp.copy, params)
    ours, theirs = jax.device_put(copies, lie), jax.device_put(grads, lie)
    state = optimizer.init(ours)
    before = bits((ours, state))
    try:
        jax.jit(optimizer.update, donate_argnums=(0, 2))(ours, theirs, state)
    except Exception as error:
        assert "parameters lie in parts on several devices" in str(error), error
    else:
        raise AssertionError(options)
    assert bits((ours, state)) == before
    everywhere = NamedSharding(mesh, P())
    copies = jax.tree.map(jnp.copy, params)
    ours, theirs = jax.device_put((copies, grads), everywhere)
    found = jax.jit(optimizer.update)(ours, theirs, optimizer.init(ours))
    assert bits(found) == bits(optimizer.update(params, grads, optimizer.init(params)))
print("sharded")
"""


def test_arrays_in_parts_on_several_devices():
    flags = "--xla_force_host_platform_device_count=4"
    made = run_python("-c", SHARDED, XLA_FLAGS=flags)
    assert made.stdout == "sharded\n", made.stderr[-3000:]
