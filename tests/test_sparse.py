"""Sparse gradients: the exact, lazy and catch_up policies, to the bit; SciPy and torch matrices.

The reference is the library's own dense step, which the accuracy and golden tests check, on the
gradient or the rows that the oracle's sparse definition names.
"""

import os
import textwrap

import numpy as np
import pytest

import adamas
import oracle
from adamas import _core
from helpers import (
    ISAS,
    ROW_SETS,
    Falling,
    Rising,
    bits,
    check_same_states,
    half_values,
    parameters,
    replaced,
    row_tensor,
    run_python,
    states_of,
    values,
)
from rules import (
    MEASURES,
    MINDSPORE_RULES,
    NUMBERS,
    POLICIES,
    RULES,
    SCALED,
    THREADS,
    every,
    every_dtype,
    every_numerics,
    every_policy,
    every_real,
    without,
)

# 1-D to 4-D; rows of one element, odd ones, and some longer than a block of 16384.
SHAPES = ((37,), (40, 1, 1), (9, 5), (7, 3, 11), (6, 2, 3, 5), (5, 16411), (3, 130, 131), (1, 4))
STEPS = len(ROW_SETS)


SPARSE_RULES = {
    **RULES,
    "scaled": SCALED,
    "nesterov-l2-scaled": {**RULES["nesterov-l2"], **SCALED},
    "schedules": {"learning_rate": Falling(), "weight_decay": Rising()},
    "vector": {"learning_rate": [0.01 / (i + 1) for i in range(20)]},
}
LAZY_RULES = without(SPARSE_RULES, "use_amsgrad")

every_rule = every("options", SPARSE_RULES)
every_lazy_rule = every("options", LAZY_RULES)
every_index_dtype = pytest.mark.parametrize("index_dtype", [np.int32, np.int64])


def arrays_of(rng, dtype, kind="any", shapes=SHAPES):
    return [values(rng, dtype, shape, kind) for shape in shapes]


def adam(arrays, **options):
    return adamas.Adam(parameters(arrays), **{**NUMBERS, **options})


def sparse_gradients(rng, step, dtype, index_dtype, kind="any"):
    """Return a gradient for each of SHAPES: another set of rows in each step, and one dense."""
    grads = []
    for i, shape in enumerate(SHAPES):
        indices = ROW_SETS[(i + step) % len(ROW_SETS)](rng, shape[0]).astype(index_dtype)
        grads.append(row_tensor(rng, shape, indices, dtype, kind))
    dense = step % len(SHAPES)
    return replaced(grads, dense, values(rng, dtype, SHAPES[dense], kind))


def to_dense(grad):
    """Return the gradient that the exact policy means."""
    if not isinstance(grad, adamas.RowTensor):
        return grad
    with np.errstate(over="ignore", invalid="ignore"):
        return oracle.dense_gradient(grad.indices, grad.values, grad.dense_shape)


def check_exact(make, dtype, index_dtype):
    """Sparse and dense steps of equal optimizers have the same bits, step after step."""
    rng = np.random.default_rng(21)
    initial = arrays_of(rng, dtype)
    sparse, dense = (make([array.copy() for array in initial]) for _ in range(2))
    for step in range(STEPS):
        grads = sparse_gradients(rng, step, dtype, index_dtype)
        assert sparse(grads) is True
        dense([to_dense(grad) for grad in grads])
        check_same_states(sparse, dense, f"after step {step}")


@every_rule
@every_real
@every_index_dtype
def test_exact_is_the_dense_call(options, dtype, index_dtype):
    check_exact(lambda arrays: adam(arrays, **options), dtype, index_dtype)


@every_real
@every_index_dtype
def test_exact_with_groups(dtype, index_dtype):
    def make(arrays):
        params = parameters(arrays)
        groups = [
            {"params": params[5:], "weight_decay": 0.037, "lr": Falling()},
            {"params": params[:2]},
            {"params": params[2:5], "lr": 0.1, "weight_decay": Rising()},
            {"order_params": params},
        ]
        return adamas.Adam(groups, **NUMBERS, loss_scale=3.0)

    check_exact(make, dtype, index_dtype)


