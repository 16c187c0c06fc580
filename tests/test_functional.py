"""Steps without an optimizer (adamas.functional): the bits of adamas.Adam, and its refusals."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import adamas
import rules
from adamas import functional
from helpers import ISAS, bits
from rules import NUMBERS, THREADS, every, every_dtype

SHAPES = [(), (1,), (7,), (129,), (3, 5), (2, 3, 16), (0, 4), (16411,)]
STEPS = 3
CALL = {name: value for name, value in NUMBERS.items() if name != "learning_rate"}
# Options that both have under the same names; AMSGrad is asked for by `vhat`.
VARIANTS = {
    **rules.combined({"": {}, "mindspore": {"numerics": "mindspore"}}, rules.RULES),
    "inside": {"epsilon_placement": "inside"},
    "maximize": {"maximize": True, "weight_decay": 0.037},
    "ema": {"ema_decay": 0.97},
}
TOGETHER = {  # what looks at all gradients
    "clip": {"max_grad_norm": 0.5},
    "clip_per_array": {"max_grad_norm": 0.3, "clip_per_array": True},
    "clip_after_decay": {"max_grad_norm": 0.5, "clip_after_decay": True, "weight_decay": 0.1},
    "skip": {"skip_nonfinite": True},
}


def real(dtype):
    return np.float64 if dtype is np.float64 else np.float32


class Arrays:
    """Parameters, gradients of each step, and state of the caller's."""

    def __init__(self, dtype, shapes=SHAPES, *, vhat=False, ema=False, master=False, odd=0):
        rng = np.random.default_rng(3)

        def array(values, kind):
            """Return the values in memory that begins `odd` items behind the start of a line."""
            memory = np.zeros(values.size + odd + 64, kind)
            view = memory[odd : odd + values.size].reshape(values.shape)
            view[...] = values
            return view

        start = [rng.standard_normal(shape) for shape in shapes]
        self.params = [array(one, dtype) for one in start]
        self.grads = [
            [rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(STEPS)
        ]
        zeros = lambda: [array(np.zeros(shape), real(dtype)) for shape in shapes]  # noqa: E731
        self.moment1, self.moment2 = zeros(), zeros()
        self.vhat = zeros() if vhat else None
        self.ema = [array(param, real(dtype)) for param in self.params] if ema else None
        self.master = [array(param, np.float32) for param in self.params] if master else None
        self.steps = [0] * len(shapes)

    def kept(self):
        lists = (self.params, self.moment1, self.moment2, self.vhat, self.ema, self.master)
        return [bits(array).tobytes() for arrays in lists if arrays for array in arrays]

    def step(self, grads, **options):
        """All parameters at once."""
        options = without_amsgrad(options)
        if self.ema:
            options["ema"] = self.ema
        if self.master:
            options["master"] = self.master
        return functional.adam(
            self.params, grads, self.moment1, self.moment2, self.vhat, steps=self.steps, **options
        )

    def step_each(self, grads, **options):
        """One call for each parameter."""
        options = without_amsgrad(options)
        for i in range(len(self.params)):
            steps = [self.steps[i]]
            for name in ("ema", "master"):
                if getattr(self, name):
                    options[name] = getattr(self, name)[i : i + 1]
            functional.adam(
                self.params[i : i + 1],
                grads[i : i + 1],
                self.moment1[i : i + 1],
                self.moment2[i : i + 1],
                self.vhat and self.vhat[i : i + 1],
                steps=steps,
                **options,
            )
            self.steps[i] = steps[0]


def without_amsgrad(options):
    given = {"learning_rate": NUMBERS["learning_rate"], **CALL, **options}
    return {key: value for key, value in given.items() if key != "use_amsgrad"}


def like(variant, dtype, **more):
    return Arrays(dtype, vhat=variant.get("use_amsgrad", False), ema="ema_decay" in variant, **more)


def make_adam(arrays, *, adopted, **options):
    params = [
        adamas.Parameter(
            param,
            f"weight{i}",
            **(
                {
                    kind: getattr(arrays, kind)[i]
                    for kind in ("moment1", "moment2", "vhat", "master")
                    if getattr(arrays, kind)
                }
                if adopted
                else {}
            ),
        )
        for i, param in enumerate(arrays.params)
    ]
    return adamas.Adam(params, **{**NUMBERS, **options})


def state_of(optimizer):
    lists = (
        [np.asarray(param) for param in optimizer.parameters],
        optimizer.moment1,
        optimizer.moment2,
        optimizer.vhat,
        optimizer.ema,
        [master for master in optimizer.master_weights if master is not None],
    )
    return [bits(array).tobytes() for arrays in lists for array in arrays]


@every_dtype
@every("variant", VARIANTS)
def test_each_and_all_and_an_optimizer_give_the_same_bits(variant, dtype, select_isa, identity):
    for isa, threads in itertools.product(ISAS, THREADS):
        select_isa(isa)
        options = {**variant, "num_threads": threads}
        together, apart = like(variant, dtype), like(variant, dtype, odd=1)
        owned, adopted = like(variant, dtype), like(variant, dtype, odd=3)
        optimizers = [
            make_adam(owned, adopted=False, **options),
            make_adam(adopted, adopted=True, **options),
        ]
        for grads in together.grads:
            assert together.step(grads, **options) is True
            apart.step_each(grads, **options)
            for optimizer in optimizers:
                optimizer(grads)
        wanted = together.kept()
        assert len(set(wanted)) > len(SHAPES)
        for found in (apart.kept(), *map(state_of, optimizers)):
            identity.compared += 1
            identity.mismatches += found != wanted
            assert found == wanted, (isa, threads)
        assert together.steps == apart.steps == [STEPS] * len(SHAPES)
        # What was given is what is used.
        assert adopted.kept()[: 3 * len(SHAPES)] == wanted[: 3 * len(SHAPES)]


@every("dtype", rules.HALVES)
@every("threads", THREADS)
def test_low_precision_copies_of_float32_weights(dtype, threads, identity):
    arrays, owned = Arrays(dtype, master=True), Arrays(dtype, master=True)
    optimizer = make_adam(owned, adopted=True, master_weights=True, num_threads=threads)
    for grads in arrays.grads:
        arrays.step(grads, num_threads=threads)
        optimizer(grads)
    identity.compared += 1
    identity.mismatches += arrays.kept() != owned.kept()
    assert arrays.kept() == owned.kept()
    for param, master in zip(arrays.params, arrays.master, strict=True):
        np.testing.assert_array_equal(bits(param), bits(master.astype(dtype)))


def test_masters_of_the_callers_rule_from_the_start():
    arrays = Arrays(ml_dtypes.bfloat16, [(5,)], master=True)
    arrays.master[0][...] = np.arange(5) + 0.001  # which the parameter is not
    optimizer = make_adam(arrays, adopted=True, master_weights=True)
    optimizer([np.zeros(5, np.float32)])
    np.testing.assert_array_equal(arrays.master[0], (np.arange(5) + 0.001).astype(np.float32))
    np.testing.assert_array_equal(arrays.params[0], arrays.master[0].astype(ml_dtypes.bfloat16))


@every("options", TOGETHER)
@every("dtype", rules.REALS)
def test_what_looks_at_all_gradients(options, dtype, identity):
    arrays, owned = Arrays(dtype), Arrays(dtype)
    optimizer = make_adam(owned, adopted=False, **options)
    for grads in arrays.grads:
        arrays.step(grads, **options)
        optimizer(grads)
    identity.compared += 1
    identity.mismatches += arrays.kept() != state_of(optimizer)
    assert arrays.kept() == state_of(optimizer)


def test_a_skipped_step_says_so_and_counts_nothing():
    arrays = Arrays(np.float32, [(3,), (2,)])
    before = arrays.kept()
    grads = [np.ones(3, np.float32), np.array([1, np.nan], np.float32)]
    assert arrays.step(grads, skip_nonfinite=True) is False
    assert arrays.kept() == before
    assert arrays.steps == [0, 0]


@every_dtype
def test_absent_gradients_and_steps_of_their_own(dtype):
    arrays, alone = Arrays(dtype, [(5,), (6,), (7,)]), Arrays(dtype, [(5,), (6,), (7,)])
    for k, grads in enumerate(arrays.grads):
        present = [grad if (i + k) % 3 else None for i, grad in enumerate(grads)]
        arrays.step(present)
        for i, grad in enumerate(present):
            if grad is None:
                continue
            steps = [alone.steps[i]]
            functional.adam(
                alone.params[i : i + 1],
                [grad],
                alone.moment1[i : i + 1],
                alone.moment2[i : i + 1],
                steps=steps,
                learning_rate=0.013,
                **CALL,
            )
            alone.steps[i] = steps[0]
    assert arrays.steps == alone.steps == [2, 2, 2]
    assert arrays.kept() == alone.kept()


def test_steps_in_an_array():
    arrays = Arrays(np.float32, [(3,), (2,)])
    arrays.steps = np.array([7, 0])
    arrays.step(arrays.grads[0])
    assert arrays.steps.tolist() == [8, 1]


@every_dtype
@every("variant", VARIANTS)
def test_changes_instead_of_new_values(variant, dtype):
    if "ema_decay" in variant:
        return  # refused: test_what_does_not_go_together
    arrays, changed = like(variant, dtype), like(variant, dtype)
    before = [param.copy() for param in arrays.params]
    options = without_amsgrad(variant)
    deltas = functional.adam(
        arrays.params,
        arrays.grads[0],
        arrays.moment1,
        arrays.moment2,
        arrays.vhat,
        steps=arrays.steps,
        out="delta",
        **options,
    )
    changed.step(arrays.grads[0], **variant)
    for param, old, delta, new in zip(arrays.params, before, deltas, changed.params, strict=True):
        np.testing.assert_array_equal(bits(param), bits(old))
        assert delta.dtype == param.dtype
        assert delta.shape == param.shape
        # Rounded elsewhere: within two units in the last place of the largest.
        wide = np.longdouble if dtype is np.float64 else np.float64
        largest = np.maximum(np.maximum(np.abs(old), np.abs(new)), np.abs(delta))
        error = np.abs(old.astype(wide) + delta.astype(wide) - new.astype(wide))
        assert (error <= 2 * np.spacing(largest).astype(wide)).all()
    assert arrays.kept()[len(SHAPES) :] == changed.kept()[len(SHAPES) :]


@every_dtype
@every("variant", VARIANTS)
def test_changes_over_gradients(variant, dtype):
    if "ema_decay" in variant:
        return
    apart, over = like(variant, dtype), like(variant, dtype)
    options = {**without_amsgrad(variant), "out": "delta", "grad_centralization": True}
    both = []
    for arrays, grads in ((apart, None), (over, over.grads[0])):
        states = (arrays.moment1, arrays.moment2, arrays.vhat)
        call = {"steps": arrays.steps, "delta": grads, **options}
        both.append(functional.adam(arrays.params, arrays.grads[0], *states, **call))
    assert [bits(a).tobytes() for a in both[0]] == [bits(a).tobytes() for a in both[1]]
    assert both[1][0] is over.grads[0][0]
    assert apart.kept() == over.kept()


def test_what_is_only_read_may_be_read_twice():
    weight, zeros = np.arange(1, 5, dtype=np.float32), lambda: np.zeros(4, np.float32)

    def changes(params, grads):
        states = [zeros(), zeros()], [zeros(), zeros()]
        return functional.adam(params, grads, *states, steps=[0, 0], out="delta", weight_decay=0.1)

    shared = changes([weight, weight], [weight, weight])
    apart = changes([weight, weight.copy()], [weight.copy(), weight.copy()])
    assert [a.tobytes() for a in shared] == [a.tobytes() for a in apart]


def test_changes_over_what_is_read_otherwise_are_refused():
    arrays = Arrays(np.float32, [(5,), (5,)])
    weight, grads = arrays.params, arrays.grads[0]
    states = (arrays.moment1, arrays.moment2)
    before = arrays.kept(), [grad.tobytes() for grad in grads]
    for delta, given in (
        ([weight[1], np.zeros(5, np.float32)], grads),  # of another parameter
        ([weight[0], np.zeros(5, np.float32)], grads),  # its own
        ([grads[1], np.zeros(5, np.float32)], grads),  # another's gradient
        ([grads[0], grads[0]], [grads[0], grads[0]]),
        ([arrays.moment1[0], np.zeros(5, np.float32)], grads),
    ):
        with pytest.raises(ValueError, match="shares memory"):
            functional.adam(weight, given, *states, steps=[0, 0], out="delta", delta=delta)
    memory = np.zeros(5, np.float32)
    half = memory.view(np.float16)[:5]  # of another type
    one = [arrays.moment1[0]], [arrays.moment2[0]]
    with pytest.raises(ValueError, match="shares memory"):
        functional.adam(weight[:1], [half], *one, steps=[0], out="delta", delta=[memory])
    assert (arrays.kept(), [grad.tobytes() for grad in grads]) == before


def test_changes_of_what_has_no_gradient_are_zero():
    arrays = Arrays(np.float32, [(3,), (2,)])
    given = [np.full(3, 9, np.float32), np.full(2, 9, np.float32)]
    deltas = functional.adam(
        arrays.params,
        [arrays.grads[0][0], None],
        arrays.moment1,
        arrays.moment2,
        steps=arrays.steps,
        out="delta",
        delta=given,
    )
    assert [delta is one for delta, one in zip(deltas, given, strict=True)] == [True, True]
    assert deltas[0].all()
    assert not deltas[1].any()


def test_changes_of_rows_that_are_not_listed_are_zero():
    arrays = Arrays(np.float32, [(5, 2)])
    grad = adamas.RowTensor(np.array([3]), np.ones((1, 2), np.float32), (5, 2))
    given = [np.full((5, 2), 9, np.float32)]
    states = (arrays.moment1, arrays.moment2)
    options = {"steps": arrays.steps, "row_policy": "lazy", "out": "delta", "delta": given}
    bad = adamas.RowTensor(np.array([5]), np.ones((1, 2), np.float32), (5, 2))
    with pytest.raises(IndexError):
        functional.adam(arrays.params, [bad], *states, **options)
    assert (given[0] == 9).all()
    functional.adam(arrays.params, [grad], *states, **options)
    assert given[0].any(axis=1).tolist() == [False, False, False, True, False]


def test_arrays_by_name():
    listed, named = Arrays(np.float32, [(3,), (2,)]), Arrays(np.float32, [(3,), (2,)])
    names = ("weight", "bias")

    def by_name(arrays):
        return dict(zip(names, arrays, strict=True))

    steps = {"weight": 0, "bias": 4}
    functional.adam(
        by_name(named.params),
        {"weight": named.grads[0][0]},
        by_name(named.moment1),
        by_name(named.moment2),
        steps=steps,
        learning_rate=0.013,
        **CALL,
    )
    listed.step([listed.grads[0][0], None])
    assert steps == {"weight": 1, "bias": 4}
    assert named.kept() == listed.kept()


def test_arrays_by_name_in_dicts_of_dicts():
    listed, nested = Arrays(np.float32, [(3,), (2,)]), Arrays(np.float32, [(3,), (2,)])

    def tree(arrays):
        return {"conv": {"weight": arrays[0]}, "bias": arrays[1]}

    steps = tree([4, 0])
    options = {"learning_rate": 0.013, **CALL}
    state = (tree(nested.moment1), tree(nested.moment2))
    functional.adam(tree(nested.params), tree(nested.grads[0]), *state, steps=steps, **options)
    listed.steps = [4, 0]
    listed.step(listed.grads[0])
    assert steps == tree([5, 1])
    assert nested.kept() == listed.kept()
    changes = functional.adam(
        tree(nested.params), tree([None, None]), *state, steps=steps, out="delta"
    )
    assert changes["conv"]["weight"].shape == (3,)
    assert not changes["bias"].any()


def test_sparse_rows_and_arrays_of_any_kind():
    dense, sparse = Arrays(np.float32, [(9, 4)]), Arrays(np.float32, [(9, 4)])
    rows = np.array([7, 2, 7])
    values = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    whole = np.zeros((9, 4), np.float32)
    np.add.at(whole, rows, values)
    dense.step([whole.astype(np.float64)[::-1][::-1]])  # another type
    sparse.step([adamas.RowTensor(rows, values, (9, 4))])
    assert dense.kept() == sparse.kept()


STRIDED = {
    "Fortran": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "not aligned": lambda a: (
        np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    ),
}


@every_dtype
@pytest.mark.parametrize("lay_out", STRIDED.values(), ids=STRIDED)
def test_gradients_with_other_strides(lay_out, dtype):
    plain, strided = Arrays(dtype, [(6, 5)]), Arrays(dtype, [(6, 5)])
    for grads in plain.grads:
        plain.step(grads)
        strided.step([lay_out(grads[0])])
    assert plain.kept() == strided.kept()


def test_arrays_in_another_order():
    plain, other = Arrays(np.float32, [(6, 5)]), Arrays(np.float32, [(6, 5)])
    for name in ("params", "moment1", "moment2"):
        setattr(other, name, [np.asfortranarray(array) for array in getattr(other, name)])
    grad = plain.grads[0][0]
    plain.step([grad])
    other.step([grad])
    for name in ("params", "moment1", "moment2"):
        for one, two in zip(getattr(plain, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(one, two)


def test_bfloat16_moments_go_by_keys():
    def moments(**options):
        arrays = Arrays(np.float32, [(1000,), (1000,)])
        arrays.grads[0][1][...] = arrays.grads[0][0]
        for name in ("moment1", "moment2"):
            setattr(arrays, name, [np.zeros(1000, ml_dtypes.bfloat16) for _ in range(2)])
        arrays.step(arrays.grads[0], state_dtype="bfloat16", **options)
        return [bits(array).tobytes() for array in arrays.moment1]

    positions = moments()
    assert positions[0] != positions[1]
    assert positions == moments(keys=[0, 1])
    assert positions == moments(keys=[1, 0])[::-1]
    assert len(set(moments(keys=[5, 5]))) == 1
    assert moments(seed=1) != positions


# Refusals

BAD = {
    "fewer gradients": (lambda a: a.grads[0].pop(), ValueError, "grads must hold one"),
    "fewer moments": (lambda a: a.moment2.pop(), ValueError, "moment2 must hold one"),
    "fewer steps": (lambda a: a.steps.pop(), ValueError, "steps must hold one"),
    "shape of a gradient": (
        lambda a: a.grads[0].__setitem__(1, np.zeros(3, np.float32)),
        ValueError,
        "grads[1] must have shape (2,)",
    ),
    "shape of a moment": (
        lambda a: a.moment1.__setitem__(1, np.zeros(3, np.float32)),
        ValueError,
        "moment1[1] must have the shape of its parameter",
    ),
    "type of a moment": (
        lambda a: a.moment2.__setitem__(0, np.zeros(3)),
        TypeError,
        "moment2[0] must be of type float32, got float64",
    ),
    "type of a gradient": (
        lambda a: a.grads[0].__setitem__(0, np.zeros(3, np.int32)),
        TypeError,
        "grads[0] must be of a float type, got int32",
    ),
    "read-only": (
        lambda a: a.params[0].setflags(write=False),
        ValueError,
        "params[0] must be writable",
    ),
    "read-only state": (
        lambda a: a.moment1[0].setflags(write=False),
        ValueError,
        "moment1[0] must be writable",
    ),
    "strided": (
        lambda a: a.params.__setitem__(0, np.zeros(6, np.float32)[::2]),
        ValueError,
        "params[0] must be aligned, and its elements lie without gaps",
    ),
    "the same array twice": (
        lambda a: a.moment2.__setitem__(0, a.moment1[0]),
        ValueError,
        "shares memory",
    ),
    "a gradient that is a parameter": (
        lambda a: a.grads[0].__setitem__(0, a.params[0]),
        ValueError,
        "shares memory with a parameter or the state",
    ),
    "negative steps": (
        lambda a: a.steps.__setitem__(1, -1),
        ValueError,
        "[0, 2^62] (position 1): params[1]",
    ),
    "too many steps": (lambda a: a.steps.__setitem__(1, 2**62 + 1), ValueError, "[0, 2^62]"),
    "steps of another type": (lambda a: a.steps.__setitem__(1, 1.0), TypeError, "steps[1] must be"),
    "no list": (lambda a: setattr(a, "moment1", 3), TypeError, "moment1 must be a tuple or list"),
    "no array": (lambda a: a.params.__setitem__(0, "x"), TypeError, "params[0] must be a NumPy"),
}


@pytest.mark.parametrize(("spoil", "error", "text"), BAD.values(), ids=BAD)
def test_bad_arrays(spoil, error, text):
    arrays = Arrays(np.float32, [(3,), (2,)])
    grads = arrays.grads[0]
    lists = [list(arrays.params), list(arrays.moment1), list(arrays.moment2)]
    before = [bits(array).tobytes() for one in lists for array in one]
    spoil(arrays)
    steps = list(arrays.steps)
    with pytest.raises(error) as caught:
        arrays.step(grads)
    assert text in str(caught.value)
    assert [bits(array).tobytes() for one in lists for array in one] == before
    assert arrays.steps == steps


WRONG_OPTIONS = {
    "beta1": (1.0, ValueError),
    "beta2": (0.0, ValueError),
    "eps": (0.0, ValueError),
    "learning_rate": (-1.0, ValueError),
    "weight_decay": (float("nan"), ValueError),
    "loss_scale": (0.0, ValueError),
    "use_nesterov": (1.5, TypeError),
    "numerics": ("torch", ValueError),
    "epsilon_placement": ("beside", ValueError),
    "row_policy": ("catch_up", ValueError),
    "max_grad_norm": (-1, ValueError),
    "state_dtype": ("int8", ValueError),
    "ema_decay": (0.9, ValueError),
    "seed": (-1, ValueError),
    "num_threads": (0, ValueError),
    "out": ("sum", ValueError),
    "grad_centralization": ("yes", TypeError),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_bad_options(name):
    arrays = Arrays(np.float32, [(3,)])
    before = arrays.kept()
    value, error = WRONG_OPTIONS[name]
    with pytest.raises(error, match=name):
        arrays.step(arrays.grads[0], **{name: value})
    assert arrays.kept() == before
    assert arrays.steps == [0]


def test_what_does_not_go_together():
    arrays = Arrays(np.float32, [(3,)], ema=True)
    with pytest.raises(ValueError, match="ema"):
        arrays.step(arrays.grads[0])
    with pytest.raises(ValueError, match="writes_delta"):
        arrays.step(arrays.grads[0], ema_decay=0.9, out="delta")
    with pytest.raises(ValueError, match="delta must be None"):
        arrays.step(arrays.grads[0], ema_decay=0.9, delta=arrays.moment1)


def test_names_that_do_not_fit():
    one = {"weight": np.zeros(3, np.float32)}
    state = {"moment1": {"weight": np.zeros(3, np.float32)}, "moment2": {}}
    with pytest.raises(KeyError, match="moment2 must have 'weight'"):
        functional.adam(one, one, **state, steps={"weight": 0})
    with pytest.raises(KeyError, match="bias"):
        functional.adam(one, {"bias": None}, **state, steps={"weight": 0})


def test_calls_again_see_what_has_changed():
    """The callable remembers the options of the last call, and nothing of its arrays."""
    for beta1 in (0.9, 0.5, 0.9):
        arrays = Arrays(np.float32, [(3,)])
        arrays.step(arrays.grads[0], beta1=beta1)
        np.testing.assert_allclose(arrays.moment1[0], (1 - beta1) * arrays.grads[0][0], rtol=1e-6)
    vhat = [np.zeros(3, np.float32)]
    for state in (None, vhat, None):
        arrays = Arrays(np.float32, [(3,)])
        arrays.vhat = state
        arrays.step(arrays.grads[0])
    assert vhat[0].all()
