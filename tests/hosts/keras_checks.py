"""The recipe for Keras beside keras.optimizers.Adam, with the backend that KERAS_BACKEND names.

test_keras.py runs this file by pytest once for each backend, in a process of its own.
"""

import importlib.util
import inspect
import os
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/keras_optimizer.py"
_spec = importlib.util.spec_from_file_location("keras_optimizer", EXAMPLE)
keras_optimizer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keras_optimizer)
Adam = keras_optimizer.Adam

BACKEND = os.environ["KERAS_BACKEND"]
assert keras.backend.backend() == BACKEND
IS_JAX, IS_NUMPY = BACKEND == "jax", BACKEND == "numpy"
STEPS = 8 if IS_JAX else 60  # JAX compiles each operation for each shape
SHAPES = [(7, 5), (131,), (), (3, 2, 3, 3), (1,)]
NUMBERS = {"learning_rate": 0.013, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}
# Keras raises beta to its power in float32, and 1 - beta^t is then off by some 1e-6.
# With NumPy it computes in float32 what belongs to float64 variables.
TOLERANCE = {"float32": 5e-5, "float64": 5e-6 if os.environ["KERAS_BACKEND"] == "numpy" else 1e-11}
DTYPES = tuple(TOLERANCE)
if IS_JAX:
    import jax

    jax.config.update("jax_enable_x64", True)
elif BACKEND == "torch":
    import torch

    torch.set_num_threads(1)


