"""adamas.sklearn beside scikit-learn's own models: parameters, moments, scores, and its checks."""
# ruff: noqa: E402

import copy
import doctest
import importlib
import inspect
import io
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import adamas
import oracle
from helpers import bits

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import joblib
import scipy.sparse
from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import _multilayer_perceptron as host
from sklearn.neural_network import _stochastic_optimizers as host_optimizers
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from threadpoolctl import threadpool_limits

import adamas.sklearn
from adamas import _sklearn_step
from adamas.sklearn import AdamOptimizer, MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore:.*L-BFGS-B:DeprecationWarning",  # of SciPy, for older versions of scikit-learn
    # of check_estimator: in the checks that have to raise, and of skipped ones
    "ignore:.*:sklearn.exceptions.SkipTestWarning",
    "ignore:.*:sklearn.exceptions.DataConversionWarning",
)

DTYPES = ("float32", "float64")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_model = pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
STEPS = 300
# Relative to the largest element of an array: some hundred steps of a few units of the last place.
TOLERANCE = {"float32": 2e-5, "float64": 5e-14}
NUMBERS = {"learning_rate_init": 0.013, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6}
OPTIONS = {
    **NUMBERS,
    "hidden_layer_sizes": (13, 7),
    "alpha": 0.02,
    "batch_size": 31,
    "max_iter": 12,
    "n_iter_no_change": 4,
    "tol": 1e-3,
    "random_state": 5,
}
SHAPES = [(7, 5), (5, 3), (1, 1), (131, 127), (5,), (3,), (1,), (127,)]
EXTRAS = {"weight_decay": 0.03, "use_amsgrad": True, "max_grad_norm": 0.5, "num_threads": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep the BLAS from waiting for cores that other programs use."""
    with threadpool_limits(1):
        yield


def ours(name, **options):
    return getattr(adamas.sklearn, name)(**{**OPTIONS, **options})


def theirs(name, **options):
    return getattr(neural_network, name)(**{**OPTIONS, **options})


def samples_of(name, dtype="float64", targets=3, seed=0):
    """Return 101 samples of 5 features, and classes or numbers."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((101, 5)).astype(dtype)
    sums = samples @ rng.standard_normal((5, targets))
    if name == "MLPClassifier":
        return samples, sums.argmax(axis=1)
    return samples, np.tanh(sums).astype(dtype)


def state(model):
    """Return {name: array} of what is learned."""
    optimizer = model._optimizer
    lists = {
        "coefs_": model.coefs_,
        "intercepts_": model.intercepts_,
        "ms": optimizer.ms,
        "vs": optimizer.vs,
        "vhats": getattr(optimizer, "vhats", []),
    }
    return {f"{name}[{i}]": array for name, list_ in lists.items() for i, array in enumerate(list_)}


def assert_same_bits(model, other):
    for (name, array), wanted in zip(state(model).items(), state(other).values(), strict=True):
        assert bits(array).tobytes() == bits(wanted).tobytes(), name
    assert model._optimizer.t == other._optimizer.t
    assert model.loss_curve_ == other.loss_curve_


def assert_near(array, wanted, tolerance, name, floor=0.1):
    """Up to a part of the largest element; what is learned goes through zero, moments do not."""
    assert array.dtype == wanted.dtype, name
    assert array.shape == wanted.shape, name
    scale = max(abs(wanted).max(initial=0), floor)
    assert abs(array - wanted).max(initial=0) <= tolerance * scale, name


def assert_near_theirs(model, other, dtype, factor=1.0):
    assert type(model._optimizer) is AdamOptimizer
    assert type(other._optimizer) is host_optimizers.AdamOptimizer
    kept = {name: array for name, array in state(model).items() if "vhats" not in name}
    for (name, array), wanted in zip(kept.items(), state(other).values(), strict=True):
        floor = 0.1 if "_" in name else 0.0
        assert_near(array, wanted.astype(array.dtype), factor * TOLERANCE[dtype], name, floor)
        assert array.dtype == dtype
    assert model._optimizer.t == other._optimizer.t > 0
    assert model.n_iter_ == other.n_iter_
    assert model.t_ == other.t_
    np.testing.assert_allclose(model.loss_curve_, other.loss_curve_, factor * TOLERANCE[dtype])


# The step


class Reference:
    """The formula, in extended precision, as scikit-learn has it."""

    def __init__(self, params, numbers):
        self.params = [param.astype(np.longdouble) for param in params]
        self.ms, self.vs = ([np.zeros_like(p) for p in self.params] for _ in range(2))
        self.numbers = {name: np.longdouble(value) for name, value in numbers.items()}
        self.t = 0

    def step(self, grads):
        rate, beta1, beta2, eps = self.numbers.values()
        self.t += 1
        rate = rate * np.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
        for i, grad in enumerate(grads):
            self.ms[i] = oracle.next_moment1(self.ms[i], grad.astype(np.longdouble), beta1)
            self.vs[i] = oracle.next_moment2(self.vs[i], grad.astype(np.longdouble), beta2)
            self.params[i] = self.params[i] - rate * self.ms[i] / (np.sqrt(self.vs[i]) + eps)


RATES = {
    "": {},
    "large_epsilon": {"epsilon": 0.1},
    "no_beta_1": {"beta_1": 0.0},
    "no_beta_2": {"beta_2": 0},
}


@every_dtype
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rates", RATES)
def test_every_step_is_that_of_scikit_learn_and_of_the_formula(rates, order, dtype):
    numbers = {**NUMBERS, **RATES[rates]}
    rng = np.random.default_rng(2)
    start = [np.array(rng.standard_normal(shape), dtype, order=order) for shape in SHAPES]
    params, their_params = ([array.copy(order="K") for array in start] for _ in range(2))
    optimizer = AdamOptimizer(params, **numbers)
    their_optimizer = host_optimizers.AdamOptimizer(their_params, **numbers)
    reference = Reference(start, numbers)
    ms, vs = list(optimizer.ms), list(optimizer.vs)
    for step in range(STEPS):
        grads = [np.array(rng.standard_normal(p.shape), dtype) * 3 / (1 + step) for p in start]
        optimizer.update_params(params, grads)
        their_optimizer.update_params(their_params, grads)
        reference.step(grads)
        for i in range(len(params)):
            mine = {"param": params[i], "m": optimizer.ms[i], "v": optimizer.vs[i]}
            others = (
                (their_params[i], their_optimizer.ms[i], their_optimizer.vs[i]),
                (reference.params[i], reference.ms[i], reference.vs[i]),
            )
            for other in others:
                for (name, array), wanted in zip(mine.items(), other, strict=True):
                    assert_near(array, wanted.astype(dtype), TOLERANCE[dtype], (step, i, name))
    assert optimizer.t == their_optimizer.t == STEPS
    assert all(a is b for a, b in zip(ms + vs, optimizer.ms + optimizer.vs, strict=True))


@every_dtype
def test_gradients_of_the_other_type_and_strided_ones(dtype):
    """scikit-learn may mix them: float32 samples with float64 targets."""
    other = DTYPES[dtype == "float32"]
    rng = np.random.default_rng(4)
    params = [np.array(rng.standard_normal(shape), dtype) for shape in SHAPES]
    same, mixed = ([array.copy() for array in params] for _ in range(2))
    grads = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
    optimizers = [AdamOptimizer(arrays, **NUMBERS) for arrays in (same, mixed)]
    optimizers[0].update_params(same, [grad.astype(dtype) for grad in grads])
    strided = [np.repeat(grad.astype(other), 2, axis=0)[::2] for grad in grads]
    optimizers[1].update_params(mixed, strided)
    for array, wanted in zip(same, mixed, strict=True):
        assert bits(array).tobytes() == bits(wanted).tobytes()


def test_the_optimizer_follows_what_is_set_on_it():
    """As scikit-learn's: rates, the step, the moments and the parameters are read at every step."""
    rng = np.random.default_rng(6)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params, their_params = ([array.copy() for array in start] for _ in range(2))
    pair = (
        (AdamOptimizer(params, **NUMBERS), params),
        (host_optimizers.AdamOptimizer(their_params, **NUMBERS), their_params),
    )
    changes = [
        {},
        {"learning_rate_init": 0.2},
        {"beta_1": 0.5, "beta_2": 0.75},
        {"epsilon": 0.3},
        {"t": 40},
        {"ms": [rng.standard_normal(shape) for shape in SHAPES]},
        {"vs": [rng.random(shape) for shape in SHAPES]},
        {"params": [rng.standard_normal(shape) for shape in SHAPES]},
    ]
    for change in changes:
        grads = [rng.standard_normal(shape) for shape in SHAPES]
        for optimizer, arrays in pair:
            for name, value in copy.deepcopy(change).items():
                if name == "params":
                    arrays[:] = value
                else:
                    setattr(optimizer, name, value)
            optimizer.update_params(arrays, grads)
        for array, wanted in zip(params, their_params, strict=True):
            assert_near(array, wanted, TOLERANCE["float64"], change.keys())


# Fits

FITS = {
    "classes": ("MLPClassifier", {}),
    "two_classes": ("MLPClassifier", {"activation": "tanh", "hidden_layer_sizes": 17}),
    "labels": ("MLPClassifier", {"activation": "logistic"}),
    "early_stopping": ("MLPClassifier", {"early_stopping": True, "validation_fraction": 0.2}),
    "sparse": ("MLPClassifier", {"activation": "identity", "batch_size": "auto"}),
    "numbers": ("MLPRegressor", {"shuffle": False}),
    "one_number": ("MLPRegressor", {"early_stopping": True, "n_iter_no_change": 2}),
    "sparse_numbers": ("MLPRegressor", {"batch_size": 1000}),
}


@every_dtype
@pytest.mark.parametrize("kind", FITS)
@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")
def test_a_fit_learns_what_scikit_learns_does(kind, dtype):
    name, options = FITS[kind]
    samples, targets = samples_of(name, dtype)
    if kind == "two_classes":
        targets = targets > 0
    elif kind == "labels":
        targets = np.eye(3, dtype=int)[targets]
    elif kind == "one_number":
        targets = targets[:, 0]
    if "sparse" in kind:
        samples = scipy.sparse.csr_matrix(samples)
    model, other = ours(name, **options), theirs(name, **options)
    assert model.fit(samples, targets) is model
    other.fit(samples, targets)
    assert_near_theirs(model, other, dtype)
    assert model.score(samples, targets) == pytest.approx(other.score(samples, targets), abs=1e-4)
    np.testing.assert_allclose(
        model.predict(samples), other.predict(samples), rtol=0, atol=100 * TOLERANCE[dtype]
    )


@every_dtype
@every_model
def test_sample_weights_where_the_version_has_them(name, dtype):
    if "sample_weight" not in inspect.signature(neural_network.MLPClassifier.fit).parameters:
        with pytest.raises(TypeError, match="sample_weight"):
            ours(name).fit(*samples_of(name), sample_weight=np.ones(101))
        return
    samples, targets = samples_of(name, dtype)
    weights = np.random.default_rng(1).random(101)
    model = ours(name).fit(samples, targets, sample_weight=weights)
    assert_near_theirs(model, theirs(name).fit(samples, targets, sample_weight=weights), dtype)
    plain = ours(name).fit(samples, targets)
    assert abs(plain.coefs_[0] - model.coefs_[0]).max() > 1e-4


@every_dtype
def test_losses_where_the_version_has_them(dtype):
    if "loss" not in inspect.signature(neural_network.MLPRegressor).parameters:
        pytest.skip("this scikit-learn has no loss")
    samples, targets = samples_of("MLPRegressor", dtype)
    model, other = (make("MLPRegressor", loss="poisson") for make in (ours, theirs))
    counts = np.exp(targets)
    assert_near_theirs(model.fit(samples, counts), other.fit(samples, counts), dtype)


@every_dtype
@every_model
def test_partial_fits_go_on(name, dtype):
    samples, targets = samples_of(name, dtype)
    model, other = ours(name), theirs(name)
    first = {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
    for call in range(30):
        batch = slice(call % 7, None, 2)
        for each in (model, other):
            each.partial_fit(samples[batch], targets[batch], **(first if call == 0 else {}))
        assert_near_theirs(model, other, dtype)
    assert model._optimizer.t == sum(-(-len(samples[call % 7 :: 2]) // 31) for call in range(30))


@every_dtype
@every_model
def test_warm_starts_and_partial_fits_after_a_fit(name, dtype):
    samples, targets = samples_of(name, dtype)
    model, other = (make(name, warm_start=True, max_iter=3) for make in (ours, theirs))
    for _ in range(3):
        assert_near_theirs(model.fit(samples, targets), other.fit(samples, targets), dtype)
        model.partial_fit(samples, targets)
        other.partial_fit(samples, targets)
        assert_near_theirs(model, other, dtype)


@every_model
def test_arrays_that_were_replaced_are_what_is_trained(name):
    samples, targets = samples_of(name)
    model, other = ours(name).fit(samples, targets), theirs(name).fit(samples, targets)
    for each in (model, other):
        each.coefs_[0] = np.asfortranarray(np.full_like(each.coefs_[0], 0.1))
        each.intercepts_ = [array + 1 for array in each.intercepts_]
        each.partial_fit(samples, targets)
    assert_near_theirs(model, other, "float64")
    assert model._optimizer.ms[0].flags.f_contiguous


@every_model
def test_samples_of_the_other_type_in_a_later_call(name):
    """The weights keep their type, and so does the state."""
    for first, second in itertools.permutations(DTYPES):
        model, other = ours(name), theirs(name)
        for each in (model, other):
            each.fit(*samples_of(name, first))
            each.partial_fit(*samples_of(name, second, seed=1))
        assert {array.dtype.name for array in state(model).values()} == {first}
        assert_near_theirs(model, other, first)


@every_dtype
@every_model
def test_any_number_of_threads_gives_the_same_bits(name, dtype, identity):
    samples, targets = samples_of(name, dtype)
    large = {**EXTRAS, "hidden_layer_sizes": (301, 97), "max_iter": 2}
    fitted = [
        ours(name, **{**large, "num_threads": threads}).fit(samples, targets)
        for threads in (1, 2, 3, None)
    ]
    for model in fitted[1:]:
        assert_same_bits(model, fitted[0])
        identity.compared += 1


# What only adamas has


class Spy:
    """Keeps the gradients of the steps of a model, and the parameters before them."""

    def __init__(self, monkeypatch):
        self.steps = []
        original = AdamOptimizer.update_params

        def update_params(optimizer, params, grads):
            self.steps.append([[array.copy() for array in arrays] for arrays in (params, grads)])
            original(optimizer, params, grads)

        monkeypatch.setattr(AdamOptimizer, "update_params", update_params)


@every_model
@pytest.mark.parametrize("option", ["weight_decay", "use_amsgrad", "max_grad_norm"])
def test_options_of_adamas_do_what_they_say(name, option, monkeypatch):
    spy = Spy(monkeypatch)
    samples, targets = samples_of(name)
    model = ours(name, **{option: EXTRAS[option]}).fit(samples, targets)
    params = [array.astype(np.longdouble) for array in spy.steps[0][0]]
    reference = Reference(params, NUMBERS)
    largest = [np.zeros_like(param) for param in params]
    acted = False
    for before, grads in spy.steps:
        for array, wanted in zip(before, reference.params, strict=True):
            assert_near(array, wanted.astype(float), TOLERANCE["float64"], option)
        if option == "max_grad_norm":
            factor = oracle.clip_factor(oracle.global_norm(grads, 1.0), 0.5)
            acted |= factor < 1
            grads = [factor * grad for grad in grads]
        kept = [param.copy() for param in reference.params]
        reference.step(grads)
        rate, beta1, beta2, eps = reference.numbers.values()
        for i, param in enumerate(kept):
            if option == "weight_decay" and param.ndim == 2:
                reference.params[i] -= rate * np.longdouble(0.03) * param
            elif option == "use_amsgrad":
                largest[i] = np.maximum(largest[i], reference.vs[i])
                acted |= (largest[i] > reference.vs[i]).any()
                size = rate * np.sqrt(1 - beta2**reference.t) / (1 - beta1**reference.t)
                update = size * reference.ms[i] / (np.sqrt(largest[i]) + eps)
                reference.params[i] = param - update
    for array, wanted in zip(model.coefs_ + model.intercepts_, reference.params, strict=True):
        assert_near(array, wanted.astype(float), TOLERANCE["float64"], option)
    assert acted or option == "weight_decay"
    assert len(spy.steps) == model._optimizer.t > 10


@every_model
def test_options_of_adamas_are_parameters_of_the_model(name):
    model = ours(name, **EXTRAS)
    assert {key: model.get_params()[key] for key in EXTRAS} == EXTRAS
    usual = getattr(adamas.sklearn, name)()
    wanted = {**getattr(neural_network, name)().get_params()}
    found = usual.get_params()
    assert {key: found.pop(key) for key in EXTRAS} == {
        "weight_decay": 0.0,
        "use_amsgrad": False,
        "max_grad_norm": None,
        "num_threads": None,
    }
    assert found == wanted
    assert usual.set_params(weight_decay=0.5, alpha=0.0).weight_decay == 0.5
    signature = inspect.signature(type(usual))
    assert list(signature.parameters)[: len(wanted)] == list(
        inspect.signature(getattr(neural_network, name)).parameters
    )
    kinds = {signature.parameters[key].kind for key in EXTRAS}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_positions_of_arguments_are_those_of_the_version():
    assert MLPClassifier((3, 2), "tanh").get_params()["activation"] == "tanh"
    first = next(iter(inspect.signature(neural_network.MLPRegressor).parameters))
    assert MLPRegressor("given").get_params()[first] == "given"
    with pytest.raises(TypeError, match="momentun"):
        MLPClassifier(momentun=0.5)


@every_model
def test_a_model_shows_what_was_set(name):
    assert repr(getattr(adamas.sklearn, name)(weight_decay=0.1)) == f"{name}(weight_decay=0.1)"
    model = ours(name, **EXTRAS)
    copied = clone(model)
    assert copied is not model
    assert copied.get_params() == model.get_params()


# Copies


def dumped(model):
    stream = io.BytesIO()
    joblib.dump(model, stream)
    return joblib.load(stream)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "deepcopy": copy.deepcopy,
    "joblib": dumped,
}


@every_dtype
@every_model
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_goes_on_with_the_same_bits_by_itself(way, name, dtype):
    samples, targets = samples_of(name, dtype)
    model = ours(name, **EXTRAS).fit(samples, targets)
    twin = ours(name, **EXTRAS).fit(samples, targets)
    copied = COPIES[way](model)
    assert_same_bits(copied, model)
    for _ in range(3):
        model.partial_fit(samples, targets)
    assert copied._optimizer.t == twin._optimizer.t < model._optimizer.t
    assert_same_bits(copied, twin)  # the original has moved, its copy has not
    for _ in range(3):
        copied.partial_fit(samples, targets)
    assert_same_bits(copied, model)


def test_pickles_name_no_module_that_may_move():
    pickled = pickle.dumps(ours("MLPClassifier").fit(*samples_of("MLPClassifier")))
    assert b"adamas.sklearn" in pickled
    assert b"adamas._" not in pickled


@every_dtype
@every_model
def test_a_model_of_scikit_learns_can_go_on_here(name, dtype):
    samples, targets = samples_of(name, dtype)
    other = theirs(name).fit(samples, targets)
    model = ours(name)
    model.__setstate__(copy.deepcopy(other.__getstate__()))
    for _ in range(20):
        model.partial_fit(samples, targets)
        other.partial_fit(samples, targets)
    assert_near_theirs(model, other, dtype)


# Refusals, and what scikit-learn refuses

BAD = {
    "weight_decay": [-0.1, "0.1", None, np.nan],
    "use_amsgrad": ["yes", None],
    "max_grad_norm": [0.0, -1, "1"],
    "num_threads": [0, -1, 1.5, "2"],
    "beta_1": [1.0, -0.1],
    "epsilon": [0.0],
    "learning_rate_init": [0.0],
}


@every_model
@pytest.mark.parametrize(("option", "value"), [(k, v) for k, vs in BAD.items() for v in vs])
def test_an_option_out_of_its_range_is_named(name, option, value):
    model = ours(name, **{option: value})
    with pytest.raises((ValueError, TypeError), match=option):
        model.fit(*samples_of(name))
    assert not hasattr(model, "coefs_") or option == "weight_decay"
    assert not hasattr(model, "_optimizer") or model._optimizer.t == 0


@every_model
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_other_solvers_are_scikit_learns_and_refuse_options_of_adam(name, solver):
    samples, targets = samples_of(name)
    model = ours(name, solver=solver, num_threads=2).fit(samples, targets)
    other = theirs(name, solver=solver).fit(samples, targets)
    for array, wanted in zip(model.coefs_, other.coefs_, strict=True):
        assert array.tobytes() == wanted.tobytes()
    for option in ("weight_decay", "use_amsgrad", "max_grad_norm"):
        with pytest.raises(ValueError, match=f"{option} must be .* 'adam', got .*'{solver}'"):
            ours(name, solver=solver, **{option: EXTRAS[option]}).fit(samples, targets)


@every_model
def test_an_optimizer_of_another_solver_is_kept_as_scikit_learn_keeps_it(name):
    samples, targets = samples_of(name)
    pair = ours(name, solver="sgd"), theirs(name, solver="sgd")
    for model in pair:
        model.fit(samples, targets)
        model.set_params(solver="adam").partial_fit(samples, targets)
        assert type(model._optimizer) is host_optimizers.SGDOptimizer
    assert pair[0].coefs_[0].tobytes() == pair[1].coefs_[0].tobytes()


def spoilt(model, kind):
    """Spoil a part of a model that is not the first, and return what to expect."""
    if kind == "read_only":
        model.intercepts_[1].flags.writeable = False
        return r"intercepts_\[1\].* must be writable"
    if kind == "shape":
        model._optimizer.vs[-1] = np.zeros(9)
        return "shape"
    if kind == "shared":
        model.coefs_[1] = (
            model.coefs_[0][:].reshape(-1)[: model.coefs_[1].size].reshape(model.coefs_[1].shape)
        )
        return "share"
    model._optimizer.learning_rate_init = float("nan")
    return "learning_rate"


@every_model
@pytest.mark.parametrize("kind", ["read_only", "shape", "shared", "rate"])
def test_a_step_that_raises_has_changed_nothing(name, kind):
    samples, targets = samples_of(name)
    model = ours(name, hidden_layer_sizes=(13, 5), weight_decay=0.1).fit(samples, targets)
    message = spoilt(model, kind)
    before = {key: bits(array).tobytes() for key, array in state(model).items()}
    steps = model._optimizer.t
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(samples, targets)
        assert {key: bits(array).tobytes() for key, array in state(model).items()} == before
        assert model._optimizer.t == steps


def test_a_model_in_read_only_memory_predicts_and_says_why_it_can_not_train(tmp_path):
    samples, targets = samples_of("MLPRegressor")
    model = ours("MLPRegressor").fit(samples, targets)
    joblib.dump(model, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    assert mapped.predict(samples).tobytes() == model.predict(samples).tobytes()
    with pytest.raises(ValueError, match=r"coefs_\[0\].* must be writable"):
        mapped.partial_fit(samples, targets)


@every_model
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_are_not_finite_are_scikit_learns_error(name):
    samples, targets = samples_of(name)
    rate = {"learning_rate_init": 1e300, "activation": "identity", "max_iter": 3}
    for model in (ours(name, **rate), theirs(name, **rate)):
        with pytest.raises(ValueError, match="non-finite"):
            model.fit(samples * 1e10, targets)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ours(name, max_grad_norm=1.0, **rate).fit(samples * 1e10, targets)


@every_model
def test_an_interrupted_fit_is_a_warning_as_in_scikit_learn(name, monkeypatch):
    calls = []
    original = host.BaseMultilayerPerceptron._backprop

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(host.BaseMultilayerPerceptron, "_backprop", interrupted)
    for stop in (1, 3):
        calls.clear()
        model = ours(name)
        with pytest.warns(UserWarning, match="interrupted"):
            model.fit(*samples_of(name))
        assert model._optimizer.t == stop - 1


# Another scikit-learn


@every_model
def test_a_solver_that_was_not_replaced_is_an_error(name, monkeypatch):
    class Renamed(host_optimizers.AdamOptimizer):
        pass

    monkeypatch.setattr(host, "AdamOptimizer", Renamed)
    with pytest.raises(RuntimeError, match=r"tested with scikit-learn 1\.3 .*_optimizer"):
        ours(name).fit(*samples_of(name))


def test_a_step_that_is_not_asked_of_the_optimizer_is_an_error(monkeypatch):
    original = MLPClassifier._update_no_improvement_count
    made = []

    def elsewhere(model, *args):
        made.append(model._optimizer)
        made[-1].t = 0
        return original(model, *args)

    monkeypatch.setattr(MLPClassifier, "_update_no_improvement_count", elsewhere)
    with pytest.raises(RuntimeError, match=sklearn.__version__):
        ours("MLPClassifier", max_iter=1).fit(*samples_of("MLPClassifier"))
    assert type(made[0]) is AdamOptimizer


def _other(self, params, rate):
    pass


CHANGES = {
    "signature": (host_optimizers.AdamOptimizer, "update_params", _other),
    "constructor": (host_optimizers.AdamOptimizer, "__init__", _other),
    "base": (host_optimizers.BaseOptimizer, "__init__", _other),
    "class": (host_optimizers, "AdamOptimizer", None),
    "base_class": (host_optimizers, "BaseOptimizer", None),
    "method": (host.BaseMultilayerPerceptron, "_fit", None),
    "validation": (sklearn.utils._param_validation, "Interval", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_unknown_scikit_learn_is_refused_at_import(change, monkeypatch):
    owner, name, value = CHANGES[change]
    if value is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, value)
    for module in ("adamas.sklearn", "adamas._sklearn_step"):
        monkeypatch.delitem(sys.modules, module)
    message = (
        rf"^adamas\.sklearn was tested with scikit-learn 1\.3 to .*; in {sklearn.__version__} "
    )
    with pytest.raises(ImportError, match=message):
        importlib.import_module("adamas.sklearn")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_missing_scikit_learn_is_named_with_the_command_that_helps():
    code = "import sys; sys.modules['sklearn'] = None\nimport adamas\nimport adamas.sklearn"
    error = run(code).stderr.splitlines()[-1]
    assert error.startswith("ImportError: adamas.sklearn needs scikit-learn")
    assert 'pip install "adamas[sklearn]"' in error


def test_adamas_does_not_import_it():
    assert run("import adamas, sys; assert 'sklearn' not in sys.modules").returncode == 0


# Threads


def test_threads_are_those_of_the_blas_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("ADAMAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(_sklearn_step._core, "default_threads", lambda: (3, 3, 1, None))
    samples, targets = samples_of("MLPRegressor")

    def threads(**options):
        return ours("MLPRegressor", **options).fit(samples, targets)._optimizer._threads

    with threadpool_limits(1):
        assert threads() == 1
        assert threads(num_threads=5) == 5
        monkeypatch.setenv("ADAMAS_NUM_THREADS", "2")
        assert threads() is None
    monkeypatch.delenv("ADAMAS_NUM_THREADS")
    monkeypatch.setattr(
        _sklearn_step,
        "threadpool_info",
        lambda: (
            [{"user_api": "blas", "num_threads": n} for n in (2, 1)]
            + [{"user_api": "openmp", "num_threads": 3}]
        ),
    )
    assert threads() == 2
    monkeypatch.setattr(_sklearn_step, "threadpool_info", list)
    assert threads() == 3  # no BLAS that it knows: what adamas uses


def test_models_train_in_threads_and_processes_of_a_search():
    samples, targets = samples_of("MLPClassifier")
    pipeline = make_pipeline(StandardScaler(), ours("MLPClassifier", max_iter=5))
    grid = {"mlpclassifier__weight_decay": [0.0, 0.1], "mlpclassifier__learning_rate_init": [0.01]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        alone = GridSearchCV(pipeline, grid, cv=2).fit(samples, targets)
        for backend in ("threading", "loky"):
            with joblib.parallel_backend(backend, n_jobs=2):
                found = GridSearchCV(pipeline, grid, cv=2).fit(samples, targets)
            assert found.best_score_ == alone.best_score_
            assert_same_bits(found.best_estimator_[-1], alone.best_estimator_[-1])


# scikit-learn's checks of an estimator


_CHECKS = parametrize_with_checks([MLPClassifier(), MLPRegressor()])


# pytest warns of generators, which older versions give.
@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@every_model
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_as_many_checks_pass_as_with_scikit_learns_own_model(name):
    if "on_skip" not in inspect.signature(check_estimator).parameters:
        pytest.skip("check_estimator of this scikit-learn returns nothing")
    results = {
        (made.__module__.split(".")[0]): check_estimator(made, on_fail=None, on_skip=None)
        for made in (getattr(adamas.sklearn, name)(), getattr(neural_network, name)())
    }
    status = {
        package: {result["check_name"]: result["status"] for result in listed}
        for package, listed in results.items()
    }
    assert status["adamas"].keys() <= status["sklearn"].keys()
    for check, found in status["adamas"].items():
        assert found == status["sklearn"][check] != "failed", check


# Documentation


def test_the_examples_of_the_reference():
    for thing in (MLPClassifier, MLPRegressor):
        (found,) = (
            test
            for test in doctest.DocTestFinder(recurse=False).find(thing, globs={})
            if test.examples
        )
        assert doctest.DocTestRunner().run(found).failed == 0


def test_a_score_on_digits():
    samples, targets = datasets.load_digits(return_X_y=True)
    options = {"max_iter": 20, "random_state": 0, "hidden_layer_sizes": (32,)}
    scores = [
        make(**options).fit(samples / 16, targets).score(samples / 16, targets)
        for make in (MLPClassifier, neural_network.MLPClassifier)
    ]
    assert scores[0] == scores[1] > 0.9
