"""Loss scale managers and `all_finite` beyond what is recorded."""

import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest

import adamas
from adamas import DynamicLossScaleUpdateCell, FixedLossScaleUpdateCell

LARGEST_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127


class Sparse:
    """What `all_finite` needs of a RowTensor."""

    def __init__(self, values):
        self.values = values


# managers and cells


def test_defaults_are_those_of_mindspore():
    fixed = adamas.FixedLossScaleManager()
    assert fixed.get_loss_scale() == 128.0
    assert fixed.get_drop_overflow_update() is True
    dynamic = adamas.DynamicLossScaleManager()
    assert dynamic.get_loss_scale() == 2.0**24
    assert dynamic.get_drop_overflow_update() is True
    for _ in range(1999):
        dynamic.update_loss_scale(False)
    assert dynamic.get_loss_scale() == 2.0**24
    dynamic.update_loss_scale(False)
    assert dynamic.get_loss_scale() == 2.0**25


@pytest.mark.parametrize(
    ("cls", "name", "wrong_types", "wrong_values"),
    [
        (adamas.FixedLossScaleManager, "loss_scale", ["1", None, True], [0.5, 0, -1, math.nan]),
        (adamas.FixedLossScaleManager, "drop_overflow_update", [1, None, "no"], []),
        (adamas.DynamicLossScaleManager, "init_loss_scale", ["1", None], [0.5, math.inf]),
        (adamas.DynamicLossScaleManager, "scale_factor", ["2", None, True], [0, -2, math.nan]),
        (adamas.DynamicLossScaleManager, "scale_window", [2.0, None, True], [0, -1]),
    ],
)
def test_wrong_arguments_are_named(cls, name, wrong_types, wrong_values):
    for error, values in ((TypeError, wrong_types), (ValueError, wrong_values)):
        for value in values:
            with pytest.raises(error) as caught:
                cls(**{name: value})
            assert str(caught.value).startswith(f"{name} must be ")
            assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "manager",
    [adamas.FixedLossScaleManager(8.0), adamas.DynamicLossScaleManager(8, 2, 1)],
    ids=["fixed", "dynamic"],
)
def test_overflow_must_be_a_bool(manager):
    for update in (manager.update_loss_scale, manager.get_update_cell()):
        for value in (0, 1, None, 1.0, "True"):
            with pytest.raises(TypeError, match=r"^overflow must be a bool, got "):
                update(value)
    assert manager.get_loss_scale() == 8.0
    manager.update_loss_scale(np.True_)


def test_factor_that_is_not_a_power_of_two():
    manager = adamas.DynamicLossScaleManager(10.0, scale_factor=1.5, scale_window=1)
    manager.update_loss_scale(False)
    assert manager.get_loss_scale() == 15.0
    manager.update_loss_scale(True)
    assert manager.get_loss_scale() == pytest.approx(10.0, rel=1e-15)


def test_scale_stays_between_one_and_the_largest_float32():
    manager = adamas.DynamicLossScaleManager(2.0**126, scale_factor=2, scale_window=1)
    cell = manager.get_update_cell()
    for _ in range(5):
        manager.update_loss_scale(False)
        assert cell(False) <= LARGEST_FLOAT32
    assert manager.get_loss_scale() == cell.get_loss_scale() == 2.0**127
    for _ in range(130):
        manager.update_loss_scale(True)
        cell(True)
    assert manager.get_loss_scale() == cell.get_loss_scale() == 1.0


def test_scale_that_starts_too_large_for_float32_can_shrink():
    manager = adamas.DynamicLossScaleManager(1e300, scale_factor=10, scale_window=1)
    manager.update_loss_scale(False)
    assert manager.get_loss_scale() == 1e300
    manager.update_loss_scale(True)
    assert manager.get_loss_scale() == pytest.approx(1e299, rel=1e-15)


def test_endless_overflow_is_an_error_that_changes_nothing():
    manager = adamas.DynamicLossScaleManager(4.0, scale_window=1)
    for _ in range(1000):
        manager.update_loss_scale(True)
    before = manager.state_dict()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="more than 1000 steps"):
            manager.update_loss_scale(True)
        assert manager.state_dict() == before
    manager.update_loss_scale(False)
    assert manager.get_loss_scale() == 2.0
    manager.update_loss_scale(True)


