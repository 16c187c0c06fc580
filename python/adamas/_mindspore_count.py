"""The number of steps that MindSpore's `beta1_power` and `beta2_power` stand for.

nn.Adam corrects its bias by these running products, which are saved in checkpoints, and not by
`global_step`. The two agree unless someone has set one of them, say to begin a schedule anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._arrays import FloatArray

_CHUNK = 1 << 16
_FARTHEST = 1 << 26  # steps that are tried: even 1 - 2**-20 is nothing by then
_NOTHING = 1e-37  # from here on a correction is 1 in float32, and MindSpore may flush to zero


def steps_made(global_step: int, powers: Sequence[float], betas: Sequence[np.float32]) -> int:
    """Return how many steps the powers were multiplied up in.

    Parameters
    ----------
    global_step : int
        What they mostly agree with.
    powers : sequence of float
        Each beta in float32 to the power of the steps made, as float32 products give it; none for
        optimizers without.
    betas : sequence of float32

    Raises
    ------
    ValueError
        If they belong to no one number of steps.
    """
    guesses = [global_step]
    for power, beta in zip(powers, betas, strict=True):
        if power <= 1.0:
            guesses.append(_nearest(max(power, _NOTHING), beta))
    for steps in guesses:
        if all(_is_power(*pair, steps) for pair in zip(powers, betas, strict=True)):
            return steps
    pairs = ", ".join(f"{power:g} for {beta:g}" for power, beta in zip(powers, betas, strict=True))
    raise ValueError(
        "beta1_power and beta2_power must be those of one number of steps with these betas, got "
        f"{pairs} (global_step is {global_step}); load all of a checkpoint, or set both powers to "
        "1.0 to correct the bias anew"
    )


def _is_power(power: float, beta: np.float32, steps: int) -> bool:
    product = float(_last_product(beta, steps))
    return math.isclose(power, product, rel_tol=1e-5, abs_tol=_NOTHING)


def _last_product(beta: np.float32, steps: int) -> np.float32:
    product: np.float32 = np.float32(1.0)
    while steps > 0 and product > _NOTHING:
        count = min(steps, _CHUNK)
        product = np.float32(_products(product, beta, count)[-1])
        steps -= count
    return product


def _products(start: np.float32, beta: np.float32, count: int) -> FloatArray:
    """Return `start` times beta, times beta again, and so on: each rounded to float32."""
    factors = np.full(count + 1, beta, np.float32)
    factors[0] = start
    with np.errstate(under="ignore"):
        return np.multiply.accumulate(factors)


def _nearest(power: float, beta: np.float32) -> int:
    """Return the number of steps whose product is nearest, one of a few around the logarithm."""
    middle = math.log(power) / math.log(float(beta))
    last = min(int(middle * 1.001) + 8, _FARTHEST)  # products drift a little
    products = _products(np.float32(1.0), beta, last)
    return int(np.argmin(np.abs(products - np.float32(power))))
