"""Whether parameters may lie on CUDA devices.

Examples
--------
>>> import adamas
>>> adamas.cuda.is_available() == (adamas.cuda.why_unavailable() is None)
True
"""

from __future__ import annotations

from . import _core


def is_available() -> bool:
    """Whether a CUDA device can be used."""
    return _core.cuda_unavailable_reason() is None


def why_unavailable() -> str | None:
    """Return why no CUDA device can be used, or None if one can."""
    return _core.cuda_unavailable_reason()


def device_count() -> int:
    """Return how many CUDA devices there are."""
    return _core.cuda_devices()
