"""What a build says where something of the system is missing; it downloads and installs nothing."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / "tools/check_system.py"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def test_make_names_all_that_is_missing_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(CHECK), run_name="__main__")
    *missing, command = caught.value.code.splitlines()
    assert len(missing) == 3
    assert f"{tmp_path}/Python.h" in missing[1]
    assert command.endswith(f"apt-get install {PYTHON}-venv {PYTHON}-dev g++")


def test_make_finds_what_is_there(monkeypatch, tmp_path):
    (tmp_path / "g++").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: sys)
    runpy.run_path(str(CHECK), run_name="__main__")


def test_cmake_names_the_package_of_the_headers(tmp_path):
    beside = Path(sys.executable).with_name("cmake")
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if cmake is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no cmake or no C++ compiler")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(host CXX)\n"
        f"include({ROOT}/third_party/python.cmake)\n"
    )
    command = [cmake, "-S", tmp_path, "-B", tmp_path / "build", "-DPython_INCLUDE_DIR=/nowhere"]
    command.append(f"-DPython_EXECUTABLE={sys.executable}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"apt-get install {PYTHON}-dev" in done.stderr
