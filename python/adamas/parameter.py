"""What an optimizer updates."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import FloatArray, parameter_array


class Parameter:
    """An array that an optimizer updates in place, with a name.

    Parameters
    ----------
    data : array
        A writable, C-contiguous NumPy array of float32 or float64, of any shape; or any object
        that exports such memory by the buffer protocol or DLPack on the CPU (a torch tensor, an
        ``array.array``). It is used in place and never copied.
    name : str, optional
        Weight decay skips ungrouped parameters whose name contains "beta" or "gamma"; messages
        and checkpoints use it. Without one, an optimizer calls the parameter by its position.

    Raises
    ------
    TypeError
        If ``data`` exports no array memory or is of another type, or ``name`` is not a string.
    ValueError
        If the memory is read-only, not C-contiguous or not aligned.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Parameter(np.zeros((3, 2), np.float32), name="fc.weight")
    >>> weight.shape, weight.dtype, weight.size
    ((3, 2), dtype('float32'), 6)
    """

    def __init__(self, data: Any, name: str | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, got {type(name).__name__}")
        self._array = parameter_array(data)
        self._data = data
        self._name = name

    @property
    def data(self) -> Any:
        """The object that was given, whose memory is updated."""
        return self._data

    @property
    def name(self) -> str | None:
        """The name that was given, or None."""
        return self._name

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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """The memory as a NumPy array: a view, unless another type or a copy is asked for."""
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self._array.copy() if copy else self._array
        if copy is False:
            raise ValueError(f"a view of {self.dtype} memory as {np.dtype(dtype)} needs a copy")
        return self._array.astype(dtype)

    def __repr__(self) -> str:
        return f"Parameter(name={self.name!r}, shape={self.shape}, dtype={self.dtype.name})"
