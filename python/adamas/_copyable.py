"""Which memory of a parameter can be copied, so that the copy is that of all who share it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _validation as validation


def check_copyable(data: Any, label: str) -> None:
    """Refuse memory of which a copy would not be that of what else holds it.

    Raises
    ------
    TypeError
        Unless it is that of a whole NumPy array or torch tensor on the CPU.
    """
    if type(data) is np.ndarray:
        if _is_whole(data):
            return
        what = f"a view into memory of {type(data.base).__name__}"
    elif type(data).__module__.partition(".")[0] == "torch":
        if data.device.type == "cpu" and data.untyped_storage().nbytes() == data.nbytes:
            return
        is_view = data.device.type == "cpu"
        what = "a view into a larger tensor" if is_view else f"on device {data.device}"
    else:
        what = f"memory of {type(data).__name__}"
    raise TypeError(
        f"{label} can't be copied or pickled, because it is {what}: only whole NumPy arrays and "
        f"torch tensors on the CPU can; got {validation.shown(data)}"
    )


def _is_whole(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is all of the memory that was allocated for it, perhaps in another shape."""
    base = array.base
    if base is None:
        return array.flags.owndata
    return type(base) is np.ndarray and base.flags.owndata and base.nbytes == array.nbytes
