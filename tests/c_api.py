"""The C API through ctypes: the structs and functions of csrc/include/adamas/adamas.h."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
OK = 0


class Status(ctypes.Structure):
    _fields_ = [("code", c_int32), ("index", c_int64), ("text", ctypes.c_char_p)]


class Config(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((name, c_double) for name in ("beta1", "beta2", "eps", "loss_scale", "max_grad_norm")),
        ("seed", c_uint64),
        *((name, c_int32) for name in ("numerics", "row_policy", "state_format", "num_threads")),
        *((name, c_int32) for name in ("use_nesterov", "use_amsgrad", "decoupled_weight_decay")),
        *((name, c_int32) for name in ("bias_correction", "master_weights", "use_locking")),
        *((name, c_int32) for name in ("skip_nonfinite", "capturable", "use_offload", "maximize")),
        ("ema_decay", c_double),
        *((name, c_int32) for name in ("epsilon_placement", "allow_zero", "clip_per_array")),
        *((name, c_int32) for name in ("clip_after_decay", "writes_delta", "reduction")),
    ]


class Parameter(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("data", c_void_p),
        ("count", c_int64),
        ("rows", c_int64),
        *((name, c_int32) for name in ("dtype", "rates", "centralize", "device")),
        ("second_axis", c_int64),
        ("axes", c_int32),
        ("reserved", c_int32),
        ("key", c_int64),
        *((name, c_void_p) for name in ("moment1", "moment2", "vhat", "master", "ema", "delta")),
    ]


class Gradient(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("values", c_void_p),
        ("indices", c_void_p),
        ("indices_count", c_int64),
        *((name, c_int32) for name in ("is_sparse", "indices_are_int64", "dtype", "device")),
        ("count", c_int64),
        ("is_absent", c_int32),
        ("reserved", c_int32),
    ]


class Rates(ctypes.Structure):
    _fields_ = [("learning_rate", c_double), ("weight_decay", c_double)]


class ArrayCopy(ctypes.Structure):
    _fields_ = [
        ("parameter", c_size_t),
        ("kind", c_int32),
        ("data", c_void_p),
        ("nbytes", c_size_t),
    ]


class Counters(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((name, c_int64) for name in ("global_step", "skipped_steps")),
        *((name, c_double) for name in ("loss_scale", "last_grad_norm")),
        ("last_step_skipped", c_int32),
        ("reserved", c_int32),
    ]


def library_path():
    """Return where the library lies that adamas._core has brought into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    (path,) = {line.split(maxsplit=5)[5] for line in lines if "/libadamas.so" in line}
    return Path(path)