@every_real
@every_numerics
def test_exact_of_adam_weight_decay(dtype, numerics):
    decay = 0.037 if numerics == "standard" else 0.0  # mindspore decays listed rows only
    check_exact(
        lambda arrays: adamas.AdamWeightDecay(
            parameters(arrays), **NUMBERS, weight_decay=decay, numerics=numerics
        ),
        dtype,
        np.int64,
    )


def test_negative_zeros_keep_their_sign():
    """A row that is listed once has the bits of its values, not of 0 + values."""
    param = np.zeros((2, 1), np.float32)
    optimizer = adam([param])
    optimizer([adamas.RowTensor(np.array([1]), np.array([[-0.0]], np.float32), (2, 1))])
    assert np.signbit(optimizer.moment1[0]).tolist() == [[False], [False]]
    optimizer.moment1[0][...] = -0.0
    optimizer([adamas.RowTensor(np.array([1]), np.array([[-0.0]], np.float32), (2, 1))])
    assert np.signbit(optimizer.moment1[0]).tolist() == [[False], [True]]


def test_duplicates_are_summed_in_order_of_appearance():
    """The three values have another sum in another order."""
    big = np.array([[2.0**24], [1.0], [1.0]], np.float32)
    for order, wanted in ([0, 1, 2], 2.0**24), ([1, 2, 0], 2.0**24 + 2):
        optimizer = adam([np.zeros((3, 1), np.float32)], beta1=0.5)
        optimizer([adamas.RowTensor(np.full(3, 1), big[order], (3, 1))])
        assert optimizer.moment1[0][1, 0] == wanted / 2


@every_policy
@pytest.mark.parametrize(
    ("shape", "indices"), [((0, 3), []), ((3, 0), []), ((3, 0), [2, 0, 2]), ((0,), [])]
)
def test_tables_without_elements(policy, shape, indices):
    optimizer = adam([np.zeros(shape, np.float32)], row_policy=policy, max_grad_norm=1.0)
    entries = np.zeros((len(indices), *shape[1:]), np.float32)
    for _ in range(2):
        assert optimizer([adamas.RowTensor(np.array(indices, np.int64), entries, shape)]) is True
    assert optimizer.global_step == 2
    assert optimizer.last_grad_norm == 0.0


# Lazy


def listed_mask(grad, rows):
    """Return which rows a gradient lists; a dense one lists all."""
    mask = np.zeros(rows, bool)
    mask[grad.indices if isinstance(grad, adamas.RowTensor) else slice(None)] = True
    return mask


def step_of_gathered_rows(optimizer, grads, options):
    """Return an optimizer after a dense step on nothing but the rows that are listed."""
    masks = [
        listed_mask(grad, len(param))
        for grad, param in zip(grads, states_of(optimizer)["param"], strict=True)
    ]
    gathered = adam(
        [a[mask] for a, mask in zip(states_of(optimizer)["param"], masks, strict=True)], **options
    )
    for kind in ("moment1", "moment2"):
        for i, mask in enumerate(masks):
            states_of(gathered)[kind][i][...] = states_of(optimizer)[kind][i][mask]
    gathered.global_step = optimizer.global_step
    gathered([to_dense(grad)[mask] for grad, mask in zip(grads, masks, strict=True)])
    return gathered, masks


@every_lazy_rule
@every_real
@every_index_dtype
@pytest.mark.parametrize("lazily", [{"use_lazy": True}, {"row_policy": "lazy"}])
def test_lazy_steps_the_listed_rows_and_no_others(options, dtype, index_dtype, lazily):
    rng = np.random.default_rng(22)
    optimizer = adam(arrays_of(rng, dtype), **options, **lazily)
    for step in range(STEPS):
        grads = sparse_gradients(rng, step, dtype, index_dtype)
        before = {k: [a.copy() for a in arrays] for k, arrays in states_of(optimizer).items()}
        wanted, masks = step_of_gathered_rows(optimizer, grads, options)
        optimizer(grads)
        for kind, arrays in states_of(optimizer).items():
            for i, mask in enumerate(masks):
                where = f"{kind} of parameter {i}, step {step}"
                listed = states_of(wanted)[kind][i]
                np.testing.assert_array_equal(bits(arrays[i][mask]), bits(listed), where)
                assert arrays[i][~mask].tobytes() == before[kind][i][~mask].tobytes(), where


# Catching up


