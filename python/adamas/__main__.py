"""Say what was built, what this machine has and what will be used: ``python -m adamas``.

``python -m adamas bench`` measures how fast a step is here.
"""

from __future__ import annotations

import os
import platform
import sys

import numpy as np

from . import _bench, _core


def report() -> list[tuple[str, str]]:
    """Return the lines of the report as pairs of a label and a text."""
    chosen = _core.isa_in_use()
    if os.environ.get("ADAMAS_ISA"):
        why = f"ADAMAS_ISA={chosen} is set"
    else:
        why = "the best that this machine supports"
    cores = _core.available_threads()
    return [
        ("adamas", _core.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("compiler", _core.compiler),
        ("ISAs built", ", ".join(_core.isas_built())),
        ("ISAs supported", ", ".join(_core.isas_supported())),
        ("ISA in use", f"{chosen} ({why})"),
        ("threads", f"{cores} (the cores that this process may use)"),
        ("CUDA", f"no ({_core.no_cuda_reason})"),
    ]


def main() -> None:
    """Print the report, or measure."""
    if sys.argv[1:2] == ["bench"]:
        _bench.main(sys.argv[2:])
        return
    for label, text in report():
        print(f"{label:<16}{text}")


if __name__ == "__main__":
    main()
