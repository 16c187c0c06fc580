"""Where the work is done: comm, target and use_offload."""

import numpy as np
import pytest

import adamas
from helpers import check_same_states, parameters
from rules import every_numerics


class Comm:
    """A communicator of so many processes, as far as an optimizer asks."""

    def __init__(self, size):
        self.size = size

    def Get_size(self):
        return self.size


def adam(**options):
    return adamas.Adam(parameters([np.ones((4, 3), np.float32)]), **options)


@pytest.mark.parametrize("comm", [None, Comm(1), Comm(np.int64(1))])
@pytest.mark.parametrize("use_amsgrad", [False, True])
def test_a_single_process(comm, use_amsgrad):
    optimizer, plain = adam(comm=comm, use_amsgrad=use_amsgrad), adam(use_amsgrad=use_amsgrad)
    for one in (optimizer, plain):
        assert one([np.full((4, 3), 0.5, np.float32)]) is True
    check_same_states(optimizer, plain)


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_are_not_supported_yet(size):
    with pytest.raises(NotImplementedError, match=f"comm must have one process, got {size}"):
        adam(comm=Comm(size))


@pytest.mark.parametrize("size", [2, 4])
def test_amsgrad_with_several_processes(size):
    with pytest.raises(ValueError, match="use_amsgrad must not be True with a comm") as caught:
        adam(comm=Comm(size), use_amsgrad=True)
    assert caught.type is ValueError
    assert str(size) in str(caught.value)


class WithoutMethod:
    Get_size = 1


@pytest.mark.parametrize("comm", [1, "world", object(), WithoutMethod(), [Comm(1)]])
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match="comm must have a method Get_size"):
        adam(comm=comm)


def test_an_error_of_the_communicator_is_passed_on():
    class Broken:
        def Get_size(self):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        adam(comm=Broken())


def test_the_target_is_the_cpu():
    optimizer = adam()
    assert optimizer.target == "CPU"
    optimizer.target = "CPU"
    assert optimizer.target == "CPU"


@pytest.mark.parametrize("value", ["GPU", "Ascend", "cpu", "", "CPU "])
def test_a_target_that_is_not_possible(value):
    optimizer = adam()
    with pytest.raises(ValueError, match="target must be") as caught:
        optimizer.target = value
    assert repr(value) in str(caught.value)
    assert optimizer.target == "CPU"


@pytest.mark.parametrize("value", [None, 1, True, b"CPU", ["CPU"]])
def test_a_target_of_another_type(value):
    optimizer = adam()
    with pytest.raises(TypeError, match="target must be a string"):
        optimizer.target = value
    assert optimizer.target == "CPU"


@every_numerics
def test_offload_has_the_bits_of_the_plain_call_in_cpu_memory(numerics):
    rng = np.random.default_rng(71)
    optimizers = [
        adam(use_offload=offload, numerics=numerics, weight_decay=0.037)
        for offload in (False, True)
    ]
    for step in range(4):
        grad = rng.standard_normal((4, 3)).astype(np.float32)
        if step % 2:
            grad = adamas.RowTensor(rng.integers(0, 4, 4), grad, (4, 3))
        for optimizer in optimizers:
            optimizer([grad])
    check_same_states(*optimizers)


@pytest.mark.parametrize("other", [{"use_lazy": True}, {"use_amsgrad": True}])
def test_what_offload_excludes(other):
    with pytest.raises(ValueError, match="use_offload"):
        adam(use_offload=True, **other)
