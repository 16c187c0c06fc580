"""What stands in the package beside the code: metadata, licence, bill of materials, recipes.

All of it repeats something that is decided elsewhere, and these tests hold it against that place.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import adamas

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("needs the sources", allow_module_level=True)
if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
VERSION = re.search(r"project\(adamas VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
DEPENDENCIES = dict(
    re.fullmatch(r"([\w-]+)(.*)", d).groups() for d in PROJECT["project"]["dependencies"]
)
WORKFLOW = (ROOT / ".github/workflows/release.yml").read_text()
HOSTS = ("torch", "thinc", "jax", "mindspore", "sklearn")


@pytest.fixture(scope="module")
def installed():
    """Return the metadata of the adamas that is imported."""
    place = Path(adamas.__file__).parent.parent
    found = list(importlib.metadata.distributions(name="adamas", path=[str(place)]))
    if len(found) != 1:
        pytest.skip(f"{len(found)} installations of adamas are in {place}")
    return found[0]


# Metadata


def test_the_licence_is_said_once_and_lies_in_the_package(installed):
    headers = installed.metadata
    assert headers["License-Expression"] == "Apache-2.0"
    assert headers.get("License") is None
    assert headers.get_all("License-File") == ["LICENSE"]
    assert not [name for name in headers.get_all("Classifier") if name.startswith("License")]
    (path,) = [path for path in installed.files if path.name == "LICENSE"]
    assert path.parts[-2:] == ("licenses", "LICENSE")
    assert path.read_text() == (ROOT / "LICENSE").read_text()


def test_classifiers_name_the_pythons_that_releases_are_tested_with(installed):
    build = PROJECT["tool"]["cibuildwheel"]["build"]
    tested = [f"3.{minor}" for minor in re.search(r"cp3\{([\d,]+)\}-", build)[1].split(",")]
    named = re.findall(
        r"Python :: (3\.\d+)$", "\n".join(installed.metadata.get_all("Classifier")), re.M
    )
    assert named == tested
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in named


def test_ci_tests_pythons_that_the_classifiers_name(installed):
    in_ci = set(
        re.findall(
            r"^test_with (3\.\d+)|\|\| test_with (3\.\d+)", (ROOT / ".ci/run").read_text(), re.M
        )
    )
    versions = {one or other for one, other in in_ci}
    assert len(versions) >= 2
    text = "\n".join(installed.metadata.get_all("Classifier"))
    assert all(f"Python :: {version}" in text for version in versions)


def test_urls_are_none_or_public():
    for name, url in PROJECT["project"].get("urls", {}).items():
        assert re.match(r"https://[\w.-]+\.[a-z]{2,}/", url), name
        assert "example" not in url, name


def test_each_host_has_an_extra_that_names_versions():
    extras = PROJECT["project"]["optional-dependencies"]
    for host in HOSTS:
        assert extras[host], host
        for requirement in extras[host]:
            assert re.search(r"[<=>~]=?\s*\d", requirement), requirement
    together = [host for host in HOSTS if host != "mindspore"]  # which needs older packages
    assert extras["hosts"][0] == f"adamas[{','.join(together)}]"


# The bill of materials


@pytest.fixture(scope="module")
def materials(installed):
    (path,) = [path for path in installed.files if path.match("*.dist-info/sboms/*")]
    assert path.name == "adamas.cdx.json"
    return json.loads(path.read_text())


def components(materials):
    return {component["bom-ref"]: component for component in materials["components"]}


def licence(component):
    (choice,) = component["licenses"]
    return choice.get("expression") or choice["license"].get("id")


def test_the_wheel_says_what_it_is(materials):
    itself = materials["metadata"]["component"]
    assert (itself["name"], itself["version"]) == ("adamas", VERSION)
    assert itself["purl"] == f"pkg:pypi/adamas@{VERSION}"
    assert licence(itself) == PROJECT["project"]["license"]


def test_the_wheel_lists_what_is_in_it_and_what_it_needs(materials, installed):
    """One component for each CMake file of third_party, each requirement, and no other."""
    found_by_cmake = {path.stem for path in (ROOT / "third_party").glob("*.cmake")}
    expected = {"libstdc++", *found_by_cmake, *DEPENDENCIES}
    if not any(path.match("adamas/_jax*.so") for path in installed.files):
        expected.remove("jax")
    if any("libadamas_cuda" in path.name for path in installed.files):
        expected.add("cuda-runtime")
    listed = components(materials)
    assert set(listed) == expected
    assert {name for name, entry in listed.items() if not entry.get("isExternal")} <= {
        "pybind11",
        "cuda-runtime",
        "jax",
    }
    (edges,) = materials["dependencies"]
    assert edges["ref"] == "adamas"
    assert set(edges["dependsOn"]) == expected


def test_the_wheel_lists_true_versions(materials):
    listed = components(materials)
    for name, wanted in DEPENDENCIES.items():
        assert listed[name]["versionRange"] == f"vers:pypi/{wanted}"
    version = ".".join(str(part) for part in sys.version_info[:2])
    assert listed["python"]["version"].startswith(version)
    assert re.fullmatch(r"3\.\d+\.\d+", listed["pybind11"]["version"])
    for name in ("python", "pybind11"):
        assert listed[name]["purl"].endswith(f"@{listed[name]['version']}")


def test_licences_are_those_of_third_party(materials):
    table = (ROOT / "third_party/README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[?(\w+)[^|]*\| ([^|]+) \|", table, re.MULTILINE)
    known = {name.lower(): text for name, text in rows}
    for name in ("pybind11", "python", *DEPENDENCIES):
        assert licence(components(materials)[name]) == known[name], name


def test_libraries_need_nothing_that_is_not_listed(installed):
    """Of the system they need the C and C++ libraries only, and of others nothing."""
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    if b"__asan_init" in Path(adamas._core.__file__).read_bytes():
        pytest.skip("sanitized")
    system = r"lib(adamas|stdc\+\+|gcc_s|c|m|dl|pthread|rt|atomic)\.so[\d.]*|ld-linux.*"
    seen = 0
    for path in installed.files:
        if ".so" not in path.name:
            continue
        place = path.locate()
        if not place.read_bytes().startswith(b"\x7fELF"):  # a linker script
            continue
        command = ["readelf", "--dynamic", "--wide", str(place)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
        assert needed
        assert [name for name in needed if not re.fullmatch(system, name)] == [], path
        seen += 1
        assert (b"cudart" in place.read_bytes()) == ("libadamas_cuda" in path.name), path
    assert seen >= 2


def test_the_bill_is_valid_cyclonedx(materials):
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.from_version("1.7"))
    try:
        error = validator.validate_str(json.dumps(materials))
    except Exception as missing:  # its own, if the validating library is not installed
        pytest.skip(str(missing))
    assert error is None, error


# The source distribution


def test_the_source_distribution_is_complete(tmp_path):
    """It holds all that git does, and so what is needed to build and to test."""
    pytest.importorskip("scikit_build_core")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    program = f"import scikit_build_core.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        members = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    wanted = {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert wanted - members == set()
    assert members - wanted == {"PKG-INFO"}


# Files that repeat the version or the requirements


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == VERSION
    assert re.search(r"^license: (.*)$", text, re.MULTILINE)[1] == PROJECT["project"]["license"]
    assert "url: https://arxiv.org/abs/1412.6980" in text


def test_nvcc_comes_from_wheels_with_hashes():
    lines = (ROOT / "packaging/cuda/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    matches = [
        re.fullmatch(r"(nvidia-[\w-]+)==(13\.0)\.\d+ --hash=sha256:[0-9a-f]{64}", p) for p in pins
    ]
    assert all(matches)
    assert len({match[1] for match in matches}) == len(pins) == 5


# The release


def test_the_workflow_runs_pinned_code_only():
    for use in re.findall(r"uses: (.*)", WORKFLOW):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
    for command in re.findall(r"pipx run (\S+)", WORKFLOW):
        assert re.fullmatch(r"\w+==[\d.]+", command), command
    assert "secrets." not in WORKFLOW
    assert not re.search(r"run:.*\$\{\{", WORKFLOW), "a shell reads what others wrote"


def test_the_workflow_grants_what_is_needed_only():
    assert re.search(r"^permissions: \{\}$", WORKFLOW, re.MULTILINE)
    jobs = re.split(r"^  (\w+):\n    name:", WORKFLOW, flags=re.MULTILINE)[1:]
    jobs = dict(zip(jobs[::2], jobs[1::2], strict=True))
    assert list(jobs) == ["sdist", "wheels", "attest", "publish"]
    allowed = {
        name: re.findall(r"^      ([\w-]+): write", text, re.MULTILINE)
        for name, text in jobs.items()
    }
    assert allowed["sdist"] == allowed["wheels"] == []
    assert allowed["attest"] == ["attestations", "id-token"]
    assert allowed["publish"] == ["id-token"]
    assert "if: github.event_name == 'push'" in jobs["publish"]


def test_the_workflow_refuses_a_tag_of_another_version():
    (check,) = re.findall(r"run: (grep .*) CMakeLists.txt", WORKFLOW)
    for tag, status in ((f"v{VERSION}", 0), (f"v{VERSION}.1", 1), ("v9.9.9", 1), ("v", 1)):
        command = ["bash", "-c", f"{check} CMakeLists.txt"]
        done = subprocess.run(command, cwd=ROOT, env={"GITHUB_REF_NAME": tag}, check=False)
        assert done.returncode == status, tag
