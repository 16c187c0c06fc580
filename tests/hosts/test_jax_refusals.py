"""What adamas.jax refuses: when a program is traced, when it runs, and when it is imported."""

import ml_dtypes
import numpy as np
import pytest
from jax_cases import adamas, enable_x64, jax, jnp, numbers, same

from helpers import run_python


def problem(**options):
    optimizer = adamas.jax.Adam(0.1, **options)
    params = {"layer": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, "out": jnp.ones(4)}
    grads = jax.tree.map(lambda leaf: leaf * 0.5, params)
    return optimizer, params, grads, optimizer.init(params)


def changed(tree, at, leaf):
    """Return a pytree with another leaf at ["layer"][at]."""
    return {**tree, "layer": {**tree["layer"], at: leaf}}


def check_refused(call, error, *fragments, unchanged=()):
    before = numbers(unchanged)
    for run in (call, jax.jit(call)):
        with pytest.raises(error) as caught:
            run()
        for fragment in fragments:
            assert fragment in str(caught.value)
    assert same(unchanged, before)


WRONG_GRADS = {
    "missing": (lambda g: {"layer": g["layer"]}, ValueError, ["grads", "params", "['out']"]),
    "none": (
        lambda g: changed(g, "b", None),
        ValueError,
        ["grads must have the structure of params", "['layer']['b']"],
    ),
    "list": (lambda g: [g], ValueError, ["grads must have the structure of params"]),
    "shape": (
        lambda g: changed(g, "w", jnp.ones((2, 3))),
        ValueError,
        ["grads['layer']['w'] must have the shape (3, 2), got (2, 3)"],
    ),
    "integer": (
        lambda g: changed(g, "w", jnp.ones((3, 2), jnp.int32)),
        TypeError,
        ["grads['layer']['w'] must be of one of float32", "got int32"],
    ),
    "complex": (
        lambda g: changed(g, "w", jnp.ones((3, 2), jnp.complex64)),
        TypeError,
        ["grads['layer']['w']", "got complex64"],
    ),
    "no array": (
        lambda g: changed(g, "w", object()),
        TypeError,
        ["grads['layer']['w'] must be an array", "object"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG_GRADS.values(), ids=WRONG_GRADS)
@pytest.mark.parametrize("out", ["param", "delta"])
def test_gradients_that_do_not_fit(wrong, out):
    change, error, fragments = wrong
    optimizer, params, grads, state = problem()

    def call():
        if out == "param":
            return optimizer.update(params, change(grads), state)
        return optimizer.transformation().update(change(grads), state, params)

    check_refused(call, error, *fragments, unchanged=(params, grads, state))


def test_gradients_of_another_arithmetic():
    optimizer, params, grads, state = problem()
    with enable_x64(True):
        wide = changed(grads, "b", jnp.ones(3, jnp.float64))
        check_refused(
            lambda: optimizer.update(params, wide, state),
            TypeError,
            "grads['layer']['b'] must be of one of",
            "got float64",
        )


WRONG_STATES = {
    "moment of another shape": (
        lambda s: s._replace(moment1=changed(s.moment1, "b", jnp.zeros(4))),
        ValueError,
        ["state.moment1['layer']['b'] must have the shape (3,), got (4,)"],
    ),
    "moment of another type": (
        lambda s: s._replace(moment2=changed(s.moment2, "b", jnp.zeros(3, ml_dtypes.bfloat16))),
        TypeError,
        ["state.moment2['layer']['b'] must be of float32, got bfloat16"],
    ),
    "missing moment": (
        lambda s: s._replace(moment1=None),
        ValueError,
        ["state.moment1 must have the structure of params"],
    ),
    "vhat": (
        lambda s: s._replace(vhat=s.moment2),
        ValueError,
        ["state.vhat must be None: these options do not keep it"],
    ),
    "count": (
        lambda s: s._replace(count=jnp.zeros(())),
        TypeError,
        ["state.count must be one int32 or int64, got float32"],
    ),
    "counts": (
        lambda s: s._replace(count=jnp.zeros(2, jnp.int32)),
        TypeError,
        ["state.count must be one int32 or int64", "(2,)"],
    ),
    "tuple": (lambda s: tuple(s), TypeError, ["state must be an AdamState, got", "tuple"]),
}


@pytest.mark.parametrize("wrong", WRONG_STATES.values(), ids=WRONG_STATES)
def test_states_that_do_not_fit(wrong):
    change, error, fragments = wrong
    optimizer, params, grads, state = problem()
    check_refused(
        lambda: optimizer.update(params, grads, change(state)),
        error,
        *fragments,
        unchanged=(params, grads, state),
    )


def test_states_of_other_options():
    _, params, grads, state = problem()
    for kind, options in {
        "vhat": {"use_amsgrad": True},
        "ema": {"ema_decay": 0.9},
    }.items():
        optimizer = adamas.jax.Adam(0.1, **options)
        check_refused(
            lambda optimizer=optimizer: optimizer.update(params, grads, state),
            ValueError,
            f"state.{kind} must have the structure of params",
        )
    optimizer = adamas.jax.Adam(0.1, state_dtype="bfloat16")
    check_refused(
        lambda: optimizer.update(params, grads, state),
        TypeError,
        "must be of bfloat16, got float32",
    )


def test_arguments_in_the_order_of_optax():
    optimizer, params, grads, state = problem()
    call = lambda: optimizer.update(grads, state, params)  # noqa: E731
    check_refused(call, TypeError, "state must be an AdamState, got dict")


def test_parameters_that_are_no_floats():
    optimizer = adamas.jax.Adam(0.1)
    for leaf, name in ((jnp.arange(3), "int32"), (jnp.ones(2, bool), "bool")):
        with pytest.raises(TypeError, match=rf"params\['w'\] must be of one of .*, got {name}"):
            optimizer.init({"w": leaf})
    with pytest.raises(TypeError, match="got key"):
        optimizer.init({"w": jax.random.key(0)})
    with pytest.raises(TypeError, match="params must be an array"):
        optimizer.init("weights")


OPTIONS = {
    "beta1": ({"beta1": 1.0}, ValueError, "beta1"),
    "beta2": ({"beta2": 1}, TypeError, "beta2 must be a float"),
    "eps": ({"eps": 0.0}, ValueError, "eps"),
    "weight_decay": ({"weight_decay": -0.1}, ValueError, "weight_decay"),
    "nan": ({"weight_decay": float("nan")}, ValueError, "weight_decay"),
    "loss_scale": ({"loss_scale": 0.0}, ValueError, "loss_scale"),
    "use_amsgrad": ({"use_amsgrad": 1}, TypeError, "use_amsgrad must be a bool"),
    "grad_centralization": ({"grad_centralization": None}, TypeError, "grad_centralization"),
    "numerics": ({"numerics": "keras"}, ValueError, "numerics must be one of"),
    "state_dtype": ({"state_dtype": "int8"}, ValueError, "state_dtype must be one of"),
    "ema_decay": ({"ema_decay": 1.0}, ValueError, "ema_decay"),
    "seed": ({"seed": -1}, ValueError, "seed"),
    "num_threads": ({"num_threads": 0}, ValueError, "num_threads"),
    "max_grad_norm": ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm"),
}


@pytest.mark.parametrize("wrong", OPTIONS.values(), ids=OPTIONS)
def test_options_out_of_range(wrong):
    options, error, fragment = wrong
    for make in (adamas.jax.Adam, adamas.jax.adam, adamas.jax.adamw):
        with pytest.raises(error, match=fragment):
            make(0.1, **options)
    with pytest.raises(TypeError, match="b1"):
        adamas.jax.adamw(0.1, b1=0.9)
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        adamas.jax.adamw(0.1, decoupled_weight_decay=False)


def test_learning_rates_that_are_none():
    for wrong, error in ((-0.1, ValueError), ("fast", TypeError), (True, TypeError)):
        with pytest.raises(error, match="learning_rate"):
            adamas.jax.Adam(wrong)
    optimizer, params, grads, state = problem()
    for wrong in (-1.0, float("inf")):
        check_refused(
            lambda wrong=wrong: optimizer.update(params, grads, state, learning_rate=wrong),
            ValueError,
            "learning_rate must be a finite number >= 0",
        )
    for wrong in (jnp.ones(2), jnp.ones((), jnp.complex64)):
        check_refused(
            lambda wrong=wrong: optimizer.update(params, grads, state, learning_rate=wrong),
            TypeError,
            "learning_rate must be",
        )


def test_schedules_that_can_not_be_traced():
    schedule = adamas.CosineDecayLR(0.0, 0.1, 10)
    with pytest.raises(TypeError, match=r"function of a traced count.*CosineDecayLR"):
        adamas.jax.adamw(schedule)


def test_masks_that_do_not_fit():
    optimizer, params, grads, state = problem(weight_decay=0.1, mask={"layer": True})
    call = lambda: optimizer.update(params, grads, state)  # noqa: E731
    check_refused(call, ValueError, "mask must have the structure of params")
    optimizer, params, grads, state = problem(mask=lambda p: jax.tree.map(jnp.ndim, p))
    check_refused(lambda: optimizer.update(params, grads, state), TypeError, "mask must be a bool")


def test_state_beside_the_parameters_does_not_go_with_changes():
    for options in ({"master_weights": True}, {"ema_decay": 0.9}):
        with pytest.raises(ValueError, match=r"master_weights and ema_decay .*use Adam\.update"):
            adamas.jax.adam(0.1, **options)


def test_vmap():
    optimizer, params, grads, state = problem()
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (params, grads, state))
    for call in (optimizer.update, jax.jit(optimizer.update)):
        with pytest.raises(NotImplementedError, match=r"outside jax\.vmap.* stack the arrays"):
            jax.vmap(call)(*many)


def test_gradients_of_a_step():
    optimizer, params, grads, state = problem()

    def through(params):
        return optimizer.update(params, grads, state)[0]["out"].sum()

    with pytest.raises(NotImplementedError, match="can't be differentiated"):
        jax.grad(through)(params)


# What only the numbers tell

RUNNING = {
    "learning_rate": (jnp.nan, "a learning rate must be finite and >= 0"),
    "weight_decay": (-1.0, "a weight decay must be finite and >= 0"),
    "loss_scale": (0.0, "loss_scale must be in"),
}


@pytest.mark.parametrize("name", RUNNING)
def test_traced_numbers_out_of_range(name):
    value, message = RUNNING[name]
    optimizer, params, grads, state = problem()
    before = numbers((params, grads, state))

    @jax.jit
    def step(params, grads, state, value):
        return optimizer.update(params, grads, state, **{name: value})

    # The next one is as if that had not been; from the second call on JAX takes another way.
    for _ in range(3):
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"adamas: {message}"):
            jax.block_until_ready(step(params, grads, state, value))
        assert same((params, grads, state), before)
        found = step(params, grads, state, 1.0)
    fresh = jax.jit(lambda *args: optimizer.update(*args, **{name: jnp.float32(1)}))
    assert same(found, fresh(params, grads, state))


