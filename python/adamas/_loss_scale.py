"""Loss scaling for mixed precision: the managers, their update cells and the overflow test.

A training loop multiplies the loss by `get_loss_scale`, asks `all_finite` about the gradients,
tells the manager, and leaves out the step on an overflow.  Nothing here changes a gradient: the
optimizer divides by its ``loss_scale``, which can be set between steps.

    optimizer.loss_scale = manager.get_loss_scale()
    optimizer(gradients of the loss times that)        # with skip_nonfinite=True
    manager.update_loss_scale(optimizer.last_step_skipped)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _validation as validation
from ._arrays import from_foreign, is_float, rows_of
from .typing import Gradient

__all__ = [
    "DynamicLossScaleManager",
    "DynamicLossScaleUpdateCell",
    "FixedLossScaleManager",
    "FixedLossScaleUpdateCell",
    "all_finite",
]

_LARGEST_SCALE = float(np.finfo(np.float32).max)
"""The loss is float32 at best: a larger scale would make every loss infinite."""

_MAX_CONSECUTIVE_OVERFLOWS = 1000
"""MindSpore's bound; by then the scale has long been 1, and the model itself gives NaN."""

_BLOCK = 1 << 15
"""Elements tested at a time by `all_finite`: the flags fit in the first-level cache."""


class FixedLossScaleUpdateCell:
    """The update cell of `FixedLossScaleManager`: a callable that never changes the scale.

    Parameters
    ----------
    loss_scale : float or int
        The scale; at least 1.

    Attributes
    ----------
    loss_scale : float
        The scale.

    Raises
    ------
    TypeError
        If ``loss_scale`` is not a number; when called, if ``overflow`` is not a bool.
    ValueError
        If ``loss_scale`` is below 1, NaN or infinite.

    Examples
    --------
    >>> cell = FixedLossScaleUpdateCell(128.0)
    >>> cell(True)
    128.0
    """

    def __init__(self, loss_scale: float) -> None:
        self.loss_scale = validation.real("loss_scale", loss_scale, minimum=1.0)

    def __call__(self, overflow: bool) -> float:
        """Take note of one step and return the scale of the next, which is the same."""
        validation.flag("overflow", overflow)
        return self.loss_scale

    def get_loss_scale(self) -> float:
        """Return the scale."""
        return self.loss_scale

    def __repr__(self) -> str:
        return f"{type(self).__name__}(loss_scale={self.loss_scale!r})"


class DynamicLossScaleUpdateCell:
    r"""A loss scale that follows the overflows; a callable that is told of every step.

    .. math::
        scale \leftarrow
        \begin{cases}
            \max(scale / scale\_factor, 1) & \text{on overflow} \\
            scale \cdot scale\_factor & \text{after each } scale\_window
                \text{ steps in a row without one}
        \end{cases}

    The scale never grows beyond float32, where every loss would be infinite.

    Parameters
    ----------
    loss_scale : float or int
        The scale of the first step; at least 1.
    scale_factor : float or int
        The factor; greater than 0, sensibly greater than 1.
    scale_window : int
        The number of steps without overflow before the scale grows; at least 1.

    Attributes
    ----------
    loss_scale : float
        The scale of the next step.

    Raises
    ------
    TypeError
        If an argument has another type; when called, if ``overflow`` is not a bool.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> cell = DynamicLossScaleUpdateCell(1024, scale_factor=2, scale_window=2)
    >>> [cell(overflow) for overflow in (False, False, True, False, False)]
    [1024.0, 2048.0, 1024.0, 1024.0, 2048.0]
    """

    def __init__(self, loss_scale: float, scale_factor: float, scale_window: int) -> None:
        self.loss_scale = validation.real("loss_scale", loss_scale, minimum=1.0)
        self.scale_factor = validation.real("scale_factor", scale_factor, above=0.0)
        self.scale_window = validation.integer("scale_window", scale_window, minimum=1)
        self.good_steps = 0

    def __call__(self, overflow: bool) -> float:
        """Take note of one step and return the scale of the next."""
        if validation.flag("overflow", overflow):
            self.good_steps = 0
            self._rescale(1.0 / self.scale_factor)
            return self.loss_scale
        self.good_steps += 1
        if self.good_steps == self.scale_window:
            self.good_steps = 0
            self._rescale(self.scale_factor)
        return self.loss_scale

    def _rescale(self, factor: float) -> None:
        scale = max(self.loss_scale * factor, 1.0)
        if scale <= _LARGEST_SCALE or scale < self.loss_scale:
            self.loss_scale = scale

    def get_loss_scale(self) -> float:
        """Return the scale of the next step."""
        return self.loss_scale

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(loss_scale={self.loss_scale!r}, "
            f"scale_factor={self.scale_factor!r}, scale_window={self.scale_window!r})"
        )


