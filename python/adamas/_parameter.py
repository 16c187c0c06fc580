"""What an optimizer updates, and the sparse form of a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core
from . import _validation as validation
from ._arrays import Array, FloatArray, is_laid_out_like, parameter_array, state_array
from ._copyable import check_copyable
from ._device_arrays import device_parameter
from ._strict import Strict


class Parameter(Strict):
    """An array that an optimizer updates in place, with a name.

    Parameters
    ----------
    data : array
        A writable NumPy array of float32, float64, float16 or bfloat16 (of the package ml_dtypes),
        of any shape, whose elements fill their memory without gaps: C-contiguous, or its axes in
        another order (Fortran's, torch's channels_last); or any object that exports such memory by
        the buffer protocol or DLPack on the CPU (a torch tensor, an ``array.array``), or
        C-contiguous by ``__cuda_array_interface__`` or DLPack on a CUDA device (of CuPy, torch,
        Numba). It is used in place and never copied.
    name : str, optional
        Weight decay skips ungrouped parameters whose name contains "beta" or "gamma"; messages
        and checkpoints use it. Without one, an optimizer calls the parameter by its position.
    key : int, optional, keyword only
        In [0, 2**63): chooses the random bits of stochastic rounding (``state_dtype``). By default
        a hash of the name, so that they stay the same wherever the parameter stands in a list.
    moment1, moment2, vhat, master : array, optional, keyword only
        State of yours, which an optimizer uses in place, as it is, instead of its own: the moments,
        those of ``use_amsgrad``, and ``master_weights``. Of the parameter's shape and order in
        memory, on its device, and of the type of the arithmetic (float64 for float64, else
        float32); moments of bfloat16, or uint16 with its bits, go with ``state_dtype="bfloat16"``.

    Raises
    ------
    TypeError
        If ``data`` or state exports no array memory or is of another type, ``name`` is not a
        string, or ``key`` no int.
    ValueError
        If the memory is read-only, has gaps or is not aligned; or state has another shape or layout
        or is elsewhere.
    RuntimeError
        If it is on a CUDA device, but there is none that adamas can use.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Parameter(np.zeros((3, 2), np.float32), name="fc.weight")
    >>> weight.shape, weight.dtype, weight.size
    ((3, 2), dtype('float32'), 6)
    """

    __slots__ = ("__weakref__", "_array", "_data", "_given", "_key", "_name", "_states")

    def __init__(
        self,
        data: Array,
        name: str | None = None,
        *,
        key: int | None = None,
        moment1: Array | None = None,
        moment2: Array | None = None,
        vhat: Array | None = None,
        master: Array | None = None,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, got {type(name).__name__}")
        if key is not None:
            key = validation.integer("key", key, minimum=0, maximum=2**63 - 1)
        device_array = device_parameter(data)
        self._array: FloatArray | _core.DeviceArray = (
            parameter_array(data) if device_array is None else device_array
        )
        self._data = data
        self._name = name
        self._key = key
        given = {"moment1": moment1, "moment2": moment2, "vhat": vhat, "master": master}
        self._given = {kind: value for kind, value in given.items() if value is not None}
        self._states = {
            kind: state_array(value, kind, self._array) for kind, value in self._given.items()
        }

    @property
    def data(self) -> Any:
        """The object that was given, whose memory is updated."""
        return self._data

    @property
    def name(self) -> str | None:
        """The name that was given, or None."""
        return self._name

    @property
    def key(self) -> int | None:
        """The key that was given, or None."""
        return self._key

    @property
    def moment1(self) -> Any:
        """The first moment that was given, or None: then it is in `Adam.moment1`."""
        return self._given.get("moment1")

    @property
    def moment2(self) -> Any:
        """The second moment that was given, or None."""
        return self._given.get("moment2")

    @property
    def vhat(self) -> Any:
        """The largest second moment that was given, or None."""
        return self._given.get("vhat")

    @property
    def master(self) -> Any:
        """The master weights that were given, or None."""
        return self._given.get("master")

    @property
    def memory(self) -> FloatArray | _core.DeviceArray:
        """The memory as a NumPy array, or what describes it if it is on a CUDA device."""
        return self._array

    @property
    def is_on_device(self) -> bool:
        """Whether the memory is that of a CUDA device."""
        return isinstance(self._array, _core.DeviceArray)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type of the array."""
        return self._array.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._array.size

    def states_for(
        self, name: str, config: _core.AdamConfig
    ) -> dict[_core.StateKind, FloatArray | _core.DeviceArray]:
        """Return the state that was given, for an optimizer that calls the parameter ``name``.

        Raises
        ------
        TypeError
            If moments have another type than the optimizer's ``state_dtype``.
        ValueError
            If it keeps none, or it elsewhere.
        """
        states = {_core.StateKind[kind]: array for kind, array in self._states.items()}
        if states and self.is_on_device and config.use_offload:
            raise ValueError(
                f"state of parameter {name!r} must not be given with use_offload, which keeps its "
                "own on the host"
            )
        real = _core.gradient_dtypes(self.dtype.name)[0]
        is_halved = config.state_format is _core.StateFormat.bfloat16
        wanted = ("bfloat16", "uint16") if is_halved else (real,)
        for kind in ("moment1", "moment2"):
            array = self._states.get(kind)
            if array is not None and array.dtype.name not in wanted:
                raise TypeError(
                    f"{kind} of parameter {name!r} must be {' or '.join(wanted)}, as state_dtype "
                    f"says, got {array.dtype.name}"
                )
        return states

    def rebind(self, data: Array) -> None:
        """Take other memory: that of an array of the same shape and type. Nothing is copied.

        Optimizers that hold the parameter follow before they do anything else with it, and keep its
        state (master weights, too). They refuse, as a new one would, what shares memory with
        another parameter.

        Parameters
        ----------
        data : array
            As in the constructor, or the same object, whose memory was moved (a torch tensor after
            ``share_memory_()``, or whose ``.data`` was replaced). In CPU memory, as before, its
            axes in the same order.

        Raises
        ------
        TypeError
            If ``data`` exports no array memory or is of another type.
        ValueError
            If its shape or layout is another, or the memory can't be updated in place.

        Whatever is raised, the parameter is what it was.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas import Adam
        >>> weight = Parameter(np.zeros(2, np.float32))
        >>> optimizer = Adam([weight], learning_rate=0.5)
        >>> moved = np.ones(2, np.float32)
        >>> weight.rebind(moved)
        >>> optimizer((np.ones(2, np.float32),))
        True
        >>> moved.round(3)
        array([0.5, 0.5], dtype=float32)
        """
        before = self._array
        if isinstance(before, _core.DeviceArray) or device_parameter(data) is not None:
            raise ValueError("data must be in CPU memory: a parameter on a device can't be rebound")
        array = parameter_array(data)
        if array.dtype != self.dtype:
            raise TypeError(f"data must be {self.dtype}, as before, got {array.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"data must have shape {self.shape}, as before, got {array.shape}")
        if not is_laid_out_like(array, before.strides):
            raise ValueError(
                f"data must have its axes in memory as before, with strides {before.strides}, "
                f"got {array.strides}"
            )
        self._array, self._data = array, data
        _core.note_rebinding()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """The memory as a NumPy array: a view, unless another type or a copy is asked for."""
        if isinstance(self._array, _core.DeviceArray):
            raise TypeError("memory of a CUDA device is not copied unasked; use .data")
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self._array.copy() if copy else self._array
        if copy is False:
            raise ValueError(f"a view of {self.dtype} memory as {np.dtype(dtype)} needs a copy")
        return self._array.astype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy.deepcopy take: the data itself, unless it has no copy."""
        for value in (self._data, *self._given.values()):
            check_copyable(value, f"parameter {self._name!r}")
        own = {"data": self._data, "name": self._name, "key": self._key, "states": self._given}
        return {**own, "attributes": dict(getattr(self, "__dict__", {}))}  # of a user's subclass

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = {"key": state["key"], **state["states"]}
        Parameter.__init__(self, state["data"], state["name"], **given)
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Parameter(name={self.name!r}, shape={self.shape}, dtype={self.dtype.name})"


class RowTensor:
    """A gradient that is zero but for some rows: those of a table that a batch has looked up.

    The gradient of a parameter of shape ``dense_shape`` in which row ``indices[i]`` is the sum of
    all ``values[i]`` with that index, in their order.

    Parameters
    ----------
    indices : array of int32 or int64, shape ``(k,)``
        Rows, in any order; they may repeat.
    values : array, shape ``(k, *dense_shape[1:])``
        One slice for each index, of a float type.
    dense_shape : tuple of int
        The shape of the parameter.

    Notes
    -----
    Nothing is copied and nothing checked here: an optimizer checks all of it in each call, because
    arrays can change.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas import Adam
    >>> table = np.ones((5, 2), np.float32)
    >>> optimizer = Adam([Parameter(table, name="table")], learning_rate=0.1, use_lazy=True)
    >>> rows = RowTensor(np.array([3, 1, 3]), np.ones((3, 2), np.float32), table.shape)
    >>> optimizer((rows,))
    True
    >>> table[:, 0].round(3)
    array([1. , 0.9, 1. , 0.9, 1. ], dtype=float32)
    """

    def __init__(
        self, indices: Array | Sequence[int], values: Array, dense_shape: Sequence[int]
    ) -> None:
        self._indices = indices
        self._values = values
        self._dense_shape = dense_shape

    @property
    def indices(self) -> Any:
        """The rows."""
        return self._indices

    @property
    def values(self) -> Any:
        """The slices, one for each index."""
        return self._values

    @property
    def dense_shape(self) -> Any:
        """The shape of the whole gradient."""
        return self._dense_shape

    def __repr__(self) -> str:
        indices: Any = self._indices
        try:
            entries = f"{len(indices):,} entries"
        except TypeError:
            entries = type(indices).__name__
        return f"RowTensor({entries}, dense_shape={self._dense_shape})"
