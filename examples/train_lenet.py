"""Train LeNet-5 on handwritten digits with adamas.Adam; run with `make demo`, takes seconds.

The digits are the 1797 scans that scikit-learn ships, so nothing is downloaded; the network is
plain NumPy (lenet.py). What to look at: `make_optimizer`, where the two groups of parameters get
their options, `WarmUpThenCosine`, a learning rate composed of two, and the one call `opt(grads)`.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import adamas
from lenet import LeNet5, cross_entropy

SPLIT_SEED = 0  # the same test images for every --seed, so that runs can be compared
CONV_LR = 0.01  # the peak of the warm-up
DENSE_LR = 0.01  # constant
WARMUP_SHARE = 0.1  # of all steps


class WarmUpThenCosine(adamas.LearningRateSchedule):
    """Rise linearly from 0 to ``peak_lr``, then fall back to 0 along half a cosine."""

    def __init__(self, peak_lr, warmup_steps, decay_steps):
        self.warmup_steps = warmup_steps
        self.warmup = adamas.WarmUpLR(peak_lr, warmup_steps)
        self.decay = adamas.CosineDecayLR(0.0, peak_lr, decay_steps)

    def __call__(self, step):
        """Return the learning rate of a step; the first step is 0."""
        if step < self.warmup_steps:
            return self.warmup(step)
        return self.decay(step - self.warmup_steps)


def make_optimizer(network, steps):
    """Return an Adam that treats convolutions and dense layers differently."""
    warmup_steps = max(1, round(WARMUP_SHARE * steps))
    schedule = WarmUpThenCosine(CONV_LR, warmup_steps, max(1, steps - warmup_steps))

    conv_params = [p for p in network.parameters() if "conv" in p.name]
    other_params = [p for p in network.parameters() if "conv" not in p.name]
    groups = [
        # No "lr" here: the convolutions follow the optimizer's own learning rate, the schedule.
        {"params": conv_params, "weight_decay": 0.01, "grad_centralization": True},
        # No "weight_decay" here: the optimizer's own, 0.0.
        {"params": other_params, "lr": DENSE_LR},
        # Gradients are passed in this order, whatever the groups are.
        {"order_params": network.parameters()},
    ]
    return adamas.Adam(groups, learning_rate=schedule, weight_decay=0.0)


@dataclass
class History:
    """What the picture shows: one entry per step, but for the accuracies, one per epoch."""

    losses: list = field(default_factory=list)
    conv_lrs: list = field(default_factory=list)
    dense_lrs: list = field(default_factory=list)
    accuracies: list = field(default_factory=list)
    train_seconds: float = 0.0
    optimizer_seconds: float = 0.0


def load_images():
    """Return train images, test images, train labels, test labels; one fifth is for the test."""
    digits = load_digits()
    images = (digits.images / 8 - 1).astype(np.float32)  # 0..16 -> -1..1
    # LeNet-5 halves the image twice, so 8 x 8 pixels are doubled to 16 x 16.
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    return train_test_split(
        images[:, np.newaxis],
        digits.target,
        test_size=0.2,
        stratify=digits.target,
        random_state=SPLIT_SEED,
    )


def shuffled_batches(images, labels, batch_size, rng):
    """Yield all images once, in random order, each shifted by up to one pixel in x and y."""
    border = ((0, 0), (0, 0), (1, 1), (1, 1))
    shifts = sliding_window_view(np.pad(images, border, mode="edge"), images.shape[2:], (2, 3))
    order = rng.permutation(len(images))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        down, right = rng.integers(0, 3, (2, len(chosen)))
        yield shifts[chosen, :, down, right], labels[chosen]


def train_epoch(network, opt, batches, history):
    """Take one optimizer step per batch; ``batches`` is a tqdm bar and shows the loss."""
    conv_weight, dense_weight = network.parameters()[0], network.parameters()[-2]
    for images, labels in batches:
        loss, grad = cross_entropy(network.forward(images), labels)
        network.backward(grad)
        grads = network.gradients()

        history.losses.append(loss)
        history.conv_lrs.append(opt.get_lr_parameter(conv_weight))
        history.dense_lrs.append(opt.get_lr_parameter(dense_weight))
        batches.set_postfix(loss=f"{loss:.3f}", refresh=False)

        start = perf_counter()
        opt(grads)
        history.optimizer_seconds += perf_counter() - start


def train(network, options, rng):
    """Train for ``options.epochs`` and test after each of them; return the history."""
    train_images, test_images, train_labels, test_labels = load_images()
    steps_per_epoch = -(-len(train_images) // options.batch_size)
    opt = make_optimizer(network, options.epochs * steps_per_epoch)
    history = History()

    for epoch in range(1, options.epochs + 1):
        title = f"epoch {epoch:2d}/{options.epochs}"
        bar = tqdm(
            shuffled_batches(train_images, train_labels, options.batch_size, rng),
            desc=title,
            total=steps_per_epoch,
            unit="step",
            leave=False,
            disable=True if options.quiet else None,  # None: shown on a terminal only
        )
        start = perf_counter()
        train_epoch(network, opt, bar, history)
        history.train_seconds += perf_counter() - start

        accuracy = float(np.mean(network.predict(test_images) == test_labels))
        history.accuracies.append(accuracy)
        if not options.quiet:
            loss = np.mean(history.losses[-steps_per_epoch:])
            print(f"{title}   loss {loss:.4f}   test accuracy {accuracy:.2%}")
    return history


def plot(history, path):
    """Write a picture of the run: loss, accuracy and learning rates."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    blue, orange, green, grey = "#3b6fb6", "#d9822b", "#3a9466", "#b8c4d6"
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    style |= {"grid.alpha": 0.25, "axes.titlesize": 12, "legend.frameon": False}
    epochs = np.arange(1, len(history.accuracies) + 1)
    steps = np.arange(len(history.losses))
    mean_losses = [chunk.mean() for chunk in np.array_split(history.losses, len(epochs))]

    with plt.rc_context(style):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
        left.semilogy(
            steps / len(steps) * len(epochs), history.losses, color=grey, lw=0.8, label="step"
        )
        left.semilogy(epochs - 0.5, mean_losses, color=blue, lw=2, label="mean of the epoch")
        left.set(title="Training loss (cross entropy)", xlabel="epoch", xlim=(0, None))
        left.legend()

        middle.plot(epochs, history.accuracies, color=green, lw=2, marker="o", ms=3.5)
        middle.set(title=f"Test accuracy (last: {history.accuracies[-1]:.2%})", xlabel="epoch")
        middle.set(xlim=(0, None), ylim=(None, 1.0025))
        middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

        right.plot(steps, history.conv_lrs, color=blue, lw=2, label="convolutions: warm-up, cosine")
        right.plot(steps, history.dense_lrs, color=orange, lw=2, label="other layers: constant")
        right.set(
            title="Learning rates",
            xlabel="step",
            xlim=(0, None),
            ylim=(0, 1.3 * max(CONV_LR, DENSE_LR)),
        )
        right.legend(loc="upper right")

        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
        figure.suptitle("LeNet-5 on handwritten digits, trained with adamas.Adam", fontsize=14)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def parse_options(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train LeNet-5 on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts")
    parser.add_argument("--output", type=Path, default=Path("lenet.png"), help="the picture")
    parser.add_argument("--no-plot", action="store_true", help="no picture, no matplotlib")
    parser.add_argument("--quiet", action="store_true", help="print only the result")
    parser.add_argument(
        "--require", type=float, default=0.975, help="exit with status 1 below this accuracy"
    )
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.batch_size < 1:
        parser.error("--epochs and --batch-size must be at least 1")
    return options


def main(argv=None):
    """Train, report and return the test accuracy; raise SystemExit if it is below --require."""
    options = parse_options(argv)
    rng = np.random.default_rng(options.seed)
    history = train(LeNet5(rng), options, rng)
    if not options.no_plot:
        plot(history, options.output)
        print(f"picture: {options.output}")

    accuracy = history.accuracies[-1]
    share = history.optimizer_seconds / history.train_seconds
    step_us = history.optimizer_seconds / len(history.losses) * 1e6
    print(
        f"test accuracy {accuracy:.2%} after {len(history.losses)} steps "
        f"in {history.train_seconds:.1f} s, of which {share:.1%} in the optimizer "
        f"({step_us:.0f} us per step)"
    )
    if accuracy < options.require:
        sys.exit(f"FAILED: test accuracy {accuracy:.2%}, required {options.require:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
