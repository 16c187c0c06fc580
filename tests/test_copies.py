"""Copies by pickle and copy.deepcopy: independent optimizers that go on with the same bits.

What has no copy is refused, with what to do about it, and nothing has changed.
"""

import array
import copy
import mmap
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

import adamas
from helpers import (
    Falling,
    Rising,
    check_refused,
    check_same_states,
    everything,
    row_tensor,
    run_threads,
)
from rules import RULES, TYPES, WAYS, every, every_dtype


def by_pickle(protocol):
    def copied(thing):
        return pickle.loads(pickle.dumps(thing, protocol))  # noqa: S301

    copied.__name__ = f"pickle{protocol}"
    return copied


WAYS_TO_COPY = (copy.deepcopy, *map(by_pickle, range(pickle.HIGHEST_PROTOCOL + 1)))
every_way = every("copied", WAYS_TO_COPY)
SHAPES = {"weight": (3, 16), "norm.gamma": (5,), "scale": ()}


def make(dtype=np.float32, make_optimizer=adamas.Adam, **options):
    rng = np.random.default_rng(0)
    params = [
        adamas.Parameter(np.array(rng.standard_normal(shape), dtype), name)
        for name, shape in SHAPES.items()
    ]
    return make_optimizer(params, **options)


def steps(optimizer, count):
    for _ in range(count):
        rng = np.random.default_rng(optimizer.global_step)
        optimizer([np.array(rng.standard_normal(p.shape), p.dtype) for p in optimizer.parameters])


def check_goes_on(optimizer, copied, count=2):
    """The copy has memory of its own, and its next steps have the same bits."""
    twin = copied(optimizer)
    assert type(twin) is type(optimizer)
    before = everything(optimizer)
    check_same_states(twin, optimizer)
    assert everything(twin) == before
    steps(twin, count)
    assert everything(optimizer) == before
    steps(optimizer, count)
    check_same_states(twin, optimizer)
    assert everything(twin) == everything(optimizer)
    return twin


# The same bits


@every_way
@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_every_rule(options, copied):
    optimizer = make(learning_rate=Falling(), beta1=0.8, **options)
    steps(optimizer, 2)
    check_goes_on(optimizer, copied)


@pytest.mark.parametrize("copied", WAYS_TO_COPY[:2], ids=lambda way: way.__name__)
@pytest.mark.parametrize(("dtype", "options"), TYPES.values(), ids=TYPES)
def test_every_type_and_format(dtype, options, copied):
    optimizer = make(dtype, learning_rate=0.01, **options)
    steps(optimizer, 2)
    check_goes_on(optimizer, copied)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "capturable"])
def test_every_way_to_run(way):
    options = {**WAYS[way], "max_grad_norm": 0.5, "skip_nonfinite": True, "loss_scale": 4.0}
    optimizer = make(learning_rate=0.01, **options)
    steps(optimizer, 2)
    optimizer([np.full(p.shape, np.nan, p.dtype) for p in optimizer.parameters])
    twin = check_goes_on(optimizer, copy.deepcopy)
    assert twin.skipped_steps == 1


@every_way
def test_without_bias_correction(copied):
    optimizer = make(make_optimizer=adamas.AdamWeightDecay, weight_decay=0.1)
    steps(optimizer, 2)
    twin = check_goes_on(optimizer, copied)
    assert repr(twin) == repr(optimizer)


@every_way
def test_groups_with_all_they_have(copied):
    rng = np.random.default_rng(0)
    kernel = adamas.Parameter(rng.standard_normal((4, 3, 5)).astype(np.float32), "kernel")
    bias = adamas.Parameter(rng.standard_normal(4), "bias")
    groups = [
        {"params": [kernel], "grad_centralization": True, "lr": [0.1, 0.2, 0.3, 0.4]},
        {"params": [bias], "weight_decay": Rising()},
        {"order_params": [bias, kernel]},
    ]
    optimizer = adamas.Adam(groups, Falling(), decoupled_weight_decay=True)
    steps(optimizer, 1)
    optimizer.groups[1].lr = 0.05
    twin = check_goes_on(optimizer, copied)
    assert [p.name for p in twin.parameters] == ["bias", "kernel"]
    assert twin.get_lr() == optimizer.get_lr() == (0.05, 0.4)
    assert twin.groups[0].grad_centralization
    twin.learning_rate = 0.5
    assert optimizer.get_lr() == (0.05, 0.4)


