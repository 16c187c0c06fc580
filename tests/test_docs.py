"""Every block of code of README.md and docs/ is run, and prints what its comments say.

The Python blocks of a page are one program, in which `print(...)  # text` must print the text.
Blocks in C and C++ are programs, and the words "It prints `text`" behind them say what comes out.
Commands of the shell and of CMake are not run: what they name must exist.
"""

from __future__ import annotations

import doctest
import importlib
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import adamas
from c_api import library_path
from emulation import FakeArray

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")))
PAGES = tuple(page for page in PAGES if not page.startswith("docs/_build"))
CHECKED = ("python", "cpp", "c", "cmake", "bash")
# What pages show and adamas does not need.
HOSTS = ("autograd", "jax", "keras", "mindspore", "optax", "sklearn", "spacy", "thinc", "torch")


def text_of(page):
    return (ROOT / page).read_text("utf-8")


def blocks(page, *languages):
    """Return the blocks of code in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def prose_of(page):
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def pages_with(*languages):
    return [page for page in PAGES if blocks(page, *languages)]


def test_every_block_is_of_a_language_that_is_checked():
    for page in PAGES:
        opened = re.findall(r"^```(\w*)", text_of(page), re.MULTILINE)[::2]
        assert set(opened) <= set(CHECKED), page


def test_no_line_of_code_is_wider_than_a_page():
    for page in PAGES:
        for code in blocks(page, "python", "cpp", "c"):
            limit = 100 if page == "README.md" else 88
            assert max(map(len, code.splitlines())) <= limit, page


# Python


class FakeCupyArray(FakeArray):
    def __getitem__(self, place):
        return self.host[place]


def fake_cupy():
    """Return what the pages use of CuPy, over the emulated device."""
    module = ModuleType("cupy")
    module.float32 = np.float32
    module.ones = lambda shape, dtype: FakeCupyArray(np.ones(shape, dtype))
    module.zeros = lambda shape, dtype: FakeCupyArray(np.zeros(shape, dtype))
    module.ones_like = lambda array: FakeCupyArray(np.ones_like(array.host))
    stream = SimpleNamespace(ptr=0, synchronize=lambda: None)
    module.cuda = SimpleNamespace(get_current_stream=lambda: stream)
    return module


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_of_a_page_are_a_program(page, request, tmp_path, monkeypatch, capsys):
    program = "\n".join(blocks(page, "python"))
    for host in HOSTS:
        if re.search(rf"^(?:import|from) (?:adamas\.)?{host}\b", program, re.MULTILINE):
            if host == "keras":  # which imports its backend
                pytest.importorskip("torch", reason="torch is not installed")
                monkeypatch.setenv("KERAS_BACKEND", "torch")
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            pytest.importorskip(host, reason=f"{host} is not installed")
    if "import cupy" in program:
        request.getfixturevalue("emulated_device")
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.chdir(tmp_path)
    exec(compile(program, page, "exec"), {"__name__": "page"})  # noqa: S102
    wanted = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == wanted


@pytest.mark.parametrize("host", ["jax", "mindspore", "sklearn", "thinc", "torch"])
def test_the_examples_of_the_hosts(host):
    pytest.importorskip(host, reason=f"{host} is not installed")
    try:
        module = importlib.import_module(f"adamas.{host}")
    except ImportError as error:
        pytest.skip(str(error))
    types = {"AdamState", "GradientTransformation"}
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert {test.name.split(".")[2] for test in tests} >= set(module.__all__) - types
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


SHOWN = [name for name in adamas.__all__ if name != "__version__"]
IN_THE_REFERENCE = {name: getattr(adamas, name) for name in SHOWN}
# What all optimizers inherit, and what is not exported by `from adamas import *`.
MORE = {"Optimizer": adamas.Adam.__base__, "adamas.typing": adamas.typing}


@pytest.mark.parametrize("name", [*IN_THE_REFERENCE, *MORE])
def test_the_examples_of_the_reference(name):
    """With nothing but what ``from adamas import *`` gives."""
    thing = (IN_THE_REFERENCE | MORE)[name]
    module = thing if isinstance(thing, ModuleType) else False
    found = doctest.DocTestFinder().find(thing, name, module, globs=dict(IN_THE_REFERENCE))
    examples = [test for test in found if test.examples]
    assert examples or "See `" in thing.__doc__
    for example in examples:
        assert doctest.DocTestRunner().run(example).failed == 0


def test_users_names_say_where_they_are_imported_from():
    for name, thing in IN_THE_REFERENCE.items():
        assert getattr(adamas, name) is thing
        assert isinstance(thing, ModuleType) or thing.__module__ == "adamas", name


@pytest.mark.parametrize(
    "thing",
    [
        adamas.CosineDecayLR(0.0, 0.5, decay_steps=4),
        adamas.DynamicLossScaleManager(1024, scale_window=2),
        adamas.FixedLossScaleUpdateCell(8.0),
        adamas.warmup_lr,
    ],
)
def test_pickles_name_no_module_that_may_move(thing):
    pickled = pickle.dumps(thing)
    assert b"adamas" in pickled
    assert b"adamas." not in pickled
    assert repr(pickle.loads(pickled)) == repr(thing)  # noqa: S301


def test_modules_that_are_no_api_begin_with_an_underscore():
    modules = {path.stem for path in Path(adamas.__file__).parent.glob("*.py")}
    hosts = {"jax", "mindspore", "sklearn", "thinc", "torch"}
    api = {"cuda", "functional", "typing"}
    assert {name for name in modules if not name.startswith("_")} == api | hosts


def test_every_public_name_is_in_the_reference():
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs/api").glob("*.rst"))
    shown = set(re.findall(r"^.. auto\w+:: (\w+)$", text, re.MULTILINE))
    assert shown >= set(adamas.__all__) - {"__version__", "cuda", "functional"}
    assert shown >= {"is_available", "why_unavailable", "device_count"}


# C and C++


def programs():
    """Return language, code and output of each block."""
    listed = []
    for page in pages_with("c", "cpp"):
        pattern = r"^```(c|cpp)\n(.*?)^```$\s*(?:It prints `(.*?)`)?"
        found = re.findall(pattern, text_of(page), re.MULTILINE | re.DOTALL)
        for number, (language, code, printed) in enumerate(found):
            listed.append(pytest.param(language, code, printed, id=f"{page}-{number}"))
    return listed


@pytest.mark.parametrize(("language", "code", "printed"), programs())
def test_the_programs_in_c_and_cpp(language, code, printed, tmp_path):
    compiler = shutil.which({"c": "cc", "cpp": "c++"}[language])
    if compiler is None:
        pytest.skip("there is no compiler")
    source, program, library = tmp_path / f"source.{language}", tmp_path / "program", library_path()
    source.write_text(code, "utf-8")
    flags = ["-std=c++17" if language == "cpp" else "-std=c99", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-I{ROOT / 'csrc/include'}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, *flags, source, library, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{printed}\n"


# Commands

TARGETS = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", text_of("pyproject.toml"), re.MULTILINE))
CMAKE_COMMANDS = (
    *("find_package(adamas ", "target_link_libraries(", "add_subdirectory(adamas)"),
    *(
        "include(FetchContent)",
        "FetchContent_Declare(adamas ",
        "FetchContent_MakeAvailable(adamas)",
    ),
)
COMPILERS = ("cc", "c++", "rustc", "export")  # of programs of the reader's


def check_command(command):
    """Check that what a command names is there."""
    for inner in re.findall(r"\$\((python [^)]*)\)", command):
        check_command(inner)
    words = [word for word in command.split(" ") if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        assert words[1] in TARGETS, command
    elif words[:3] == ["python", "-m", "adamas"]:
        options = {"--cmake-dir", "--pkg-config-dir", "--include-dir", "--library", "bench"}
        options |= {"--cflags", "--ldflags"}
        assert set(words[3:]) <= options, command
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), command
    elif words[:2] == ["pip", "install"]:
        extra = re.search(r"\[(\w+)\]", words[2])
        assert extra is None or extra[1] in EXTRAS, command
    elif words[0] == "cmake":
        used = set(re.findall(r"-D(ADAMAS_\w+)", command))
        assert used <= {"ADAMAS_PYTHON", "ADAMAS_CUDA", "ADAMAS_STATIC"}, command
    elif words[0] in COMPILERS:
        for path in re.findall(r"\bexamples/[\w./]+", command):
            assert (ROOT / path).is_file(), command
    else:
        assert (ROOT / words[0]).is_file(), f"unknown command: {command}"


def commands(page):
    """Return the lines of the shell: in blocks, indented, or a command and no more in backticks."""
    text = text_of(page)
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    if page == "README.md":
        lines += re.findall(r"^    (make .*)$", text, re.MULTILINE)
    lines += re.findall(r"`((?:make|pip install|python -m adamas)\b[^`]+)`", prose_of(page))
    return [re.sub(r"\s+# .*", "", line) for line in lines if line]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_are_known(page):
    for command in commands(page):
        check_command(command)


@pytest.mark.parametrize("page", pages_with("cmake"))
def test_the_cmake_commands_of_a_page_are_known(page):
    for block in blocks(page, "cmake"):
        for line in block.splitlines():
            assert line.startswith(CMAKE_COMMANDS), line


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page):
    """Paths in backticks that begin with a folder of ours, and links to files of ours."""
    text = prose_of(page)
    folders = "bench|csrc|docs|examples|python|tests|third_party|tools"
    for path in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text):
        assert any(ROOT.glob(path.rstrip("/"))), path
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
