"""Which rooms of csrc/ may include which: the table of docs/design.md, held against the files."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
if not CSRC.is_dir():
    pytest.skip("needs the sources", allow_module_level=True)

# Each room and what it may include besides itself, downstairs first.
MAY_INCLUDE = {
    "adamas": set(),  # include/adamas
    "rules": {"adamas"},
    "core": {"adamas", "rules"},
    "cpu": {"adamas", "rules", "core"},
    "cuda": {"adamas", "rules", "core", "cpu"},
    "engines": {"adamas", "core", "cpu", "cuda"},
    "c": {"adamas", "core"},
    "bindings": {"adamas", "core", "cpu"},
}
# The bindings and the C API know these headers of the inside and no more.
SEEN_FROM_OUTSIDE = {
    "core/internals.hpp",
    "cpu/thread_pool.hpp",
}
# Kernels are compiled by nvcc, and need the rules and each other only.
SEEN_BY_KERNELS = ("adamas/", "rules/", "cuda/kernels/", "cuda/device/api.hpp")

INCLUDE = re.compile(r'^#include "([a-z_]+)/([^"]+)"', re.MULTILINE)


def room_of(path):
    inside = path.relative_to(CSRC)
    if inside.parts[0] == "include":
        return "adamas"
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def included(path):
    """Return (room, header) of each include of ours."""
    return [(room, f"{room}/{rest}") for room, rest in INCLUDE.findall(path.read_text())]


def sources():
    endings = {".hpp", ".cpp", ".h", ".cu"}
    return [path for path in CSRC.rglob("*") if path.suffix in endings]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CSRC)))
def test_rooms_look_down_only(path):
    room = room_of(path)
    looks_into = {other for other, _ in included(path)} - {room}
    assert looks_into <= MAY_INCLUDE[room]


def test_nothing_is_above_itself():
    seen = []
    for room, below in MAY_INCLUDE.items():
        assert below <= set(seen), room
        seen.append(room)


@pytest.mark.parametrize("room", ["bindings", "c"])
def test_little_of_the_inside_is_seen_from_outside(room):
    headers = {
        header
        for path in (CSRC / room).glob("*.?pp")
        for other, header in included(path)
        if other in {"core", "cpu", "cuda", "rules"}
    }
    assert headers <= SEEN_FROM_OUTSIDE


def test_kernels_of_devices_include_rules_and_each_other():
    for path in (CSRC / "cuda/kernels").glob("*.hpp"):
        for _, header in included(path):
            assert header.startswith(SEEN_BY_KERNELS), (path.name, header)


def test_the_core_names_neither_cpu_nor_cuda():
    for path in (CSRC / "core").glob("*.?pp"):
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"\bcuda\b|\bcpu::", code), path.name
