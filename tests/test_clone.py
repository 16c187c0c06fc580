"""Clones of optimizers in the C API: on the host, on a device, and from one to the other.

tests/cpp/clone_tests.cpp has them in C++, with all that decides the bits of later steps.
"""

import ctypes
from itertools import product

import numpy as np
import pytest

import c_api
import emulation
from c_api import Config, initialized
from test_c_api import BAD_STATE, INVALID, MOMENT1, MOMENT2, OVERLAP, RATES, refused

CPU, DEVICE = -1, 0
OPTIONS = {
    "plain": {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
    "amsgrad": {"use_amsgrad": 1, "ema_decay": 0.75},
    "int8": {"state_format": 2, "seed": 7},
    "clipped": {"max_grad_norm": 0.5, "skip_nonfinite": 1, "loss_scale": 12.0},
}


def arrays():
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((9, 64), (33,))]


def copies(arrays):
    return [array.copy() for array in arrays]


def described(arrays, device=CPU):
    """Return parameters on a device that is emulated, and so has them where they are."""
    return [c_api.parameter(array, rates=i, device=device) for i, array in enumerate(arrays)]


def step(optimizer, seed, device=CPU):
    rng = np.random.default_rng(seed)
    counts = [parameter.count for parameter in optimizer.parameters]
    values = [rng.standard_normal(count).astype(np.float32) for count in counts]
    grads = [c_api.gradient(array) for array in values]
    for grad in grads:
        grad.device = device
    optimizer.step(grads, RATES)
    wait(optimizer)


def wait(optimizer):
    """Wait for what is queued on a device."""
    array = np.zeros(1, np.float32)
    name = "read_device"
    c_api.call(name, optimizer.handle, array.ctypes.data, array.ctypes.data, array.nbytes)


def states(optimizer, is_int8):
    """Return {(kind, index): bytes} of all arrays of state."""
    found = {}
    for kind, (i, parameter) in product(range(8), enumerate(optimizer.parameters)):
        pointer = optimizer.call("state", kind, i)
        nbytes = parameter.count * 4
        if is_int8:
            nbytes = parameter.count if kind in (MOMENT1, MOMENT2) else parameter.count // 64
        found[kind, i] = None if pointer is None else ctypes.string_at(pointer, nbytes)
    return found


def check_same(one, its_arrays, other, other_arrays, is_int8):
    for mine, wanted in zip(its_arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert states(one, is_int8) == states(other, is_int8)
    for counter in ("global_step", "skipped_steps", "loss_scale", "last_step_skipped"):
        assert one.call(counter) == other.call(counter)
    np.testing.assert_equal(one.call("last_grad_norm"), other.call("last_grad_norm"))


@pytest.mark.parametrize("places", [(CPU, CPU), (DEVICE, DEVICE), (CPU, DEVICE), (DEVICE, CPU)])
@pytest.mark.parametrize("offload", [0, 1])
@pytest.mark.parametrize("variant", OPTIONS)
def test_a_clone_goes_on_with_the_same_bits(variant, offload, places, request):
    if DEVICE in places:
        if emulation.IS_REAL:
            pytest.skip("arrays of the host are on the emulated device only")
        request.getfixturevalue("device")
    options = OPTIONS[variant]
    if offload and (variant == "amsgrad" or DEVICE not in places):
        pytest.skip("nothing is offloaded")
    config = initialized(Config, **options, use_offload=offload)
    first, second = places
    ours = arrays()
    optimizer = c_api.Optimizer(config, described(ours, first))
    step(optimizer, 1, first)
    step(optimizer, 2, first)
    optimizer.call("set_loss_scale", 4.0)
    theirs = copies(ours)
    clone = optimizer.clone(described(theirs, second))
    check_same(clone, theirs, optimizer, ours, variant == "int8")
    step(optimizer, 3, first)
    assert not np.array_equal(ours[0], theirs[0])
    assert clone.call("global_step") == 2
    step(clone, 3, second)
    check_same(clone, theirs, optimizer, ours, variant == "int8")
    del optimizer
    step(clone, 4, second)


@pytest.fixture
def pair():
    """Return an optimizer, its array, and the parameter of a clone that would do."""
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    optimizer = c_api.Optimizer(initialized(Config), [c_api.parameter(array)])
    optimizer.step([c_api.gradient(np.ones_like(array))], [(0.1, 0.0)])
    other = array.copy()
    yield optimizer, array, c_api.parameter(other)
    np.testing.assert_array_equal(other, array)


def test_refused_clones(pair):
    optimizer, array, good = pair

    def refuse(*parameters):
        return refused(optimizer, array, lambda: optimizer.clone(list(parameters)))

    def like(**members):
        changed = type(good).from_buffer_copy(good)
        for name, value in members.items():
            setattr(changed, name, value)
        return changed

    assert refuse(good, good)[:2] == (INVALID, -1)
    assert refuse(like(count=3))[:2] == (INVALID, 0)
    assert refuse(like(dtype=1))[:2] == (INVALID, 0)
    assert refuse(like(dtype=77)) == (INVALID, 0, "unknown dtype")
    assert refuse(like(struct_size=3))[:2] == (INVALID, 0)
    moments = optimizer.call("state", MOMENT1, 0), optimizer.call("state", MOMENT2, 0)
    assert refuse(like(moment1=moments[0]))[:2] == (OVERLAP, 0)
    assert refuse(like(data=moments[1]))[:2] == (OVERLAP, 0)
    optimizer.call("begin_step", c_api.array_of([c_api.Rates(0.1, 0.0)]), 1)
    assert refuse(good)[0] == BAD_STATE
    optimizer.call("cancel_step")


def test_null_pointers(pair):
    optimizer, _, good = pair
    listed = c_api.array_of([good])
    handle = ctypes.c_void_p()
    assert c_api.call("clone", None, listed, 1, handle).code == INVALID
    assert c_api.call("clone", optimizer.handle, None, 1, handle).code == INVALID
    assert c_api.call("clone", optimizer.handle, listed, 1, None).code == INVALID
    assert handle.value is None
