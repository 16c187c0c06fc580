"""The recipe of packaging/conda builds with rattler-build, and its tests pass.

Where no channel can be reached, one is made here: "python" is this interpreter, the other packages
are this environment's, the compiler and CMake are the system's.  The recipe is the real one, and so
is rattler-build (py-rattler-build on PyPI), which solves, builds, relocates, packs and tests.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from test_package import ROOT, tool

RECIPE = ROOT / "packaging/conda/recipe.yaml"
if not RECIPE.is_file():
    pytest.skip("needs the sources", allow_module_level=True)
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"lib/python{PYTHON}/site-packages"


def test_the_recipe_is_that_of_the_project():
    text = RECIPE.read_text()
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    version = re.search(r"project\(adamas VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[
        1
    ]
    assert f'version: "{version}"' in text
    assert "license: Apache-2.0" in text
    needed = {
        "host": re.search(r"^requires = \[(.*)\]", project, re.MULTILINE)[1],
        "run": re.search(r"^dependencies = \[(.*)\]", project, re.MULTILINE)[1],
    }
    for section, requirements in needed.items():
        listed = re.search(rf"^  {section}:\n((?:    - .*\n)+)", text, re.MULTILINE)[1]
        for name, wanted in re.findall(r'"([\w-]+)(>=[\d.]+)"', requirements):
            assert f"    - {name} {wanted}\n" in listed, name


def copy_distributions(names, target):
    """Copy installed distributions, with what they need, into a folder of packages."""
    todo, done = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in done:
            continue
        done.add(name)
        found = importlib.metadata.distribution(name)
        for path in found.files:
            if ".." not in path.parts and path.suffix != ".pyc":
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path.locate(), target / path)
        always = [requirement for requirement in found.requires or [] if ";" not in requirement]
        todo += [re.match(r"[\w.-]+", requirement)[0] for requirement in always]


def python_files(folder):
    """Write a "python" whose files are this interpreter's, with site-packages of its own."""
    (folder / "bin").mkdir(parents=True)
    base = Path(sys.executable).resolve()
    for name in ("python", "python3", f"python{PYTHON}"):
        (folder / "bin" / name).symlink_to(base)
    (folder / SITE).mkdir(parents=True)
    (folder / SITE / "README.txt").write_text("packages are installed here\n")
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
    )


def packages(folder):
    """Yield (name, version, its files, what it depends on) of all packages of the channel."""
    python = folder / "python"
    python_files(python)
    yield "python", ".".join(str(part) for part in sys.version_info[:3]), python, []
    for name in ("pip", "pybind11", "scikit-build-core", "numpy", "safetensors"):
        files = folder / name
        copy_distributions([name], files / SITE)
        yield name, importlib.metadata.version(name), files, [f"python {PYTHON}.*"]
    for name, programs in {"cmake": ["cmake"], "ninja": ["ninja"], "gxx_linux-64": []}.items():
        files = folder / name
        (files / "bin").mkdir(parents=True)
        (files / "bin" / f".{name}").write_text("the system's\n")
        for program in programs:
            (files / "bin" / program).symlink_to(Path(tool(program)).resolve())
        yield name, "99.0", files, []


def make_channel(rattler, folder):
    """Pack the packages and list them; return the folder that serves as a channel."""
    channel = folder / "channel"
    for subdir in ("linux-64", "noarch"):
        (channel / subdir).mkdir(parents=True)
    listed = {}
    for name, version, files, depends in packages(folder / "files"):
        made = rattler.assemble_package(
            *(name, version, "linux-64", "0", channel / "linux-64"),
            files_dir=files,
            depends=depends,
            detect_prefix=False,
            archive_type=rattler.ArchiveType.TarBz2,
            compression_level=1,
        )
        data = Path(made.path).read_bytes()
        with tarfile.open(made.path) as opened:
            index = json.load(opened.extractfile("info/index.json"))
        index |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        listed[Path(made.path).name] = index
    for subdir, entries in {"linux-64": listed, "noarch": {}}.items():
        content = {"info": {"subdir": subdir}, "packages": entries, "packages.conda": {}}
        (channel / subdir / "repodata.json").write_text(json.dumps(content))
    return channel


@pytest.mark.long
def test_the_recipe_builds(tmp_path, monkeypatch):
    rattler = pytest.importorskip("rattler_build", reason="needs py-rattler-build")
    for name in ("pip", "pybind11", "scikit-build-core"):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    # rattler-build calls it, to make the run paths of libraries relative.
    folders = [str(Path(tool("patchelf")).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    channel = make_channel(rattler, tmp_path)
    recipe = rattler.Stage0Recipe.from_file(RECIPE)
    variants = rattler.VariantConfig({"python": [f"{PYTHON}.*"], "cxx_compiler": ["gxx"]})
    (rendered,) = recipe.render(variants)
    result = rendered.run_build(
        tool_config=rattler.ToolConfiguration(test_strategy="native"),
        output_dir=tmp_path / "output",
        channels=[channel.as_uri()],
    )
    (package,) = result.packages
    # In an environment of its own, from the channel.
    tested = rattler.Package.from_file(package).run_tests(channel=[channel.as_uri()])
    assert tested
    assert all(one.success for one in tested), [one.output for one in tested]
