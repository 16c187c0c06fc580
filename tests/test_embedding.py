"""How a program of another project is built over adamas: from the sources inside its own build, or
from the installed package by CMake, pkg-config or a makefile, in C++ and in C.

The sources are built once, inside a project whose settings are as unusual as can be, and what that
installs serves the rest; the wheel's package is tried as well.  Kept in build/package, so that the
next time is short.
"""

import os
import re
import shutil
import sys
from functools import cache

import numpy as np
import pytest

from helpers import once, run_python
from test_package import (
    BIAS,
    CONSUMER,
    LENGTH,
    ROOT,
    ROWS,
    STEPS,
    bytes_by_python,
    package_of,
    run,
    tool,
    write_sources,
)

HOST = """
cmake_minimum_required(VERSION 3.18)
project(host {languages})
{settings}
{adamas}
"""
ADD = f"add_subdirectory({ROOT} adamas)"
FETCH = f"""
include(FetchContent)
FetchContent_Declare(adamas SOURCE_DIR {ROOT})
FetchContent_MakeAvailable(adamas)
"""
# What a project may have set for its own code; -ffast-math alone would change the bits.
UNUSUAL = """
set(BUILD_SHARED_LIBS ON)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_UNITY_BUILD ON)
add_compile_options(-Wall -Wextra -Wpedantic -Werror $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast>)
add_compile_options(-ffast-math -march=native)
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions> $<$<COMPILE_LANGUAGE:CXX>:-fno-rtti>)
set(ADAMAS_STATIC ON)
set(ADAMAS_INSTALL ON)
"""
PROGRAMS = """
add_executable(cpp_example {folder}/cpp_example.cpp)
target_link_libraries(cpp_example PRIVATE adamas::adamas)
add_executable(c_example {folder}/c_example.c)
target_link_libraries(c_example PRIVATE adamas::adamas_static)
"""
C_EXAMPLE = "10 steps: 0.9707 1.0293 0.9707 1.0000\n"
OURS = re.compile(r"(ADAMAS|adamas|CMAKE_PROJECT_VERSION|FETCHCONTENT)")

OF_THE_FOLDER = re.compile(r"_DIR$|^CMAKE_HOME_DIRECTORY$|^CMAKE_NUMBER_OF_MAKEFILES$")


def host(folder, adamas, languages="CXX", settings=""):
    """Write another project that contains adamas, and configure it."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    text = HOST.format(adamas=adamas, languages=languages, settings=settings)
    (folder / "CMakeLists.txt").write_text(text, "utf-8")
    run(tool("cmake"), "-S", folder, "-B", folder / "build")
    return folder / "build"


def cache_of(build):
    """Return {name: value} of a project's cache."""
    text = (build / "CMakeCache.txt").read_text("utf-8")
    return dict(re.findall(r"^([^#/\n][^:\n]*):\w+=(.*)$", text, re.MULTILINE))


@cache
def contained():
    """Build adamas inside the unusual project, and install it; return the folder of both."""
    folder = ROOT / "build/package/contained"

    def build():
        shutil.rmtree(folder / "a prefix", ignore_errors=True)
        (folder / "sources").mkdir(parents=True, exist_ok=True)
        write_sources(folder / "sources")
        programs = PROGRAMS.format(folder=folder / "sources")
        programs += f"add_executable(same_bits {CONSUMER}/same_bits.cpp)\n"
        programs += "target_link_libraries(same_bits PRIVATE adamas::adamas)\n"
        made = host(folder, FETCH + programs, "C CXX", UNUSUAL)
        run(tool("cmake"), "--build", made, "--parallel", "2")
        run(tool("cmake"), "--install", made, "--prefix", folder / "a prefix")

    once(folder, build)
    return folder


@pytest.fixture
def pkgconfig():
    """Return a function that asks pkg-config about what `contained` has installed."""
    (file,) = contained().glob("a prefix/lib*/**/adamas.pc")

    def ask(*options):
        where = {**os.environ, "PKG_CONFIG_PATH": str(file.parent)}
        return run(tool("pkg-config"), *options, "adamas", env=where).strip()

    return ask


