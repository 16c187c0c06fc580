"""Time the step of adamas inside jax.jit beside optax.adamw, in turns, in one run.

    python bench/host_jax.py
    python bench/host_jax.py --lists n1e3 resnet50 --rounds 31

Prints where the arrays are before and after a donated step; then, for each list of tensors, the
medians of the time of a step: of `Adam.update` in place, of `adamas.jax.adamw` and of `optax.adamw`
with `optax.apply_updates`, all with donated parameters and state. `jit` is the time that JAX itself
needs for a program with the same arrays, which adds 1 to each count and does nothing else. Last, a
training of a network whose gradients and step are one program, which is how optimizers are used.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamas.jax
from workloads import CONFIGS

LISTS = ("n1e3", "n1e5", "n1e6", "n1e7", "160x1000", "1000x1000", "resnet50")
OPTIONS = {"weight_decay": 0.01}
Way = Callable[[Any, Any, Any], tuple[Any, Any]]


def shapes_of(name: str) -> Sequence[tuple[int, ...]]:
    """Return the shapes of a list of tensors."""
    return ((1000,),) * 160 if name == "160x1000" else CONFIGS[name].shapes


def arrays_of(name: str) -> tuple[list[Any], list[Any]]:
    """Return new parameters and gradients, in memory of JAX's own."""
    key = jax.random.key(0)
    params, grads = [], []
    for shape in shapes_of(name):
        key, first, second = jax.random.split(key, 3)
        params.append(0.02 * jax.random.normal(first, shape))
        grads.append(1e-3 * jax.random.normal(second, shape))
    return params, grads


def ways() -> dict[str, tuple[Callable[[Any], Any], Way]]:
    """Return {name: (init, step)}; a step takes and returns parameters and state."""
    in_place = adamas.jax.Adam(1e-3, decoupled_weight_decay=True, **OPTIONS)
    found: dict[str, tuple[Callable[[Any], Any], Way]] = {
        "jit": (in_place.init, lambda p, _, s: (p, s._replace(count=s.count + 1))),
        "update": (in_place.init, in_place.update),
    }
    for name, module in (("adamw", adamas.jax), ("optax", optax)):
        tx = module.adamw(1e-3, **OPTIONS)

        def step(params: Any, grads: Any, state: Any, tx: Any = tx) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        found[name] = (tx.init, step)
    return found


class Runner:
    """One way of making steps, compiled, with arrays of its own."""

    def __init__(self, init: Callable[[Any], Any], step: Way, params: Any, grads: Any) -> None:
        self.params = jax.tree.map(jnp.copy, params)
        self.grads = grads
        self.state = init(self.params)
        self.step = jax.jit(step, donate_argnums=(0, 2))
        begin = time.perf_counter()
        self.run(1)
        self.compile_time = time.perf_counter() - begin
        self.run(3)

    def run(self, times: int) -> float:
        """Return the seconds that a step needs."""
        begin = time.perf_counter()
        for _ in range(times):
            self.params, self.state = self.step(self.params, self.grads, self.state)
        jax.block_until_ready((self.params, self.state))
        return (time.perf_counter() - begin) / times


def in_turns(runners: dict[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Return the times of all, one sample of each after the other."""
    times = {name: max(1, math.ceil(0.01 / r.run(2))) for name, r in runners.items()}
    samples: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for k in range(rounds):
        for name in names if k % 2 == 0 else reversed(names):
            samples[name].append(runners[name].run(times[name]))
    return samples


def ratio(samples: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[to], strict=True))


def print_pointers() -> None:
    """Print the addresses of the arrays before and after a step."""
    optimizer = adamas.jax.Adam(1e-3)
    params = {"w": jnp.ones((300, 7)), "b": jnp.ones(7)}
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    pointers = lambda tree: [  # noqa: E731
        hex(leaf.unsafe_buffer_pointer()) for leaf in jax.tree.leaves(tree)
    ]
    print("params and state before a step  ", *pointers((params, state)))
    copies = jax.jit(optimizer.update)(params, grads, state)
    print("after one that was not given them", *pointers(copies))
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    print("after one that was               ", *pointers(step(params, grads, state)))


def print_lists(names: Sequence[str], rounds: int) -> None:
    """Print a table of lists of tensors."""
    columns = ("jit", "update", "adamw", "optax")
    print(f"\n{'us a step':<12}" + "".join(f"{name:>10}" for name in columns), end="")
    print("  update/optax adamw/optax   compiled in s: update, adamw, optax")
    for name in names:
        params, grads = arrays_of(name)
        runners = {key: Runner(*way, params, grads) for key, way in ways().items()}
        samples = in_turns(runners, rounds)
        row = "".join(f"{1e6 * statistics.median(samples[c]):>10.1f}" for c in columns)
        ratios = (
            f"{ratio(samples, 'update', 'optax'):>14.2f}{ratio(samples, 'adamw', 'optax'):>12.2f}"
        )
        compiled = ", ".join(f"{runners[c].compile_time:.1f}" for c in columns[1:])
        print(f"{name:<12}{row}{ratios}   {compiled}", flush=True)


def print_training(rounds: int) -> None:
    """Print the time of a training step of a network with 1.3 million weights."""
    sizes = (784, 1024, 512, 10)
    rng = np.random.default_rng(1)
    params = [
        {"w": jnp.asarray(rng.standard_normal((m, n)) / np.sqrt(m), jnp.float32), "b": jnp.zeros(n)}
        for m, n in pairwise(sizes)
    ]
    images = jnp.asarray(rng.standard_normal((32, 784)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 32))

    def loss(params: Any) -> Any:
        hidden = images
        for layer in params[:-1]:
            hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
        logits = hidden @ params[-1]["w"] + params[-1]["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def trained(step: Way, params: Any, _: Any, state: Any) -> tuple[Any, Any]:
        return step(params, jax.grad(loss)(params), state)

    runners = {
        name: Runner(init, partial(trained, step), params, ())
        for name, (init, step) in ways().items()
        if name != "jit"
    }
    samples = in_turns(runners, rounds)
    print("\ntraining, ms a step: ", end="")
    print(", ".join(f"{name} {1e3 * statistics.median(s):.2f}" for name, s in samples.items()))
    print(f"update/optax {ratio(samples, 'update', 'optax'):.2f}, ", end="")
    print(f"adamw/optax {ratio(samples, 'adamw', 'optax'):.2f}")


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lists", nargs="+", default=LISTS, metavar="LIST")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args(arguments)
    print(f"adamas {adamas.__version__}, jax {jax.__version__}, optax {optax.__version__}")
    print_pointers()
    print_lists(given.lists, given.rounds)
    print_training(given.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
