"""The types that users' tools see: the native module's stub is current, and a program type-checks.

stubtest compares names, members and values; it can't see the arguments of native functions, which
pybind11 only tells in docstrings, so those are compared here.
"""

import ast
import inspect
import re
from enum import Enum
from pathlib import Path

import pytest

import adamas
from adamas import _core
from helpers import run_python

HOME = Path(adamas.__file__).resolve().parent
STUB = HOME / "_core.pyi"
USER_PROGRAM = Path(__file__).resolve().parent / "typed" / "user_program.py"
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
        if isinstance(value, type) and not issubclass(value, Enum):
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


def test_a_users_program_type_checks(run_mypy):
    done = run_mypy("mypy", "--strict", "--config-file=", str(USER_PROGRAM))
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr


def test_a_users_mistake_is_found(run_mypy, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import adamas\nadamas.all_finite(3)\nadamas.Adamas\n")
    done = run_mypy("mypy", "--strict", "--config-file=", str(program))
    assert re.findall(r"\[([a-z-]+)\]", done.stdout) == ["arg-type", "attr-defined"]


def test_the_users_program_runs():
    done = run_python(str(USER_PROGRAM))
    assert done.stderr == ""
    assert done.stdout.endswith("\n2\n")
