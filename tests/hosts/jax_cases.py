"""What the tests of adamas.jax share: arrays, the same step over NumPy arrays, bits, pointers."""

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
try:
    import adamas.jax  # noqa: F401 - for the tests
except ImportError as missing:
    pytest.skip(str(missing), allow_module_level=True)

import jax.numpy as jnp  # noqa: E402

from adamas import functional  # noqa: E402
from helpers import bits, half_values, special_values  # noqa: E402

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64  # noqa: F401

SHAPES = {
    "scalar": (),
    "one": (1,),
    "empty": (0, 4),
    "odd": {"a": (7,), "b": (129,)},
    "matrix": [(3, 5), (2, 3, 16)],
    "long": (16411,),
}
RATES = {"learning_rate": 0.013}
# No number at its default.
CALL = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
KINDS = ("moment1", "moment2", "vhat", "master", "ema")


def is_shape(value):
    return isinstance(value, tuple)


def tree(make, shapes=SHAPES):
    """Return a pytree of arrays, of what `make` returns for a shape."""
    return jax.tree.map(make, shapes, is_leaf=is_shape)


def normal(rng, dtype, *, special=False):
    """Return what makes arrays of random numbers, some of them subnormal, huge or tiny."""

    def make(shape):
        values = np.asarray(rng.standard_normal(shape)).astype(dtype)
        if special and values.itemsize == 2:
            values = half_values(rng, dtype, shape, finite=True)
        elif special and values.size > 0:
            few = special_values(dtype, "mild")
            chosen = rng.random(shape) < 0.125
            values = np.where(chosen, rng.choice(few, shape), values).astype(dtype)
        return jnp.copy(jnp.asarray(values))  # memory of JAX, which can be donated

    return make


def same(*trees):
    """Whether pytrees have the same bits, NaN counting as NaN."""
    first, *others = [
        [leaf if leaf.dtype.kind == "i" else bits(leaf) for leaf in map(np.asarray, leaves)]
        for leaves in map(jax.tree.leaves, trees)
    ]
    return all(
        len(first) == len(other)
        and all(
            a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(first, other, strict=True)
        )
        for other in others
    )


def numbers(tree):
    """Return all arrays as NumPy's, copied."""
    return jax.tree.map(np.array, tree)


def pointers(*trees):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees) if leaf.size > 0]


class Reference:
    """The same steps by adamas.functional, over copies."""

    def __init__(self, params, state):
        self.params = [np.array(leaf) for leaf in jax.tree.leaves(params)]
        self.steps = [int(state.count)] * len(self.params)
        self.states = {
            kind: [np.array(leaf) for leaf in jax.tree.leaves(getattr(state, kind))]
            for kind in KINDS
            if getattr(state, kind) is not None
        }

    def step(self, grads, **options):
        grads = [np.array(leaf) for leaf in jax.tree.leaves(grads)]
        return functional.adam(self.params, grads, steps=self.steps, **self.states, **options)

    def is_same(self, params, state):
        lists = {kind: getattr(state, kind) for kind in self.states}
        return same((params, lists), (self.params, self.states)) and self.steps == [
            int(state.count)
        ] * len(self.params)


DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
