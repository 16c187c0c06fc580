"""A CUDA device without a GPU: the backend's device library over host memory, and arrays on it.

The fixture ``emulated_device`` compiles the library from csrc/cuda/device/emulated.cpp and loads
it.  Arrays on the emulated device are NumPy arrays that only say where they are by
``__cuda_array_interface__`` or DLPack, as those of CuPy and torch do.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import adamas
from adamas import _core
from helpers import Arena, bits

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "libadamas_cuda_emulated.so"
_in_use = []


def compile_in(folder):
    """Compile the device library in a folder."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler for the emulated device")
    flags = ("-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fno-math-errno")
    source = ROOT / "csrc/cuda/device/emulated.cpp"
    sources = ("-I", ROOT / "csrc", "-I", ROOT / "csrc/include", source)
    target = folder / LIBRARY
    command = [compiler, *flags, "-shared", "-fPIC", "-fvisibility=hidden", *sources, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def load_from(folder):
    """Load the device library into adamas, and return it."""
    library = ctypes.CDLL(str(folder / LIBRARY))
    for name in ("calls", "launches", "allocations"):
        getattr(library, f"adamas_emulated_{name}").restype = ctypes.c_int64
    library.adamas_emulated_fail_at.argtypes = [ctypes.c_int64]
    library.adamas_emulated_trace.restype = ctypes.c_char_p
    library.adamas_emulated_begin_capture.argtypes = [ctypes.c_void_p]
    for name in ("begin_capture", "replay"):
        getattr(library, f"adamas_emulated_{name}").restype = ctypes.c_int64
    library.adamas_emulated_replay.argtypes = [ctypes.c_int64]
    _core.load_cuda_library(str(folder / LIBRARY))
    _in_use.append(library)
    return library


def emulator():
    """Return the library that is loaded, for counting and failing calls."""
    return _in_use[-1]


class FakeArray:
    """A NumPy array that says it is on a CUDA device, by the CUDA array interface."""

    def __init__(self, array, *, readonly=False, stream=None):
        self.host = np.asarray(array)
        self.readonly = readonly
        self.stream = stream

    @property
    def __cuda_array_interface__(self):
        name = self.host.dtype.name
        if name == "bfloat16":
            raise TypeError("bfloat16 has no type string")
        strides = None if self.host.flags.c_contiguous else self.host.strides
        return {
            "shape": self.host.shape,
            "typestr": self.host.dtype.str,
            "data": (self.host.ctypes.data, self.readonly),
            "strides": strides,
            "stream": self.stream,
            "version": 3,
        }


class FakeTensor:
    """A NumPy array that says it is on a CUDA device, by DLPack."""

    def __init__(self, array, device=0, *, device_type=2):
        self.host = np.asarray(array)
        self.device = (device_type, device)
        self.streams = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        is_bfloat16 = self.host.dtype.name == "bfloat16"
        plain = self.host.view(np.uint16) if is_bfloat16 else self.host
        capsule = plain.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype = ctypes.c_void_p
        get.argtypes = [ctypes.py_object, ctypes.c_char_p]
        # DLTensor: data, device type and number, ndim, type code, ...
        tensor = get(capsule, b"dltensor")
        ctypes.c_int32.from_address(tensor + 8).value = self.device[0]
        ctypes.c_int32.from_address(tensor + 12).value = self.device[1]
        if is_bfloat16:
            ctypes.c_uint8.from_address(tensor + 20).value = 4
        return capsule


class DLTensor(ctypes.Structure):
    """The struct of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DESCRIBE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
_STREAM = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)


class _ExchangeTable(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("unused", ctypes.c_void_p * 3),
        ("describe", _DESCRIBE),
        ("current_stream", _STREAM),
    )


@_DESCRIBE
def _describe(array, tensor):
    for field, value in array.described.items():
        setattr(tensor.contents, field, value)
    return 0


@_STREAM
def _current_stream(_type, _device, stream):
    stream.contents.value = ExchangeTensor.current_stream
    return 0


_TABLE = _ExchangeTable(1, 3, None, (None, None, None), _describe, _current_stream)
_NAME = b"dlpack_exchange_api"


def _capsule():
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(_TABLE), _NAME, None)


class ExchangeTensor(FakeTensor):
    """A NumPy array that says it is on a CUDA device, by the functions in C of DLPack 1.2."""

    __dlpack_c_exchange_api__ = _capsule()
    current_stream = 0

    def __init__(self, array, device=0):
        super().__init__(array, device)
        item = self.host.dtype.itemsize
        axes = self.host.ndim
        self.described = {
            "data": self.host.ctypes.data,
            "device_type": 2,
            "device_id": device,
            "ndim": axes,
            "code": {"i": 0, "f": 2, "V": 4}[self.host.dtype.kind],
            "bits": 8 * item,
            "lanes": 1,
            "shape": (ctypes.c_int64 * axes)(*self.host.shape),
            "strides": (ctypes.c_int64 * axes)(*(step // item for step in self.host.strides)),
            "byte_offset": 0,
        }


class InterfaceTensor(ExchangeTensor):
    """One that has a CUDA array interface too, of the version before streams, as torch's."""

    @property
    def __cuda_array_interface__(self):
        interface = {**FakeArray(self.host).__cuda_array_interface__, "version": 2}
        del interface["stream"]
        return interface


# Whether tests that compare with the CPU use the GPU of this machine, by torch, instead.
IS_REAL = os.environ.get("ADAMAS_TEST_CUDA") == "real"
emulated = pytest.mark.skipif(IS_REAL, reason="needs the emulated device")


def fake(shape=(3, 2), dtype=np.float32, **options):
    if IS_REAL:
        pytest.skip("needs the emulated device")
    return FakeArray(np.ones(shape, dtype), **options)


def on_device(array, offset=0):
    """Return a copy of an array on the device, ``offset`` bytes behind an aligned address."""
    array = np.asarray(array)
    if IS_REAL:
        return on_gpu(array, offset)
    (view,) = Arena([array], offset).views
    return FakeTensor(view) if array.dtype.name == "bfloat16" else FakeArray(view)


def on_gpu(array, offset=0):
    """Return a copy as a torch tensor on the GPU."""
    import torch

    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffer = torch.zeros(raw.size + offset, dtype=torch.uint8, device="cuda")
    buffer[offset:].copy_(torch.from_numpy(raw.copy()))
    dtype = getattr(torch, array.dtype.name)
    return buffer[offset:].view(dtype).reshape(array.shape)


def to_host(array):
    """Return an array on the device, or state there, as one of NumPy."""
    if hasattr(array, "host"):
        return array.host
    if not hasattr(array, "data_ptr"):
        return array.numpy() if hasattr(array, "numpy") else np.asarray(array)
    import torch

    if array.dtype != torch.bfloat16:
        return array.cpu().numpy()
    from ml_dtypes import bfloat16

    return array.view(torch.int16).cpu().numpy().view(bfloat16)


def assign(array, initial):
    if hasattr(array, "assign"):
        array.assign(initial)
    else:
        array[...] = initial


def same_bits(mine, wanted):
    return np.array_equal(bits(mine), bits(wanted))


class Twins:
    """One optimizer on the CPU and one on the device, of the same parameters."""

    def __init__(self, arrays, make, *, offset=0):
        self.arrays = {
            "cpu": Arena(arrays, 0).views,
            "gpu": [on_device(a, offset) for a in arrays],
        }
        self.optimizers = {
            name: make([adamas.Parameter(a, f"w{i}") for i, a in enumerate(arrays)])
            for name, arrays in self.arrays.items()
        }

    @property
    def cpu(self):
        return self.optimizers["cpu"]

    @property
    def gpu(self):
        return self.optimizers["gpu"]

    def start(self, **states):
        """Set the initial states: {kind: arrays}."""
        for optimizer in self.optimizers.values():
            for kind, initial in states.items():
                for array, one in zip(getattr(optimizer, kind), initial, strict=True):
                    assign(array, one)

    def step(self, grads, *, offset=0):
        """Make the same step with both; None is a gradient that is absent."""
        self.cpu(tuple(grads))
        self.gpu(tuple(None if g is None else on_device(g, offset) for g in grads))

    def states(self, which):
        optimizer = self.optimizers[which]
        kinds = {
            "param": self.arrays[which],
            "moment1": optimizer.moment1,
            "moment2": optimizer.moment2,
            "vhat": [array for array in optimizer.vhat if array is not None],
            "master": [array for array in optimizer.master_weights if array is not None],
            "ema": optimizer.ema,
        }
        return {kind: [to_host(array) for array in arrays] for kind, arrays in kinds.items()}

    def check(self, identity=None):
        wanted, found = self.states("cpu"), self.states("gpu")
        for kind, arrays in wanted.items():
            assert len(found[kind]) == len(arrays)
            for i, (mine, other) in enumerate(zip(found[kind], arrays, strict=True)):
                same = same_bits(mine, other)
                if identity is not None and kind == "param":
                    identity.compared += 1
                    identity.mismatches += not same
                assert same, f"{kind} of parameter {i} (of shape {mine.shape})"
        assert self.gpu.global_step == self.cpu.global_step
        assert self.gpu.steps == self.cpu.steps
        assert self.gpu.skipped_steps == self.cpu.skipped_steps
        assert self.gpu.last_step_skipped == self.cpu.last_step_skipped
        np.testing.assert_equal(self.gpu.last_grad_norm, self.cpu.last_grad_norm)
