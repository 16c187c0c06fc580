"""Moments in 16 and 8 bits: the stored bits against their definition, and what is refused.

The definition (rules/low_precision.hpp) stands here in NumPy: the random bits, the
rounding to bfloat16, and the 8-bit floats with a scale per block. A step is emulated by an
optimizer with float32 moments between decoding and encoding.
"""

import hashlib

import numpy as np
import pytest

import adamas
from adamas import _core
from helpers import check_refused
from rules import every_state_dtype

MASK64 = 2**64 - 1
SHAPES = [(300,), (7, 64), (5, 150), (3, 20), (2, 16384), (1, 40000), (4, 3, 32), (1,)]


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def random_bits(seed, step, parameter, count):
    key = np.uint32(mix(mix(seed ^ mix(step)) ^ mix(parameter)) >> 32)
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + key
    x ^= x >> 15
    x *= np.uint32(0x2C1B3C6D)
    return x ^ (x >> 16)


def encode_bfloat16(values, noise):
    return ((values.view(np.uint32) + noise) >> 16).astype(np.uint16)


def decode_bfloat16(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32)


# Formats that round each element by itself: how, with 16 random bits, and back.
ELEMENT_FORMATS = {"bfloat16": (encode_bfloat16, decode_bfloat16)}


def scale_of(block):
    largest = int(np.abs(block).view(np.uint32).max())
    return min(max((largest >> 23) + ((largest & 0x7FFFFF) > 0x600000), 33), 255)


def offset_of(scale, signed):
    """The offset c of the codes of a block."""
    return np.ldexp(1.0, scale - 127 - (15 if signed else 31))


def encode_int8(values, scale, random20, signed):
    offset = offset_of(scale, signed)
    # Twice the power of two that makes the offset 2: float32 sums with a bound to 24 bits.
    shifted = (np.abs(values) / offset * 2 + 2).astype(np.float32)
    codes = (shifted.view(np.uint32) - np.float32(2).view(np.uint32) + random20) >> 20
    if not signed:
        codes = np.maximum(codes, values > 0)
    sign = (np.signbit(values) * 0x80).astype(np.uint32) if signed else np.uint32(0)
    return (codes | sign).astype(np.uint8)


def decode_int8(codes, scale, signed):
    code = (codes & 0x7F if signed else codes).astype(np.uint32)
    shifted = (code << 20) + np.float32(2).view(np.uint32)
    values = (shifted.view(np.float32).astype(np.float64) - 2) / 2 * offset_of(scale, signed)
    values = values.astype(np.float32)
    return np.where(codes & 0x80, -values, values) if signed else values


def block_length(shape):
    row = int(np.prod(shape[1:]))
    if 16 <= row < 64:
        return row
    return next((b for b in range(256, 63, -1) if row % b == 0), 256)


class Emulated:
    """An optimizer with float32 moments that go through the stored format in every step."""

    def __init__(self, param, state_dtype, seed, **options):
        self.param, self.state_dtype, self.seed = param, state_dtype, seed
        self.optimizer = adamas.Adam([adamas.Parameter(param)], **options)

    def __call__(self, grad):
        self.optimizer((grad,))
        step = self.optimizer.global_step
        random = random_bits(self.seed, step, 0, self.param.size)
        moments = [m[0] for m in (self.optimizer.moment1, self.optimizer.moment2)]
        flat = [m.reshape(-1) for m in moments]
        if self.state_dtype != "int8":
            encode, decode = ELEMENT_FORMATS[self.state_dtype]
            for values, noise in zip(flat, (random >> 16, random & 0xFFFF), strict=True):
                values[:] = decode(encode(values, noise))
            return
        length = block_length(self.param.shape)
        for begin in range(0, self.param.size, length):
            part = slice(begin, begin + length)
            noise = random[part]
            for values, signed, bits in (
                (flat[0], True, noise >> 12),
                (flat[1], False, noise & 0xFFFFF),
            ):
                scale = scale_of(values[part])
                codes = encode_int8(values[part], scale, bits, signed)
                values[part] = decode_int8(codes, scale, signed)


def gradients(shape, steps, seed=1):
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.integers(-30, 10, shape)).astype(np.float32)
    spread[rng.random(shape) < 0.05] = 0
    return [rng.standard_normal(shape).astype(np.float32) * spread for _ in range(steps)]


