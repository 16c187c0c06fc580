"""Every refusal of a sparse gradient, at every position, with everything unchanged.

After a refusal the next correct call has the bits of that of an optimizer that was never asked.
"""

import textwrap

import numpy as np
import pytest

import adamas
from helpers import (
    check_refused,
    check_same_states,
    everything,
    parameters,
    replaced,
    row_tensor,
    run_python,
    values,
)
from rules import every, every_numerics, every_policy

SHAPES = ((6, 3), (4, 3), (7,), (5, 2, 1, 3))  # a row is never longer than a parameter
POSITIONS = range(len(SHAPES))
SPARSE_POSITIONS = (0, 2, 3)
OPTIONS = {
    "exact": {"use_amsgrad": True, "weight_decay": 0.01},
    "lazy": {"use_lazy": True, "weight_decay": 0.01},
    "catch_up": {"row_policy": "catch_up", "use_amsgrad": True},
    "exact and measured": {"skip_nonfinite": True, "max_grad_norm": 0.5},
    "lazy and measured": {"use_lazy": True, "skip_nonfinite": True, "max_grad_norm": 0.5},
}

every_position = pytest.mark.parametrize("position", POSITIONS)
every_options = every("options", OPTIONS)


def initial_arrays(dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(31)
    return [values(rng, dtype, shape, "mild") for shape in shapes]


def gradients(seed, dtype=np.float32, shapes=SHAPES):
    """Return sparse gradients, and a dense one at position 1."""
    rng = np.random.default_rng(seed)
    grads = [
        row_tensor(rng, shape, rng.integers(0, shape[0], 4) if shape else [], dtype)
        for shape in shapes
    ]
    return replaced(grads, 1, values(rng, dtype, shapes[1], "mild"))


def make_optimizer(options, dtype=np.float32):
    """Return an optimizer after two steps, so that rows are behind and no state is zero."""
    optimizer = adamas.Adam(parameters(initial_arrays(dtype)), **options)
    for seed in (1, 2):
        optimizer(gradients(seed, dtype))
    return optimizer


def check_refused_and_next(options, spoil, error, *fragments, position, dtype=np.float32):
    """The call is refused, and the next two are as if it had never been."""
    optimizer, twin = (make_optimizer(options, dtype) for _ in range(2))
    good = gradients(3, dtype)
    bad = replaced(good, position, spoil(optimizer, position))
    wanted = (f"'weight{position}'", *fragments)
    for grads in (bad, tuple(bad)):
        check_refused(optimizer, lambda grads=grads: optimizer(grads), error, *wanted)
    for seed in (3, 4):
        assert optimizer(gradients(seed, dtype)) is True
        twin(gradients(seed, dtype))
    check_same_states(optimizer, twin)


def rows(position, indices, *, entries=None, dense_shape=None, dtype=np.float32):
    """Return a gradient that is right but for what is given."""
    shape = SHAPES[position]
    indices = np.asarray(indices)
    if entries is None:
        entries = np.ones((indices.size, *shape[1:]), dtype)
    return adamas.RowTensor(indices, entries, shape if dense_shape is None else dense_shape)


BAD_INDICES = {
    "the number of rows": lambda n: np.array([0, n]),
    "the number of rows, first": lambda n: np.array([n, 0]),
    "the number of rows, int32": lambda n: np.array([0, n, 1], np.int32),
    "-1": lambda _: np.array([-1]),
    "-1, int32": lambda _: np.array([1, 0, -1], np.int32),
    "2**40": lambda _: np.array([0, 2**40]),
    "2**32": lambda _: np.array([2**32]),
    "2**63 - 1": lambda _: np.array([2**63 - 1, 0]),
    "-2**63": lambda _: np.array([0, -(2**63)]),
    "2**31 - 1, int32": lambda _: np.array([2**31 - 1], np.int32),
    "-2**31, int32": lambda _: np.array([-(2**31)], np.int32),
}


@every_position
@every_options
@pytest.mark.parametrize("make", BAD_INDICES.values(), ids=BAD_INDICES)
def test_an_index_outside_the_table(make, options, position):
    def spoil(_, position):
        return rows(position, make(SHAPES[position][0]))

    check_refused_and_next(options, spoil, IndexError, "row index", position=position)


@every_position
@pytest.mark.parametrize("options", [OPTIONS["exact"], OPTIONS["lazy"]], ids=["exact", "lazy"])
@pytest.mark.parametrize("entry", [0, 8191, 8192, 19_999])
def test_one_bad_index_among_many(entry, options, position):
    indices = np.zeros(20_000, np.int64)
    indices[entry] = -1
    check_refused_and_next(
        options, lambda _, i: rows(i, indices), IndexError, "row index", position=position
    )


BAD_TYPES = {
    "float64": (np.array([0.0, 1.0]), "float64"),
    "float32": (np.array([0, 1], np.float32), "float32"),
    "NaN": (np.array([0.0, np.nan]), "float64"),
    "bool": (np.array([True, False]), "bool"),
    "uint8": (np.array([0, 1], np.uint8), "uint8"),
    "uint64": (np.array([0, 1], np.uint64), "uint64"),
    "int16": (np.array([0, 1], np.int16), "int16"),
    "byte-swapped": (np.array([0, 1], np.dtype(np.int64).newbyteorder()), "i8"),
    "object": (np.array([0, 1], object), "object"),
    "string": (np.array(["0", "1"]), "<U1"),
    "complex": (np.array([0, 1], np.complex64), "complex64"),
    "datetime": (np.array([0, 1], "M8[s]"), "M8[s]"),
    "None": (np.array(None), "object"),
}


@every_position
@every_options
@pytest.mark.parametrize(("indices", "fragment"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_indices_of_another_type(indices, fragment, options, position):
    def spoil(_, position):
        return rows(position, indices)

    wanted = (f"grads[{position}]", "int32 or int64", "datetime" if "M8" in fragment else fragment)
    check_refused_and_next(options, spoil, TypeError, *wanted, position=position)


@every_position
@pytest.mark.parametrize("options", [OPTIONS["exact"], OPTIONS["lazy"]], ids=["exact", "lazy"])
@pytest.mark.parametrize(
    "indices",
    [np.array([[0], [1]]), np.array([[0, 1], [1, 0]]), np.zeros((1, 1, 2), np.int64), np.array(1)],
    ids=lambda indices: str(indices.shape),
)
def test_indices_of_another_shape(indices, options, position):
    def spoil(_, position):
        return rows(position, indices)

    check_refused_and_next(
        options, spoil, ValueError, f"grads[{position}]", "shape (k,)", position=position
    )


def with_values(change):
    """Return how to make a gradient for two rows whose values are changed."""

    def spoil(_, position):
        shape = SHAPES[position]
        entries = change(np.ones((2, *shape[1:]), np.float32))
        return adamas.RowTensor(np.array([0, 1]), entries, shape)

    return spoil


BAD_VALUES = {
    "a row too many": (lambda v: np.concatenate([v, v[:1]]), ValueError, "shape"),
    "a row too few": (lambda v: v[:1], ValueError, "shape"),
    "no rows": (lambda v: v[:0], ValueError, "shape"),
    "broadcastable": (lambda v: v[:1].reshape(v[0].shape), ValueError, "shape"),
    "an axis more": (lambda v: v[..., None], ValueError, "shape"),
    "flat": (lambda v: np.concatenate([v.ravel(), v.ravel()]), ValueError, "shape"),
    "wider rows": (lambda v: np.concatenate([v, v], axis=-1), ValueError, "shape"),
    "0-d": (lambda _: np.float32(1), ValueError, "shape"),
    "int32": (lambda v: v.astype(np.int32), TypeError, "int32"),
    "bool": (lambda v: v.astype(bool), TypeError, "bool"),
    "complex": (lambda v: v.astype(np.complex64), TypeError, "complex64"),
    "object": (lambda v: v.astype(object), TypeError, "object"),
    "list": (lambda v: v.tolist(), TypeError, "list"),
    "None": (lambda _: None, TypeError, "NoneType"),
    "float": (lambda _: 1.0, TypeError, "float"),
    "str": (lambda _: "values", TypeError, "str"),
    "RowTensor": (
        lambda v: adamas.RowTensor(np.array([0, 1]), v, v.shape),
        TypeError,
        "RowTensor",
    ),
}


@every_position
@every_options
@pytest.mark.parametrize(("change", "error", "fragment"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values(change, error, fragment, options, position):
    wanted = (f"values of grads[{position}]", fragment)
    check_refused_and_next(options, with_values(change), error, *wanted, position=position)


BAD_SHAPES = {
    "a row more": lambda s: (s[0] + 1, *s[1:]),
    "a row less": lambda s: (s[0] - 1, *s[1:]),
    "an axis more": lambda s: (*s, 1),
    "an axis less": lambda s: s[:-1],
    "other columns": lambda s: (*s[:-1], s[-1] + 1),
    "empty": lambda _: (),
}


@every_position
@pytest.mark.parametrize("options", [OPTIONS["exact"], OPTIONS["lazy"]], ids=["exact", "lazy"])
@pytest.mark.parametrize("change", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_dense_shape_unlike_the_parameter(change, options, position):
    def spoil(_, position):
        return rows(position, [0, 1], dense_shape=change(SHAPES[position]))

    wanted = (f"grads[{position}]", "dense_shape", str(SHAPES[position]))
    check_refused_and_next(options, spoil, ValueError, *wanted, position=position)


# Memory


def all_states(optimizer, position):
    """Return {what: array} of the memory of one parameter."""
    kinds = {
        "param": [np.asarray(param) for param in optimizer.parameters],
        "moment1": optimizer.moment1,
        "moment2": optimizer.moment2,
    }
    if optimizer.vhat:
        kinds["vhat"] = optimizer.vhat
    return {kind: arrays[position] for kind, arrays in kinds.items()}


@every_position
@every_options
@pytest.mark.parametrize("other", POSITIONS)
@pytest.mark.parametrize("kind", ["param", "moment1", "moment2", "vhat"])
def test_values_that_are_a_parameter_or_a_state(kind, other, options, position):
    if kind == "vhat" and "use_amsgrad" not in options:
        kind = "param"

    def spoil(optimizer, position):
        size = int(np.prod(SHAPES[position][1:]))
        memory = all_states(optimizer, other)[kind].ravel()
        overlapping = min(len(memory), 2 * size) // size * size
        entries = memory[-overlapping:].reshape(-1, *SHAPES[position][1:])
        return rows(position, np.zeros(len(entries), np.int64), entries=entries)

    check_refused_and_next(options, spoil, ValueError, "shares memory", position=position)


@every_position
@every_options
@pytest.mark.parametrize("other", POSITIONS)
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("kind", ["param", "moment1"])
def test_indices_that_are_a_parameter_or_a_state(kind, index_dtype, other, options, position):
    def spoil(optimizer, position):
        memory = all_states(optimizer, other)[kind].ravel()
        return rows(position, memory[:2].view(index_dtype), dtype=memory.dtype)

    dtype = np.float32 if index_dtype is np.int32 else np.float64
    check_refused_and_next(
        options, spoil, ValueError, "shares memory", position=position, dtype=dtype
    )


@every_position
@pytest.mark.parametrize("options", [OPTIONS["exact"], OPTIONS["lazy"]], ids=["exact", "lazy"])
def test_a_parameter_made_read_only(options, position):
    optimizer, twin = (make_optimizer(options) for _ in range(2))
    data = optimizer.parameters[position].data
    data.flags.writeable = False
    check_refused(
        optimizer,
        lambda: optimizer(gradients(3)),
        ValueError,
        f"'weight{position}'",
        "read-only",
    )
    data.flags.writeable = True
    for one in (optimizer, twin):
        one(gradients(3))
    check_same_states(optimizer, twin)


@every_options
@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
def test_a_wrong_number_of_gradients(count, options):
    optimizer, twin = (make_optimizer(options) for _ in range(2))
    grads = (gradients(3) * 2)[:count]
    check_refused(optimizer, lambda: optimizer(grads), ValueError, "grads", "4", str(count))
    for one in (optimizer, twin):
        one(gradients(4))
    check_same_states(optimizer, twin)


# Parameters that take no sparse gradients


@every_position
@every_policy
def test_a_parameter_without_axes(policy, position):
    shapes = replaced(list(SHAPES), position, ())
    rng = np.random.default_rng(32)
    optimizer = adamas.Adam(parameters(initial_arrays(shapes=shapes)), row_policy=policy)

    def grads(scalar):
        return replaced(
            [values(rng, np.float32, shape, "mild") for shape in shapes], position, scalar
        )

    optimizer(grads(np.array(1.0, np.float32)))
    one = np.ones(1, np.float32)
    for bad in (
        adamas.RowTensor(np.array([0]), one, ()),
        adamas.RowTensor(np.array([0]), one, (1,)),
        adamas.RowTensor(np.zeros(0, np.int64), one[:0], ()),
    ):
        check_refused(
            optimizer,
            lambda bad=bad: optimizer(grads(bad)),
            ValueError,
            f"grads[{position}]",
            f"'weight{position}'",
        )
    assert optimizer(grads(np.array(1.0, np.float32))) is True


@every_position
@every_numerics
@every_policy
def test_a_parameter_with_grad_centralization(policy, numerics, position):
    """Of one and two axes too, where the option has no effect on dense gradients."""

    def make():
        params = parameters(initial_arrays())
        groups = [
            {"params": params[:position]},
            {"params": params[position + 1 :]},
            {"params": [params[position]], "grad_centralization": True},
            {"order_params": params},
        ]
        groups = [group for group in groups if group.get("params", params)]
        return adamas.Adam(groups, numerics=numerics, row_policy=policy)

    optimizer, twin = make(), make()
    good = replaced(gradients(3), position, np.ones(SHAPES[position], np.float32))
    for one in (optimizer, twin):
        one(good)
    for indices in ([0, 1], np.zeros(0, np.int64)):
        bad = replaced(good, position, rows(position, indices))
        check_refused(
            optimizer,
            lambda bad=bad: optimizer(bad),
            ValueError,
            f"grads[{position}]",
            f"'weight{position}'",
            "grad_centralization",
        )
    for one in (optimizer, twin):
        one(good)
    check_same_states(optimizer, twin)


# Other libraries' matrices


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("policy", ["exact", "lazy"])
@pytest.mark.parametrize(
    ("change", "error", "fragment"),
    [
        (lambda m: m.astype(np.int32), TypeError, "int32"),
        (lambda m: m.astype(bool), TypeError, "bool"),
        (lambda m: m.T, ValueError, "dense_shape"),
        (lambda m: m[:-1], ValueError, "dense_shape"),
    ],
    ids=["int32", "bool", "transposed", "a row less"],
)
def test_bad_scipy_matrices(change, error, fragment, policy, position):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")

    def spoil(_, position):
        matrix = np.zeros(SHAPES[position], np.float32)
        matrix[1] = 1
        return change(sparse.csr_matrix(matrix))

    check_refused_and_next({"row_policy": policy}, spoil, error, fragment, position=position)


@pytest.mark.parametrize("position", [0, 1])
def test_torch_tensors_that_are_sparse_in_two_axes(position):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def spoil(_, position):
        return torch.ones(SHAPES[position]).to_sparse()

    check_refused_and_next({}, spoil, ValueError, "shape (k,)", position=position)


# Indices that change under the call

RACE = """
    import sys
    import threading
    import time

    import numpy as np

    import adamas

    policy = sys.argv[1]
    table = np.ones((1000, 4), np.float32)
    optimizer = adamas.Adam([adamas.Parameter(table)], row_policy=policy, num_threads=2)
    good = np.random.default_rng(0).integers(0, 1000, 20000)
    bad = good.copy()
    bad[::5] = 2**40
    bad[1::7] = -3
    indices = good.copy()
    grad = adamas.RowTensor(indices, np.ones((20000, 4), np.float32), table.shape)
    done = False

    def disturb():
        while not done:
            indices[...] = bad
            indices[...] = good

    thread = threading.Thread(target=disturb)
    thread.start()
    refused = 0
    for _ in range(300):
        try:
            optimizer([grad])
        except IndexError:
            refused += 1
    done = True
    thread.join()
    assert optimizer.global_step + refused == 300
    assert np.isfinite(table).all()
"""


@every_policy
def test_indices_that_another_thread_changes_never_crash(policy):
    done = run_python("-c", textwrap.dedent(RACE), policy)
    assert done.returncode == 0, done.stderr


def test_what_is_compared_holds_all_states():
    """The comparison itself: it sees every array and counter."""
    optimizer = make_optimizer(OPTIONS["exact"])
    before = everything(optimizer)
    assert len(before[0]) == 4 * len(SHAPES)
    for array in (optimizer.parameters[2].data, optimizer.moment1[3], optimizer.vhat[0]):
        array.ravel()[-1] += 1
        assert everything(optimizer) != before
        array.ravel()[-1] -= 1
        before = everything(optimizer)
