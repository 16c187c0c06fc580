"""Say what was built, what this machine has and what will be used: ``python -m adamas``.

``python -m adamas --cmake-dir`` and its like say where the files for C and C++ are;
``c++ program.cpp $(python -m adamas --cflags --ldflags)`` builds a program with them.
``python -m adamas bench`` measures how fast a step is here.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np

from . import _bench, _core

_HERE = Path(__file__).resolve().parent
# What of the package C and C++ need, by option; the library is named with its version.
_NATIVE_FILES = {
    "--cmake-dir": ("lib/cmake/adamas", "the folder for CMake's adamas_DIR"),
    "--pkg-config-dir": ("lib/pkgconfig", "the folder for PKG_CONFIG_PATH"),
    "--include-dir": ("include", "the folder of the headers, for -I"),
    "--library": ("lib/libadamas.so.*", "the shared library, for ctypes and other languages"),
}


def _cuda() -> str:
    reason = _core.cuda_unavailable_reason()
    return f"{_core.cuda_devices()} devices" if reason is None else f"no ({reason})"


def _threads() -> str:
    threads, cores, processes, variable = _core.default_threads()
    if processes > 1:
        return f"{threads} ({cores} cores for {processes} processes, says {variable})"
    if variable is not None:
        return f"{threads} ({variable} is set)"
    return f"{threads} (the cores that this process may use)"


def report() -> list[tuple[str, str]]:
    """Return the lines of the report as pairs of a label and a text."""
    chosen = _core.isa_in_use()
    if os.environ.get("ADAMAS_ISA"):
        why = f"ADAMAS_ISA={chosen} is set"
    else:
        why = "the best that this machine supports"
    return [
        ("adamas", _core.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("compiler", _core.compiler),
        ("ISAs built", ", ".join(_core.isas_built())),
        ("ISAs supported", ", ".join(_core.isas_supported())),
        ("ISA in use", f"{chosen} ({why})"),
        ("threads", _threads()),
        ("CUDA", _cuda()),
    ]


def native_file(pattern: str) -> Path:
    """Return the path of what is installed for C and C++.

    Raises
    ------
    FileNotFoundError
        If the package is used from the source tree, which holds none of it.
    """
    found = sorted(_HERE.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {_HERE / pattern}: adamas is not installed but used in place")
    return found[0]


def compiler_flags(*, cflags: bool, ldflags: bool) -> str:
    """Return what a compiler is given for a program over the installed library, for a shell.

    The program finds the library by its run path, wherever the package is installed.

    Parameters
    ----------
    cflags, ldflags : bool
        Whether what compiling needs is among it, and what linking needs.

    Raises
    ------
    FileNotFoundError
        If the package is used from the source tree, which holds none of it.
    """
    flags = []
    if cflags:
        flags.append(f"-I{native_file('include')}")
    if ldflags:
        folder = native_file("lib/libadamas.so").parent
        flags += [f"-L{folder}", "-ladamas", f"-Wl,-rpath,{folder}"]
    return shlex.join(flags)


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m adamas", description=__doc__)
    asked = parser.add_mutually_exclusive_group()
    for option, (pattern, text) in _NATIVE_FILES.items():
        asked.add_argument(
            option, action="store_const", dest="pattern", const=pattern, help=f"print {text}"
        )
    parser.add_argument("--cflags", action="store_true", help="print what a compiler needs")
    parser.add_argument(
        "--ldflags", action="store_true", help="print what a linker needs, and a program to run"
    )
    given = parser.parse_args()
    if given.pattern is not None and (given.cflags or given.ldflags):
        parser.error("--cflags and --ldflags go with each other only")
    return parser, given


def main() -> None:
    """Print the report, or the path or flags that were asked for; or measure."""
    if sys.argv[1:2] == ["bench"]:
        _bench.main(sys.argv[2:])
        return
    parser, given = _arguments()
    if given.pattern is None and not (given.cflags or given.ldflags):
        for label, text in report():
            print(f"{label:<16}{text}")
        return
    try:
        if given.pattern is None:
            print(compiler_flags(cflags=given.cflags, ldflags=given.ldflags))
        else:
            print(native_file(given.pattern))
    except FileNotFoundError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
