"""float16 and bfloat16 parameters and gradients: arithmetic and moments in float32.

Conversions are compared with NumPy's and ml_dtypes', and with the oracle's definition of rounding;
a step with the float32 step between two conversions.
"""

import numpy as np
import pytest

import adamas
import oracle
from helpers import (
    ISAS,
    Arena,
    bits,
    check_same_states,
    half_values,
    parameters,
    row_tensor,
    states_of,
    values,
    widened,
)
from rules import (
    HALF_FORMATS,
    HALVES,
    MINDSPORE_RULES,
    NUMBERS,
    RULES,
    SCALED,
    THREADS,
    every,
    every_numerics,
    every_policy,
)

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

BFLOAT16 = ml_dtypes.bfloat16
TYPES = (np.float32, *HALVES)
SIZES = (*range(35), 63, 64, 65, 1009, 1023, 1024, 1025, 2049, 16381, 16411, 33003)

every_half = pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
every_isa = pytest.mark.parametrize("isa", ISAS)

HALF_RULES = {
    **RULES,
    "l2-scaled": {**RULES["adam-l2"], **SCALED},
    "amsgrad_nesterov-scaled": {**RULES["amsgrad_nesterov"], **SCALED},
    "mindspore-l2": MINDSPORE_RULES["mindspore-adam-l2"],
}
every_rule = every("options", HALF_RULES)


def adam(arrays, **options):
    return adamas.Adam(parameters(arrays), **{**NUMBERS, **options})


def every_half_value(half):
    return np.arange(2**16, dtype=np.uint16).view(half)


def narrowed(array, half):
    """Return float32 values rounded to nearest even, by NumPy or ml_dtypes."""
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(half)


# Conversions


@every_half
@every_isa
@pytest.mark.parametrize("offset", [0, 2, 6, 62])
def test_every_value_is_loaded_exactly(half, isa, offset, select_isa):
    select_isa(isa)
    (array,) = Arena([every_half_value(half)], offset).views
    optimizer = adam([array], master_weights=True)
    (master,) = optimizer.master_weights
    assert master.dtype == np.float32
    np.testing.assert_array_equal(bits(master), bits(widened(array)))


@every_half
@every_isa
def test_every_value_of_a_gradient_is_loaded_exactly(half, isa, select_isa):
    select_isa(isa)
    grad = every_half_value(half)
    optimizer = adam([np.zeros(grad.size, np.float32)], beta1=0.5)
    optimizer.moment1[0][...] = -0.0  # to which -0.0 and only -0.0 adds up to itself
    optimizer([grad])
    with np.errstate(invalid="ignore"):
        wanted = widened(grad) * np.float32(0.5)
    np.testing.assert_array_equal(bits(optimizer.moment1[0]), bits(wanted))


def values_to_round(half):
    """Return float32 values of every kind: both neighbours and the middle of every two values."""
    finite = widened(every_half_value(half))
    finite = np.unique(finite[np.isfinite(finite)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    beyond = finite[-1:] + (finite[-1:] - finite[-2:-1]) / 2  # a tie with what would come next
    exact = np.concatenate([finite, middles, beyond, -beyond])
    up, down = (np.nextafter(exact, np.float32(to)) for to in (np.inf, -np.inf))
    info = np.finfo(np.float32)
    special = [0.0, info.smallest_subnormal, info.smallest_normal, info.max, np.inf, np.nan]
    special = np.array(special, np.float32)
    rng = np.random.default_rng(41)
    patterns = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFC00000], np.uint32).view(np.float32)
    return np.concatenate([exact, up, down, special, -special, patterns, nans])