@every_way
def test_undecayed_names_and_names_by_position(copied):
    arrays = [np.ones(3, np.float32), np.ones(2, np.float32)]
    params = [adamas.Parameter(arrays[0]), adamas.Parameter(arrays[1], "gamma")]
    optimizer = adamas.Adam(params, weight_decay=0.1)
    twin = check_goes_on(optimizer, copied)
    assert list(twin.state_dict()["parameters"]) == ["param0", "gamma"]
    assert [p.name for p in twin.parameters] == [None, "gamma"]


@every_way
def test_sparse_rows_that_catch_up(copied):
    rng = np.random.default_rng(0)
    table = adamas.Parameter(rng.standard_normal((7, 4)).astype(np.float32), "table")
    optimizer = adamas.Adam([table], row_policy="catch_up")
    for rows in ([0, 2], [2, 2, 5]):
        optimizer([row_tensor(rng, (7, 4), np.array(rows), np.float32)])
    twin = copied(optimizer)
    grad = row_tensor(rng, (7, 4), np.array([0, 5, 6]), np.float32)
    for one in (twin, optimizer):
        one([grad])
    check_same_states(twin, optimizer)


@every_way
def test_an_iterable_that_is_no_iterator_begins_again(copied):
    optimizer = make(learning_rate=range(1, 9))
    steps(optimizer, 3)
    assert check_goes_on(optimizer, copied).get_lr() == 6.0


@every_way
def test_what_was_set_is_copied(copied):
    optimizer = make(weight_decay=0.1)
    optimizer.learning_rate = 0.25
    optimizer.loss_scale = 8.0
    optimizer.unique = False
    optimizer.global_step = 17
    twin = check_goes_on(optimizer, copied)
    assert (twin.learning_rate, twin.loss_scale, twin.unique) == (0.25, 8.0, False)


