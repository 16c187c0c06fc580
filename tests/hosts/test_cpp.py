"""Other people's C++ and Rust: the examples over ensmallen, dlib and the C API, built and run.

Each compares itself with the library's own Adam and leaves with an error where they differ.  They
use the installed package, and are skipped where their library or compiler is not installed:
ensmallen is looked for in the compiler's folders and in that of ENSMALLEN_INCLUDE_DIR.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

import adamas
from adamas.__main__ import native_file
from test_package import run, tool

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENSMALLEN = os.environ.get("ENSMALLEN_INCLUDE_DIR")


@pytest.fixture
def library():
    """Return the folder of the installed library."""
    try:
        return native_file("lib/libadamas.so").parent
    except FileNotFoundError as error:
        pytest.skip(str(error))


def require_header(header, *folders):
    """Skip unless the compiler finds a header."""
    compiler = tool(os.environ.get("CXX", "c++"))
    flags = [f"-I{folder}" for folder in folders if folder]
    command = [compiler, *flags, "-x", "c++", "-M", "-"]
    source = f"#include <{header}>\n"
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{header} is not installed")


def example_output(name, library, folder, *options):
    """Build an example of two Adams and return what it prints; quickly built, slow to run."""
    options += (f"-Dadamas_DIR={library / 'cmake/adamas'}", "-DCMAKE_BUILD_TYPE=Debug")
    run(tool("cmake"), "-S", EXAMPLES / name, "-B", folder, *options)
    run(tool("cmake"), "--build", folder)
    return run(folder / "compare").splitlines()


def test_ensmallens_own_adam(library, tmp_path):
    require_header("ensmallen.hpp", ENSMALLEN)
    folder = [f"-DENSMALLEN_INCLUDE_DIR={ENSMALLEN}"] if ENSMALLEN else []
    first, *lines = example_output("ensmallen", library, tmp_path, *folder)
    assert first.endswith(f" and adamas {adamas.__version__}")
    assert [line.split("  ")[0].split(" 4")[0] for line in lines] == [
        "Adam, double",
        "Adam, float",
        "AMSGrad, double",
    ]
    for line in lines:
        loss = re.search(r"400 steps, loss ([0-9.]+) and ([0-9.]+), worst", line)
        assert loss[1] == loss[2]
        assert float(loss[1]) < 0.13


def test_dlibs_own_adam(library, tmp_path):
    require_header("dlib/dnn.h")
    first, *lines, right = example_output("dlib", library, tmp_path)
    assert first.endswith(f" and adamas {adamas.__version__}")
    assert len(lines) == 6
    theirs, ours = map(int, re.findall(r"(\d+) with", right))
    assert abs(theirs - ours) <= 2
    assert ours > 950


def test_rust(library, tmp_path):
    linking = ("-l", "adamas", "-L", library, "-C", f"link-arg=-Wl,-rpath,{library}")
    program = tmp_path / "fit"
    run(tool("rustc"), "-D", "warnings", EXAMPLES / "rust/main.rs", "-o", program, *linking)
    assert run(program).splitlines() == [
        f"adamas {adamas.__version__}",
        "500 steps: y = 3.000 x + -2.000",
        "refused: a gradient must have as many elements as its parameter (code 1, position 0)",
    ]


def test_the_structs_in_rust_are_those_of_the_header():
    """Member by member, with their types."""
    header = (EXAMPLES.parent / "csrc/include/adamas/adamas.h").read_text("utf-8")
    program = (EXAMPLES / "rust/main.rs").read_text("utf-8")
    types = {"size_t": "usize", "double": "f64", "uint64_t": "u64", "int32_t": "i32"}
    types |= {"int64_t": "i64", "void*": "*mut c_void", "const void*": "*const c_void"}
    types |= {"const char*": "*const c_char"}
    for name in ("status", "config", "parameter", "gradient", "rates"):
        body = re.search(
            rf"typedef struct adamas_{name} {{(.*?)}} adamas_{name};", header, re.DOTALL
        )
        body = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        members = re.findall(r"^\s*((?:const )?\w+\*?) (\w+);", body, re.MULTILINE)
        wanted = [f"pub {member}: {types[kind]}," for kind, member in members]
        ours = re.search(rf"pub struct {name.capitalize()} {{(.*?)}}", program, re.DOTALL)[1]
        assert [line.strip() for line in ours.strip().splitlines()] == wanted, name
