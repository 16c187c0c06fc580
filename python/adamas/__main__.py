"""Say what was built, what this machine has and what will be used: ``python -m adamas``."""

from __future__ import annotations

import os
import platform

import numpy as np

from . import _core


def _cuda() -> str:
    reason = _core.cuda_unavailable_reason()
    return f"{_core.cuda_devices()} devices" if reason is None else f"no ({reason})"


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
        ("CUDA", _cuda()),
    ]


def main() -> None:
    """Print the report."""
    for label, text in report():
        print(f"{label:<16}{text}")


if __name__ == "__main__":
    main()