@every_state_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_have_the_bits_of_the_definition(shape, state_dtype):
    start = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    options = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
    param, emulated_param = start.copy(), start.copy()
    emulated = Emulated(emulated_param, state_dtype, 5, **options)
    optimizer = adamas.Adam(
        [adamas.Parameter(param, key=0)], state_dtype=state_dtype, seed=5, **options
    )
    for grad in gradients(shape, 6):
        optimizer((grad,))
        emulated(grad)
        assert param.tobytes() == emulated_param.tobytes()
        for kind in ("moment1", "moment2"):
            got = getattr(optimizer, kind)[0]
            wanted = getattr(emulated.optimizer, kind)[0]
            np.testing.assert_array_equal(got, wanted)


def stored_bits(optimizer, state_dtype):
    kinds = [_core.StateKind.moment1, _core.StateKind.moment2]
    if state_dtype == "int8":
        kinds += [_core.StateKind.scale1, _core.StateKind.scale2]
    native = optimizer._native
    count = range(len(optimizer.parameters))
    return [native.stored(kind, i).tobytes() for kind in kinds for i in count]


@pytest.mark.parametrize("policy", ["dense", "exact", "lazy"])
@every_state_dtype
def test_the_same_bits_on_all_instruction_sets_and_threads(
    state_dtype, policy, select_isa, identity
):
    shapes = [(700, 64), (90, 300), (33, 17)]

    def run(isa, threads):
        select_isa(isa)
        params = [g.copy() for shape in shapes for g in gradients(shape, 1, seed=3)]
        optimizer = adamas.Adam(
            [adamas.Parameter(p) for p in params],
            learning_rate=0.01,
            state_dtype=state_dtype,
            use_lazy=policy == "lazy",
            num_threads=threads,
        )
        rng = np.random.default_rng(2)
        for step in range(3):
            grads = []
            for shape in shapes:
                (dense,) = gradients(shape, 1, seed=step)
                rows = rng.integers(0, shape[0], shape[0] // 2)
                sparse = adamas.RowTensor(rows, dense[: len(rows)], shape)
                grads.append(dense if policy == "dense" else sparse)
            optimizer(grads)
        return [p.tobytes() for p in params] + stored_bits(optimizer, state_dtype)

    reference = run("scalar", 1)
    for isa in _core.isas_supported():
        for threads in (1, 2, 3, 7):
            same = run(isa, threads) == reference
            identity.compared += len(shapes)
            identity.mismatches += not same
            assert same, (isa, threads)


@every_state_dtype
def test_rounding_keeps_the_mean(state_dtype):
    """What one step stores of a constant moment is right on average, well beyond its precision."""
    count = 200_000
    optimizer = adamas.Adam(
        [adamas.Parameter(np.zeros((count // 100, 100), np.float32))],
        beta1=0.9,
        beta2=0.999,
        state_dtype=state_dtype,
    )
    optimizer((np.full((count // 100, 100), 0.7654321, np.float32),))
    for moment, exact in (
        (optimizer.moment1[0], 0.1 * 0.7654321),
        (optimizer.moment2[0], 0.001 * 0.7654321**2),
    ):
        assert len(np.unique(moment)) == 2
        np.testing.assert_allclose(moment.mean(dtype=np.float64), exact, rtol=5e-4)


def test_the_seed_decides_the_bits():
    def run(seed):
        param = np.ones((10, 100), np.float32)
        optimizer = adamas.Adam([adamas.Parameter(param)], state_dtype="bfloat16", seed=seed)
        for grad in gradients(param.shape, 3):
            optimizer((grad,))
        return stored_bits(optimizer, "bfloat16")

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_second_moment_is_never_rounded_to_zero():
    param = np.zeros((1, 128), np.float32)
    grad = np.full((1, 128), 1e-12, np.float32)
    grad[0, 0] = 1.0
    optimizer = adamas.Adam([adamas.Parameter(param)], state_dtype="int8", learning_rate=0.1)
    for _ in range(20):
        optimizer((grad,))
    assert (optimizer.moment2[0] > 0).all()
    assert np.abs(param).max() < 20 * 0.11


@pytest.mark.parametrize(
    ("state_dtype", "nbytes"),
    [(None, 8 * 12800), ("float32", 8 * 12800), ("bfloat16", 4 * 12800), ("int8", 2 * 12900)],
)
def test_state_nbytes(state_dtype, nbytes):
    params = [adamas.Parameter(np.zeros((100, 128), np.float32))]
    assert adamas.Adam(params, state_dtype=state_dtype).state_nbytes == nbytes


def test_moments_are_copies_that_cannot_be_written():
    optimizer = adamas.Adam([adamas.Parameter(np.ones(3, np.float32))], state_dtype="bfloat16")
    assert optimizer.moment1[0].dtype == np.float32
    assert not optimizer.moment1[0].flags.writeable


def test_a_nan_stays_in_its_block():
    param = np.zeros((2, 64), np.float32)
    grad = np.ones((2, 64), np.float32)
    grad[1, 5] = np.nan
    optimizer = adamas.Adam([adamas.Parameter(param)], state_dtype="int8")
    optimizer((grad,))
    assert np.isfinite(optimizer.moment1[0][0]).all()
    assert np.isnan(optimizer.moment1[0][1]).all()


def test_what_is_too_large_for_a_scale_becomes_nan():
    optimizer = adamas.Adam(
        [adamas.Parameter(np.zeros((2, 64), np.float32))], state_dtype="int8", beta1=0.01
    )
    grad = np.ones((2, 64), np.float32)
    grad[0, 3] = 3.2e38  # moment1 becomes 3.17e38, above 1.75 * 2^127 = 2.98e38
    optimizer((grad,))
    assert np.isnan(optimizer.moment1[0][0]).all()
    assert np.isfinite(optimizer.moment1[0][1]).all()
    codes, scales = (
        optimizer._native.stored(kind, 0)
        for kind in (_core.StateKind.moment1, _core.StateKind.scale1)
    )
    assert scales[0] == 255
    assert not codes[:64].any()
    assert codes[64:].all()


@pytest.mark.parametrize(
    ("options", "error", "fragment"),
    [
        ({"state_dtype": "bflaot16"}, ValueError, "state_dtype"),
        ({"state_dtype": np.float32}, TypeError, "state_dtype"),
        ({"state_dtype": "int8", "row_policy": "catch_up"}, ValueError, "catch_up"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
    ],
)
def test_refused_options(options, error, fragment):
    with pytest.raises(error, match=fragment):
        adamas.Adam([adamas.Parameter(np.ones(3, np.float32))], **options)


def test_float64_keeps_its_moments():
    with pytest.raises(ValueError, match="float64"):
        adamas.Adam([adamas.Parameter(np.ones(3))], state_dtype="bfloat16")


def test_rows_that_share_scales_are_refused():
    param = np.ones((4, 257), np.float32)  # 257 is prime
    optimizer = adamas.Adam([adamas.Parameter(param)], state_dtype="int8")
    rows = adamas.RowTensor(np.array([1]), np.ones((1, 257), np.float32), param.shape)
    check_refused(optimizer, lambda: optimizer((rows,)), ValueError, "blocks")
    conv = adamas.Parameter(np.ones((2, 257, 1), np.float32))
    groups = [{"params": [conv], "grad_centralization": True}]
    with pytest.raises(ValueError, match="centralized"):
        adamas.Adam(groups, state_dtype="int8")


# Keys


def step_in_list(names, own_keys=None, seed=3):
    """Return the states of some parameters, by name, after two steps in a list of this order."""
    rng = np.random.default_rng(0)
    starts = {name: rng.standard_normal(300).astype(np.float32) for name in ("a", "b", "c")}
    params = [
        adamas.Parameter(starts[name].copy(), name, key=(own_keys or {}).get(name))
        for name in names
    ]
    optimizer = adamas.Adam(params, 0.1, state_dtype="bfloat16", seed=seed)
    for step in range(2):
        optimizer([(starts[name] * (step + 1)).astype(np.float32) for name in names])
    return {
        name: entry["moment1"].tobytes()
        for name, entry in optimizer.state_dict()["parameters"].items()
    }


def test_random_bits_do_not_depend_on_the_place():
    wanted = step_in_list("abc")
    for names in ("cab", "b", "ca"):
        found = step_in_list(names)
        assert found == {name: wanted[name] for name in found}


def test_the_key_of_a_name_is_its_hash():
    key = int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little") // 2
    assert step_in_list("a", {"a": key}) == step_in_list("a")
    assert step_in_list("a", {"a": key + 1}) != step_in_list("a")


def test_a_key_of_ones_own():
    first = step_in_list("ab", {"a": 0, "b": 2**63 - 1})
    assert first == step_in_list("ba", {"a": 0, "b": 2**63 - 1})
    assert first != step_in_list("ab")


@pytest.mark.parametrize(
    ("key", "error"), [(-1, ValueError), (2**63, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_bad_key(key, error):
    with pytest.raises(error, match="key must be an int"):
        adamas.Parameter(np.ones(3, np.float32), key=key)