class FixedLossScaleManager:
    """A loss scale that stays.

    Parameters
    ----------
    loss_scale : float or int, default 128.0
        The scale; at least 1.  When overflows are not dropped, give the optimizer the same value as
        its ``loss_scale``.
    drop_overflow_update : bool, default True
        Whether a step with an overflow is to be left out.

    Raises
    ------
    TypeError
        If ``loss_scale`` is not a number or ``drop_overflow_update`` not a bool.
    ValueError
        If ``loss_scale`` is below 1, NaN or infinite.

    Examples
    --------
    >>> manager = FixedLossScaleManager(1024)
    >>> manager.update_loss_scale(overflow=True)
    >>> manager.get_loss_scale()
    1024.0
    """

    def __init__(self, loss_scale: float = 128.0, drop_overflow_update: bool = True) -> None:
        self._cell = FixedLossScaleUpdateCell(loss_scale)
        self._drop_overflow_update = validation.flag("drop_overflow_update", drop_overflow_update)

    def get_loss_scale(self) -> float:
        """Return the scale."""
        return self._cell.loss_scale

    def get_drop_overflow_update(self) -> bool:
        """Return whether a step with an overflow is to be left out."""
        return self._drop_overflow_update

    def update_loss_scale(self, overflow: bool) -> None:
        """Take note of one step, which changes nothing; TypeError if ``overflow`` is not a bool."""
        self._cell(overflow)

    def get_update_cell(self) -> FixedLossScaleUpdateCell | None:
        """Return a new update cell, or None if overflows are not dropped."""
        if not self._drop_overflow_update:
            return None
        return FixedLossScaleUpdateCell(self._cell.loss_scale)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: the scale."""
        return {"loss_scale": self._cell.loss_scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint was made with the same scale.

        Parameters
        ----------
        state : mapping
            The entry of `state_dict`.

        Raises
        ------
        KeyError
            If the entry is missing.
        TypeError, ValueError
            If it is not the scale of this manager.
        """
        scale = validation.real("loss_scale", state["loss_scale"])
        if scale != self._cell.loss_scale:
            raise ValueError(f"loss_scale must be {self._cell.loss_scale!r}, got {scale!r}")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(loss_scale={self._cell.loss_scale!r}, "
            f"drop_overflow_update={self._drop_overflow_update!r})"
        )