def array_of(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def variables_of(dtype, seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(shape) for shape in SHAPES]
    return [
        keras.Variable(np.array(v, dtype), dtype=dtype, name=f"v{i}") for i, v in enumerate(values)
    ]


def gradients(dtype, steps=STEPS, seed=1):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        yield [
            keras.ops.convert_to_tensor(np.array(rng.standard_normal(s) / (1 + step % 7), dtype))
            for s in SHAPES
        ]


def assert_near(array, wanted, tolerance, name):
    assert array.shape == wanted.shape, name
    assert array.dtype == wanted.dtype, name
    worst = abs(array - wanted).max() / max(abs(wanted).max(), 1e-2)
    assert worst <= tolerance, (name, worst)


def assert_same_state(ours, theirs, tolerance):
    """Variables of optimizers: the number of the step, the rate, and the moments."""
    assert len(ours.variables) == len(theirs.variables)
    for one, other in zip(ours.variables, theirs.variables, strict=True):
        assert one.path.split("/")[1:] == other.path.split("/")[1:]
        assert one.dtype == other.dtype
        assert_near(array_of(one), array_of(other).astype(one.dtype), tolerance, one.path)


OPTIONS = {
    "": {},
    "amsgrad": {"amsgrad": True},
    "weight_decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 1.5},
    "clipvalue": {"clipvalue": 0.3},
    "ema": {"use_ema": True, "ema_momentum": 0.7},
    "ema_overwrites": {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 5},
    "accumulation": {"gradient_accumulation_steps": 3},
    "loss_scale": {"loss_scale_factor": 8.0},
    "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.6)},
    "usual": {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
}


if IS_JAX:  # which is slow where it does not compile
    OPTIONS = {name: OPTIONS[name] for name in ("amsgrad", "weight_decay", "accumulation", "ema")}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_step_is_that_of_keras(option, dtype):
    options = {**NUMBERS, **OPTIONS[option]}
    pairs = [(make(**options), variables_of(dtype)) for make in (Adam, keras.optimizers.Adam)]
    for optimizer, variables in pairs:
        optimizer.build(variables)
    before = [array_of(variable) for variable in pairs[0][1]]
    for step, grads in enumerate(gradients(dtype)):
        for optimizer, variables in pairs:
            optimizer.apply([keras.ops.copy(grad) for grad in grads], variables)
        for one, other in zip(pairs[0][1], pairs[1][1], strict=True):
            assert_near(array_of(one), array_of(other), TOLERANCE[dtype], (step, one.name))
        assert_same_state(pairs[0][0], pairs[1][0], TOLERANCE[dtype])
    for array, variable in zip(before, pairs[0][1], strict=True):
        assert (array != array_of(variable)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("betas", [{}, {"beta_1": 0.0, "beta_2": 0}])
def test_every_step_is_that_of_the_formula(betas, dtype):
    numbers = {**NUMBERS, **betas}
    rate, beta1, beta2, eps = (np.longdouble(value) for value in numbers.values())
    variables = variables_of(dtype)
    optimizer = Adam(**numbers)
    params = [array_of(variable).astype(np.longdouble) for variable in variables]
    ms, vs = ([np.zeros_like(param) for param in params] for _ in range(2))
    for step, grads in enumerate(gradients(dtype), 1):
        optimizer.apply(grads, variables)
        size = np.longdouble(np.float32(rate)) * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        for i, grad in enumerate(map(array_of, grads)):
            ms[i] = beta1 * ms[i] + (1 - beta1) * grad
            vs[i] = beta2 * vs[i] + (1 - beta2) * grad.astype(np.longdouble) ** 2
            params[i] = params[i] - size * ms[i] / (np.sqrt(vs[i]) + eps)
            tolerance = {"float32": 2e-5, "float64": 1e-13}[dtype]
            wanted = params[i].astype(dtype)
            assert_near(array_of(variables[i]), wanted, tolerance, (step, i))


def test_absent_gradients_leave_variables_alone():
    pairs = [(make(**NUMBERS), variables_of("float32")) for make in (Adam, keras.optimizers.Adam)]
    for step, grads in enumerate(gradients("float32", 9)):
        given = [None if (step + i) % 3 == 0 else grad for i, grad in enumerate(grads)]
        for optimizer, variables in pairs:
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                optimizer.apply(given, variables)
    for one, other in zip(pairs[0][1], pairs[1][1], strict=True):
        assert_near(array_of(one), array_of(other), TOLERANCE["float32"], one.name)


def test_gradients_of_any_strides():
    pairs = [(Adam(**NUMBERS), variables_of("float32")) for _ in range(2)]
    for grads in gradients("float32", 5):
        strided = []
        for grad in grads:
            axes = tuple(reversed(range(grad.ndim)))
            turned = keras.ops.copy(keras.ops.transpose(grad, axes)) if axes else grad
            strided.append(keras.ops.transpose(turned, axes) if axes else grad)
        pairs[0][0].apply(grads, pairs[0][1])
        pairs[1][0].apply(strided, pairs[1][1])
    for one, other in zip(pairs[0][1], pairs[1][1], strict=True):
        assert array_of(one).tobytes() == array_of(other).tobytes()


@pytest.mark.skipif(IS_JAX, reason="arrays of JAX can't be written to")
def test_variables_and_state_stay_where_they_are():
    variables, optimizer = variables_of("float32"), Adam(**NUMBERS)
    optimizer.build(variables)

    def addresses():
        values = [one.value for one in (*variables, *optimizer.variables[2:])]
        return [v.data_ptr() if BACKEND == "torch" else v.ctypes.data for v in values]

    before = addresses()
    for grads in gradients("float32", 3):
        optimizer.apply(grads, variables)
    assert addresses() == before


def test_state_of_keras_can_go_on_here():
    theirs, their_variables = keras.optimizers.Adam(**NUMBERS), variables_of("float64")
    steps = list(gradients("float64", 20))
    for grads in steps[:10]:
        theirs.apply(grads, their_variables)
    ours, variables = Adam(**NUMBERS), variables_of("float64", seed=9)
    ours.build(variables)
    for one, other in zip(variables, their_variables, strict=True):
        one.assign(other)
    ours.set_weights([array_of(variable) for variable in theirs.variables])
    for grads in steps[10:]:
        theirs.apply([keras.ops.copy(grad) for grad in grads], their_variables)
        ours.apply(grads, variables)
    assert int(array_of(ours.iterations)) == 20
    for one, other in zip(variables, their_variables, strict=True):
        assert_near(array_of(one), array_of(other), TOLERANCE["float64"], one.name)


def test_its_arguments_are_those_of_keras_and_are_saved():
    theirs = inspect.signature(keras.optimizers.Adam).parameters
    ours = inspect.signature(Adam).parameters
    assert list(ours)[:5] == list(theirs)[:5]
    assert all(ours[name].default == theirs[name].default for name in list(ours)[:5])
    optimizer = Adam(**NUMBERS, amsgrad=True, weight_decay=0.1, clipnorm=2.0)
    copied = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copied) is Adam
    assert copied.get_config() == optimizer.get_config()
    for name, value in (*NUMBERS.items(), ("amsgrad", True)):
        assert copied.get_config()[name] == pytest.approx(value)


def model_with(optimizer, **options):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(13, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, "mse", **{"run_eagerly": IS_JAX, **options})
    return model


def samples():
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((101, 5)).astype("float32")
    return inputs, np.sin(inputs[:, :1])


needs_fit = pytest.mark.skipif(IS_NUMPY, reason="Keras has no fit for NumPy")


@needs_fit
def test_a_fit_learns_what_it_learns_with_keras():
    models = [
        model_with(make(**NUMBERS, weight_decay=0.01, global_clipnorm=0.5))
        for make in (Adam, keras.optimizers.Adam)
    ]
    losses = [
        model.fit(*samples(), epochs=5, batch_size=31, shuffle=False, verbose=0).history["loss"]
        for model in models
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0] / 2
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        assert_near(one, other, 2e-4, one.shape)
    assert int(array_of(models[0].optimizer.iterations)) == 20


@needs_fit
def test_a_saved_model_goes_on_with_the_same_bits(tmp_path):
    straight, saved = (model_with(Adam(**NUMBERS)) for _ in range(2))
    for model in (straight, saved):
        model.fit(*samples(), epochs=2, batch_size=31, shuffle=False, verbose=0)
    saved.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is Adam
    loaded.compile(loaded.optimizer, "mse", run_eagerly=IS_JAX)
    for model in (straight, loaded):
        model.fit(*samples(), epochs=2, batch_size=31, shuffle=False, verbose=0)
    for one, other in zip(straight.get_weights(), loaded.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.skipif(not IS_JAX, reason="only JAX compiles")
def test_a_compiled_step_says_what_to_do():
    model = model_with(Adam(**NUMBERS), run_eagerly=False)
    with pytest.raises(RuntimeError, match="run_eagerly=True"):
        model.fit(*samples(), verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_variables_of_16_bits_are_refused(dtype):
    variable = keras.Variable(np.ones(3, "float32"), dtype=dtype)
    grad = keras.ops.ones(3, dtype)
    with pytest.raises(TypeError, match=r"moment1\[0\] must be of type float32"):
        Adam().apply([grad], [variable])
    assert (array_of(keras.ops.cast(variable, "float32")) == 1).all()


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_a_value_out_of_range_is_named(beta):
    variable = keras.Variable(np.ones(3, "float32"))
    with pytest.raises(ValueError, match="beta2"):
        Adam(beta_2=beta).apply([keras.ops.ones(3)], [variable])
    assert (array_of(variable) == 1).all()


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(RuntimeError, match="torch, jax or numpy"):
        Adam()


def test_the_example_learns_the_same(capsys):
    keras_optimizer.main()
    printed = capsys.readouterr().out.splitlines()
    if IS_NUMPY:
        assert printed[0].startswith("Keras has no fit for NumPy")
        return
    results = [line.partition(": ")[2].replace(",", "").split() for line in printed]
    assert float(results[0][1]) == pytest.approx(float(results[1][1]), rel=1e-3)
    assert results[0][3] == results[1][3]
