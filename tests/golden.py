"""The recorded runs of MindSpore 2.10 that the golden tests compare with.

A folder of them holds an `index.json`, which describes the cases, and one `.npz` file of arrays per
case.  It is, in this order: the environment variable ADAMAS_GOLDEN, the full set in
`../shared/golden` beside the repository, the selection in `tests/golden_data`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parent.parent

# The cases tagged `scatter` that have duplicate rows: MindSpore's CPU path adds up their squares in
# moment2, where all its other paths square their sum.
_UNMERGED_SUFFIXES = ("_dup", "_wd", "_wd_ls", "_varnnz", "_1d_param")


@dataclass(frozen=True)
class Case:
    """One entry of `index.json`."""

    id: str
    kind: str
    tags: frozenset[str]
    config: dict[str, Any]
    rtol: float
    atol: dict[str, float]
    update_order: tuple[str, ...]
    file: Path

    def arrays(self) -> dict[str, np.ndarray]:
        """Read the arrays of the case; the caller may write to them."""
        with np.load(self.file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


@cache
def folder() -> Path:
    """Return the folder that holds the cases."""
    given = os.environ.get("ADAMAS_GOLDEN")
    if given:
        path = Path(given)
        if not (path / "index.json").is_file():
            raise FileNotFoundError(f"ADAMAS_GOLDEN={given} holds no index.json")
        return path
    shared = _ROOT.parent / "shared" / "golden"
    return shared if (shared / "index.json").is_file() else _ROOT / "tests" / "golden_data"


@cache
def all_cases() -> tuple[Case, ...]:
    """Return all cases of the folder, in the order of its index."""
    index = json.loads((folder() / "index.json").read_text(encoding="utf-8"))
    if index["format_version"] != 1:
        raise ValueError(f"unknown format of golden data: {index['format_version']}")
    return tuple(
        Case(
            id=entry["id"],
            kind=entry["kind"],
            tags=frozenset(entry["tags"]),
            config=entry["config"],
            rtol=entry["tolerance"]["rtol"],
            atol=entry["tolerance"]["atol"],
            update_order=tuple(entry.get("update_order", ())),
            file=folder() / entry["file"],
        )
        for entry in index["cases"]
    )


def cases(kind: str) -> list[Case]:
    """Return the cases of one kind: optimizer, schedule, dynamic_lr or loss_scale."""
    return [case for case in all_cases() if case.kind == kind]


def in_scope(case: Case) -> bool:
    """Whether adamas promises to agree with the case."""
    unmerged = "scatter" in case.tags and case.id.endswith(_UNMERGED_SUFFIXES)
    return not unmerged and "fp16" not in case.tags


def is_sparse(case: Case) -> bool:
    """Whether any gradient of the case is sparse."""
    return any(param["grad"] == "sparse" for param in case.config.get("params", ()))


def parameters(kind: str) -> list[Any]:
    """Return the cases of one kind for `pytest.mark.parametrize`, those that cannot run as skips.

    So every report prints how many were left out, and why.
    """

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        if not in_scope(case):
            return [pytest.mark.skip(reason="golden case out of scope")]
        return []

    return [pytest.param(case, id=case.id, marks=marks(case)) for case in cases(kind)]
