"""Train in float16: a dynamic loss scale, skipped steps and master weights.

Weights, activations and gradients are float16 here; products are summed in float32, as GPUs do it.
Two things can go wrong, and the output shows both remedies:

- float16 ends at 65504 and has nothing between 0 and 6e-8, where gradients of deep networks lie. So
  the loss is multiplied by a scale, by which the optimizer divides. Too large a scale makes
  gradients infinite: the step is skipped and the scale halved. It begins far too high on purpose,
  and is doubled now and then until a step overflows again, so that skipped steps are seen.
- With 11 bits a weight of 0.1 moves by 6e-5 or not at all. A small learning rate asks for less, and
  only float32 master weights, which the optimizer keeps, add it up.

The table at the end compares three runs from the same weights on the same batches. What to look at:
`make_optimizer` and `train_step`.

Micikevicius et al.: Mixed precision training, 2018.
"""

import argparse

import numpy as np
from threadpoolctl import threadpool_limits

import adamas
from lenet import cross_entropy
from train_lenet import load_images, shuffled_batches

PIXELS, HIDDEN = 256, 128
LEARNING_RATE = 5e-5
BATCH_SIZE = 16
FIRST_SCALE = 2**24
SCALE_WINDOW = 200  # steps without an overflow before the scale is doubled


class Network:
    """Two dense layers. All that it stores is of one type; products are summed in float32."""

    def __init__(self, dtype, rng):
        self.dtype = dtype
        weights = {"weight1": (PIXELS, HIDDEN), "weight2": (HIDDEN, 10)}
        self.arrays = {
            name: rng.normal(0.0, (2 / shape[0]) ** 0.5, shape).astype(dtype)
            for name, shape in weights.items()
        }
        self.arrays |= {"bias1": np.zeros(HIDDEN, dtype), "bias2": np.zeros(10, dtype)}
        self._parameters = [adamas.Parameter(array, name) for name, array in self.arrays.items()]

    def parameters(self):
        """Return the Parameters, which are the memory of the arrays."""
        return self._parameters

    def stored(self, values):
        """Round to the type of the network; infinite where it ends."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def product(self, left, right):
        """Multiply matrices as a GPU does: in float32, the result rounded."""
        return self.stored(left.astype(np.float32) @ right.astype(np.float32))

    def forward(self, images):
        """Return the logits, (batch, 10), as float32: a loss is computed in that."""
        self.inputs = self.stored(images.reshape(len(images), -1))
        products = self.product(self.inputs, self.arrays["weight1"])
        self.hidden = np.maximum(products + self.arrays["bias1"], 0)
        logits = self.product(self.hidden, self.arrays["weight2"]) + self.arrays["bias2"]
        return logits.astype(np.float32)

    def gradients(self, logits_grad):
        """Return the gradients in the order of the parameters, from that of the scaled loss."""
        grad = self.stored(logits_grad)
        hidden_grad = self.product(grad, self.arrays["weight2"].T) * (self.hidden > 0)
        return [
            self.product(self.inputs.T, hidden_grad),
            self.product(self.hidden.T, grad),
            self.stored(hidden_grad.sum(axis=0, dtype=np.float32)),
            self.stored(grad.sum(axis=0, dtype=np.float32)),
        ]


def make_optimizer(network, master_weights):
    """Return an Adam that skips steps whose gradients are infinite or NaN.

    With master weights it keeps a float32 copy of each weight, so that small updates add up.
    """
    return adamas.Adam(
        network.parameters(),
        LEARNING_RATE,
        skip_nonfinite=True,
        master_weights=master_weights,
    )


def train_step(network, opt, manager, images, labels):
    """Make one step, or skip it; return the loss."""
    loss, grad = cross_entropy(network.forward(images), labels)
    opt.loss_scale = manager.get_loss_scale()
    with np.errstate(over="ignore", invalid="ignore"):  # the optimizer looks for infinity and NaN
        grads = network.gradients(grad * np.float32(opt.loss_scale))
    opt(grads)
    manager.update_loss_scale(opt.last_step_skipped)
    return loss


def train(network, opt, manager, batches, say):
    """Train on ``batches``; tell ``say`` about each skipped step; return the losses."""
    losses = []
    for images, labels in batches:
        losses.append(train_step(network, opt, manager, images, labels))
        if opt.last_step_skipped:
            say(
                f"step {len(losses) - 1}: overflow at loss scale {opt.loss_scale:.0f}, skipped; "
                f"next scale {manager.get_loss_scale():.0f}"
            )
    return losses


def run(title, dtype, manager, options, *, master_weights=False, say=lambda _: None):
    """Train a new network and return the line of the table."""
    rng = np.random.default_rng(options.seed)
    train_images, test_images, train_labels, test_labels = load_images()
    network = Network(dtype, rng)
    opt = make_optimizer(network, master_weights)
    batches = (
        batch
        for _ in range(options.epochs)
        for batch in shuffled_batches(train_images, train_labels, BATCH_SIZE, rng)
    )
    losses = train(network, opt, manager, batches, say)
    accuracy = np.mean(network.forward(test_images).argmax(axis=1) == test_labels)
    return (
        f"{title:<28}loss {losses[0]:.4f} -> {np.mean(losses[-80:]):.4f}   "
        f"test accuracy {accuracy:.2%}   {opt.skipped_steps} of {len(losses)} steps skipped"
    )


def parse_options(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits in float16.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts")
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    return options


@threadpool_limits.wrap(limits=1, user_api="blas")  # the matrices are too small to share
def main(argv=None):
    """Train three times and compare."""
    options = parse_options(argv)

    def dynamic():
        return adamas.DynamicLossScaleManager(FIRST_SCALE, scale_window=SCALE_WINDOW)

    lines = [
        run(
            "float16, master weights",
            np.float16,
            dynamic(),
            options,
            master_weights=True,
            say=print,
        ),
        run("float16, no master weights", np.float16, dynamic(), options),
        run("float32, not scaled", np.float32, adamas.FixedLossScaleManager(1.0), options),
    ]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
