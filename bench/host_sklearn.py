"""fit() of adamas.sklearn's perceptrons beside scikit-learn's own, in one run.

    python bench/host_sklearn.py             both element types, four shapes
    python bench/host_sklearn.py --quick     three repeats

Both sides fit the same samples with the same seeds, in turns, so that both see the same machine.
Printed are medians of the seconds of a fit, the median of their paired ratios, the scores of
both, and what a step alone takes (the update of all weights, without batches and gradients).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from sklearn import datasets, neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer as TheirAdam

import adamas.sklearn

REPEATS = 11


@dataclass(frozen=True)
class Case:
    """A network and how it is fitted."""

    name: str
    hidden: tuple[int, ...]
    batch: int
    epochs: int
    regression: bool = False


CASES = (
    Case("digits, 64-100-10, batch 200", (100,), 200, 40),
    Case("digits, 64-100-10, batch 32", (100,), 32, 10),
    Case("digits, 64-512-512-10, batch 64", (512, 512), 64, 5),
    Case("regression, 100-1024-1024-1, batch 128", (1024, 1024), 128, 2, regression=True),
)


def samples(case: Case, dtype: str) -> tuple[Any, Any]:
    """Return samples, and classes or numbers."""
    if case.regression:
        found, targets = datasets.make_regression(2000, 100, random_state=0)
        return found.astype(dtype), (targets / targets.std()).astype(dtype)
    found, targets = datasets.load_digits(return_X_y=True)
    return (found / 16).astype(dtype), targets


def model(package: Any, case: Case) -> Any:
    """Return a model that has seen nothing."""
    make = package.MLPRegressor if case.regression else package.MLPClassifier
    return make(
        hidden_layer_sizes=case.hidden,
        batch_size=case.batch,
        max_iter=case.epochs,
        n_iter_no_change=case.epochs,
        random_state=0,
    )


def timed(package: Any, case: Case, data: tuple[Any, Any]) -> tuple[float, Any]:
    """Return the seconds of a fit, and the model."""
    made = model(package, case)
    start = time.perf_counter()
    made.fit(*data)
    return time.perf_counter() - start, made


def step_seconds(make: Any, fitted: Any, repeats: int) -> float:
    """Return the median of the seconds of an update alone, over weights of a model."""
    params = [array.copy() for array in fitted.coefs_ + fitted.intercepts_]
    grads = [np.full_like(array, 1e-3) for array in params]
    optimizer = make(params)
    seconds = []
    for _ in range(10 * repeats):
        start = time.perf_counter()
        optimizer.update_params(params, grads)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(case: Case, dtype: str, repeats: int) -> str:
    """Return a line of the table."""
    data = samples(case, dtype)
    pairs = []
    for repeat in range(repeats + 1):
        sides = [adamas.sklearn, neural_network]
        results = {side: timed(side, case, data) for side in sides[:: 1 if repeat % 2 else -1]}
        if repeat:  # the first warms up
            pairs.append((results[sides[0]][0], results[sides[1]][0]))
    ours, theirs = (results[side][1] for side in sides)
    steps = [
        1e6 * step_seconds(make, ours, repeats)
        for make in (adamas.sklearn.AdamOptimizer, TheirAdam)
    ]
    seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    scores = [made.score(*data) for made in (ours, theirs)]
    return (
        f"{case.name:<40}{dtype:<9}{seconds[0]:8.3f} {seconds[1]:8.3f} {ratio:6.2f}   "
        f"{scores[0]:7.4f} {scores[1]:7.4f}   {steps[0]:8.1f} {steps[1]:8.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(
        f"scikit-learn {sklearn.__version__}, NumPy {np.__version__}, adamas {adamas.__version__}"
    )
    print(f"{'':<49}{'fit, s':>17} {'ratio':>6}   {'score':>15}   {'step, us':>17}")
    print(
        f"{'':<49}{'adamas':>8} {'own':>8} {'':>6}   {'adamas':>7} {'own':>7}   "
        f"{'adamas':>8} {'own':>8}"
    )
    for case in CASES:
        for dtype in ("float32", "float64"):
            print(measure(case, dtype, 3 if quick else REPEATS), flush=True)


if __name__ == "__main__":
    main()