class Mine(adamas.Adam):
    """A subclass with attributes of its own, one of which is a parameter's array."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.history = [1.5]
        self.first = self.parameters[0].data


@every_way
def test_a_users_subclass(copied):
    optimizer = make(make_optimizer=Mine, learning_rate=0.1)
    steps(optimizer, 1)
    twin = check_goes_on(optimizer, copied)
    assert twin.history == [1.5]
    assert twin.history is not optimizer.history
    assert twin.first is twin.parameters[0].data


def test_copies_in_threads():
    optimizer = make(learning_rate=0.1, use_locking=True)
    copies = []
    run_threads(
        lambda: steps(optimizer, 50),
        lambda: copies.extend(copy.deepcopy(optimizer) for _ in range(20)),
    )
    for twin in copies:
        steps(twin, 1)
    assert optimizer.global_step == 50


def test_a_copy_locks_for_itself():
    """What holds the lock of the one does not hold that of the other."""
    optimizer = make(use_locking=True)
    twin = copy.deepcopy(optimizer)
    with optimizer._lock:
        thread = threading.Thread(target=steps, args=(twin, 1), daemon=True)
        thread.start()
        thread.join(60)
    assert twin.global_step == 1


# What is shared stays shared


@every_way
def test_a_model_and_its_optimizer_still_belong_together(copied):
    model = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = adamas.Adam(model, 0.1)
    new_model, twin = copied((model, optimizer))
    steps(twin, 1)
    for name, parameter in zip(model, twin.parameters, strict=True):
        assert parameter.data is new_model[name]
        assert (new_model[name] != 1).all()
        assert (model[name] == 1).all()


@every_way
def test_two_optimizers_over_one_parameter(copied):
    parameter = adamas.Parameter(np.ones(3, np.float32), "weight")
    first, second = copied([adamas.Adam([parameter], 0.1), adamas.Adam([parameter], 0.2)])
    assert first.parameters[0] is second.parameters[0]
    first([np.ones(3, np.float32)])
    assert (np.asarray(second.parameters[0]) < 1).all()


@every_way
def test_a_schedule_that_is_shared(copied):
    schedule = Falling()
    groups = [{"params": [np.ones(2, np.float32)], "lr": schedule},
              {"params": [np.ones(3, np.float32)], "lr": schedule}]  # fmt: skip
    twin = copied(adamas.Adam(groups))
    first, second = (group.lr for group in twin.groups)
    assert first is second
    assert first is not schedule


def with_state():
    shape = (4, 3)
    rng = np.random.default_rng(1)
    arrays = {
        kind: np.array(rng.random(shape), np.float32) for kind in ("moment1", "moment2", "vhat")
    }
    return adamas.Parameter(np.ones(shape, np.float32), "weight", **arrays), arrays


@every_way
def test_state_of_the_callers_is_copied_and_stays_shared(copied):
    """A framework's state dict, pickled beside the optimizer, is still the optimizer's state."""
    parameter, arrays = with_state()
    optimizer = adamas.Adam([parameter], 0.1, use_amsgrad=True)
    steps(optimizer, 1)
    twin, new_arrays = copied((optimizer, arrays))
    before = everything(optimizer)
    steps(twin, 2)
    assert everything(optimizer) == before
    steps(optimizer, 2)
    check_same_states(twin, optimizer)
    for kind, one in new_arrays.items():
        assert np.shares_memory(getattr(twin, kind)[0], one)
        assert not np.shares_memory(one, arrays[kind])
        np.testing.assert_array_equal(one, arrays[kind])


@every_way
def test_state_of_the_callers_that_has_no_copy(copied):
    moment1 = np.zeros((8, 3), np.float32)[:4]
    parameter = adamas.Parameter(np.ones((4, 3), np.float32), "weight", moment1=moment1)
    optimizer = adamas.Adam([parameter])
    check_refused(optimizer, lambda: copied(optimizer), TypeError, "'weight'", "can't be copied")


@every_way
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_axes_in_another_order(order, copied):
    data = np.ones((2, 3, 4), np.float32).transpose(order)
    optimizer = adamas.Adam([adamas.Parameter(data, "weight")], 0.1)
    steps(optimizer, 1)
    check_goes_on(optimizer, copied)


# Parameters


@every_way
@every_dtype
def test_a_parameter(dtype, copied):
    parameter = adamas.Parameter(np.ones((3, 2), dtype), "weight")
    parameter_copy, data = copied((parameter, parameter.data))
    assert parameter_copy.data is data
    assert np.shares_memory(np.asarray(parameter_copy), data)
    assert not np.shares_memory(data, parameter.data)
    assert (parameter_copy.name, parameter_copy.shape, parameter_copy.dtype) == (
        "weight", (3, 2), np.dtype(dtype))  # fmt: skip


def test_a_reshaped_array_is_whole():
    parameter = adamas.Parameter(np.arange(6, dtype=np.float32).reshape(2, 3))
    twin = copy.deepcopy(parameter)
    assert (twin.data == parameter.data).all()
    assert not np.shares_memory(np.asarray(twin), np.asarray(parameter))


class Buffer:
    """An exporter of memory by DLPack."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0


class MyArray(np.ndarray):
    pass


NO_COPY = {
    "part of an array": lambda: np.ones((4, 3), np.float32)[:2],
    "array.array": lambda: array.array("f", [1.0, 2.0]),
    "memory of an array.array": lambda: np.frombuffer(array.array("f", [1.0, 2.0]), np.float32),
    "memory map": lambda: np.frombuffer(mmap.mmap(-1, 64), np.float32),
    "bytearray": lambda: np.frombuffer(bytearray(8), np.float32),
    "DLPack": lambda: Buffer(np.ones(3, np.float32)),
    "subclass": lambda: np.ones(3, np.float32).view(MyArray),
}
if not np.from_dlpack(np.ones(1)).flags.writeable:  # NumPy before 2.1
    del NO_COPY["DLPack"]