def shell(command, folder):
    run("sh", "-c", command, cwd=folder)


# Inside another project


@pytest.mark.parametrize("adamas", [ADD, FETCH], ids=["add_subdirectory", "FetchContent"])
def test_nothing_is_set_in_a_project_around(adamas, tmp_path):
    before = cache_of(host(tmp_path / "alone", ""))
    settings = 'set(names "${CMAKE_CXX_FLAGS}|${CMAKE_BUILD_TYPE}|${BUILD_SHARED_LIBS}")\n'
    looks = 'set(now "${CMAKE_CXX_FLAGS}|${CMAKE_BUILD_TYPE}|${BUILD_SHARED_LIBS}")\n'
    looks += "if(NOT now STREQUAL names OR CMAKE_POSITION_INDEPENDENT_CODE)\n"
    looks += 'message(FATAL_ERROR "changed: ${now}")\nendif()\n'
    looks += "get_target_property(type adamas TYPE)\n"
    looks += 'if(NOT type STREQUAL "STATIC_LIBRARY" OR TARGET _core)\n'
    looks += 'message(FATAL_ERROR "type: ${type}")\nendif()\n'
    build = host(tmp_path / "with", f"{adamas}\n{looks}", settings=settings)
    after = cache_of(build)
    added = {name for name in after if name not in before and not OURS.match(name)}
    assert added == set()
    changed = {name for name in before if after[name] != before[name]}
    assert {name for name in changed if not OF_THE_FOLDER.search(name)} == set()
    assert after["ADAMAS_PYTHON"] == after["ADAMAS_CUDA"] == after["ADAMAS_INSTALL"] == "OFF"
    run(tool("cmake"), "--install", build, "--prefix", tmp_path / "prefix")
    assert not list(tmp_path.glob("prefix/**/*adamas*"))


def test_a_project_in_c_may_contain_it(tmp_path):
    (tmp_path / "user.c").write_text("#include <adamas/adamas.h>\nint main(void) { return 0; }\n")
    programs = "add_executable(user user.c)\ntarget_link_libraries(user PRIVATE adamas::adamas)\n"
    host(tmp_path, ADD + "\n" + programs, "C")


def test_options_are_the_projects(tmp_path):
    settings = "set(ADAMAS_CUDA OFF)\nset(ADAMAS_INSTALL ON)\nset(BUILD_SHARED_LIBS ON)\n"
    looks = "get_target_property(type adamas TYPE)\n"
    looks += 'if(NOT type STREQUAL "SHARED_LIBRARY" OR TARGET adamas_static)\n'
    looks += 'message(FATAL_ERROR "type: ${type}")\nendif()\n'
    build = host(tmp_path, ADD + "\n" + looks, settings=settings)
    assert "libadamas" in "".join(p.read_text() for p in build.glob("**/cmake_install.cmake"))


def test_the_bits_are_the_same_in_any_project(tmp_path):
    values = np.random.default_rng(8).standard_normal((STEPS + 1, ROWS * LENGTH + BIAS))
    values = values.astype(np.float32)
    (tmp_path / "input").write_bytes(values.tobytes())
    program = contained() / "build/same_bits"
    for variant in ("plain", "amsgrad", "int8"):
        run(program, variant, tmp_path / "input", tmp_path / "output")
        assert (tmp_path / "output").read_bytes() == bytes_by_python(variant, values)


def test_programs_of_the_project_run():
    assert run(contained() / "build/cpp_example").startswith("100 steps, ")
    assert run(contained() / "build/c_example") == C_EXAMPLE


# The installed package


@pytest.mark.parametrize("target", ["adamas", "adamas_static"])
@pytest.mark.parametrize("languages", ["C", "C CXX"])
def test_c_by_cmake(languages, target, tmp_path):
    write_sources(tmp_path)
    (config,) = contained().glob("a prefix/lib*/**/adamasConfig.cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(user {languages})\n"
        "find_package(adamas CONFIG REQUIRED)\nadd_executable(user c_example.c)\n"
        f"target_link_libraries(user PRIVATE adamas::{target})\n"
    )
    options = ("-S", tmp_path, "-B", tmp_path / "build", f"-Dadamas_DIR={config.parent}")
    run(tool("cmake"), *options)
    run(tool("cmake"), "--build", tmp_path / "build")
    assert run(tmp_path / "build/user") == C_EXAMPLE


