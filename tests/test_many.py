"""More parameters than one thread looks at: same results, same refusals, wherever one stands.

The bindings view gradients in parts of 500 (`kPart` in csrc/bindings/gradients.cpp), which several
threads share.
"""

import numpy as np
import pytest

import adamas
from helpers import bits, parameters, replaced, states_of

COUNT = 1203  # three parts
POSITIONS = (0, 499, 500, 1000, COUNT - 1)
SHAPES = ((3,), (2, 3), (1,), (17,), (2, 1, 2, 1, 3), ())

every_position = pytest.mark.parametrize("position", POSITIONS)
every_thread_count = pytest.mark.parametrize("num_threads", [1, 3])


def make_arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = (SHAPES[i % len(SHAPES)] for i in range(COUNT))
    return [np.array(rng.standard_normal(shape), dtype) for shape in shapes]


def make_optimizer(num_threads, seed=0):
    return adamas.Adam(parameters(make_arrays(seed)), 0.1, num_threads=num_threads)


def snapshot(optimizer):
    states = states_of(optimizer)
    return [bits(a).tobytes() for kind in states.values() for a in kind], optimizer.global_step


def check_refused(optimizer, grads, error, match):
    before = snapshot(optimizer)
    with pytest.raises(error, match=match):
        optimizer(grads)
    assert snapshot(optimizer) == before


@every_thread_count
@pytest.mark.parametrize("collection", [tuple, list])
def test_a_step_is_that_of_one_array(num_threads, collection):
    many = make_optimizer(num_threads)
    flat = np.concatenate([np.asarray(p).ravel() for p in many.parameters])
    one = adamas.Adam([adamas.Parameter(flat)], 0.1, num_threads=1)
    for seed in (1, 2):
        grads = make_arrays(seed)
        many(collection(grads))
        one((np.concatenate([g.ravel() for g in grads]),))
    result = np.concatenate([np.asarray(p).ravel() for p in many.parameters])
    np.testing.assert_array_equal(bits(result), bits(flat))


CONVERTED = {
    "float16": lambda g: g.astype(np.float16),
    "strided": lambda g: np.stack([g, g], axis=-1)[..., 0],
    "float64": lambda g: g.astype(np.float64),
    "another library": lambda g: memoryview(g),
}


@every_thread_count
@every_position
@pytest.mark.parametrize("kind", CONVERTED)
def test_one_gradient_of_another_kind(num_threads, position, kind):
    grads = [np.asarray(g.astype(np.float16), np.float32) for g in make_arrays(1)]  # exact in both
    plain, mixed = make_optimizer(num_threads), make_optimizer(num_threads)
    for _ in range(2):
        plain(grads)
        mixed(replaced(grads, position, CONVERTED[kind](grads[position])))
        assert snapshot(mixed) == snapshot(plain)


@every_thread_count
@every_position
def test_one_sparse_gradient(num_threads, position):
    shapes = [(2, 3) if i == position else (3,) for i in range(COUNT)]
    dense = [np.full(shape, 0.5, np.float32) for shape in shapes]
    row = adamas.RowTensor(np.array([1]), np.ones((1, 3), np.float32), (2, 3))
    same = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
    make = [parameters([np.ones(shape, np.float32) for shape in shapes]) for _ in range(2)]
    sparse, plain = (adamas.Adam(params, 0.1, num_threads=num_threads) for params in make)
    for grads in (dense, replaced(dense, position, same), dense):
        plain(grads)
        sparse(replaced(grads, position, row) if grads[position] is same else grads)
        assert snapshot(sparse) == snapshot(plain)


BAD = {
    "shape": (lambda g, _: np.zeros((*g.shape, 2), np.float32), ValueError, "shape"),
    "last axis": (lambda g, _: np.zeros((*g.shape[:-1], 9), np.float32), ValueError, "shape"),
    "int": (lambda g, _: np.zeros(g.shape, np.int32), TypeError, "int32"),
    "the parameter": (lambda _, param: np.asarray(param), ValueError, "shares memory"),
}


@every_thread_count
@every_position
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_gradient(num_threads, position, kind):
    optimizer = make_optimizer(num_threads)
    grads = make_arrays(1)
    optimizer(grads)
    make, error, match = BAD[kind]
    bad = make(grads[position], optimizer.parameters[position])
    check_refused(
        optimizer, replaced(grads, position, bad), error, f"(?=.*{match})(?=.*'weight{position}')"
    )
    optimizer(grads)
    assert optimizer.global_step == 2


@every_thread_count
@every_position
def test_a_parameter_made_read_only_later(num_threads, position):
    arrays = make_arrays(0)
    optimizer = adamas.Adam(parameters(arrays), num_threads=num_threads)
    grads = make_arrays(1)
    optimizer(grads)
    arrays[position].flags.writeable = False
    check_refused(optimizer, grads, ValueError, f"'weight{position}' must be writable")
    arrays[position].flags.writeable = True
    optimizer(grads)


@every_thread_count
@every_position
def test_a_parameter_reshaped_later(num_threads, position):
    arrays = make_arrays(0)
    optimizer = adamas.Adam(parameters(arrays), num_threads=num_threads)
    grads = make_arrays(1)
    shape = arrays[position].shape
    arrays[position].resize((1, *shape), refcheck=False)
    check_refused(optimizer, grads, ValueError, f"'weight{position}' was resized or moved")
    arrays[position].resize(shape, refcheck=False)
    optimizer(grads)


class Meddler:
    """A gradient whose conversion makes an array read-only."""

    def __init__(self, grad, array):
        self._grad, self._array = grad, array

    def __dlpack__(self, **options):
        self._array.flags.writeable = False
        return self._grad.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._grad.__dlpack_device__()


@every_thread_count
@every_position
def test_a_conversion_that_makes_a_parameter_read_only(num_threads, position):
    arrays = make_arrays(0)
    optimizer = adamas.Adam(parameters(arrays), num_threads=num_threads)
    grads = make_arrays(1)
    meddler = Meddler(grads[700], arrays[position])
    check_refused(
        optimizer, replaced(grads, 700, meddler), ValueError, f"'weight{position}' must be writable"
    )
