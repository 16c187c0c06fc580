"""The port of packaging/vcpkg builds, and a program builds with what it leaves.

vcpkg itself is not needed: tests/vcpkg/run_port.cmake runs the real portfile with helpers that do
what vcpkg's do, and makes vcpkg's checks.
"""

import json
import re
import shutil
import subprocess

import pytest

from helpers import once
from test_package import CONSUMER, ROOT, cmake, run, tool, write_sources

PORT = ROOT / "packaging/vcpkg/adamas"
SCRIPT = ROOT / "tests/vcpkg/run_port.cmake"
WORK = ROOT / "build/vcpkg"  # kept, so that the next time is short
if not PORT.is_dir():
    pytest.skip("needs the sources", allow_module_level=True)


def port_command(linkage, port=PORT, work=WORK, *options):
    words = [tool("cmake"), f"-DPORT_DIR={port}", f"-DWORK={work}", f"-DLINKAGE={linkage}"]
    return [*words, *options, "-P", SCRIPT]


def package(linkage):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    once(WORK / linkage, lambda: run(*port_command(linkage)))
    return WORK / "packages" / linkage


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Release", "Debug"])
@pytest.mark.parametrize("linkage", ["static", "dynamic"])
def test_a_program_builds_with_the_port(linkage, kind, tmp_path):
    prefix = package(linkage)
    sources = ";".join(str(path) for path in write_sources(tmp_path)[:2])
    where = [
        f"-DPROGRAMS={sources}",
        f"-DCMAKE_PREFIX_PATH={prefix}",
        "-DCMAKE_VERBOSE_MAKEFILE=ON",
    ]
    build = cmake(CONSUMER, tmp_path / "build", *where, f"-DCMAKE_BUILD_TYPE={kind}")
    for name in ("cpp_example", "c_example"):
        run(build / name)
    linked = " ".join(path.read_text() for path in build.rglob("link.txt"))
    if not linked:
        linked = (build / "build.ninja").read_text()
    assert (f"{prefix}/debug/lib/libadamas" in linked) == (kind == "Debug")


# What the harness must find.
DAMAGES = {
    "no licence": (r"vcpkg_install_copyright\([^)]*\)", "", "copyright"),
    "no usage": (r"file\(INSTALL[^)]*\)", "", "usage"),
    "headers twice": (r"file\(REMOVE_RECURSE[^)]*\)", "", "debug/include"),
    "package not moved": (r"vcpkg_cmake_config_fixup\([^)]*\)", "", "adamasConfig.cmake"),
    "package elsewhere": (r"CONFIG_PATH [^)]*", "CONFIG_PATH share/cmake", "no CMake package"),
    "unknown option": (r"CONFIG_PATH", "CONFIGPATH", "unknown arguments"),
    "with Python": (r"ADAMAS_PYTHON=OFF", "ADAMAS_PYTHON=ON -Dpybind11_DIR=/nowhere", "pybind11"),
}


@pytest.mark.long
def test_a_wrong_port_fails(tmp_path):
    """One after another: they share the built objects, so that only the installing is repeated."""
    package("static")
    text = (PORT / "portfile.cmake").read_text()
    text = text.replace("${CMAKE_CURRENT_LIST_DIR}/../../..", str(ROOT))
    for name, (before, after, message) in DAMAGES.items():
        folder = tmp_path / name.replace(" ", "_") / "packaging/vcpkg/adamas"
        shutil.copytree(PORT, folder)
        changed, count = re.subn(before, after, text)
        assert count == 1, name
        (folder / "portfile.cmake").write_text(changed)
        command = port_command("static", folder, tmp_path, f"-DBUILDTREES={WORK}/buildtrees")
        words = [str(part) for part in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode != 0, name
        assert message in done.stderr, (name, done.stderr)


def test_kernels_for_devices_need_shared_libraries(tmp_path):
    """The feature makes a static triplet dynamic and asks for nvcc."""
    if shutil.which("nvcc") is not None:
        pytest.skip("there is an nvcc: the feature would be built")
    done = subprocess.run(
        [str(part) for part in port_command("static", PORT, tmp_path, "-DFEATURES=core;cuda")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "put nvcc 12.8 or newer on the PATH" in " ".join(done.stderr.split())
    cache = (tmp_path / "buildtrees/static/Release/CMakeCache.txt").read_text()
    assert "BUILD_SHARED_LIBS:UNINITIALIZED=ON" in cache or "BUILD_SHARED_LIBS:BOOL=ON" in cache


def test_the_manifest_is_that_of_the_project():
    manifest = json.loads((PORT / "vcpkg.json").read_text())
    version = re.search(r"project\(adamas VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[
        1
    ]
    assert manifest["name"] == "adamas"
    assert manifest["version"] == version
    assert manifest["license"] == "Apache-2.0"
    used = set(re.findall(r"\"(\w+)\" IN_LIST FEATURES", (PORT / "portfile.cmake").read_text()))
    assert used == set(manifest["features"])
    assert "find_package(adamas CONFIG REQUIRED)" in (PORT / "usage").read_text()
