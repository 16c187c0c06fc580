"""adamas.thinc beside thinc's own Adam, by turns in one process: single calls, and spaCy.

    python bench/host_thinc.py [--seconds S] [--steps N]      S: 0.02 per sample, N: 40

The first table is of single calls, in microseconds. The second trains a tagger and a text
classifier of spaCy's usual size twice, from the same start and on the same made-up texts, each step
of the one beside a step of the other: medians of the milliseconds of a step, of those that were
spent in the optimizer, and the scores at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from thinc.api import fix_random_seed, registry

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hosts"))

ROUNDS = 15
NAMES = ("Adam.v1", "adamas.Adam.v1")
OPTIONS = {"learn_rate": 0.001, "L2": 0.01, "grad_clip": 1.0}  # spaCy's usual ones
SHAPES = ((96,), (96, 96), (96, 3, 288), (5000, 96))


def optimizer_of(name: str, **options: Any) -> Any:
    """Return an optimizer as configs name it."""
    config = {"optimizer": {"@optimizers": name, **OPTIONS, **options}}
    return registry.resolve(config)["optimizer"]


class Calls:
    """A list of parameters, whose gradients are put back between the steps."""

    def __init__(self, name: str, shape: tuple[int, ...], averages: bool) -> None:
        rng = np.random.default_rng(0)
        count = 20 if len(shape) < 3 and shape[0] < 1000 else 4
        self.optimizer = optimizer_of(name, use_averages=averages)
        made = [rng.standard_normal((3, *shape)).astype(np.float32) for _ in range(count)]
        self.arrays = [tuple(array) for array in made]  # weights, gradient, its values

    def sample(self, seconds: float) -> float:
        """Return the time of a call in seconds."""
        spent, calls, end = 0.0, 0, time.perf_counter() + seconds
        while time.perf_counter() < end or calls == 0:
            for _, gradient, values in self.arrays:
                gradient[...] = values
            began = time.perf_counter()
            for i, (weights, gradient, _) in enumerate(self.arrays):
                self.optimizer((i, "W"), weights, gradient)
            spent += time.perf_counter() - began
            calls += len(self.arrays)
        return spent / calls


def compare_calls(seconds: float) -> None:
    """Print the table of single calls."""
    print(f"{'weights':>14} {'averages':>9} {'thinc us':>10} {'adamas us':>10} {'ratio':>7}")
    for shape in SHAPES:
        for averages in (False, True):
            calls = [Calls(name, shape, averages) for name in NAMES]
            for one in calls:
                one.sample(seconds)
            rounds = [[one.sample(seconds) for one in calls] for _ in range(ROUNDS)]
            theirs, ours = (statistics.median(r[k] for r in rounds) * 1e6 for k in (0, 1))
            ratio = statistics.median(r[0] / r[1] for r in rounds)
            size = " x ".join(map(str, shape))
            print(f"{size:>14} {averages!s:>9} {theirs:10.2f} {ours:10.2f} {ratio:7.2f}")


class Timed:
    """An optimizer, and the seconds that were spent in its calls."""

    def __init__(self, optimizer: Callable[..., Any]) -> None:
        self.optimizer = optimizer
        self.seconds = 0.0
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        """Call the optimizer."""
        began = time.perf_counter()
        result = self.optimizer(*arguments)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return result


class Training:
    """A tagger and a text classifier over one tok2vec, of the sizes of spaCy's quickstart."""

    def __init__(self, name: str, averages: bool) -> None:
        import spacy
        from spacy.training import Example
        from spacy_texts import documents

        self.nlp = spacy.blank("en")
        listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
        self.nlp.add_pipe("tok2vec", config={"model": _tok2vec()})
        self.nlp.add_pipe("tagger", config={"model": _tagger(listener)})
        self.nlp.add_pipe("textcat", config={"model": _textcat(listener)})
        documents_ = list(documents(1200))
        examples = [Example(self.nlp.make_doc(doc.text), doc) for doc in documents_]
        self.examples, self.held_out = examples[:1000], examples[1000:]
        fix_random_seed(0)
        self.nlp.initialize(lambda: self.examples[:200])
        self.optimizer = Timed(optimizer_of(name, use_averages=averages))

    def step(self, number: int, batch: int) -> tuple[float, float]:
        """Return the seconds of a step, and those in the optimizer."""
        fix_random_seed(number)  # for dropout
        first = number * batch % (len(self.examples) - batch)
        before, began = self.optimizer.seconds, time.perf_counter()
        self.nlp.update(self.examples[first : first + batch], sgd=False, drop=0.1)
        for _, pipe in self.nlp.pipeline:
            pipe.finish_update(self.optimizer)
        return time.perf_counter() - began, self.optimizer.seconds - before

    def scores(self) -> tuple[float, float]:
        """Return the accuracy of tags, and the score of categories, on texts not trained with."""
        found = self.nlp.evaluate(self.held_out)
        return found["tag_acc"], found["cats_score"]


def _tok2vec() -> dict[str, Any]:
    return {
        "@architectures": "spacy.Tok2Vec.v2",
        "embed": {
            "@architectures": "spacy.MultiHashEmbed.v2",
            "width": 96,
            "attrs": ["NORM", "PREFIX", "SUFFIX", "SHAPE"],
            "rows": [5000, 1000, 2500, 2500],
            "include_static_vectors": False,
        },
        "encode": {
            "@architectures": "spacy.MaxoutWindowEncoder.v2",
            "width": 96,
            "depth": 4,
            "window_size": 1,
            "maxout_pieces": 3,
        },
    }


def _tagger(listener: dict[str, Any]) -> dict[str, Any]:
    return {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}


def _textcat(listener: dict[str, Any]) -> dict[str, Any]:
    linear = {"@architectures": "spacy.TextCatBOW.v3", "exclusive_classes": True}
    linear |= {"ngram_size": 1, "no_output_layer": False}
    return {
        "@architectures": "spacy.TextCatEnsemble.v2",
        "linear_model": linear,
        "tok2vec": listener,
    }


def compare_trainings(steps: int) -> None:
    """Print the table of spaCy's steps."""
    print(f"\n{'':>24} {'step ms':>8} {'optimizer ms':>13} {'share':>6} {'tag_acc':>8} {'cats':>6}")
    for batch in (16, 128):
        for averages in (False, True):
            trainings = [Training(name, averages) for name in NAMES]
            rounds = [[one.step(n, batch) for one in trainings] for n in range(steps)][3:]
            print(f"{batch} texts a step, averages {averages}, {steps} steps:")
            for k, (name, one) in enumerate(zip(NAMES, trainings, strict=True)):
                whole, spent = (statistics.median(r[k][i] for r in rounds) * 1e3 for i in (0, 1))
                share = statistics.median(r[k][1] / r[k][0] for r in rounds)
                tags, categories = one.scores()
                print(
                    f"{name:>24} {whole:8.1f} {spent:13.2f} {share:6.1%} "
                    f"{tags:8.3f} {categories:6.3f}"
                )
            in_optimizer = statistics.median(r[0][1] / r[1][1] for r in rounds)
            in_step = statistics.median(r[0][0] / r[1][0] for r in rounds)
            calls = trainings[0].optimizer.calls // steps
            ratios = f"{in_step:8.2f} {in_optimizer:13.2f}"
            print(f"{'thinc / adamas':>24} {ratios}    ({calls} calls a step)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.02, help="of a sample of calls")
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    arguments = parser.parse_args()
    compare_calls(arguments.seconds)
    try:
        compare_trainings(arguments.steps)
    except ImportError as error:
        print(f"no trainings of spaCy: {error}")


if __name__ == "__main__":
    main()
