"""adamas.jax as gradient transformations: trajectories of optax, and its combinators."""

from functools import partial

import numpy as np
import pytest
from jax_cases import (
    CALL,
    DTYPES,
    KINDS,
    adamas,
    enable_x64,
    functional,
    jax,
    jnp,
    normal,
    numbers,
    same,
    tree,
)

from helpers import run_python
from rules import every

optax = pytest.importorskip("optax", reason="optax is not installed")

STEPS = 60
NAMES = {"beta1": "b1", "beta2": "b2", "eps": "eps"}
THEIRS = {NAMES[name]: value for name, value in CALL.items()}
SHAPES = {"w": (17, 3), "b": (17,), "s": ()}


def schedule(count):
    return 0.05 / (1.0 + 0.1 * count)


def decaying(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# {name: (ours, theirs)}
PAIRS = {
    "adam": (
        partial(adamas.jax.adam, 0.03, **CALL),
        partial(optax.adam, 0.03, **THEIRS),
    ),
    "adamw": (
        partial(adamas.jax.adamw, 0.03, weight_decay=0.2, **CALL),
        partial(optax.adamw, 0.03, weight_decay=0.2, **THEIRS),
    ),
    "default_decay": (partial(adamas.jax.adamw, 0.03), partial(optax.adamw, 0.03)),
    "schedule": (
        partial(adamas.jax.adamw, schedule, weight_decay=0.2, **CALL),
        partial(optax.adamw, schedule, weight_decay=0.2, **THEIRS),
    ),
    "mask": (
        partial(adamas.jax.adamw, 0.03, weight_decay=0.2, mask=decaying, **CALL),
        partial(optax.adamw, 0.03, weight_decay=0.2, mask=decaying, **THEIRS),
    ),
    "l2": (
        partial(adamas.jax.adam, 0.03, weight_decay=0.2, **CALL),
        lambda: optax.chain(
            optax.add_decayed_weights(0.2),
            optax.scale_by_adam(**THEIRS),
            optax.scale_by_learning_rate(0.03),
        ),
    ),
    "clip": (
        partial(adamas.jax.adamw, 0.03, weight_decay=0.2, max_grad_norm=0.7, **CALL),
        lambda: optax.chain(
            optax.clip_by_global_norm(0.7), optax.adamw(0.03, weight_decay=0.2, **THEIRS)
        ),
    ),
}


def loss(params, batch):
    """Of no minimum that is reached soon."""
    out = jnp.tanh(batch @ params["w"].T + params["b"]) * params["s"]
    return jnp.mean((out - jnp.sin(3 * batch.sum(axis=1, keepdims=True))) ** 2)


def gradients(dtype):
    """Return parameters, and the gradients of each step, the same for all who train."""
    rng = np.random.default_rng(4)
    params = tree(normal(rng, dtype), SHAPES)
    return params, [tree(normal(rng, dtype), SHAPES) for _ in range(STEPS)]


def trained(tx, params, steps):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for grads in steps:
        params, state = step(params, state, grads)
    return params, state


def moments_of(state):
    """Return (count, mu, nu) of optax's Adam, wherever it stands in a chain."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    (found,) = [node for node in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(node)]
    return found.count, found.mu, found.nu


def error(params, wanted):
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()) for a, b in pairs)


@every("pair", PAIRS)
def test_the_trajectory_of_optax(pair):
    ours, theirs = pair
    params, steps = gradients(np.float32)
    found, state = trained(ours(), params, steps)
    wanted, their_state = trained(theirs(), params, steps)
    with enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)  # noqa: E731
        exact, _ = trained(theirs(), wide(numbers(params)), [wide(numbers(g)) for g in steps])
        mine, _ = trained(ours(), wide(numbers(params)), [wide(numbers(g)) for g in steps])
    # Parameters move by 2 and more; float32 at 3 has 2.4e-7.
    assert error(exact, params) > 0.5
    assert error(mine, exact) < 1e-13
    assert error(found, exact) < 4e-6
    assert error(found, wanted) < 8e-6
    count, mu, nu = moments_of(their_state)
    assert int(state.count) == int(count) == STEPS
    for moment, other in ((state.moment1, mu), (state.moment2, nu)):
        for leaf, wanted_leaf in zip(jax.tree.leaves(moment), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(leaf, wanted_leaf, rtol=3e-5, atol=1e-6)


@every("dtype", DTYPES)
@every("variant", {"l2": {"weight_decay": 0.2}, "amsgrad": {"use_amsgrad": True},
                   "bfloat16": {"state_dtype": "bfloat16", "seed": 3}})  # fmt: skip
def test_changes_have_the_bits_of_the_functional_step(variant, dtype, identity):
    params, steps = gradients(dtype)
    tx = adamas.jax.adam(0.03, **CALL, **variant)
    state = tx.init(params)
    lists = [[np.array(leaf) for leaf in jax.tree.leaves(params)], None]
    kept = {
        kind: [np.array(leaf) for leaf in jax.tree.leaves(getattr(state, kind))]
        for kind in KINDS
        if getattr(state, kind) is not None
    }
    counts = [0] * len(lists[0])
    options = {name: value for name, value in variant.items() if name != "use_amsgrad"}
    for grads in steps[:3]:
        updates, state = jax.jit(tx.update)(grads, state, params)
        wanted = functional.adam(
            lists[0],
            [np.array(leaf) for leaf in jax.tree.leaves(grads)],
            steps=counts,
            learning_rate=0.03,
            out="delta",
            **CALL,
            **kept,
            **options,
        )
        identity.compared += 1
        assert same(updates, wanted)
        assert same({kind: getattr(state, kind) for kind in kept}, kept)


@every("dtype", DTYPES)
def test_a_change_added_is_the_step_in_place_but_for_a_rounding(dtype):
    params, steps = gradients(dtype)
    optimizer = adamas.jax.Adam(0.03, weight_decay=0.2, decoupled_weight_decay=True, **CALL)
    updates, state = optimizer.transformation().update(steps[0], optimizer.init(params), params)
    added = optax.apply_updates(params, updates)
    wanted, wanted_state = optimizer.update(params, steps[0], optimizer.init(params))
    assert same(state, wanted_state)
    for found, leaf in zip(jax.tree.leaves(added), jax.tree.leaves(wanted), strict=True):
        unit = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(found, np.float64), np.asarray(leaf, np.float64), rtol=2 * unit, atol=unit
        )


def test_the_state_of_optax_goes_on_here():
    params, steps = gradients(np.float32)
    wanted, _ = trained(optax.adamw(0.03, **THEIRS), params, steps)
    half, state = trained(optax.adamw(0.03, **THEIRS), params, steps[:30])
    tx = adamas.jax.adamw(0.03, **CALL)
    ours = adamas.jax.AdamState(*moments_of(state))
    for grads in steps[30:]:
        updates, ours = jax.jit(tx.update)(grads, ours, half)
        half = optax.apply_updates(half, updates)
    assert error(half, wanted) < 8e-6


def test_it_is_a_transformation_of_optax():
    assert isinstance(adamas.jax.adamw(0.1), optax.GradientTransformation)


def test_chains_masks_and_parts():
    params, steps = gradients(np.float32)
    for wrap in (
        lambda tx: optax.chain(optax.clip(0.3), tx, optax.scale(0.5)),
        lambda tx: optax.masked(tx, {"w": True, "b": False, "s": True}),
        lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"w": "x", "b": "y", "s": "x"}),
        lambda tx: optax.MultiSteps(tx, 4).gradient_transformation(),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.flatten(tx),
    ):
        found, _ = trained(wrap(adamas.jax.adamw(0.03, weight_decay=0.2, **CALL)), params, steps)
        wanted, _ = trained(wrap(optax.adamw(0.03, weight_decay=0.2, **THEIRS)), params, steps)
        assert error(found, wanted) < 8e-6


def test_injected_hyperparameters():
    params, steps = gradients(np.float32)
    ours = optax.inject_hyperparams(adamas.jax.adamw)(0.03, weight_decay=0.2, **CALL)
    theirs = optax.inject_hyperparams(optax.adamw)(0.03, weight_decay=0.2, **THEIRS)
    state = ours.init(params)
    assert set(state.hyperparams) >= {"learning_rate", "weight_decay", "beta1", "beta2", "eps"}
    both = []
    for tx, beta1 in ((ours, "beta1"), (theirs, "b1")):
        found, state = params, tx.init(params)
        step = jax.jit(tx.update)
        for k, grads in enumerate(steps):
            state.hyperparams["learning_rate"] = jnp.float32(0.03 / (1 + k))
            state.hyperparams[beta1] = jnp.float32(0.8 + 0.001 * k)
            updates, state = step(grads, state, found)
            found = optax.apply_updates(found, updates)
        assert step._cache_size() == 1
        both.append(found)
    assert error(*both) < 8e-6


def test_without_parameters():
    params, steps = gradients(np.float32)
    tx = adamas.jax.adam(0.03, **CALL)
    with_params = tx.update(steps[0], tx.init(params), params)
    assert same(jax.jit(tx.update)(steps[0], tx.init(params)), with_params)
    for decay in (0.1, jnp.float32(0.1), schedule):
        tx = adamas.jax.adam(0.03, weight_decay=decay)
        with pytest.raises(ValueError, match=r"params must be given, for weight_decay"):
            tx.update(steps[0], tx.init(params))


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_a_skipped_step_changes_by_nothing(state_dtype):
    params, steps = gradients(np.float32)
    tx = adamas.jax.adamw(0.03, skip_nonfinite=True, state_dtype=state_dtype)
    state = tx.init(params)
    bad = {**steps[0], "b": steps[0]["b"].at[3].set(jnp.inf)}
    updates, new = jax.jit(tx.update, donate_argnums=0)(bad, state, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    assert same(new, state)


def test_training_a_network():
    batch = jnp.asarray(np.random.default_rng(9).standard_normal((64, 3)), jnp.float32)
    params, _ = gradients(np.float32)
    start = float(loss(params, batch))
    losses = []
    for tx in (adamas.jax.adamw(0.03), optax.adamw(0.03)):

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, tx=tx):
            grads = jax.grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        found = jax.tree.map(jnp.copy, params)
        state = tx.init(found)
        for _ in range(200):
            found, state = step(found, state)
        losses.append(float(loss(found, batch)))
    assert losses[0] < 0.5 * start
    assert abs(losses[0] - losses[1]) < 0.05 * losses[1]


def test_optax_need_not_be_there():
    program = """
import sys
sys.modules["optax"] = None
import jax.numpy as jnp
import adamas.jax
tx = adamas.jax.adamw(0.1)
init, update = tx
updates, state = update(jnp.ones(2), init(jnp.ones(2)), jnp.ones(2))
print(type(tx).__module__, updates.round(3).tolist(), int(state.count))
"""
    made = run_python("-c", program)
    assert made.stdout == "adamas.jax [-0.10000000149011612, -0.10000000149011612] 1\n", made.stderr
