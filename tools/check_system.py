"""Look for what a build needs of the system, before anything is built: called by `make`.

Ends with the command that installs what is missing. It runs where nothing is installed yet, and so
uses the standard library alone.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def missing():
    """Return {Debian's package: what of it is missing}."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    found = {}
    if importlib.util.find_spec("ensurepip") is None:
        found[f"{python}-venv"] = "ensurepip, which makes virtual environments"
    if not header.exists():
        found[f"{python}-dev"] = f"{header}, which extension modules are compiled against"
    if not any(map(shutil.which, compilers)):
        found["g++"] = "a C++ compiler"
    return found


def main():
    """Print what is missing and how to install it, and end with status 1; else be silent."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this runs in any Python
        sys.exit("Python 3.10 or newer is needed; PYTHON=... names another one")
    packages = missing()
    if packages:
        lines = [f"Missing: {what}" for what in packages.values()]
        sys.exit("\n".join([*lines, f"On Debian or Ubuntu: apt-get install {' '.join(packages)}"]))


if __name__ == "__main__":
    main()