@every_half
@every_isa
def test_rounding_to_nearest_even(half, isa, select_isa):
    select_isa(isa)
    wide = values_to_round(half)
    stored = np.zeros(wide.size, half)
    optimizer = adam([stored], master_weights=True, learning_rate=0.0)
    (master,) = optimizer.master_weights
    master[...] = wide
    optimizer([np.zeros(wide.size, np.float32)])  # which moves nothing
    np.testing.assert_array_equal(bits(master), bits(wide))
    np.testing.assert_array_equal(bits(stored), bits(narrowed(wide, half)))
    numbers = ~np.isnan(wide)
    np.testing.assert_array_equal(
        widened(stored[numbers]), oracle.rounded(HALF_FORMATS[half], wide[numbers])
    )
    assert np.isnan(widened(stored[~numbers])).all()


@every_half
def test_the_master_of_a_subnormal_whatever_the_process_has_set(half):
    """Other packages make the processor flush subnormals, for the whole thread."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tiny = np.array([1, 2, 0x7F], np.uint16).view(half)
    wanted = widened(tiny).tobytes()
    if not torch.set_flush_denormal(True):
        pytest.skip("subnormals cannot be flushed here")
    try:
        optimizer = adam([tiny.copy()], master_weights=True)
    finally:
        torch.set_flush_denormal(False)
    assert optimizer.master_weights[0].tobytes() == wanted


# Steps


class Emulated:
    """The definition: float32 steps between a conversion and a rounding."""

    def __init__(self, make, arrays, half, *, master):
        self.half = half
        self.master = master
        self.stored = [array.copy() for array in arrays]
        self.wide = [widened(array) for array in arrays]
        self.optimizer = make(self.wide)

    def step(self, grads):
        if not self.master:
            for wide, stored in zip(self.wide, self.stored, strict=True):
                wide[...] = widened(stored)
        self.optimizer(grads)
        self.stored = [narrowed(wide, self.half) for wide in self.wide]


def check_like_emulated(optimizer, emulated, what):
    kinds = states_of(optimizer)
    wanted = {**states_of(emulated.optimizer), "param": emulated.stored}
    if emulated.master:
        wanted["master"] = emulated.wide
    assert kinds.keys() == wanted.keys()
    for kind, arrays in kinds.items():
        for mine, want in zip(arrays, wanted[kind], strict=True):
            assert mine.dtype == (emulated.half if kind == "param" else np.float32)
            np.testing.assert_array_equal(bits(mine), bits(want), err_msg=f"{kind}, {what}")


def check_steps(make, half, shapes, master, *, gradients=None, offset=0):
    """Several steps of 16-bit parameters have the bits of the definition."""
    rng = np.random.default_rng(42)
    initial = [half_values(rng, half, shape, finite=False) for shape in shapes]
    optimizer = make(Arena(initial, offset).views, master_weights=master)
    emulated = Emulated(make, initial, half, master=master)
    for step in range(4):
        if gradients is None:
            grads = [values(rng, np.float32, shape, "any") for shape in shapes]
        else:
            grads = gradients(rng, shapes)
        assert optimizer(grads) is True
        emulated.step(grads)
        check_like_emulated(optimizer, emulated, f"step {step}")


@every_rule
@every_half
@pytest.mark.parametrize("master", [False, True])
def test_a_step_is_the_float32_step_between_conversions(options, half, master):
    shapes = [(size,) for size in SIZES]

    def make(arrays, **more):
        return adam(arrays, **options, **more)

    check_steps(make, half, shapes, master)


@every_half
@every_numerics
def test_adam_weight_decay(half, numerics):
    def make(arrays, master_weights=False):
        assert not master_weights
        return adamas.AdamWeightDecay(
            parameters(arrays), **NUMBERS, weight_decay=0.037, numerics=numerics
        )

    check_steps(make, half, [(7,), (3, 1, 5), (1025,)], False)


@every_half
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.037])
def test_centralization(half, master, decay):
    def make(arrays, **more):
        group = {"params": parameters(arrays), "grad_centralization": True}
        return adamas.Adam([group], **NUMBERS, weight_decay=decay, **more)

    def gradients(rng, shapes):
        return [values(rng, half_or_float(rng), shape, "mild") for shape in shapes]

    def half_or_float(rng):
        return (np.float32, np.float16)[int(rng.integers(0, 2))]

    shapes = [(3, 2, 5), (4, 1, 1, 1), (2, 3, 1000), (3, 130, 131), (5, 7)]
    check_steps(make, half, shapes, master, gradients=gradients)


@every_half
@pytest.mark.parametrize("master", [False, True])
@every_policy
@pytest.mark.parametrize("values_dtype", TYPES, ids=lambda dtype: dtype.__name__)
def test_sparse_rows(half, master, policy, values_dtype):
    """Duplicates are summed in float32: the definition gets the values in float32 already."""
    rng = np.random.default_rng(43)
    shapes = ((9, 5), (40,), (3, 2, 1031))
    initial = [half_values(rng, half, shape, finite=False) for shape in shapes]
    options = {"row_policy": policy, "weight_decay": 0.037, "loss_scale": 3.0}

    def make(arrays, **more):
        return adam(arrays, **options, **more)

    optimizer = make([array.copy() for array in initial], master_weights=master)
    emulated = Emulated(make, initial, half, master=master)
    for step in range(4):
        sparse, wide = [], []
        for shape in shapes:
            grad = row_tensor(rng, shape, rng.integers(0, shape[0], 20), np.float32, "mild")
            entries = narrowed(grad.values, values_dtype)
            sparse.append(adamas.RowTensor(grad.indices, entries, shape))
            wide.append(adamas.RowTensor(grad.indices, widened(entries), shape))
        optimizer(sparse)
        emulated.step(wide)
        check_like_emulated(optimizer, emulated, f"step {step}")


@pytest.mark.parametrize("offset", range(0, 64, 2))
@every_half
def test_arrays_at_any_address(half, offset):
    def make(arrays, **more):
        return adam(arrays, weight_decay=0.037, **more)

    check_steps(make, half, [(1,), (33,), (5, 41), (1031,)], offset % 4 == 0, offset=offset)


@every_half
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (0,), (3, 0), (0, 3)])
def test_tiny_shapes(half, master, shape):
    param = np.ones(shape, half)
    optimizer = adam([param], learning_rate=0.5, master_weights=master, use_amsgrad=True)
    assert optimizer([np.ones(shape, half)]) is True
    assert (widened(param) == 0.5).all()
    for state in (optimizer.moment1[0], optimizer.moment2[0], optimizer.vhat[0]):
        assert state.shape == shape
        assert state.dtype == np.float32


@pytest.mark.parametrize("shape", [(131,), (3, 5), (), (2051,)])
@pytest.mark.parametrize("param", [*TYPES, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("grad", [*TYPES, np.float64], ids=lambda dtype: dtype.__name__)
def test_a_gradient_of_another_type_is_that_of_the_arithmetic(param, grad, shape):
    rng = np.random.default_rng(44)
    real = np.float64 if param is np.float64 else np.float32
    start = narrowed(rng.standard_normal(shape), param)
    optimizers = [adam([np.array(start)], weight_decay=0.037) for _ in range(2)]
    for _ in range(3):
        given = np.asarray(narrowed(rng.standard_normal(shape), grad))
        optimizers[0]([given])
        optimizers[1]([narrowed(given, real)])
    check_same_states(*optimizers)


@every_half
def test_all_bit_patterns_as_gradient_of_its_own_type(half):
    grad = every_half_value(half)
    optimizers = [adam([np.ones(grad.size, half)]) for _ in range(2)]
    optimizers[0]([grad])
    optimizers[1]([widened(grad)])
    check_same_states(*optimizers)


def test_types_stand_side_by_side():
    rng = np.random.default_rng(45)
    dtypes = (np.float64, np.float16, np.float32, BFLOAT16)

    def arrays(seed):
        rng = np.random.default_rng(seed)
        return [narrowed(rng.standard_normal(1031), dtype) for dtype in dtypes]

    together = adam(arrays(1), master_weights=True)
    alone = [adam([array], master_weights=True) for array in arrays(1)]
    for _ in range(3):
        grads = arrays(rng.integers(100))
        together(grads)
        for optimizer, grad in zip(alone, grads, strict=True):
            optimizer([grad])
    for i, optimizer in enumerate(alone):
        assert together.parameters[i].data.tobytes() == optimizer.parameters[0].data.tobytes()
        assert together.moment1[i].tobytes() == optimizer.moment1[0].tobytes()
        assert together.moment2[i].tobytes() == optimizer.moment2[0].tobytes()
    masters = together.master_weights
    assert [master is None for master in masters] == [True, False, True, False]


# What master weights are for, and what they cost


@every_half
def test_small_updates_add_up_in_master_weights(half):
    """Each update is a fraction of the parameter's last place."""
    moved = {}
    for master in (False, True):
        param = np.ones(5, half)
        optimizer = adam([param], learning_rate=1e-5, master_weights=master)
        for _ in range(2000):
            optimizer([np.ones(5, np.float32)])
        moved[master] = 1 - widened(param)
    assert (moved[False] == 0).all()
    np.testing.assert_allclose(moved[True], 0.02, rtol=0.1)


