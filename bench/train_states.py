"""Train with moments in float32, bfloat16 and int8, and compare the loss curves.

    python bench/train_states.py --output bench/results/train_states.png

Two networks on the handwritten digits of the demo: its LeNet-5, and a wide multilayer perceptron of
about 1.1 million parameters. Each format trains from the same starts (--seeds of them). The spread
between seeds is the noise; the table says by how many standard errors of the mean a format's final
loss is off that of float32, and the picture shows mean curves with the spread as a band.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import adamas

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from lenet import Dense, Flatten, LeNet5, ReLU, cross_entropy
from train_lenet import load_images, shuffled_batches

FORMATS = ("float32", "bfloat16", "int8")
LAST = 100  # steps over which the final loss is averaged


class WidePerceptron(LeNet5):
    """Two hidden layers of 900 units on 16 x 16 images."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.layers = [
            Flatten(),
            Dense("dense1", 256, 900, rng),
            ReLU(),
            Dense("dense2", 900, 900, rng),
            ReLU(),
            Dense("dense3", 900, 10, rng),
        ]


def train(network_type: type, state_dtype: str, seed: int, epochs: int) -> tuple[np.ndarray, float]:
    """Return the loss of every step and the final test accuracy."""
    rng = np.random.default_rng(seed)
    network = network_type(rng)
    train_images, test_images, train_labels, test_labels = load_images()
    optimizer = adamas.Adam(
        network.parameters(), learning_rate=1e-3, state_dtype=state_dtype, seed=seed
    )
    losses = []
    for _ in range(epochs):
        for images, labels in shuffled_batches(train_images, train_labels, 64, rng):
            loss, grad = cross_entropy(network.forward(images), labels)
            network.backward(grad)
            optimizer(network.gradients())
            losses.append(loss)
    accuracy = float(np.mean(network.predict(test_images) == test_labels))
    return np.array(losses), accuracy


def compare(network_type: type, seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """Train all formats, print the table of one network and return its curves, (seeds, steps)."""
    curves, accuracies = {}, {}
    for state_dtype in FORMATS:
        runs = [train(network_type, state_dtype, seed, epochs) for seed in range(seeds)]
        curves[state_dtype] = np.array([losses for losses, _ in runs])
        accuracies[state_dtype] = np.array([accuracy for _, accuracy in runs])
    print(f"{network_type.__name__}, {seeds} seeds, {epochs} epochs")
    reference = curves["float32"][:, -LAST:].mean(axis=1)
    for state_dtype, curve in curves.items():
        final = curve[:, -LAST:].mean(axis=1)
        error = np.sqrt((final.var(ddof=1) + reference.var(ddof=1)) / seeds)
        print(
            f"  {state_dtype:9} final loss {final.mean():.5f} +- {final.std(ddof=1):.5f} "
            f"({(final.mean() - reference.mean()) / error:+.2f} standard errors), "
            f"accuracy {accuracies[state_dtype].mean():.2%}"
        )
    return curves


def plot(results: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the mean curves of every network, smoothed, with the spread between seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"float32": "#444444", "bfloat16": "#3b6fb6", "int8": "#d9822b"}
    styles = {"float32": "-", "bfloat16": "--", "int8": ":"}
    window = np.ones(25) / 25
    figure, axes = plt.subplots(1, len(results), figsize=(12, 4), layout="constrained")
    for axis, (name, curves) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for state_dtype, curve in curves.items():
            smooth = np.array([np.convolve(run, window, "valid") for run in curve])
            steps = np.arange(smooth.shape[1]) + len(window)
            mean, spread = np.log(smooth).mean(axis=0), np.log(smooth).std(axis=0, ddof=1)
            colour = colours[state_dtype]
            axis.semilogy(
                steps, np.exp(mean), styles[state_dtype], color=colour, lw=2, label=state_dtype
            )
            axis.fill_between(
                steps, np.exp(mean - spread), np.exp(mean + spread), color=colour, alpha=0.12, lw=0
            )
        axis.set(title=name, xlabel="step", ylabel="training loss, mean of 25 steps")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(title="moments in", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Read the command line, train everything and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("train_states.png"))
    options = parser.parse_args()
    results = {
        network_type.__name__: compare(network_type, options.seeds, options.epochs)
        for network_type in (LeNet5, WidePerceptron)
    }
    plot(results, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