def catch_up_run(rng, dtype, optimizers, *, steps, rows, see):
    """Step all optimizers with random rows, now and then with a dense gradient."""
    for step in range(steps):
        count = int(rng.integers(0, 2 * rows // 3))
        indices = rng.integers(0, rows, count)
        grad = adamas.RowTensor(indices, rng.standard_normal((count, 3)).astype(dtype), (rows, 3))
        if step % 17 == 11:
            grad = rng.standard_normal((rows, 3)).astype(dtype)
        for optimizer in optimizers:
            optimizer([grad])
        see(step, listed_mask(grad, rows))


@pytest.mark.parametrize(
    "options",
    [{}, {"use_nesterov": True}, {"use_amsgrad": True}, {"loss_scale": 3.0}],
    ids=["adam", "nesterov", "amsgrad", "loss_scale"],
)
@every_real
def test_catch_up_has_the_moments_of_the_exact_policy(options, dtype):
    """In units of the last place of the largest moment or gradient that the row has seen."""
    rows = 23
    rng = np.random.default_rng(23)
    start = rng.standard_normal((rows, 3)).astype(dtype)
    more = {"beta1": 0.875, "beta2": 0.96875, **options}  # exact in float32
    exact = adam([start.copy()], **more)
    late = adam([start.copy()], **more, row_policy="catch_up")
    scale = 4.0 / options.get("loss_scale", 1.0)
    units = {"moment1": scale, "moment2": scale**2, "vhat": scale**2}
    last = late.parameters[0].data.copy()
    behind = 0

    def see(step, listed):
        nonlocal behind
        param = late.parameters[0].data
        assert param[~listed].tobytes() == last[~listed].tobytes()
        last[...] = param
        for kind, arrays in states_of(late).items():
            if kind == "param":
                continue
            wanted = states_of(exact)[kind][0]
            largest = np.maximum(abs(wanted), units[kind] * np.finfo(dtype).eps)
            error = abs(arrays[0] - wanted)[listed]
            allowed = 4 * np.finfo(dtype).eps * np.maximum(largest[listed], units[kind] / 8)
            assert (error <= allowed).all(), (kind, step)
            behind += int((arrays[0][~listed] != wanted[~listed]).sum())

    catch_up_run(rng, dtype, (exact, late), steps=200, rows=rows, see=see)
    assert behind > 0  # rows that are not listed do wait


@every_real
def test_catch_up_after_each_number_of_missed_steps(dtype):
    """One row, listed at the first step and after n others; the oracle says what it finds."""
    hyper = oracle.HyperParameters(**NUMBERS)
    first, second = (np.array([[x, -2.5 * x]], dtype) for x in (0.75, 1.25))
    for missed in (0, 1, 2, 3, 10, 100, 1000):
        optimizer = adam([np.ones((2, 2), dtype)], row_policy="catch_up")
        optimizer([adamas.RowTensor(np.array([1]), first, (2, 2))])
        states = (np.array(optimizer.parameters[0].data), *map(np.array, states_moments(optimizer)))
        for _ in range(missed):
            optimizer([adamas.RowTensor(np.array([0]), first, (2, 2))])
        optimizer([adamas.RowTensor(np.array([1]), second, (2, 2))])
        found = oracle.State(*(x[1:].astype(np.float64) for x in states))
        found = oracle.caught_up(hyper, found, np.array([missed]))
        wanted = oracle.next_state(oracle.Rule(), hyper, found, second, missed + 2)
        got = (optimizer.parameters[0].data, *states_moments(optimizer))
        # The exact policy multiplies by a beta that is rounded to the type, `missed` times.
        tolerance = 8 * float(np.finfo(dtype).eps)
        for mine, want in zip(got, (wanted.param, wanted.moment1, wanted.moment2), strict=True):
            np.testing.assert_allclose(mine[1:], want, rtol=tolerance, err_msg=f"{missed} missed")


def states_moments(optimizer):
    return optimizer.moment1[0], optimizer.moment2[0]


def test_setting_global_step_keeps_how_far_rows_are_behind():
    rng = np.random.default_rng(24)
    optimizers = [adam([np.ones((9, 3), np.float32)], row_policy="catch_up") for _ in range(2)]

    def step_both(indices):
        grad = row_tensor(rng, (9, 3), np.array(indices), np.float32)
        for optimizer in optimizers:
            optimizer([grad])

    for indices in ([0, 1, 2, 3], [2, 3, 4], [4], [5, 0]):
        step_both(indices)
    for moved in (1000, 2, 0):
        optimizers[1].global_step = moved
        step_both([1, 8])
        step_both([2])
        step_both(range(9))
        for mine, wanted in zip(*map(states_moments, optimizers), strict=True):
            assert mine.tobytes() == wanted.tobytes()


def test_catch_up_counts_the_steps_of_its_rows_in_state_nbytes():
    sizes = {
        policy: adam([np.ones((9, 3), np.float32)], row_policy=policy).state_nbytes
        for policy in POLICIES
    }
    assert sizes["exact"] == sizes["lazy"] == 2 * 27 * 4
    assert sizes["catch_up"] == sizes["exact"] + 9 * 8


# MindSpore's weight decay


@every_policy
@pytest.mark.parametrize("options", [{}, {"use_nesterov": True}, {"loss_scale": 3.0}])
@every_real
def test_mindspore_decays_once_per_entry_on_listed_rows(policy, options, dtype):
    """A row with n entries is that of a dense step with n times the weight decay."""
    rng = np.random.default_rng(25)
    rows, decay = 11, 0.037
    indices = np.repeat(np.arange(6), np.arange(6))  # row i has i entries
    grad = row_tensor(rng, (rows, 3), rng.permutation(indices), dtype)
    start = values(rng, dtype, (rows, 3), "mild")

    def stepped(grad, weight_decay, row_policy):
        optimizer = adam(
            [start.copy()],
            numerics="mindspore",
            weight_decay=weight_decay,
            row_policy=row_policy,
            **options,
        )
        optimizer.moment1[0][...] = 0.25
        optimizer.moment2[0][...] = 0.125
        optimizer([grad])
        return states_of(optimizer)

    got = stepped(grad, decay, policy)
    for row in range(rows):
        entries = int((indices == row).sum())
        if entries == 0 and policy != "exact":
            assert got["param"][0][row].tobytes() == start[row].tobytes()
            continue
        wanted = stepped(to_dense(grad), entries * decay, "exact")
        for kind, (array,) in got.items():
            assert array[row].tobytes() == wanted[kind][0][row].tobytes(), (kind, row)


# Matrices of other libraries


def check_same_as_rows(make_matrix, indices, entries, shape, policy):
    """A foreign matrix steps like the RowTensor."""
    optimizers = [adam([np.ones(shape, entries.dtype)], row_policy=policy) for _ in range(2)]
    for _ in range(3):
        optimizers[0]([adamas.RowTensor(indices, entries, shape)])
        assert optimizers[1]([make_matrix()]) is True
    check_same_states(*optimizers)


def scipy_matrices(sparse):
    return {
        "csr_matrix": sparse.csr_matrix,
        "csc_matrix": sparse.csc_matrix,
        "coo_matrix": sparse.coo_matrix,
        "csr_array": sparse.csr_array,
        "csc_array": sparse.csc_array,
        "coo_array": sparse.coo_array,
        "lil_matrix": sparse.lil_matrix,
        "bsr_array": sparse.bsr_array,
    }


SCIPY_KINDS = (
    "csr_matrix",
    "csc_matrix",
    "coo_matrix",
    "csr_array",
    "csc_array",
    "coo_array",
    "lil_matrix",
    "bsr_array",
)


@pytest.mark.parametrize("name", SCIPY_KINDS)
@every_policy
@every_real
def test_scipy_matrices(name, policy, dtype):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    rng = np.random.default_rng(26)
    matrix = np.zeros((9, 4), dtype)
    indices = np.array([1, 4, 7])
    matrix[indices] = rng.standard_normal((3, 4))
    matrix[4, 1:3] = 0
    made = scipy_matrices(sparse)[name](matrix)
    check_same_as_rows(lambda: made, indices, matrix[indices], matrix.shape, policy)


@every_policy
def test_scipy_entries_that_repeat_are_summed(policy):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    rows, columns = np.array([5, 2, 5, 5]), np.array([0, 1, 0, 1])
    entries = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    matrix = sparse.coo_matrix((entries, (rows, columns)), shape=(7, 2))
    wanted = np.array([[0.0, 2.0], [5.0, 8.0]], np.float32)
    check_same_as_rows(lambda: matrix, np.array([2, 5]), wanted, (7, 2), policy)


@pytest.mark.parametrize("name", ["csr_matrix", "csc_matrix", "coo_array"])
def test_an_empty_scipy_matrix(name):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    made = scipy_matrices(sparse)[name](np.zeros((5, 2), np.float32))
    rows = np.zeros(0, np.int64)
    check_same_as_rows(lambda: made, rows, np.zeros((0, 2), np.float32), (5, 2), "exact")


@pytest.mark.parametrize("name", ["coo_array", "csr_array"])
def test_scipy_arrays_of_one_axis(name):
    pytest.importorskip("scipy", minversion="1.15", reason="SciPy has no arrays of one axis")
    sparse = pytest.importorskip("scipy.sparse")
    made = scipy_matrices(sparse)[name](np.array([0.0, 1.0, 0.0, 2.0], np.float32))
    entries = np.array([1.0, 2.0], np.float32)
    check_same_as_rows(lambda: made, np.array([1, 3]), entries, (4,), "exact")


@every_policy
@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 2, 3)])
@pytest.mark.parametrize("coalesced", [False, True])
@every_real
def test_torch_sparse_tensors(policy, shape, coalesced, dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(27)
    indices = np.array([7, 1, 7, 4, 7])
    entries = rng.integers(-8, 8, (5, *shape[1:])).astype(dtype)  # sums are exact in any order

    def tensor():
        made = torch.sparse_coo_tensor(
            torch.tensor(indices[None]), torch.tensor(entries), shape, check_invariants=True
        )
        return made.coalesce() if coalesced else made

    check_same_as_rows(tensor, indices, entries, shape, policy)


def test_torch_sums_uncoalesced_entries_in_order():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    indices = np.array([1, 1, 1, 0])
    entries = np.array([[2.0**24], [1.0], [1.0], [3.0]], np.float32)

    def tensor():
        return torch.sparse_coo_tensor(
            torch.tensor(indices[None]), torch.tensor(entries), (3, 1), check_invariants=True
        )

    check_same_as_rows(tensor, indices, entries, (3, 1), "lazy")


@pytest.mark.parametrize("as_given", [list, tuple, np.array, memoryview])
@every_index_dtype
def test_indices_and_values_in_other_forms(as_given, index_dtype):
    indices = np.array([3, 1, 3], index_dtype)
    entries = np.arange(12, dtype=np.float32).reshape(3, 4)
    wide = np.zeros((3, 8))
    wide[:, ::2] = entries
    check_same_as_rows(
        lambda: adamas.RowTensor(as_given(indices), wide[:, ::2], [5, 4]),
        indices,
        entries,
        (5, 4),
        "exact",
    )


# The same bits everywhere


COUNTS = (0, 1, 5, 16, 17, 48, 49, 511, 512, 513, 1023, 1024, 1025, 8191, 8192, 8193, 16385, 20000)
TABLE_ROWS = (1, 2, 1000, 5003)
# (entries, rows, elements per row): each count with two of the tables, some rows that are no power
# of two of elements or longer than a tile, and one table that is far larger than its gradient.
TABLES = (
    *(
        (count, rows, 1 + (i + j) % 3)
        for i, count in enumerate(COUNTS)
        for j, rows in enumerate(TABLE_ROWS)
        if (i + j) % 2 == 0
    ),
    (1025, 300_000, 1),
    (700, 600, 67),
    (40, 30, 1031),
    (7, 3, 33003),
)

ROW_OPTIONS = {
    f"{policy}-{name}": {"row_policy": policy, **options}
    for policy in POLICIES
    for name, options in {
        "l2": RULES["adam-l2"],
        "nesterov": RULES["nesterov"],
        "amsgrad": RULES["amsgrad_nesterov"],
        "mindspore": MINDSPORE_RULES["mindspore-adam-l2"],
        "clip": MEASURES["clip"],
    }.items()
    if (policy, name) != ("lazy", "amsgrad")
}


def identity_problem(dtype, *, finite):
    """Return the tables and two steps of gradients, a third of them of rows that crowd together."""
    rng = np.random.default_rng(28)

    def numbers(shape):
        if np.dtype(dtype).itemsize == 2:
            return half_values(rng, dtype, shape, finite=finite)
        return values(rng, dtype, shape, "mild" if finite else "any")

    def gradient(i, count, rows, length, step):
        indices = rng.integers(0, rows, count)
        if (i + step) % 3 == 0:
            indices //= 7
        index_dtype = (np.int32, np.int64)[(i + step) % 2]
        entries = numbers((count, length))
        return adamas.RowTensor(indices.astype(index_dtype), entries, (rows, length))

    tables = [numbers((rows, length)) for _, rows, length in TABLES]
    steps = [[gradient(i, *table, step) for i, table in enumerate(TABLES)] for step in range(2)]
    return tables, steps


def run_tables(tables, steps, options, threads):
    arrays = [table.copy() for table in tables]
    optimizer = adam(arrays, **{**SCALED, **options}, num_threads=threads)
    for grads in steps:
        optimizer(grads)
    states = states_of(optimizer).items()
    kinds = {kind: [bits(array) for array in arrays] for kind, arrays in states}
    return kinds, optimizer.last_grad_norm


@every("options", ROW_OPTIONS)
@every_dtype
def test_sparse_bits_on_any_isa_with_any_threads(options, dtype, select_isa, identity):
    tables, steps = identity_problem(dtype, finite="max_grad_norm" in options)
    select_isa("scalar")
    wanted, norm = run_tables(tables, steps, options, 1)
    for isa in ISAS:
        for threads in THREADS:
            select_isa(isa)
            got, got_norm = run_tables(tables, steps, options, threads)
            identity.compared += len(TABLES)
            assert np.array(got_norm).tobytes() == np.array(norm).tobytes(), (isa, threads)
            wrong = {
                TABLES[i]
                for kind, arrays in wanted.items()
                for i, array in enumerate(arrays)
                if not np.array_equal(got[kind][i], array)
            }
            identity.mismatches += len(wrong)
            assert not wrong, f"{isa}, {threads} threads: other bits in tables {wrong}"


@every_policy
@pytest.mark.parametrize("count", COUNTS)
@every_index_dtype
def test_every_count_of_entries_is_summed_in_order(policy, count, index_dtype):
    """Against the oracle's sums, where the partitions of entries have their limits."""
    rng = np.random.default_rng(29)
    for rows in (1, 300, 70_001):
        indices = rng.integers(0, rows, count).astype(index_dtype)
        grad = row_tensor(rng, (rows, 2), indices, np.float32)
        optimizer = adam([np.ones((rows, 2), np.float32)], row_policy=policy, beta1=0.5)
        optimizer.moment1[0][...] = -0.0  # which adds nothing to any sum, not even to -0.0
        optimizer([grad])
        listed, sums = oracle.summed_rows(indices, grad.values)
        assert optimizer.moment1[0][listed].tobytes() == (sums / 2).tobytes()


def test_the_isas_are_those_of_this_machine():
    assert "scalar" in ISAS
    assert _core.isa_in_use() in ISAS


@pytest.mark.parametrize("numerics", ["mindspore", "standard"])
def test_decoupled_decay_reaches_all_rows_in_both_numerics(numerics):
    """Only L2 decay is added to entries; decoupled decay is taken from all rows."""
    dense, sparse = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    options = {"learning_rate": 0.1, "weight_decay": 0.1, "numerics": numerics}
    grad = np.zeros((4, 2), np.float32)
    grad[1] = 3.0
    rows = adamas.RowTensor(np.array([1, 1]), np.array([[1, 1], [2, 2]], np.float32), (4, 2))
    adamas.AdamWeightDecay([adamas.Parameter(dense)], **options)((grad,))
    adamas.AdamWeightDecay([adamas.Parameter(sparse)], **options)((rows,))
    assert dense.tobytes() == sparse.tobytes()


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs all address space"
)
def test_running_out_of_memory_leaves_a_usable_optimizer():
    script = """
        import resource
        import numpy as np
        import adamas

        table = np.ones((8, 1), np.float32)
        optimizer = adamas.Adam([adamas.Parameter(table)], use_lazy=True)
        count = 4_000_000
        rows = adamas.RowTensor(np.zeros(count, np.int64), np.ones((count, 1), np.float32), (8, 1))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20), -1))
        try:
            optimizer((rows,))
        except MemoryError:
            assert optimizer.global_step == 0 and (table == 1).all()
            print("refused")
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        optimizer((rows,))
        print("done", optimizer.global_step)
    """
    result = run_python("-c", textwrap.dedent(script))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "done 1"
