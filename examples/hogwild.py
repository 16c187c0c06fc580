"""Train one network by several threads at once, with locks and without (hogwild).

The threads share the weights of LeNet-5 (lenet.py). Each has batches and an adamas.Adam of its own
and calls `opt(grads)` whenever it has gradients; steps run without Python's global lock, so they
truly overlap. What differs:

- `use_locking=True`: steps on shared memory take effect one after the other, in some order. None
  is lost, and the result is what one thread would have got in that order, bit for bit.
- `use_locking=False`: nobody waits. Of two steps on a weight at the same moment, one overwrites
  what the other has done. Training bears it: an update lost now and then is noise.

The last lines of the output count what was lost, by updates whose sum is known.

Recht, Re, Wright, Niu: Hogwild!: a lock-free approach to parallelizing stochastic gradient descent,
2011.
"""

import argparse
import copy
import threading
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

import adamas
from lenet import LeNet5, cross_entropy
from train_lenet import load_images, shuffled_batches

LEARNING_RATE = 1e-3
BATCH_SIZE = 32
LARGE = 300_000  # elements, so that steps of two threads meet often
STEPS = 200
TOP = 2.0**24 - 1  # from here down to 2**23, float32 holds all integers and nothing between


def sharing_weights(network):
    """Return a network for another thread: the same weights, its own memory of a batch."""
    other = copy.copy(network)
    other.layers = [copy.copy(layer) for layer in network.layers]  # their arrays are not copied
    return other


def run_threads(count, work):
    """Call ``work(i)`` in a thread for each i below ``count``; wait; return the seconds."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    start = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return perf_counter() - start


def make_optimizer(parameters, learning_rate, use_locking):
    """Return the Adam of one thread, whose steps need no helpers: the other threads are busy."""
    return adamas.Adam(parameters, learning_rate, use_locking=use_locking, num_threads=1)


def train(use_locking, data, options):
    """Train a new network by ``options.threads`` threads and print how it went."""
    train_images, test_images, train_labels, test_labels = data
    network = LeNet5(np.random.default_rng(options.seed))
    losses = [[] for _ in range(options.threads)]

    def work(i):
        rng = np.random.default_rng((options.seed, i))
        mine = sharing_weights(network)
        opt = make_optimizer(mine.parameters(), LEARNING_RATE, use_locking)
        images, labels = train_images[i :: options.threads], train_labels[i :: options.threads]
        for _ in range(options.epochs):
            for batch, wanted in shuffled_batches(images, labels, BATCH_SIZE, rng):
                loss, grad = cross_entropy(mine.forward(batch), wanted)
                mine.backward(grad)
                opt(mine.gradients())
                losses[i].append(loss)

    seconds = run_threads(options.threads, work)
    first = np.mean([mine[0] for mine in losses])
    last = np.mean([np.mean(mine[-10:]) for mine in losses])
    accuracy = float(np.mean(network.predict(test_images) == test_labels))
    print(
        f"use_locking={use_locking!s:5}   loss {first:.4f} -> {last:.4f}   "
        f"test accuracy {accuracy:.2%}   {sum(map(len, losses))} steps in {seconds:.1f} s"
    )


def lost_updates(use_locking, threads):
    """Let each thread subtract 1 from the same weights STEPS times; return what was lost.

    A step with a constant gradient subtracts the learning rate, to within a rounding error that is
    lost where float32 holds integers only.
    """
    weights = np.full(LARGE, TOP, np.float32)
    grads = [np.full(LARGE, 0.5, np.float32)]

    def work(_):
        opt = make_optimizer([adamas.Parameter(weights, name="weights")], 1.0, use_locking)
        for _ in range(STEPS):
            opt(grads)

    run_threads(threads, work)
    made = int(np.sum(TOP - weights.astype(np.float64)))
    return threads * STEPS * LARGE - made


def parse_options(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train LeNet-5 by threads that share it.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts")
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.threads < 1:
        parser.error("--epochs and --threads must be at least 1")
    return options


@threadpool_limits.wrap(limits=1, user_api="blas")  # else the threads of BLAS stand in the way
def main(argv=None):
    """Train with and without locks, and count what is lost."""
    options = parse_options(argv)
    data = load_images()
    for use_locking in (True, False):
        train(use_locking, data, options)

    updates = options.threads * STEPS * LARGE
    print(f"\nlost of {updates:,} updates of {LARGE:,} weights by {options.threads} threads:")
    for use_locking in (True, False):
        lost = lost_updates(use_locking, options.threads)
        print(f"use_locking={use_locking!s:5}   {lost:,} ({lost / updates:.3%})")


if __name__ == "__main__":
    main()
