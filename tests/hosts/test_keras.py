"""The recipe for Keras 3 (docs/hosts/keras.md), with each backend that is installed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
# Of Keras and of what it imports, not of the recipe.
WARNINGS = ("error", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ImportWarning")


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_recipe(backend, tmp_path):
    """Keras takes its backend from the environment, once for a process."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    command += [f"-W{warning}" for warning in WARNINGS]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'checks'}", Path(__file__).parent / "keras_checks.py"],
        env={**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20


def test_the_page_shows_the_example():
    example = (ROOT / "examples/keras_optimizer.py").read_text("utf-8")
    recipe = example[example.index("import keras") : example.index("def main")].rstrip()
    page = (ROOT / "docs/hosts/keras.md").read_text("utf-8")
    assert f"```python\n{recipe}\n```" in page
