"""Looks into the built objects: what each instruction set may contain and must contain.

The objects are those of the environment variable ADAMAS_BUILD_DIR (a CMake build directory), else
of the newest build that `pip install .` left in `build/`, else they are compiled for this test.
"""

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "csrc/cpu/CMakeFiles/adamas_isa_*.dir"
ISAS = ("scalar", "avx2", "avx512") if platform.machine() == "x86_64" else ("scalar", "neon")
REGISTERS = {"avx2": "ymm", "avx512": "zmm"}
# What a C library has on every machine, and what compilers and linkers add by themselves.
C_LIBRARY = {"memset", "memcpy", "memmove", "memcmp", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="registers and instructions of x86-64"
)
every_isa = pytest.mark.parametrize("isa", ISAS)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(folder):
    """Compile the library alone."""
    run(
        *("cmake", "-S", str(ROOT), "-B", str(folder)),
        *("-DADAMAS_PYTHON=OFF", "-DADAMAS_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release"),
    )
    run("cmake", "--build", str(folder), "--target", "adamas", "--parallel", "2")
    return folder


def left_builds():
    """Return the CMake build directories in `build/`, newest last."""
    found = {path.parents[3] for path in ROOT.glob(f"build/*/{KERNELS}")}
    return sorted(found, key=lambda folder: (folder / "CMakeCache.txt").stat().st_mtime)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a CMake build directory."""
    missing = [tool for tool in ("nm", "objdump") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed (binutils): {', '.join(missing)}")
    given = os.environ.get("ADAMAS_BUILD_DIR")
    if given:
        folder = Path(given).resolve()
        assert list(folder.glob(KERNELS)), f"ADAMAS_BUILD_DIR={given} holds no {KERNELS}"
        return folder
    if left_builds():
        return left_builds()[-1]
    if shutil.which("cmake") is None:
        pytest.skip("no build directory, and cmake is not installed")
    return compiled(tmp_path_factory.mktemp("build"))


def isa_object(build, isa):
    (path,) = build.glob(f"{KERNELS.replace('*', isa)}/kernels/kernels.cpp.o")
    return path


def baseline_objects(build):
    """Return the objects of the library that run on every machine.

    Not those of the bindings, which compute nothing and may hold link-time bytecode only.
    """
    return [*build.glob("csrc/CMakeFiles/adamas.dir/**/*.o"), isa_object(build, "scalar")]


def symbols(path):
    """Return [(name, type)] as nm gives them."""
    lines = (line.split() for line in run("nm", str(path)).splitlines())
    return [(fields[-1], fields[-2]) for fields in lines]


def instructions(path, *, excluded=None):
    """Return [(mnemonic, operands)] of an object, but for functions with `excluded` in them."""
    text = run("objdump", "--disassemble", "--no-show-raw-insn", str(path))
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", text, flags=re.MULTILINE)[1:]
    return [
        instruction
        for name, body in zip(functions[::2], functions[1::2], strict=True)
        if excluded is None or excluded not in name
        for instruction in re.findall(r"^ +[0-9a-f]+:\t(\S+) *(.*)$", body, re.MULTILINE)
    ]


def test_every_isa_has_an_object(build):
    found = {path.name for path in build.glob(KERNELS)}
    assert found == {f"adamas_isa_{isa}.dir" for isa in ISAS}


@every_isa
def test_no_symbol_can_be_merged_with_that_of_another_object(build, isa):
    weak = [name for name, kind in symbols(isa_object(build, isa)) if kind in "WwVvu"]
    assert weak == []


@every_isa
def test_only_the_table_of_kernels_is_visible(build, isa):
    visible = [name for name, kind in symbols(isa_object(build, isa)) if kind in "TDRBCS"]
    assert len(visible) == 1
    assert f"kernels_{isa}" in visible[0]


@every_isa
def test_nothing_is_called_but_the_c_library(build, isa):
    undefined = {name for name, kind in symbols(isa_object(build, isa)) if kind == "U"}
    fused = {"fma", "fmaf"} if isa == "scalar" else set()
    assert undefined <= C_LIBRARY | fused


@needs_x86
def test_no_wide_registers_in_the_baseline(build):
    paths = baseline_objects(build)
    assert len(paths) > 3
    for path in paths:
        # Chosen at run time, and of internal linkage (core/rate_folder.cpp).
        listed = instructions(path, excluded="fold_with_fma")
        assert listed, path
        wide = [f"{name} {operands}" for name, operands in listed if re.search("%[yz]mm", operands)]
        assert wide == [], path.name
        vex = [name for name, _ in listed if name.startswith(("vfm", "vdiv", "vsqrt", "vadd"))]
        assert vex == [], path.name


@needs_x86
def test_avx2_does_not_use_the_registers_of_avx512(build):
    for _, operands in instructions(isa_object(build, "avx2")):
        assert not re.search(r"%zmm|%k[0-7]|[xy]mm(1[6-9]|2\d|3[01])\b", operands)


@needs_x86
@pytest.mark.parametrize("isa", REGISTERS)
@pytest.mark.parametrize("suffix", ["ps", "pd"], ids=["float32", "float64"])
def test_every_variant_is_a_packed_loop(build, isa, suffix):
    counts = Counter()
    for name, operands in instructions(isa_object(build, isa)):
        packed = re.fullmatch(rf"v(fn?m(?:add|sub)|sqrt|div)(?:132|213|231)?{suffix}", name)
        if packed and f"%{REGISTERS[isa]}" in operands:
            counts[packed[1].removeprefix("fn").removeprefix("f")] += 1
    # At least one loop for each variant, per element type.
    rule = (ROOT / "csrc/rules/adam.hpp").read_text()
    variants = int(re.search(r"kVariants = (\d+)", rule)[1])
    assert counts["sqrt"] >= variants
    assert counts["div"] >= variants
    assert counts["madd"] >= 4 * variants