def test_update_cells():
    assert adamas.FixedLossScaleManager(4.0, drop_overflow_update=False).get_update_cell() is None
    fixed = adamas.FixedLossScaleManager(4.0).get_update_cell()
    assert type(fixed) is FixedLossScaleUpdateCell
    assert (fixed(True), fixed(False), fixed.loss_scale) == (4.0, 4.0, 4.0)

    manager = adamas.DynamicLossScaleManager(4.0, scale_window=1)
    cell = manager.get_update_cell()
    assert type(cell) is DynamicLossScaleUpdateCell
    assert (cell(False), cell(False), cell(True)) == (8.0, 16.0, 8.0)
    assert cell.loss_scale == 8.0
    assert manager.get_loss_scale() == 4.0
    manager.update_loss_scale(False)
    assert manager.get_update_cell().loss_scale == 8.0


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (
            adamas.FixedLossScaleManager(2),
            "FixedLossScaleManager(loss_scale=2.0, drop_overflow_update=True)",
        ),
        (
            adamas.DynamicLossScaleManager(2, 3, 4),
            "DynamicLossScaleManager(init_loss_scale=2.0, scale_factor=3.0, scale_window=4)",
        ),
        (FixedLossScaleUpdateCell(2), "FixedLossScaleUpdateCell(loss_scale=2.0)"),
        (
            DynamicLossScaleUpdateCell(2, 3, 4),
            "DynamicLossScaleUpdateCell(loss_scale=2.0, scale_factor=3.0, scale_window=4)",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_repr_and_pickle(made, shown):
    assert repr(made) == shown
    pickled = pickle.loads(pickle.dumps(made))  # noqa: S301
    for other in (pickled, copy.deepcopy(made)):
        assert type(other) is type(made)
        assert repr(other) == shown


def test_pickle_and_state_dict_keep_the_place_in_the_window():
    manager = adamas.DynamicLossScaleManager(64, scale_factor=2, scale_window=3)
    for overflow in (True, False, False):
        manager.update_loss_scale(overflow)
    loaded = adamas.DynamicLossScaleManager(1, scale_factor=2, scale_window=3)
    loaded.load_state_dict(manager.state_dict())
    pickled = pickle.loads(pickle.dumps(manager))  # noqa: S301
    for other in (pickled, loaded):
        assert other.get_loss_scale() == 32.0
        other.update_loss_scale(False)
        assert other.get_loss_scale() == 64.0


def test_state_of_a_longer_window_does_not_miss_the_end_of_a_shorter_one():
    long = adamas.DynamicLossScaleManager(64, scale_window=100)
    for _ in range(50):
        long.update_loss_scale(False)
    short = adamas.DynamicLossScaleManager(1, scale_window=2)
    short.load_state_dict(long.state_dict())
    short.update_loss_scale(False)
    assert short.get_loss_scale() == 128.0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("loss_scale", 0.5, ValueError),
        ("loss_scale", None, TypeError),
        ("good_steps", -1, ValueError),
        ("good_steps", 1.0, TypeError),
        ("overflows", -1, ValueError),
        ("overflows", "1", TypeError),
    ],
)
def test_wrong_state_changes_nothing(name, value, error):
    manager = adamas.DynamicLossScaleManager(64)
    before = manager.state_dict()
    with pytest.raises(error, match=f"^{name} must be "):
        manager.load_state_dict({"loss_scale": 2.0, "good_steps": 1, "overflows": 1, name: value})
    assert manager.state_dict() == before
    with pytest.raises(KeyError, match="overflows"):
        manager.load_state_dict({"loss_scale": 2.0, "good_steps": 1})
    assert manager.state_dict() == before


# all_finite