class DynamicLossScaleManager:
    """A loss scale that shrinks on overflow and grows after steps without one.

    The rule is that of `DynamicLossScaleUpdateCell`.

    Parameters
    ----------
    init_loss_scale : float or int, default 2**24
        The scale of the first step; at least 1.
    scale_factor : float or int, default 2
        The factor; greater than 0, sensibly greater than 1.
    scale_window : int, default 2000
        The number of steps without overflow before the scale grows; at least 1.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If a value is outside its range, NaN or infinite.

    Examples
    --------
    >>> manager = DynamicLossScaleManager(init_loss_scale=1024, scale_window=2)
    >>> import numpy as np
    >>> gradients = [np.array([1.0, np.inf], np.float32)]
    >>> manager.update_loss_scale(overflow=not all_finite(gradients))
    >>> manager.get_loss_scale()
    512.0
    """

    def __init__(
        self,
        init_loss_scale: float = 2**24,
        scale_factor: float = 2,
        scale_window: int = 2000,
    ) -> None:
        scale = validation.real("init_loss_scale", init_loss_scale, minimum=1.0)
        self._cell = DynamicLossScaleUpdateCell(scale, scale_factor, scale_window)
        self._overflows = 0

    def get_loss_scale(self) -> float:
        """Return the scale of the next step."""
        return self._cell.loss_scale

    def get_drop_overflow_update(self) -> bool:
        """Return whether a step with an overflow is to be left out: True."""
        return True

    def update_loss_scale(self, overflow: bool) -> None:
        """Take note of one step.

        Parameters
        ----------
        overflow : bool
            Whether a gradient of this step was infinite or NaN.

        Raises
        ------
        TypeError
            If ``overflow`` is not a bool.
        RuntimeError
            After 1000 overflows in a row, on each further one.  The manager is then unchanged.
        """
        overflow = validation.flag("overflow", overflow)
        if overflow and self._overflows == _MAX_CONSECUTIVE_OVERFLOWS:
            raise RuntimeError(
                f"the gradients overflowed in more than {_MAX_CONSECUTIVE_OVERFLOWS} steps in a "
                f"row, the last ones at a loss scale of {self._cell.loss_scale!r}"
            )
        self._overflows = self._overflows + 1 if overflow else 0
        self._cell(overflow)

    def get_update_cell(self) -> DynamicLossScaleUpdateCell:
        """Return a new update cell that starts from the present scale; the two are independent."""
        cell = self._cell
        return DynamicLossScaleUpdateCell(cell.loss_scale, cell.scale_factor, cell.scale_window)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to go on from here: two counters and the scale."""
        return {
            "loss_scale": self._cell.loss_scale,
            "good_steps": self._cell.good_steps,
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Parameters
        ----------
        state : mapping
            The entries of `state_dict`.

        Raises
        ------
        KeyError
            If an entry is missing.
        TypeError, ValueError
            If an entry has another type or is outside its range.  The manager is then unchanged.
        """
        scale = validation.real("loss_scale", state["loss_scale"], minimum=1.0)
        good_steps = validation.integer("good_steps", state["good_steps"], minimum=0)
        overflows = validation.integer("overflows", state["overflows"], minimum=0)
        self._cell.loss_scale = scale
        # The window may be a shorter one now; its end must not be missed.
        self._cell.good_steps = min(good_steps, self._cell.scale_window - 1)
        self._overflows = min(overflows, _MAX_CONSECUTIVE_OVERFLOWS)

    def __repr__(self) -> str:
        cell = self._cell
        return (
            f"{type(self).__name__}(init_loss_scale={cell.loss_scale!r}, "
            f"scale_factor={cell.scale_factor!r}, scale_window={cell.scale_window!r})"
        )


def all_finite(grads: Sequence[Gradient]) -> bool:
    """Return whether no gradient holds an infinity or NaN.

    The arrays are read in blocks, without a temporary of their size, and only up to the first
    value that is not finite.

    Parameters
    ----------
    grads : list or tuple
        NumPy arrays of any shape, contiguous or not, of a floating or integer type (integers are
        always finite), or sparse gradients: objects with such an array as ``.values``.

    Returns
    -------
    bool
        True also if there is nothing to test.

    Raises
    ------
    TypeError
        If ``grads`` is not a list or tuple, or an element is no gradient of this kind; the message
        names its position.

    Examples
    --------
    >>> import numpy as np
    >>> gradients = [np.ones((2, 3)), np.float32(0.5)]
    >>> all_finite(gradients)
    True
    >>> gradients[0][1, 2] = np.nan
    >>> all_finite(gradients)
    False
    """
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"grads must be a list or tuple of gradients, got {type(grads).__name__}")
    arrays = [_as_array(position, grad) for position, grad in enumerate(grads)]
    return all(_array_is_finite(array) for array in arrays)


def _as_array(position: int, grad: object) -> np.ndarray[Any, Any]:
    """Return the numbers of the gradient at ``position``."""
    rows = rows_of(grad)
    found = getattr(grad, "values", None) if rows is None else rows[1]
    if not isinstance(found, (np.ndarray, np.generic)):
        found = grad if rows is None else found
    is_array = isinstance(found, (np.ndarray, np.generic))
    values = np.asarray(found) if is_array else from_foreign(found)
    if values is None:
        raise TypeError(
            f"grads[{position}] must be an array or a RowTensor, got {type(grad).__name__}"
        )
    if values.dtype.kind not in "iub" and not is_float(values.dtype):
        raise TypeError(
            f"grads[{position}] must hold floating-point or integer numbers, got {values.dtype}"
        )
    return values


def _array_is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Test in blocks; `numpy.nditer` makes any strides flat and copies only what it must."""
    if array.dtype.kind in "iub":
        return True
    blocks = np.nditer(
        array, flags=["external_loop", "buffered", "zerosize_ok"], order="K", buffersize=_BLOCK
    )
    return all(bool(np.isfinite(block).all()) for block in blocks)