@cache
def library():
    """Load the library with the types of what is called here."""
    loaded = ctypes.CDLL(str(library_path()))
    optimizer, size, step = c_void_p, c_size_t, c_int64
    results = {
        "create": (Status, (c_void_p, c_void_p, size, POINTER(c_void_p))),
        "destroy": (None, (optimizer,)),
        "step": (Status, (optimizer, c_void_p, size, POINTER(Rates), size, c_void_p)),
        "begin_step": (Status, (optimizer, POINTER(Rates), size)),
        "apply": (Status, (optimizer, size, c_void_p, c_void_p)),
        "end_step": (Status, (optimizer,)),
        "cancel_step": (Status, (optimizer,)),
        "last_step_skipped": (c_int32, (optimizer,)),
        "skipped_steps": (c_int64, (optimizer,)),
        "last_grad_norm": (c_double, (optimizer,)),
        "global_step": (c_int64, (optimizer,)),
        "set_global_step": (Status, (optimizer, step)),
        "loss_scale": (c_double, (optimizer,)),
        "centralizes": (c_int32, (optimizer, size)),
        "set_loss_scale": (Status, (optimizer, c_double)),
        "state": (c_void_p, (optimizer, c_int32, size)),
        "decode_moment": (Status, (optimizer, c_int32, size, c_void_p)),
        "save": (Status, (optimizer, c_void_p, size, POINTER(Counters))),
        "load": (Status, (optimizer, c_void_p, size, POINTER(Counters))),
        "clone": (Status, (optimizer, c_void_p, size, POINTER(c_void_p))),
        "scale_block": (c_int64, (optimizer, size)),
        "state_nbytes": (c_size_t, (optimizer,)),
        "read_device": (Status, (optimizer, c_void_p, c_void_p, size)),
        "write_device": (Status, (optimizer, c_void_p, c_void_p, size)),
        "create_groups": (
            Status,
            (c_void_p, c_void_p, size, c_void_p, size, POINTER(c_void_p)),
        ),
        "set_group": (Status, (optimizer, size, c_void_p)),
        "add": (Status, (optimizer, c_void_p, size, c_void_p, size)),
        "end_step_skipping": (Status, (optimizer,)),
        "steps": (Status, (optimizer, c_void_p, size)),
        "set_steps": (Status, (optimizer, c_void_p, size)),
        "accumulate": (Status, (optimizer, c_void_p, size, c_void_p)),
        "step_accumulated": (Status, (optimizer, POINTER(Rates), size, c_void_p)),
        "accumulated": (c_int64, (optimizer,)),
        "discard_accumulated": (None, (optimizer,)),
        "update": (
            Status,
            (c_void_p, c_void_p, c_void_p, c_void_p, size, POINTER(Rates), size, c_void_p, size)
            + (c_void_p,),
        ),
        "set_rates": (Status, (optimizer, POINTER(Rates), size, c_void_p)),
        "version": (ctypes.c_char_p, ()),
        "isa_in_use": (ctypes.c_char_p, ()),
        "select_isa": (Status, (ctypes.c_char_p,)),
        "available_threads": (c_int32, ()),
        "cuda_devices": (c_int32, ()),
        "cuda_unavailable_reason": (ctypes.c_char_p, ()),
    }
    for name, (result, arguments) in results.items():
        function = getattr(loaded, f"adamas_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def call(name, *arguments):
    """Call a function of the library."""
    return getattr(library(), f"adamas_{name}")(*arguments)


def initialized(struct_type, **members):
    """Return a struct as its init function fills it, with these members."""
    struct = struct_type()
    init = getattr(library(), f"adamas_{struct_type.__name__.lower()}_init")
    init(byref(struct), c_size_t(ctypes.sizeof(struct_type)))
    for name, value in members.items():
        setattr(struct, name, value)
    return struct


def parameter(array, **members):
    rows = array.shape[0] if array.ndim else 1
    usual = {"data": array.ctypes.data, "count": array.size, "rows": rows, "axes": array.ndim}
    usual["second_axis"] = array.shape[1] if array.ndim > 1 else 0
    return initialized(Parameter, dtype=DTYPES[array.dtype.name], **{**usual, **members})


def gradient(array):
    dtype = DTYPES[array.dtype.name]
    return initialized(Gradient, values=array.ctypes.data, dtype=dtype, count=array.size)


def sparse_gradient(indices, values):
    grad = gradient(values)
    grad.is_sparse, grad.indices, grad.indices_count = 1, indices.ctypes.data, indices.size
    grad.indices_are_int64 = int(indices.dtype == np.int64)
    return grad


def array_of(structs):
    return (type(structs[0]) * len(structs))(*structs)


class Optimizer:
    """An optimizer of the C API; statuses that are not OK raise RuntimeError."""

    def __init__(self, config, parameters, groups=()):
        self.handle = c_void_p()
        self.parameters = parameters
        listed = array_of(parameters), len(parameters)
        if groups:
            listed += array_of(groups), len(groups)
        made = call("create_groups" if groups else "create", byref(config), *listed, self.handle)
        self.check(made)

    def clone(self, parameters):
        clone = object.__new__(Optimizer)
        clone.handle = c_void_p()
        clone.parameters = parameters
        self.call("clone", array_of(parameters), len(parameters), clone.handle)
        return clone

    def __del__(self):
        call("destroy", self.handle)

    @staticmethod
    def check(status):
        if status.code != OK:
            raise RuntimeError(status.code, status.index, status.text.decode())

    def call(self, name, *arguments):
        result = call(name, self.handle, *arguments)
        if isinstance(result, Status):
            self.check(result)
        return result

    def step(self, grads, rates):
        rates = array_of([Rates(*pair) for pair in rates])
        self.call("step", array_of(grads), len(grads), rates, len(rates), None)

    def state(self, kind, index, dtype):
        """Return a copy of a state as an array of this type."""
        count = self.parameters[index].count
        pointer = self.call("state", kind, index)
        memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype).copy()