def test_counts_and_norms_out_of_range():
    optimizer, params, grads, state = problem(max_grad_norm=1.0)
    step = jax.jit(optimizer.update)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"the steps of a parameter must be in"):
        jax.block_until_ready(step(params, grads, state._replace(count=jnp.int32(-1))))
    bad = changed(grads, "b", jnp.array([1.0, jnp.nan, 0.0]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="adamas: a gradient holds a NaN"):
        jax.block_until_ready(step(params, bad, state))


def test_a_program_that_fails_loses_what_was_donated():
    """As any program of JAX does: docs/hosts/jax.md says so."""
    optimizer, params, grads, state = problem()
    step = jax.jit(
        lambda p, g, s, rate: optimizer.update(p, g, s, learning_rate=rate), donate_argnums=(0, 2)
    )
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.block_until_ready(step(params, grads, state, -1.0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(grads))


# The call beneath

native = adamas.jax.native


def foreign(change):
    """Make a call of one parameter by hand, after a change of its operands, results and options."""
    native._register()
    options = native.attributes(adamas.jax.Adam(0.1)._config("param"))
    options |= {"grad_centralization": False, "first": np.int64(0), "decays": np.ones(1, np.int32)}
    number = jnp.float32
    operands = [jnp.int32(0), *map(number, (0.1, 0, 1, 0.9, 0.999, 1e-8)), jnp.int32(0)]
    operands += [jnp.ones(3), jnp.ones(3), jnp.zeros(3), jnp.zeros(3)]
    results = [operands[0], operands[8], *operands[10:]]
    change(operands, results, options)
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in results]
    return jax.block_until_ready(jax.ffi.ffi_call(native._jax.TARGET, shapes)(*operands, **options))


def test_a_call_by_hand():
    found = foreign(lambda *_: None)
    assert int(found[0]) == 1
    np.testing.assert_allclose(found[1], 0.9, rtol=1e-6)


REMOVED = object()
CALLS = {
    "operand": ("operands", 11, REMOVED, "not as many arrays"),
    "result": ("results", 3, REMOVED, "not as many arrays"),
    "shape": ("operands", 10, jnp.zeros(4), "shape or the type"),
    "type": ("operands", 10, jnp.zeros(3, jnp.float16), "shape or the type"),
    "no float": ("operands", 8, jnp.ones(3, jnp.int32), "of a float type"),
    "gradient": ("operands", 9, jnp.ones(3, jnp.int8), "of a float type"),
    "rate": ("operands", 1, jnp.zeros(2), "must be one number"),
    "count": ("operands", 0, jnp.float32(0), "the number of steps"),
    "missing option": ("options", "maximize", REMOVED, "no option maximize"),
    "wrong option": ("options", "maximize", np.float64(1), "no option maximize"),
    "new option": ("options", "shine", True, "options that this version does not have"),
    "more state": ("options", "use_amsgrad", True, "not as many arrays"),
    "no parameters": ("options", "decays", np.zeros(0, np.int32), "not as many arrays"),
}


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_calls_by_hand_that_do_not_fit(case):
    where, key, value, message = case

    def change(operands, results, options):
        given = {"operands": operands, "results": results, "options": options}[where]
        if value is REMOVED:
            del given[key]
        else:
            given[key] = value

    with pytest.raises(jax.errors.JaxRuntimeError, match=f"adamas: .*{message}"):
        foreign(change)


# Import

NEWER = "import adamas._jax; adamas._jax.API_VERSION = (0, 99)"
IMPORTS = {
    "newer jax": ("pip install -U jax", NEWER),
    "jax": ('pip install "adamas[jax]"', "import sys; sys.modules['jax'] = None"),
    "_jax": ("ADAMAS_JAX=ON pip install", "import sys; sys.modules['adamas._jax'] = None"),
}


@pytest.mark.parametrize("missing", IMPORTS)
def test_importing_it_where_something_is_missing(missing):
    remedy, program = IMPORTS[missing]
    made = run_python("-c", f"{program}\nimport adamas.jax")
    assert made.returncode == 1
    assert "ImportError" in made.stderr
    assert remedy in made.stderr


def test_adamas_alone_does_not_import_it():
    program = "import sys, adamas; print([m for m in ('jax', 'adamas.jax') if m in sys.modules])"
    assert run_python("-c", program).stdout == "[]\n"
