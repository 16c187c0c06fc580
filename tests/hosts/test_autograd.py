"""The recipe for HIPS autograd (docs/hosts/autograd.md) beside its own Adam and the formula."""
# ruff: noqa: E402

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

autograd = pytest.importorskip("autograd", reason="autograd is not installed")

import autograd.numpy as anp
from autograd.misc import flatten
from autograd.misc.optimizers import adam as their_adam

import adamas
import oracle

ROOT = Path(__file__).resolve().parents[2]
STEPS = 200
NUMBERS = {"learning_rate": 0.013, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
THEIR_NUMBERS = dict(zip(("step_size", "b1", "b2", "eps"), NUMBERS.values(), strict=True))
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
rng = np.random.default_rng(0)
SAMPLES = rng.standard_normal((53, 5))
TARGETS = np.sin(SAMPLES.sum(axis=1))


def start(dtype="float64"):
    """Return parameters in dicts, of shapes (5, 7), (7,), () and (1,)."""
    made = np.random.default_rng(1).standard_normal
    shapes = {"hidden": {"weight": (5, 7), "bias": (7,)}, "out": {"weight": (7,), "bias": ()}}
    params = {
        layer: {name: np.array(made(shape), dtype) for name, shape in shapes[layer].items()}
        for layer in shapes
    }
    return {**params, "scale": np.ones(1, dtype)}


def loss(params, step=0):
    """A small network, with another batch in each step."""
    batch = slice(step % 5, None, 5)
    samples, targets = (array[batch].astype(params["scale"].dtype) for array in (SAMPLES, TARGETS))
    hidden = anp.tanh(anp.dot(samples, params["hidden"]["weight"]) + params["hidden"]["bias"])
    predicted = anp.dot(hidden, params["out"]["weight"]) + params["out"]["bias"]
    return anp.mean((params["scale"] * predicted - targets) ** 2)


gradient = autograd.grad(loss)


def flat(params):
    return flatten(params)[0]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_step_is_that_of_autograds_adam(dtype):
    """And of the formula, for the gradients that it gets."""
    trajectory = []
    their_adam(
        gradient,
        start(dtype),
        callback=lambda params, _, grads: trajectory.append((flat(params), flat(grads))),
        num_iters=STEPS,
        **THEIR_NUMBERS,
    )
    params = start(dtype)
    arrays = [params["scale"], *params["hidden"].values(), *params["out"].values()]
    opt = adamas.Adam(params, **NUMBERS)
    wanted = oracle.State(*(flat(start(dtype)).astype(np.longdouble) for _ in range(3)))
    wanted.moment1, wanted.moment2 = (np.zeros_like(wanted.param) for _ in range(2))
    hyper = oracle.HyperParameters(**NUMBERS)
    tolerance = TOLERANCE[dtype]
    for step in range(STEPS):
        before, their_grads = trajectory[step]
        np.testing.assert_allclose(flat(params), before, rtol=0, atol=tolerance)
        np.testing.assert_allclose(flat(params), wanted.param, rtol=0, atol=tolerance)
        grads = gradient(params, step)
        assert {grad.dtype.name for grad in grads["hidden"].values()} == {dtype}
        np.testing.assert_allclose(flat(grads), their_grads, rtol=0, atol=20 * tolerance)
        opt(grads)
        wanted = oracle.next_state(oracle.Rule(), hyper, wanted, flat(grads), step + 1)
    now = [params["scale"], *params["hidden"].values(), *params["out"].values()]
    assert all(a is b for a, b in zip(arrays, now, strict=True))
    assert loss(params) < 0.1 * loss(start(dtype))


def test_a_list_and_a_flat_vector_take_the_same_steps():
    params, vector_of = start(), start()
    vector, unflatten = flatten(vector_of)
    listed = [params["hidden"]["weight"], params["hidden"]["bias"]]
    rest = {"out": params["out"], "scale": params["scale"]}

    def loss_of_list(arrays):
        return loss({**rest, "hidden": {"weight": arrays[0], "bias": arrays[1]}})

    def loss_of_vector(vector):
        return loss_of_list([unflatten(vector)["hidden"][name] for name in ("weight", "bias")])

    optimizers = adamas.Adam(listed, **NUMBERS), adamas.Adam([vector], **NUMBERS)
    for _ in range(20):
        optimizers[0](autograd.grad(loss_of_list)(listed))
        optimizers[1]([autograd.grad(loss_of_vector)(vector)])
    hidden = unflatten(vector)["hidden"]
    for one, other in zip(listed, (hidden["weight"], hidden["bias"]), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    assert flat(vector_of).tobytes() == flat(start()).tobytes()


def test_names_that_are_left_out_are_not_touched():
    params = start()
    before = params["scale"].copy(), params["out"]["bias"].copy()
    opt = adamas.Adam(params, **NUMBERS)
    opt({"hidden": gradient(params)["hidden"]})
    assert (params["scale"], params["out"]["bias"]) == before
    assert list(opt.steps) == [1, 1, 0, 0, 0]
    opt(gradient(params))
    assert params["scale"] != before[0]
    assert list(opt.steps) == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("value", [1.0, np.float64(1.0), 3])
def test_numbers_are_refused_because_they_can_not_be_updated(value):
    with pytest.raises((TypeError, ValueError), match="bias"):
        adamas.Adam({"weight": np.ones(2), "bias": value})


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="complex"):
        adamas.Adam({"weight": np.ones(2, complex)})


def test_the_page_tells_autograds_defaults():
    page = (ROOT / "docs/hosts/autograd.md").read_text("utf-8")
    cells = (cell.cell_contents for cell in their_adam.__closure__)
    (written,) = (value for value in cells if getattr(value, "__name__", "") == "adam")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(written).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert (defaults["num_iters"], defaults["eps"]) == (100, 1e-8)
    for name in ("step_size", "b1", "b2"):
        assert re.search(rf"`{name}={defaults[name]}`", page), name
