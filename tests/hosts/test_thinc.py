"""adamas.thinc beside thinc's own Adam, in every option; what it refuses, and its copies."""

import copy
import inspect
import itertools
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

thinc = pytest.importorskip("thinc.api", reason="thinc is not installed")

from thinc import optimizers as host  # noqa: E402

import adamas.thinc  # noqa: E402
from adamas._thinc_state import config_of  # noqa: E402

NEWER = hasattr(host.Optimizer, "step")  # thinc 9, which calls schedules
STEPS = 30
SHAPES = ((7, 5), (131,), (3, 2, 3, 3), (1,), (0, 4))
RATES = {"learn_rate": 0.013, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
# Of float32 arithmetic in another order, some units of the last place at each step.
TOLERANCE = {"rtol": 3e-5, "atol": 1e-6}


def options_of(*, l2=0.0, is_decay=True, clip=0.0, averages=True, **more):
    return {
        **RATES,
        "L2": l2,
        "L2_is_weight_decay": is_decay,
        "grad_clip": clip,
        "use_averages": averages,
        **more,
    }


GRID = [
    options_of(l2=l2, is_decay=is_decay, clip=clip, averages=averages)
    for (l2, is_decay), clip, averages in itertools.product(
        ((0.0, True), (0.037, True), (0.037, False)), (0.0, 0.5, 1e4), (True, False)
    )
]
every_option = pytest.mark.parametrize(
    "options",
    GRID,
    ids=lambda o: (
        f"L2={o['L2']}{'-decay' if o['L2_is_weight_decay'] else ''}-clip={o['grad_clip']}-"
        f"averages={o['use_averages']}"
    ),
)


def weights_of(shapes=SHAPES, seed=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def gradients(step, weights):
    rng = np.random.default_rng(1000 + step)
    return [rng.standard_normal(w.shape).astype(w.dtype) for w in weights]


def train(optimizer, weights, steps, lr_scale=1.0):
    """Make steps; a key's first one is as late as its position."""
    for step in steps:
        for i, (weight, gradient) in enumerate(zip(weights, gradients(step, weights), strict=True)):
            if step < i:
                continue
            result = optimizer((i, "W"), weight, gradient, lr_scale=lr_scale)
            if type(optimizer) is adamas.thinc.Optimizer and not optimizer.use_radam:
                assert result[0] is weight
                assert result[1] is gradient
            assert not gradient.any()
    return optimizer


def kept(optimizer, weights):
    """Return all that an update changes, as bytes."""
    state = [optimizer.mom1, optimizer.mom2, optimizer.averages or {}]
    return [
        *(weight.tobytes() for weight in weights),
        *({key: array.tobytes() for key, array in one.items()} for one in state),
        dict(optimizer.nr_update),
    ]


def assert_close(ours, theirs, tolerance=TOLERANCE):
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
    for name in ("mom1", "mom2", "averages"):
        found, wanted = getattr(ours[0], name), getattr(theirs[0], name)
        if wanted is None:
            assert found is None
            continue
        wanted = {key: array for key, array in wanted.items() if array.size}
        assert found.keys() == wanted.keys()
        for key, array in wanted.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_allclose(found[key], array, **tolerance, err_msg=f"{name} {key}")
    assert {k: n for k, n in theirs[0].nr_update.items() if k in found_keys(ours[0])} == dict(
        ours[0].nr_update
    )


def found_keys(optimizer):
    return optimizer.nr_update.keys()


def both(options, steps=STEPS, lr_scale=1.0):
    """Return our optimizer and thinc's, each with the weights that it has trained."""
    pairs = []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = weights_of()
        optimizer = make(**options)
        pairs.append((train(optimizer, weights, range(steps), lr_scale), weights))
    return pairs


# The formulas


@every_option
def test_beside_thincs_own(options):
    ours, theirs = both(options, lr_scale=0.7)
    assert_close(ours, theirs)
    assert ours[0].nr_update[0, "W"] == STEPS
    assert ours[0].nr_update[2, "W"] == STEPS - 2  # which came late


def oracle(weights, steps, options, dtype, lr_scale=1.0):
    """Return weights and averages by the formulas of thinc's code, in another precision."""
    o = {name: dtype(value) for name, value in options.items()}
    weights = [w.astype(dtype) for w in weights]
    state = [[np.zeros_like(w) for _ in range(3)] for w in weights]
    for step in steps:
        for i, (w, g) in enumerate(zip(weights, gradients(step, weights), strict=True)):
            if step < i or not w.size:
                continue
            t = step - i + 1
            m, v, a = state[i]
            g = g.astype(dtype)
            if o["L2"] and not o["L2_is_weight_decay"]:
                g = g + o["L2"] * w
            norm = np.sqrt((g * g).sum())
            if o["grad_clip"] and norm >= o["grad_clip"]:
                g = g * (o["grad_clip"] / norm)
            m[...] = o["beta1"] * m + (1 - o["beta1"]) * g
            v[...] = o["beta2"] * v + (1 - o["beta2"]) * g * g
            rate = o["learn_rate"] * np.sqrt(1 - o["beta2"] ** t) / (1 - o["beta1"] ** t)
            w -= dtype(lr_scale) * rate * m / (np.sqrt(v) + o["eps"])
            if o["L2"] and o["L2_is_weight_decay"]:
                w -= dtype(lr_scale) * o["learn_rate"] * o["L2"] * w
            decay = min((dtype(1) + t) / (dtype(10) + t), dtype(0.9999))
            a[...] = decay * a + (1 - decay) * w
    return weights, [one[2] for one in state]


@every_option
def test_float64_weights_against_an_oracle(options):
    weights = weights_of(dtype=np.float64)
    wanted, averages = oracle(weights, range(STEPS), options, np.longdouble, 0.7)
    optimizer = train(adamas.thinc.Adam(**options), weights, range(STEPS), 0.7)
    for i, (found, right, average) in enumerate(zip(weights, wanted, averages, strict=True)):
        np.testing.assert_allclose(found, right.astype(np.float64), rtol=1e-12, atol=1e-14)
        if found.size and options["use_averages"]:
            found = optimizer.averages[i, "W"]
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, average.astype(np.float64), rtol=1e-12, atol=1e-14)


@every_option
def test_float32_is_as_exact_as_thincs_own(options):
    ours, theirs = both(options)
    # The same gradients, rounded to float32.
    exact = weights_of()
    state = adamas.thinc.Adam(**options)
    wide = [w.astype(np.float64) for w in exact]
    for step in range(STEPS):
        for i, gradient in enumerate(gradients(step, exact)):
            if step >= i:
                state((i, "W"), wide[i], gradient)  # float32, for float64 weights
    worst = [
        max(np.abs(w - right).max(initial=0) for w, right in zip(weights, wide, strict=True))
        for _, weights in (ours, theirs)
    ]
    assert worst[0] <= 1.5 * worst[1] + 1e-7


def test_averages_of_old_keys_have_the_largest_decay():
    for count in (1, 2, 89_988, 89_989, 89_990, 10**6):
        weights = np.float32([1.5, -2.25])
        optimizer = adamas.thinc.Adam(0.25)
        optimizer.nr_update[0, "W"] = count - 1
        optimizer.averages[0, "W"] = np.float32([0.5, 0.75])
        optimizer((0, "W"), weights, np.float32([0.0, 0.0]))
        wanted = np.float64([0.5, 0.75])
        thinc.Ops().update_averages(wanted, weights.astype(np.float64), count)
        found = optimizer.averages[0, "W"]
        np.testing.assert_allclose(found, wanted, rtol=1e-7)
        assert (found != np.float32([0.5, 0.75])).all()


def test_averages_and_moments_that_are_taken_away_begin_again():
    results, new = [], []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = weights_of(SHAPES[:2])
        optimizer = train(make(**options_of(l2=0.01, clip=0.5)), weights, range(5))
        optimizer.averages = {}
        train(optimizer, weights, range(5, 7))
        new.append(copy.deepcopy(optimizer.averages))
        optimizer.mom1.clear()
        train(optimizer, weights, range(7, 9))
        del optimizer.mom2[0, "W"]
        optimizer.averages = None
        train(optimizer, weights, range(9, 11))
        results.append((optimizer, weights))
    assert_close(*results)
    assert new[0].keys() == new[1].keys()
    for key, array in new[1].items():
        np.testing.assert_allclose(new[0][key], array, **TOLERANCE)


def test_state_moves_from_and_to_thincs_own():
    wanted, _ = both(options_of(l2=0.037, clip=0.5))
    for first, then in itertools.permutations((adamas.thinc.Adam, host.Adam)):
        weights = weights_of()
        old = train(first(**options_of(l2=0.037, clip=0.5)), weights, range(11))
        new = then(**options_of(l2=0.037, clip=0.5))
        for name in ("mom1", "mom2", "averages", "nr_update"):
            setattr(new, name, getattr(old, name))
        for key in new.nr_update.keys() - old.mom1.keys():
            del new.nr_update[key]  # of an empty array
        train(new, weights, range(11, STEPS))
        for found, right in zip(weights, wanted[1], strict=True):
            np.testing.assert_allclose(found, right, **TOLERANCE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite(bad):
    found = []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = np.float32([1.0, 2.0, 3.0])
        optimizer = make(**options_of())
        with np.errstate(all="ignore"):
            optimizer((0, "W"), weights, np.float32([0.5, bad, -0.25]))
        found.append(weights)
    np.testing.assert_array_equal(np.isfinite(found[0]), np.isfinite(found[1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_refused(bad):
    """Where thinc's own fills the weights with NaN."""
    weights, gradient = np.float32([1.0, 2.0, 3.0]), np.float32([0.5, bad, -0.25])
    optimizer = adamas.thinc.Adam(**options_of(clip=0.5))
    before = kept(optimizer, [weights]), gradient.tobytes()
    with pytest.raises(ValueError, match=r"NaN or infinity.*clipped \(key \(0, 'W'\)\)"):
        optimizer((0, "W"), weights, gradient)
    assert before == (kept(optimizer, [weights]), gradient.tobytes())


@pytest.mark.parametrize("more", [{"use_radam": True}, {"beta1": 0.0, "beta2": 0.0}])
def test_what_is_not_adam_is_thincs_own(more):
    results = []
    for make in (adamas.thinc.Optimizer, host.Optimizer):
        weights = weights_of(SHAPES[:3])
        results.append(
            (train(make(**{**options_of(l2=0.037, clip=0.5), **more}), weights, range(9)), weights)
        )
    assert kept(*results[0]) == kept(*results[1])


# Schedules


def schedules(kind):
    """Return options that change at each step, made anew."""
    values = {
        "learn_rate": [0.01 * 0.9**i for i in range(40)],
        "beta1": [0.8 + 0.001 * i for i in range(40)],
        "beta2": [0.9 + 0.002 * i for i in range(40)],
        "eps": [1e-6 * (i + 1) for i in range(40)],
        "grad_clip": [0.5 + 0.05 * i for i in range(40)],
        "L2": [0.01 * (i % 3) for i in range(40)],
    }
    if kind == "list":
        return values
    if kind == "short list":  # the last value stays
        return {name: numbers[:5] for name, numbers in values.items()}
    if kind == "generator":
        return {name: (x for x in numbers) for name, numbers in values.items()}
    if kind == "NumPy":
        return {name: (np.float32(x) for x in numbers) for name, numbers in values.items()}
    return {
        "learn_rate": thinc.warmup_linear(0.01, 7, 40),
        "L2": thinc.decaying(0.05, 0.1),
        "beta1": thinc.compounding(0.7, 0.9, 1.01),
    }


@pytest.mark.parametrize("kind", ["list", "short list", "generator", "NumPy", "thinc"])
@pytest.mark.parametrize("is_decay", [True, False])
def test_schedules(kind, is_decay):
    results = []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = weights_of()
        optimizer = make(**{**options_of(is_decay=is_decay), **schedules(kind)})
        for step in range(STEPS):
            train(optimizer, weights, [step])
            optimizer.step_schedules()
        results.append((optimizer, weights))
    assert_close(*results)
    if not NEWER:
        assert results[0][0].learn_rate == results[1][0].learn_rate


@pytest.mark.skipif(not NEWER, reason="thinc 8 has no schedules by key")
def test_schedules_by_key_and_score():
    def rate(schedule, step, *, key, last_score, **_):
        return 0.01 * (1 + key[0]) / (1 + step) * (0.5 if last_score and last_score[1] > 1 else 1)

    results = []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = weights_of()
        options = options_of(l2=0.037, clip=0.5, learn_rate=thinc.Schedule("by_key", rate))
        optimizer = make(**options)
        for step in range(STEPS):
            train(optimizer, weights, [step])
            optimizer.step_schedules()
            optimizer.last_score = float(step % 3)
        results.append((optimizer, weights))
    assert_close(*results)


@pytest.mark.skipif(NEWER, reason="thinc 9 has schedules, not numbers")
def test_rates_that_are_set():
    results = []
    for make in (adamas.thinc.Adam, host.Adam):
        weights = weights_of()
        optimizer = train(make(**options_of(l2=0.037, clip=0.5)), weights, range(5))
        optimizer.learn_rate, optimizer.b1, optimizer.b2 = 0.002, 0.7, np.float64(0.9)
        optimizer.eps, optimizer.grad_clip, optimizer.L2 = 0, 1, 0.0125
        optimizer.L2_is_weight_decay = False
        results.append((train(optimizer, weights, range(5, 11)), weights))
    assert_close(*results)


# Arrays


def test_views_into_one_buffer():
    shapes = ((3, 5), (7,), (2, 2, 3))
    sizes = [int(np.prod(shape)) for shape in shapes]
    results = []
    for whole in (True, False):
        flat = np.full(1 + sum(sizes) + 3, 7.0, np.float32)
        views, start = [], 1
        for shape, size, weight in zip(shapes, sizes, weights_of(shapes), strict=True):
            view = flat[start : start + size].reshape(shape)
            view[...] = weight
            views.append(view if whole else view.copy())
            start += size
        optimizer = train(adamas.thinc.Adam(**options_of(l2=0.037, clip=0.5)), views, range(5))
        results.append(kept(optimizer, views))
        assert (flat[[0, -3, -2, -1]] == 7.0).all()
    assert results[0] == results[1]


def test_weights_that_move():
    results = []
    for moves in (True, False):
        weights = weights_of()
        optimizer = adamas.thinc.Adam(**options_of(l2=0.037, clip=0.5))
        for step in range(5):
            train(optimizer, weights, [step])
            weights = [weight.copy() for weight in weights] if moves else weights
        results.append(kept(optimizer, weights))
    assert results[0] == results[1]


LAYOUTS = {
    "Fortran's order": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "a subclass": lambda a: a.view(type("Own", (np.ndarray,), {})),
}


@pytest.mark.parametrize("of", ["weights", "gradient"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_of_any_layout(layout, of):
    results = []
    for lay_out in (layout, lambda a: a):
        weights = weights_of(((5, 6),))[0]
        weights = lay_out(weights.copy()) if of == "weights" else weights
        optimizer = adamas.thinc.Adam(**options_of(l2=0.037, is_decay=False, clip=0.5))
        for step in range(4):
            gradient = gradients(step, [np.zeros((5, 6), np.float32)])[0]
            gradient = lay_out(gradient) if of == "gradient" else gradient
            result = optimizer((0, "W"), weights, gradient)
            assert result[0] is weights
            assert result[1] is gradient
            assert not gradient.any()
        results.append(kept(optimizer, [weights]))
    assert results[0] == results[1]


def test_gradients_of_another_shape_or_type():
    results = []
    for change in (
        lambda g: g,
        lambda g: g.reshape(1, -1),
        lambda g: g.reshape(2, 3, 1),
        lambda g: g.astype(np.float64),
    ):
        weights = weights_of(((6,),))[0]
        optimizer = adamas.thinc.Adam(**options_of(clip=0.5))
        for step in range(3):
            gradient = change(gradients(step, [weights])[0])
            optimizer((0, "W"), weights, gradient)
            assert not gradient.any()
        results.append(kept(optimizer, [weights]))
    assert results[1:] == results[:1] * 3


def test_a_key_whose_weights_have_another_shape():
    weights, other = weights_of(((2, 6),))[0], weights_of(((2, 6),))[0]
    optimizer, plain = (adamas.thinc.Adam(0.1, use_averages=False) for _ in range(2))
    for shape in ((2, 6), (3, 4), (12,)):
        gradient = gradients(0, [weights])[0]
        optimizer((0, "W"), weights.reshape(shape), gradient.copy().reshape(shape))
        plain((0, "W"), other, gradient)
    assert weights.tobytes() == other.tobytes()
    assert optimizer.mom1[0, "W"].tobytes() == plain.mom1[0, "W"].tobytes()


def test_an_array_without_axes():
    weight, flat = np.array(2.0, np.float32), np.array([2.0], np.float32)
    optimizer = adamas.thinc.Adam(0.1, L2=0.01)
    for _ in range(3):
        optimizer((0, "W"), weight, np.array(0.5, np.float32))
        optimizer((1, "W"), flat, np.array([0.5], np.float32))
    assert weight == flat[0] < 2.0
    assert optimizer.averages[0, "W"].shape == ()


def test_an_empty_gradient_does_nothing():
    optimizer = adamas.thinc.Adam(0.1)
    weights, gradient = np.zeros((1, 2), np.float32), np.zeros(0, np.float32)
    assert optimizer((0, "W"), weights, gradient)[0] is weights
    assert optimizer((1, "W"), np.zeros((0, 3)), np.zeros((0, 3)))[1].shape == (0, 3)
    assert not optimizer.mom1
    assert not optimizer.averages
    assert not optimizer.nr_update


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_of_a_large_array(threads):
    results = []
    for number in (1, threads):
        weights = weights_of(((101, 1009),))
        options = options_of(l2=0.037, clip=0.5, num_threads=number)
        results.append(kept(train(adamas.thinc.Adam(**options), weights, range(3)), weights))
    assert results[0] == results[1]


def test_the_number_of_threads_reaches_the_step():
    """No result tells it."""
    rates = (0.9, 0.999, 1e-8, 1.0, True, None)
    assert [config_of(*rates, number).num_threads for number in (3, None)] == [3, 0]


def test_calls_of_many_threads():
    results = []
    for together in (True, False):
        weights = weights_of(((37, 11),) * 8)
        optimizer = adamas.thinc.Adam(**options_of(l2=0.037, clip=0.5))

        def run(i, optimizer=optimizer, weights=weights):
            for step in range(60):
                optimizer((i, "W"), weights[i], gradients(step, [weights[i]])[0])

        if together:
            workers = [threading.Thread(target=run, args=(i,)) for i in range(8)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        else:
            for i in range(8):
                run(i)
        results.append(kept(optimizer, weights))
    assert results[0][:8] == results[1][:8]
    assert all(results[0][k] == results[1][k] for k in range(8, 12))


# Refusals


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Elsewhere:
    """An array of a library for GPUs, as far as it can be told here."""

    dtype, shape, size = np.float32, (2, 3), 6


BAD_ARRAYS = {
    "weights of a GPU": (lambda _, g: (Elsewhere(), g), TypeError, "weights must be a NumPy array"),
    "gradient of a GPU": (lambda w, _: (w, Elsewhere()), TypeError, "gradient must be a NumPy"),
    "list": (
        lambda w, g: (w.tolist(), g),
        TypeError,
        "weights must be a NumPy array, got builtins.list",
    ),
    "integers": (lambda w, g: (w.astype(int), g), TypeError, "weights must"),
    "gradient of integers": (lambda w, g: (w, g.astype(int)), TypeError, "gradient must"),
    "sizes": (lambda w, g: (w, g[:1].copy()), ValueError, "gradient must have shape (2, 3)"),
    "read-only": (lambda w, g: (read_only(w), g), ValueError, "weights must be writable"),
    "read-only, strided": (
        lambda w, g: (read_only(w)[:, ::2], g[:, ::2].copy()),
        ValueError,
        "weights must be writable",
    ),
    "read-only gradient": (lambda w, g: (w, read_only(g)), ValueError, "gradient must be writable"),
    "one array": (lambda w, _: (w, w), ValueError, "gradient"),
    "one array, strided": (lambda w, _: (w[:, ::2], w[:, ::2]), ValueError, "share memory"),
    "one buffer, a strided gradient": (
        lambda w, _: (w.reshape(-1)[:3], w.reshape(-1)[::2]),
        ValueError,
        "share memory",
    ),
    "other byte order": (lambda w, g: (w.astype(">f4"), g), TypeError, "weights must"),
}


@pytest.mark.parametrize(("spoil", "error", "text"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
@pytest.mark.parametrize("steps", [0, 2])
def test_bad_arrays(spoil, error, text, steps):
    optimizer = adamas.thinc.Adam(**options_of(l2=0.037, clip=0.5))
    weights = weights_of(((2, 3),))
    train(optimizer, weights, range(steps))
    gradient = gradients(9, weights)[0]
    bad = spoil(weights[0], gradient)
    before = (
        kept(optimizer, weights),
        gradient.tobytes(),
        [
            bytes(memoryview(b)) if isinstance(b, np.ndarray) and b.flags.c_contiguous else None
            for b in bad
        ],
    )
    with pytest.raises(error) as caught:
        optimizer((0, "W"), *bad)
    assert text in str(caught.value)
    assert before[:2] == (kept(optimizer, weights), gradient.tobytes())
    for array, old in zip(bad, before[2], strict=True):
        assert old is None or bytes(memoryview(array)) == old


BAD_RATES = {
    "learn_rate": (-0.1, float("nan"), float("inf")),
    "L2": (-0.1, float("nan"), 1e9),
    "beta1": (1.0, 1.5),
    "beta2": (1.0, 2),
    "eps": (-1e-8, float("nan"), float("inf")),
    "grad_clip": (-1.0, float("inf"), float("nan")),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, some in BAD_RATES.items() for value in some]
)
def test_bad_rates(name, value):
    optimizer = adamas.thinc.Adam(**options_of(l2=0.037, clip=0.5) | {name: value})
    weights = weights_of(((2, 3),))
    gradient = gradients(9, weights)[0]
    before = kept(optimizer, weights), gradient.tobytes()
    with pytest.raises((TypeError, ValueError), match=name):
        optimizer((0, "W"), weights[0], gradient)
    assert before == (kept(optimizer, weights), gradient.tobytes())
    assert not optimizer.mom1


@pytest.mark.parametrize(
    ("name", "kept_array", "error"),
    [
        ("mom1", np.zeros(5, np.float32), ValueError),
        ("mom1", np.zeros(6), TypeError),
        ("mom2", np.zeros(12, np.float32)[::2], ValueError),
        ("mom2", np.zeros((3, 4), np.float32)[:, :2], ValueError),
        ("mom2", [0.0] * 6, TypeError),
        ("mom2", read_only(np.zeros(6, np.float32)), ValueError),
        ("averages", np.zeros(6, np.float32), ValueError),
        ("averages", np.zeros((2, 3)), TypeError),
    ],
)
def test_bad_state(name, kept_array, error):
    optimizer = adamas.thinc.Adam(**options_of())
    weights = weights_of(((2, 3),))
    train(optimizer, weights, range(2))
    getattr(optimizer, name)[0, "W"] = kept_array
    gradient = gradients(9, weights)[0]
    before = weights[0].tobytes(), gradient.tobytes(), dict(optimizer.nr_update)
    with pytest.raises(error, match=rf"{name}.*\(key \(0, 'W'\)\)"):
        optimizer((0, "W"), weights[0], gradient)
    assert before == (weights[0].tobytes(), gradient.tobytes(), dict(optimizer.nr_update))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "two", 10**6])
def test_bad_numbers_of_threads(value):
    with pytest.raises((TypeError, ValueError), match="num_threads"):
        adamas.thinc.Adam(num_threads=value)


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError):
        adamas.thinc.Adam().learning_rate = 0.5


# Copies


def pickled(protocol):
    return lambda optimizer: pickle.loads(pickle.dumps(optimizer, protocol))  # noqa: S301


COPIES = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": pickled(p) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("averages", [True, False])
def test_copies_go_on_with_the_same_bits(make_copy, averages):
    options = options_of(l2=0.037, clip=0.5, averages=averages, num_threads=1)
    weights = weights_of()
    optimizer = train(adamas.thinc.Adam(**options), weights, range(5))
    twin, twins_weights = make_copy(optimizer), copy.deepcopy(weights)
    assert type(twin) is adamas.thinc.Optimizer
    assert twin.num_threads == 1
    before = kept(optimizer, weights)
    train(twin, twins_weights, range(5, 9))
    assert kept(optimizer, weights) == before
    train(optimizer, weights, range(5, 9))
    assert kept(twin, twins_weights) == kept(optimizer, weights)


class Named(adamas.thinc.Optimizer):
    """With attributes of its own."""


def test_copies_of_a_subclass():
    weights = weights_of(SHAPES[:2])
    optimizer = train(Named(0.1), weights, range(2))
    optimizer.title = "mine"
    twin = copy.deepcopy(optimizer)
    assert type(twin) is Named
    assert twin.title == "mine"
    train(twin, weights, [2])
    assert twin.nr_update[0, "W"] == optimizer.nr_update[0, "W"] + 1 == 3


def test_a_shallow_copy_shares_its_arrays_as_thincs_does():
    weights = weights_of(SHAPES[:2])
    optimizer = train(adamas.thinc.Adam(**options_of()), weights, range(3))
    twin = copy.copy(optimizer)
    assert twin.mom1 is optimizer.mom1
    train(twin, weights, range(3, 5))
    train(optimizer, weights, range(5, 7))
    others = weights_of(SHAPES[:2])
    wanted = train(adamas.thinc.Adam(**options_of()), others, range(7))
    assert kept(optimizer, weights) == kept(wanted, others)


# The host


def test_names_and_defaults_are_those_of_thinc():
    for ours, theirs in (
        (adamas.thinc.Adam, host.Adam),
        (adamas.thinc.Optimizer, host.Optimizer),
        (adamas.thinc.Optimizer.__call__, host.Optimizer.__call__),
    ):
        found = dict(inspect.signature(ours).parameters)
        found.pop("num_threads", None)
        wanted = inspect.signature(theirs).parameters
        assert found.keys() == wanted.keys()
        for name, parameter in wanted.items():
            assert found[name].default == parameter.default, name
            assert found[name].kind == parameter.kind, name
    assert issubclass(adamas.thinc.Optimizer, host.Optimizer)


CONFIG = """
[optimizer]
@optimizers = "adamas.Adam.v1"
beta1 = 0.8
L2 = 0.01
grad_clip = 2.0
use_averages = true

[optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 4
total_steps = 40
initial_rate = 0.01
"""


def test_a_config_finds_it_by_its_name():
    config = thinc.Config().from_str(CONFIG)
    results = []
    for name in ("adamas.Adam.v1", "Adam.v1"):
        config["optimizer"]["@optimizers"] = name
        optimizer = thinc.registry.resolve(config)["optimizer"]
        assert type(optimizer) is (adamas.thinc.Optimizer if "adamas" in name else host.Optimizer)
        weights = weights_of()
        for step in range(STEPS):
            train(optimizer, weights, [step])
            optimizer.step_schedules()
        results.append((optimizer, weights))
    assert_close(*results)


def test_a_config_gives_the_number_of_threads():
    config = {"optimizer": {"@optimizers": "adamas.Adam.v1", "num_threads": 2}}
    assert thinc.registry.resolve(config)["optimizer"].num_threads == 2


@pytest.mark.parametrize(
    "wrong", [{"learn_rate": "fast"}, {"use_averages": "maybe"}, {"rate": 0.1}, {"L2": None}]
)
def test_a_config_is_checked_like_thincs(wrong):
    errors = []
    for name in ("adamas.Adam.v1", "Adam.v1"):
        with pytest.raises((thinc.ConfigValidationError, ValueError)) as caught:
            thinc.registry.resolve({"optimizer": {"@optimizers": name, **wrong}})
        errors.append(caught.type)
    assert errors[0] is errors[1]


def test_a_model_learns_what_it_does_with_thincs_own():
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((200, 6)).astype(np.float32)
    labels = thinc.to_categorical((inputs @ rng.standard_normal((6, 3))).argmax(axis=1), 3)
    found = []
    for make in (adamas.thinc.Adam, host.Adam):
        thinc.fix_random_seed(0)
        model = thinc.chain(thinc.Maxout(16, 6, 3), thinc.Softmax(3, 16)).initialize(inputs)
        optimizer = make(0.02, L2=0.001)
        for _ in range(60):
            outputs, backprop = model.begin_update(inputs)
            backprop((outputs - labels) / 200)
            model.finish_update(optimizer)
        with model.use_params(optimizer.averages):
            found.append(model.predict(inputs))
        assert (found[-1].argmax(1) == labels.argmax(1)).mean() > 0.9
        assert len(optimizer.averages) == 4
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_a_model_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inputs = np.random.default_rng(5).standard_normal((50, 6)).astype(np.float32)
    found = []
    for make in (adamas.thinc.Adam, host.Adam):
        torch.manual_seed(0)
        model = thinc.PyTorchWrapper(torch.nn.Linear(6, 3))
        optimizer = make(0.02, L2=0.01)
        for _ in range(20):
            outputs, backprop = model.begin_update(inputs)
            backprop((outputs - inputs[:, :3]) / 50)
            model.finish_update(optimizer)
        found.append([p.detach().numpy() for p in model.shims[0]._model.parameters()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


OWN_TESTS = ("test_optimizers", "test_config", "layers.test_linear", "model.test_model")


def test_thincs_own_tests_with_ours_in_its_place():
    arguments = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "thinc_with_adamas"]
    arguments += ["--pyargs", *(f"thinc.tests.{name}" for name in OWN_TESTS)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    pytest.importorskip("thinc.tests.test_optimizers", reason="this thinc has no tests")
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parent,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60


def test_without_thinc():
    program = (
        "import sys; sys.modules['thinc'] = None\n"
        "import adamas\n"
        "assert 'adamas.thinc' not in sys.modules\n"
        "import adamas.thinc\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "ImportError: adamas.thinc needs thinc" in done.stderr
    assert 'pip install "adamas[thinc]"' in done.stderr