@every_way
@pytest.mark.parametrize("make_data", NO_COPY.values(), ids=NO_COPY)
def test_memory_of_which_there_is_no_copy(make_data, copied):
    parameter = adamas.Parameter(make_data(), "weight")
    optimizer = adamas.Adam([parameter], 0.1)
    optimizer([np.ones(parameter.shape, np.float32)])
    for thing in (parameter, optimizer, [optimizer]):
        check_refused(
            optimizer, lambda thing=thing: copied(thing), TypeError, "'weight'", "can't be copied"
        )
    optimizer([np.ones(parameter.shape, np.float32)])


@every_way
def test_an_iterator_of_learning_rates(copied):
    optimizer = make(learning_rate=iter([0.1, 0.2, 0.3]))
    steps(optimizer, 1)
    check_refused(optimizer, lambda: copied(optimizer), TypeError, "iterator", "list_iterator")
    assert optimizer.get_lr() == 0.2
    steps(optimizer, 2)


@every_way
def test_a_generator_in_a_group(copied):
    groups = [{"params": [np.ones(3, np.float32)], "lr": (x for x in [0.1])}]
    optimizer = adamas.Adam(groups)
    check_refused(optimizer, lambda: copied(optimizer), TypeError, "generator")


@every_way
def test_an_open_step(copied):
    optimizer = make()
    optimizer.begin_step()
    check_refused(optimizer, lambda: copied(optimizer), RuntimeError, "step")
    optimizer.cancel_step()
    check_goes_on(optimizer, copied)


def test_a_shallow_copy():
    optimizer = make()
    check_refused(optimizer, lambda: copy.copy(optimizer), TypeError, "copy.deepcopy", "Adam")


def test_a_shallow_copy_of_a_parameter_has_the_same_memory():
    parameter = adamas.Parameter(np.ones(3, np.float32), "weight")
    twin = copy.copy(parameter)
    assert twin is not parameter
    assert twin.data is parameter.data


def test_a_device_has_no_copy(emulated_device):
    from emulation import FakeArray

    parameter = adamas.Parameter(FakeArray(np.ones(3, np.float32)), "weight")
    optimizer = adamas.Adam([parameter])
    for copied in WAYS_TO_COPY:
        with pytest.raises(TypeError, match="can't be copied"):
            copied(optimizer)


def test_what_a_later_version_has_pickled():
    parts = make().__getstate__()
    parts["adamas"] = "9.0"
    for name in ("options", "state"):
        later = {**parts, name: {**parts[name], "later": 1}}
        with pytest.raises(ValueError, match=r"pickled by adamas 9\.0: .*later"):
            adamas.Adam.__new__(adamas.Adam).__setstate__(later)


# Torch


def torch_parameters(torch):
    model = torch.nn.Linear(3, 2)
    return model, [adamas.Parameter(p, name) for name, p in model.named_parameters()]


def torch_steps(torch, model, optimizer):
    model.zero_grad()
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer([p.grad for p in model.parameters()])


@every("copied", [way for way in WAYS_TO_COPY if way.__name__ not in ("pickle0", "pickle1")])
def test_a_torch_model_and_its_optimizer(copied):
    """By the protocols that torch knows."""
    torch = pytest.importorskip("torch")
    model, params = torch_parameters(torch)
    optimizer = adamas.Adam(params, 0.1)
    torch_steps(torch, model, optimizer)
    new_model, twin = copied((model, optimizer))
    before = everything(optimizer)
    torch_steps(torch, new_model, twin)
    assert everything(optimizer) == before
    torch_steps(torch, model, optimizer)
    assert everything(twin) == everything(optimizer)
    for ours, theirs in zip(twin.parameters, new_model.parameters(), strict=True):
        assert ours.data is theirs


def test_a_part_of_a_torch_tensor():
    torch = pytest.importorskip("torch")
    parameter = adamas.Parameter(torch.ones(4, 3)[1:], "weight")
    for copied in WAYS_TO_COPY:
        with pytest.raises(TypeError, match="larger tensor"):
            copied(parameter)


def test_bfloat16_of_ml_dtypes():
    optimizer = make(ml_dtypes.bfloat16, learning_rate=0.1)
    steps(optimizer, 1)
    check_goes_on(optimizer, copy.deepcopy)