FLOATS = (np.float16, np.float32, np.float64)
BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", BAD)
# Around the size of a block, where a remainder could be forgotten.
@pytest.mark.parametrize("size", [1, 2, 31, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_003])
def test_one_bad_element_is_found_anywhere(dtype, bad, size):
    array = np.full(size, np.finfo(dtype).max, dtype)
    assert adamas.all_finite([array]) is True
    for position in {0, size // 2, size - 1}:
        array[position] = bad
        assert adamas.all_finite([array]) is False
        array[position] = 1.0
    assert adamas.all_finite((array, array)) is True


@pytest.mark.parametrize("bad", BAD)
def test_every_gradient_is_looked_at(bad):
    good = np.ones(3, np.float32)
    for position in range(4):
        grads = [good] * 4
        grads[position] = np.array([1.0, bad], np.float32)
        assert adamas.all_finite(grads) is False
        grads[position] = Sparse(np.array([[1.0, bad]], np.float32))
        assert adamas.all_finite(grads) is False
        grads[position] = Sparse(np.ones((2, 3), np.float32))
        assert adamas.all_finite(grads) is True


@pytest.mark.parametrize("bad", BAD)
def test_views_are_tested_where_they_look(bad):
    base = np.zeros((101, 103), np.float32)
    views = {
        "columns": base[:, 1::2],
        "rows": base[3::5],
        "reversed": base[::-1, ::-1],
        "transposed": base.T,
        "broadcast": np.broadcast_to(base[:, :1], (101, 1000)),
    }
    for name, view in views.items():
        assert adamas.all_finite([view]), name
        position = (view.shape[0] - 1, view.shape[1] - 1)
        target = base[:, :1] if name == "broadcast" else view
        target[position[0], position[1] if name != "broadcast" else 0] = bad
        assert not adamas.all_finite([view]), name
        base[...] = 0.0
    base[:, 0] = bad
    assert adamas.all_finite([views["columns"]])


def test_unaligned_and_foreign_byte_order():
    raw = bytearray(4 * 8 + 1)
    unaligned = np.frombuffer(raw, np.float32, count=8, offset=1)
    swapped = np.ones(8, np.dtype(np.float32).newbyteorder())
    assert adamas.all_finite([unaligned, swapped])
    unaligned[5] = math.nan
    assert not adamas.all_finite([unaligned])
    swapped[5] = math.inf
    assert not adamas.all_finite([swapped])


def test_scalars_and_empty_arrays():
    assert adamas.all_finite([]) is True
    assert adamas.all_finite(()) is True
    assert adamas.all_finite([np.empty(0, np.float32), np.empty((0, 3)), np.empty((2, 0))]) is True
    assert adamas.all_finite([np.array(1.0), np.float32(2.0)]) is True
    assert adamas.all_finite([np.array(math.nan)]) is False
    assert adamas.all_finite([np.float16(math.inf)]) is False


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_are_finite(dtype):
    assert adamas.all_finite([np.ones((2, 3), dtype), Sparse(np.ones(2, dtype))]) is True


@pytest.mark.parametrize(
    ("bad", "came"),
    [
        (None, "NoneType"),
        (1.0, "float"),
        ([1.0, 2.0], "list"),
        ({"a": np.ones(1)}, "dict"),  # a dict has `values`, but they are no array
        (Sparse([1.0]), "Sparse"),
        (np.array(["a"]), "<U1"),
        (np.array([None]), "object"),
        (np.array([1j]), "complex128"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"datetime64\[D\]"),
    ],
)
@pytest.mark.parametrize("position", [0, 2])
def test_wrong_gradient_is_named_by_position(bad, came, position):
    grads = [np.array([math.nan])] * 3  # not even a NaN before it hides the error
    grads[position] = bad
    with pytest.raises(TypeError, match=rf"^grads\[{position}\] must .*, got {came}$"):
        adamas.all_finite(grads)


@pytest.mark.parametrize("grads", [None, np.ones(3), {"a": np.ones(1)}, iter([np.ones(1)]), 1.0])
def test_grads_must_be_a_list_or_tuple(grads):
    with pytest.raises(TypeError, match=r"^grads must be a list or tuple of gradients, got "):
        adamas.all_finite(grads)


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_temporary_of_the_size_of_a_gradient(dtype):
    array = np.ones((2000, 1000), dtype)
    for view in (array, array.T, array[:, ::2], array[::-1]):
        adamas.all_finite([view[:2]])  # what is allocated once only
        tracemalloc.start()
        try:
            assert adamas.all_finite([view])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 512 * 1024


def test_gradients_are_not_changed():
    array = np.array([1.0, math.nan, -0.0, 1e-45], np.float32)
    before = array.tobytes()
    array.flags.writeable = False
    assert not adamas.all_finite([array])
    assert array.tobytes() == before
