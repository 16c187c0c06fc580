"""Keras 3 with adamas: an optimizer for model.compile, and a training that shows it.

    KERAS_BACKEND=torch python examples/keras_optimizer.py      or jax

The class is a recipe: copy it.  docs/hosts/keras.md explains it.
"""

import keras
import numpy as np

from adamas import functional


@keras.saving.register_keras_serializable("adamas")
class Adam(keras.optimizers.Optimizer):
    """keras.optimizers.Adam, with its arguments and its state."""

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        amsgrad=False,
        name="adam",
        **kwargs,
    ):
        if keras.backend.backend() not in ("torch", "jax", "numpy"):
            raise RuntimeError("KERAS_BACKEND must be torch, jax or numpy")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad

    def build(self, variables):
        """Make the state, in the order of Keras's Adam."""
        if self.built:
            return
        super().build(variables)
        lists = list(self.add_optimizer_variables(variables, ["momentum", "velocity"]))
        if self.amsgrad:
            lists.append(self.add_optimizer_variables(variables, "velocity_hat"))
        self._states = list(zip(*lists, strict=True))
        if keras.backend.backend() == "numpy":  # whose zeros are float32 at first
            for states in self._states:
                for one in states:
                    one.assign(one.value)

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable and its state."""
        grad = readable(gradient)
        kept = (variable, *self._states[self._get_variable_index(variable)])
        param, *states = [memory_of(one) for one in kept]
        functional.adam(
            *([array] for array in (param, grad, *states)),
            steps=[int(keras.ops.convert_to_numpy(self.iterations))],
            learning_rate=float(keras.ops.convert_to_numpy(learning_rate)),
            beta1=float(self.beta_1),
            beta2=float(self.beta_2),
            eps=float(self.epsilon),
            epsilon_placement="inside",
            allow_zero=True,
        )
        if is_jax():
            for one, array in zip(kept, (param, *states), strict=True):
                self.assign(one, array)

    def get_config(self):
        """Return the arguments, for saved models."""
        names = ("beta_1", "beta_2", "epsilon", "amsgrad")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own}


def is_jax():
    """Whether arrays can't be written to: copies are updated, and assigned."""
    return keras.backend.backend() == "jax"


def memory_of(variable):
    """Return the memory of a variable, or a copy."""
    return np.array(variable.value) if is_jax() else variable.value


def readable(gradient):
    """Return a gradient as an array that adamas reads."""
    if not is_jax():
        return gradient
    try:
        return np.asarray(gradient)
    except Exception as error:  # the step is being traced
        raise RuntimeError("with JAX: model.compile(..., run_eagerly=True)") from error


def main():
    """Fit a small model by keras.optimizers.Adam and by the class above, and compare."""
    if keras.backend.backend() == "numpy":
        print("Keras has no fit for NumPy; optimizer.apply(grads, variables) makes the step")
        return
    keras.config.disable_interactive_logging()
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((320, 20)).astype("float32")
    labels = (samples[:, :3].sum(axis=1) > 0).astype("int32")
    for optimizer in (keras.optimizers.Adam(0.01), Adam(0.01)):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((20,)), *layers])
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            run_eagerly=is_jax(),
        )
        model.fit(samples, labels, epochs=3, verbose=0)
        loss, accuracy = model.evaluate(samples, labels, verbose=0)
        name = type(optimizer).__module__.split(".")[0]
        print(f"{name}: loss {loss:.6f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