def test_pkg_config(pkgconfig, tmp_path):
    """The prefix has a space in it, and is not where it was configured for."""
    write_sources(tmp_path)
    flags = pkgconfig("--cflags", "--libs")
    folder = pkgconfig("--variable=libdir").replace("\\ ", " ")
    shell(f"cc c_example.c {flags} -o c_shared '-Wl,-rpath,{folder}'", tmp_path)
    shell(f"c++ -std=c++17 cpp_example.cpp {flags} -o cpp '-Wl,-rpath,{folder}'", tmp_path)
    assert run(tmp_path / "c_shared") == C_EXAMPLE
    assert run(tmp_path / "cpp").startswith("100 steps, ")
    assert "libadamas.so" in run("ldd", tmp_path / "c_shared")


def test_pkg_config_static(pkgconfig, tmp_path):
    """What C needs besides libadamas.a is among the flags."""
    write_sources(tmp_path)
    flags = pkgconfig("--static", "--cflags", "--libs")
    flags = flags.replace("-ladamas", "-l:libadamas.a")
    shell(f"cc c_example.c {flags} -o c_static", tmp_path)
    assert run(tmp_path / "c_static") == C_EXAMPLE
    assert "adamas" not in run("ldd", tmp_path / "c_static")
    assert flags.split("libadamas.a ")[1] == "-lstdc++ -lm -pthread -ldl"


def test_pkg_config_where_there_is_but_a_static_library(tmp_path):
    write_sources(tmp_path)
    (file,) = package_of("static").parents[2].glob("**/adamas.pc")
    where = {**os.environ, "PKG_CONFIG_PATH": str(file.parent)}
    flags = run(tool("pkg-config"), "--cflags", "--libs", "adamas", env=where).strip()
    assert "-DADAMAS_STATIC" in flags
    shell(f"cc c_example.c {flags} -o c_static", tmp_path)
    assert run(tmp_path / "c_static") == C_EXAMPLE


MAKEFILE = """
PYTHON ?= python
CXXFLAGS += -std=c++17 $(shell $(PYTHON) -m adamas --cflags)
CFLAGS += $(shell $(PYTHON) -m adamas --cflags)
LDLIBS += $(shell $(PYTHON) -m adamas --ldflags)

all: cpp_example c_example
"""


def test_a_makefile(tmp_path):
    package_of("python")
    write_sources(tmp_path)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    run(tool("make"), f"PYTHON={sys.executable}", cwd=tmp_path)
    assert run(tmp_path / "c_example") == C_EXAMPLE
    assert run(tmp_path / "cpp_example").startswith("100 steps, ")


def test_the_wheel_has_a_file_for_pkg_config(tmp_path):
    package_of("python")
    write_sources(tmp_path)
    folder = run_python("-m", "adamas", "--pkg-config-dir").stdout.strip()
    where = {**os.environ, "PKG_CONFIG_PATH": folder}
    flags = run(tool("pkg-config"), "--cflags", "--libs", "adamas", env=where).strip()
    library = run(tool("pkg-config"), "--variable=libdir", "adamas", env=where).strip()
    shell(f"cc c_example.c {flags} -Wl,-rpath,{library} -o c", tmp_path)
    assert run(tmp_path / "c") == C_EXAMPLE


def test_flags_are_for_a_shell():
    package_of("python")
    both = run_python("-m", "adamas", "--cflags", "--ldflags").stdout.split()
    assert both[0].startswith("-I")
    assert both[1].startswith("-L")
    assert both[2:] == ["-ladamas", f"-Wl,-rpath,{both[1][2:]}"]
    assert run_python("-m", "adamas", "--cflags").stdout.split() == both[:1]
    assert run_python("-m", "adamas", "--ldflags").stdout.split() == both[1:]
    assert run_python("-m", "adamas", "--cflags", "--library").returncode == 2
