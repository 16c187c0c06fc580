"""The no-arithmetic limit from Python: compiles limit.cpp when it is needed and calls it."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_HERE = Path(__file__).resolve().parent
_SOURCE = _HERE / "limit.cpp"
_LIBRARY = _HERE.parent / "build" / "bench" / "liblimit.so"
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]
_SIGNATURES = {
    "dense_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_int]),
    "dense_add": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
    "dense_finish": (None, [ctypes.c_void_p]),
    "dense_run": (None, [ctypes.c_void_p, ctypes.c_int]),
    "dense_delete": (None, [ctypes.c_void_p]),
    "rows_new": (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int],
    ),
    "rows_run": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]),
    "rows_delete": (None, [ctypes.c_void_p]),
}


def build() -> Path:
    """Compile the library if it is missing or older than its source, and return its path."""
    if not _LIBRARY.exists() or _LIBRARY.stat().st_mtime < _SOURCE.stat().st_mtime:
        _LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        new = _LIBRARY.with_suffix(f".{os.getpid()}")
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        subprocess.run([*compiler, *_FLAGS, str(_SOURCE), "-o", str(new)], check=True)
        new.replace(_LIBRARY)
    return _LIBRARY


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class DenseLimit:
    """The traffic of one step over a list of float32 arrays; call it for a step.

    Parameters
    ----------
    params, grads : sequence of arrays
        Contiguous, of four bytes an element; the parameters are written (with what they hold).
    threads : int
        Threads that share the work.
    state_bytes : {4, 2, 1}
        Bytes of one element of a moment.
    """

    def __init__(
        self,
        params: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        threads: int,
        state_bytes: int = 4,
    ) -> None:
        self._library = _load()
        self._arrays = (params, grads)
        self._handle = self._library.dense_new(threads, state_bytes)
        for param, grad in zip(params, grads, strict=True):
            self._library.dense_add(self._handle, param.ctypes.data, grad.ctypes.data, param.size)
        self._library.dense_finish(self._handle)

    def __call__(self) -> None:
        """Do one step."""
        self.repeat(1)

    def repeat(self, times: int) -> None:
        """Do several steps in one call, so that the call from Python costs nothing."""
        self._library.dense_run(self._handle, times)

    def __del__(self) -> None:
        self._library.dense_delete(self._handle)


class RowsLimit:
    """The traffic of one step over given, distinct rows of a float32 table."""

    def __init__(self, table: np.ndarray, threads: int) -> None:
        self._library = _load()
        self._table = table
        rows, width = table.shape
        self._handle = self._library.rows_new(table.ctypes.data, rows, width, threads)

    def __call__(self, indices: np.ndarray, grads: np.ndarray) -> None:
        """Do one step over the rows `indices`, with one row of `grads` for each."""
        self._library.rows_run(self._handle, indices.ctypes.data, indices.size, grads.ctypes.data)

    def __del__(self) -> None:
        self._library.rows_delete(self._handle)