def test_master_weights_rule_over_the_parameter():
    param = np.ones(3, np.float16)
    optimizer = adam([param], learning_rate=0.0, master_weights=True)
    param[...] = 7
    optimizer([np.zeros(3, np.float32)])
    assert param.tolist() == [1.0, 1.0, 1.0]


def test_there_are_no_master_weights_unless_asked_for():
    assert adam([np.ones(3, np.float16), np.ones(2, np.float32)]).master_weights == [None, None]


@pytest.mark.parametrize(
    ("options", "per_element"),
    [({}, 8), ({"master_weights": True}, 12), ({"master_weights": True, "use_amsgrad": True}, 16)],
)
@every_half
def test_state_nbytes(half, options, per_element):
    assert adam([np.ones((7, 3), half)], **options).state_nbytes == 21 * per_element
    assert adam([np.ones((7, 3), np.float32)], **options).state_nbytes == 21 * (
        per_element - 4 * ("master_weights" in options)
    )


# The same bits everywhere


@every_rule
@every_half
@pytest.mark.parametrize("master", [False, True])
def test_bits_on_any_isa_with_any_threads(options, half, master, select_isa, identity):
    rng = np.random.default_rng(46)
    shapes = [(size,) for size in SIZES] + [(70_001,)]
    initial = [half_values(rng, half, shape, finite=False) for shape in shapes]
    grad_type = {False: half, True: np.float32}[master]
    grads = [narrowed(values(rng, np.float32, shape, "any"), grad_type) for shape in shapes]

    def run(threads, offset):
        arrays = Arena(initial, offset).views
        optimizer = adam(arrays, **options, master_weights=master, num_threads=threads)
        for _ in range(2):
            optimizer(Arena(grads, 2 * offset).views)
        return {k: [bits(a) for a in arrays] for k, arrays in states_of(optimizer).items()}

    select_isa("scalar")
    wanted = run(1, 0)
    for i, isa in enumerate(ISAS):
        for j, threads in enumerate(THREADS):
            select_isa(isa)
            got = run(threads, 2 * (5 * i + 3 * j))
            identity.compared += len(shapes)
            wrong = {
                shapes[k]
                for kind, arrays in wanted.items()
                for k, array in enumerate(arrays)
                if not np.array_equal(got[kind][k], array)
            }
            identity.mismatches += len(wrong)
            assert not wrong, f"{isa}, {threads} threads: other bits in {wrong}"


def test_torch_tensors_of_bfloat16():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    grad = torch.full((2, 3), 0.5, dtype=torch.bfloat16)
    optimizer = adamas.Adam([adamas.Parameter(weight)], learning_rate=0.5)
    optimizer((grad,))
    assert optimizer.parameters[0].data is weight
    assert (weight == 0.5).all()
