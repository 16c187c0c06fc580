"""Train on a GPU: adamas.Adam updates arrays of CuPy or tensors of torch where they lie.

The arrays are handed over by `__cuda_array_interface__` or DLPack; no weight or gradient passes
through the host. The network is written in operations that CuPy, torch and NumPy have in common, so
`--library numpy` trains the same on the CPU. Where there is no GPU that adamas can use, the example
says why and ends.

What to look at: `train_epoch`. A step is queued on the stream of the training, behind what computes
its gradients; nothing waits for it.
"""

import argparse
import importlib
from contextlib import contextmanager
from time import perf_counter

import numpy as np

import adamas
from train_lenet import load_images, shuffled_batches

PIXELS, HIDDEN = 256, 256
LEARNING_RATE = 2e-3
BATCH_SIZE = 64


class NumPy:
    """Where arrays lie and how work is queued: here at once, on the CPU."""

    def __init__(self):
        self.module = np

    def array(self, values):
        """Copy a NumPy array to the device."""
        return self.module.asarray(values)

    def to_numpy(self, array):
        """Copy an array to the host; this waits for all that it depends on."""
        return array

    @contextmanager
    def training_stream(self):
        """Do what is in the context on a stream of its own; yield the options for the steps."""
        yield {}


class CuPy(NumPy):
    """On the GPU, by CuPy."""

    def __init__(self):
        self.module = importlib.import_module("cupy")

    def to_numpy(self, array):
        """See NumPy."""
        return array.get()

    @contextmanager
    def training_stream(self):
        """See NumPy."""
        with self.module.cuda.Stream() as stream:
            yield {"stream": stream}
            stream.synchronize()


class Torch(NumPy):
    """On the GPU, by torch."""

    def __init__(self):
        self.module = importlib.import_module("torch")

    def array(self, values):
        """See NumPy."""
        return self.module.from_numpy(np.ascontiguousarray(values)).to("cuda")

    def to_numpy(self, array):
        """See NumPy."""
        return array.cpu().numpy()

    @contextmanager
    def training_stream(self):
        """See NumPy."""
        stream = self.module.cuda.Stream()
        with self.module.cuda.stream(stream):
            yield {"stream": stream}
            stream.synchronize()


LIBRARIES = {"cupy": CuPy, "torch": Torch, "numpy": NumPy}


def why_not(name):
    """Return why a library can't be trained with here, or None if it can."""
    if name == "numpy":
        return None
    cuda = getattr(adamas, "cuda", None)
    if cuda is None:
        return "this adamas has no CUDA backend"
    if not cuda.is_available():
        return cuda.why_unavailable()
    try:
        module = importlib.import_module(name)
    except ImportError:
        return f"{name} is not installed"
    return None if module.cuda.is_available() else f"{name} finds no GPU"


class Network:
    """Two dense layers."""

    def __init__(self, library, rng):
        self.module = library.module
        shapes = {"weight1": (PIXELS, HIDDEN), "weight2": (HIDDEN, 10)}
        arrays = [
            rng.normal(0.0, (2 / shape[0]) ** 0.5, shape).astype(np.float32)
            for shape in shapes.values()
        ]
        self.weight1, self.weight2 = map(library.array, arrays)
        self.bias1 = library.array(np.zeros(HIDDEN, np.float32))
        self.bias2 = library.array(np.zeros(10, np.float32))

    def parameters(self):
        """Return Parameters over the arrays, wherever they lie."""
        names = ("weight1", "bias1", "weight2", "bias2")
        return [adamas.Parameter(getattr(self, name), name=name) for name in names]

    def forward(self, images):
        """Return the activations of the hidden layer and the logits."""
        products = images @ self.weight1 + self.bias1
        hidden = products * (products > 0)
        return hidden, hidden @ self.weight2 + self.bias2

    def loss_and_gradients(self, images, wanted):
        """Return the mean cross entropy and the gradients, all on the device.

        ``images`` is (batch, PIXELS); ``wanted`` is (batch, 10), one 1 in each row.
        """
        hidden, logits = self.forward(images)
        shifted = logits - self.module.amax(logits, axis=1, keepdims=True)
        exponentials = self.module.exp(shifted)
        sums = exponentials.sum(1).reshape(-1, 1)
        loss = ((self.module.log(sums) - shifted) * wanted).sum() / len(images)

        grad = (exponentials / sums - wanted) / len(images)
        hidden_grad = (grad @ self.weight2.T) * (hidden > 0)
        grads = (images.T @ hidden_grad, hidden_grad.sum(0), hidden.T @ grad, grad.sum(0))
        return loss, grads


def train_epoch(network, opt, batches, library, step_options):
    """Take one step per batch; return the mean loss, the only thing that is waited for."""
    losses = []
    for images, labels in batches:
        images = library.array(images.reshape(len(images), -1))
        wanted = library.array(np.eye(10, dtype=np.float32)[labels])
        loss, grads = network.loss_and_gradients(images, wanted)
        opt(grads, **step_options)
        losses.append(loss)
    return float(sum(losses)) / len(losses)


def train(library, options):
    """Train a new network and print how it goes; return the test accuracy."""
    rng = np.random.default_rng(options.seed)
    train_images, test_images, train_labels, test_labels = load_images()
    with library.training_stream() as step_options:
        network = Network(library, rng)
        opt = adamas.Adam(network.parameters(), LEARNING_RATE)
        start = perf_counter()
        for epoch in range(1, options.epochs + 1):
            batches = shuffled_batches(train_images, train_labels, BATCH_SIZE, rng)
            loss = train_epoch(network, opt, batches, library, step_options)
            print(f"epoch {epoch:2d}/{options.epochs}   loss {loss:.4f}")
        seconds = perf_counter() - start
        _, logits = network.forward(library.array(test_images.reshape(len(test_images), -1)))
        accuracy = float(np.mean(library.to_numpy(logits).argmax(axis=1) == test_labels))
    print(f"test accuracy {accuracy:.2%} after {opt.global_step} steps in {seconds:.1f} s")
    return accuracy


def parse_options(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits on a GPU.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts")
    parser.add_argument(
        "--library", choices=LIBRARIES, help="the first of CuPy and torch that works"
    )
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    return options


def main(argv=None):
    """Train with the library asked for, or say why that is not possible."""
    options = parse_options(argv)
    names = [options.library] if options.library else ["cupy", "torch"]
    reasons = {name: why_not(name) for name in names}
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        print("skipped:", "; ".join(dict.fromkeys(reasons.values())))
        return
    print(f"training with {usable[0]}")
    train(LIBRARIES[usable[0]](), options)


if __name__ == "__main__":
    main()
