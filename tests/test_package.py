"""What a program in C or C++ is built with: the installed headers, library and CMake package.

They are installed in three ways: by `cmake --install` as a shared and as a static library, which is
built for this test in build/package, and inside the Python package.  Needs cmake and a compiler;
with the static library programs are built by clang too, if there is one.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import adamas
import combinations
from adamas.__main__ import native_file
from c_api import library_path
from helpers import once, run_python

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "csrc/include/adamas"
EXAMPLE = ROOT / "examples/cpp_embed"
CONSUMER = ROOT / "tests/consumer"
RATES = ((0.01, 0.1), (0.02, 0.0))
STEPS, ROWS, LENGTH, BIAS, ENTRIES = 5, 50, 64, 33, 20
WAYS = ("shared", "static", "python")
PROGRAMS = ("cpp_example", "c_example", "fragments")


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name):
    """Return the path of a tool of this environment or of the system."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def cmake(source, build, *options):
    """Configure and build a project with CMake."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")
    run(tool("cmake"), "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options)
    run(tool("cmake"), "--build", build, "--parallel", "2")
    return Path(build)


@cache
def installed(kind):
    """Build the library without Python and install it; return the folder of the CMake package."""
    folder = ROOT / "build/package" / kind  # kept, so that the next time is short
    shared = "ON" if kind == "shared" else "OFF"
    options = ("-DADAMAS_CUDA=OFF", f"-DBUILD_SHARED_LIBS={shared}")

    def install():
        shutil.rmtree(folder / "prefix", ignore_errors=True)
        cmake(ROOT, folder / "build", *options)
        run(tool("cmake"), "--install", folder / "build", "--prefix", folder / "prefix")

    once(folder, install)
    (config,) = folder.glob("prefix/lib*/**/adamasConfig.cmake")
    return config.parent


def package_of(way):
    """Return the folder of adamasConfig.cmake of one of the ways to install."""
    if way != "python":
        return installed(way)
    try:
        return native_file("lib/cmake/adamas")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def code_in_comment(path, prefix, begin):
    """Return the lines of code in the comment at the head of a header."""
    text = path.read_text("utf-8")
    head = text[: re.search(r"^#(pragma|ifndef)", text, re.MULTILINE).start()]
    lines = [line for line in head.splitlines() if line.startswith((prefix + "  ", prefix + "\n"))]
    code = "\n".join(line.removeprefix(prefix) for line in lines)
    return code[code.index(begin) :] + "\n"


def write_sources(folder):
    """Write the examples that stand in the headers, as programs."""
    cpp = code_in_comment(INCLUDE / "adamas.hpp", "//", "  #include <adamas/adamas.hpp>")
    c = code_in_comment(INCLUDE / "adamas.h", " *", "  #include <adamas/adamas.h>")
    steps = code_in_comment(INCLUDE / "optimizer.hpp", "//", "  adamas::ParameterSpec")
    schedule = code_in_comment(INCLUDE / "schedule.hpp", "//", "  adamas::RateSchedule")
    (folder / "cpp_example.cpp").write_text(cpp)
    (folder / "c_example.c").write_text(c)
    (folder / "fragments.cpp").write_text(
        "#include <adamas/adamas.hpp>\n"
        "int main() {\n  float data[2] = {1, 1}, values[2] = {1, 2};\n  const int count = 2;\n"
        f"{steps}  std::vector<adamas::Gradient> grads = {{grad}};\n{schedule}"
        "  return status.ok() && optimizer->global_step() == 2 ? 0 : 1;\n}\n"
    )
    names = ("cpp_example.cpp", "c_example.c", "fragments.cpp")
    return [
        *(folder / name for name in names),
        CONSUMER / "same_bits.cpp",
        CONSUMER / "combinations.cpp",
    ]


@pytest.fixture(scope="module", params=[*WAYS, "static, clang"])
def programs(request, tmp_path_factory):
    """Return the folder of the programs, built with one of the installed packages."""
    way, *compiler = request.param.split(", ")
    if compiler and shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    package = package_of(way)
    folder = tmp_path_factory.mktemp(f"consumer_{way}")
    sources = ";".join(str(path) for path in write_sources(folder))
    options = [f"-DPROGRAMS={sources}", f"-Dadamas_DIR={package}"]
    if compiler:
        options += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    return cmake(CONSUMER, folder / "build", *options)


# The examples


def example_output(way, folder):
    """Build examples/cpp_embed with an installed package and fit the digits; return its lines."""
    package = package_of(way)
    data = folder / "digits.csv"
    if not data.exists():
        pytest.importorskip("sklearn")
        run(sys.executable, EXAMPLE / "make_data.py", data)
    build = cmake(EXAMPLE, folder / way, f"-Dadamas_DIR={package}", "-DCMAKE_CXX_FLAGS=-Werror")
    return run(build / "fit_digits", data).splitlines()


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cpp_embed")


@pytest.mark.parametrize("way", WAYS)
def test_the_embedding_example_fits_the_digits(way, example_folder):
    *epochs, last = example_output(way, example_folder)
    losses = [float(re.search(r"loss ([0-9.]+)", line)[1]) for line in epochs]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2.3
    assert losses[-1] < 0.4
    assert last.startswith(f"280 steps with adamas {adamas.__version__} (")


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_embedding_example_gives_the_same_numbers(way, example_folder):
    assert example_output(way, example_folder) == example_output("shared", example_folder)


def test_the_example_in_the_cpp_header(programs):
    weight, bias = np.ones((100, 10), np.float32), np.zeros(10, np.float32)
    params = [adamas.Parameter(weight, "weight"), adamas.Parameter(bias, "bias")]
    lrs = [1e-3 / (1.0 + 0.1 * step) for step in range(100)]
    groups = [
        {"params": params[:1], "lr": lrs, "weight_decay": 0.01},
        {"params": params[1:], "lr": 1e-2},
    ]
    opt = adamas.Adam(groups, decoupled_weight_decay=True, max_grad_norm=1.0, use_lazy=True)
    rows = adamas.RowTensor(np.array([7, 42]), np.full((2, 10), 0.5, np.float32), (100, 10))
    for _ in range(100):
        opt((rows, np.full(10, 0.5, np.float32)))
    wanted = f"100 steps, norm {opt.last_grad_norm:.3f}, bias {bias[0]:.4f}\n"
    assert run(programs / "cpp_example") == wanted


def test_the_example_in_the_c_header(programs):
    weight = np.ones(4, np.float32)
    lrs = [1e-2 / (1 + step) for step in range(10)]
    opt = adamas.Adam([adamas.Parameter(weight)], learning_rate=lrs, beta2=0.99)
    for _ in range(10):
        opt([np.array([0.5, -0.5, 0.25, 0], np.float32)])
    numbers = " ".join(f"{number:.4f}" for number in weight)
    assert run(programs / "c_example") == f"10 steps: {numbers}\n"


@pytest.mark.parametrize("way", ["shared", "python"])
def test_a_compiler_alone_is_enough(way, tmp_path):
    """-ladamas finds the library in the installed folder, where a wheel has no link to it."""
    library = package_of(way).parents[1]
    source = write_sources(tmp_path)[1]
    flags = (f"-I{library.parent / 'include'}", f"-L{library}", "-ladamas", f"-Wl,-rpath,{library}")
    run(tool("cc"), source, "-o", tmp_path / "program", *flags)
    assert run(tmp_path / "program").startswith("10 steps: ")


def test_the_fragments_in_the_headers(programs):
    run(programs / "fragments")


# The same bits

OPTIONS = {
    "plain": {},
    "amsgrad": {"use_amsgrad": True, "use_nesterov": True, "decoupled_weight_decay": True},
    "lazy": {"use_lazy": True, "max_grad_norm": 0.5, "loss_scale": 12.0, "use_locking": True},
    "int8": {"state_dtype": "int8", "seed": 7, "num_threads": 3},
}


def bytes_by_python(variant, values):
    """Make the steps of tests/consumer/same_bits.cpp; return what it writes."""
    values = values.copy()
    table, bias = values[0, : ROWS * LENGTH].reshape(ROWS, LENGTH), values[0, ROWS * LENGTH :]
    params = [adamas.Parameter(table, "table", key=0), adamas.Parameter(bias, "bias", key=1)]
    groups = [
        {"params": params[:1], "lr": [0.01 / (1 + i) for i in range(STEPS)], "weight_decay": 0.1},
        {"params": params[1:], "lr": 0.02},
    ]
    opt = adamas.Adam(groups, beta1=0.8, beta2=0.95, eps=1e-6, **OPTIONS[variant])
    rows = np.arange(ENTRIES) ** 2 % ROWS
    for step in values[1:]:
        grad = step[: ROWS * LENGTH].reshape(ROWS, LENGTH)
        if variant == "lazy":
            grad = adamas.RowTensor(rows, grad[:ENTRIES], (ROWS, LENGTH))
        opt((grad, step[ROWS * LENGTH :]))
    states = [table, bias]
    for i in range(2):
        for kind, moments in ((0, opt.moment1), (1, opt.moment2)):
            in_8_bits = variant == "int8"
            states.append(stored(opt, kind, i) if in_8_bits else moments[i])
    return b"".join(state.tobytes() for state in states)


def stored(opt, kind, index):
    kinds = (adamas._core.StateKind.moment1, adamas._core.StateKind.moment2)
    return opt._native.stored(kinds[kind], index)


@pytest.mark.parametrize("variant", OPTIONS)
def test_the_same_bits_as_from_python(programs, variant, tmp_path):
    rng = np.random.default_rng(8)
    values = rng.standard_normal((STEPS + 1, ROWS * LENGTH + BIAS)).astype(np.float32)
    (tmp_path / "input").write_bytes(values.tobytes())
    run(programs / "same_bits", variant, tmp_path / "input", tmp_path / "output")
    assert (tmp_path / "output").read_bytes() == bytes_by_python(variant, values)


def test_every_combination_has_the_bits_of_python(programs, tmp_path):
    values = combinations.make_values()
    (tmp_path / "input").write_bytes(values.tobytes())
    said = run(programs / "combinations", tmp_path / "input", tmp_path / "output")
    assert said == "144 combinations\n"
    wanted = [combinations.by_python(one, values) for one in combinations.COMBINATIONS]
    assert (tmp_path / "output").read_bytes() == b"".join(wanted)


# What is installed


@pytest.mark.parametrize("wanted", ["0.0.9", "0.2", "1.0", "2"])
def test_other_versions_are_refused(wanted, tmp_path):
    package = installed("shared")
    done = subprocess.run(
        [tool("cmake"), "-S", CONSUMER, "-B", tmp_path, f"-Dadamas_DIR={package}"]
        + [f"-DWANTED_VERSION={wanted}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "compatible with requested version" in " ".join(done.stderr.split())


# PoolLease is for adamas._core alone.
CLASSES = "Optimizer|AdamUpdate|cpu::PoolLease|core::Internals"
API = rf"(adamas::\w+\(|adamas::({CLASSES})::~?\w+\(|adamas_\w+$)"


def test_the_library_shows_its_api_and_nothing_else():
    listed = run(tool("nm"), "--dynamic", "--defined-only", "--demangle", library_path())
    names = [line.split(maxsplit=2) for line in listed.splitlines()]
    assert len(names) > 50
    for _, kind, name in names:
        assert kind == "T", name
        assert re.match(API, name), name


ONE_LIBRARY = """
import numpy, adamas, c_api
print(c_api.library_path())
array = numpy.ones(3)
adamas.Adam([adamas.Parameter(array)])([array.copy()])
print(array[0])
"""


def test_a_program_that_links_the_library_and_runs_python():
    """The module uses the library that is there already, even if it lies elsewhere."""
    (path,) = installed("shared").parents[1].glob("libadamas.so.*")
    here = str(Path(__file__).parent)
    done = run_python("-c", f"import sys\nsys.path.append({here!r})" + ONE_LIBRARY, LD_PRELOAD=path)
    assert done.stdout.splitlines() == [str(path), repr(1 - 1e-3 / (1 + 1e-8))], done.stderr


@pytest.mark.parametrize(
    "option", ["--cmake-dir", "--pkg-config-dir", "--include-dir", "--library"]
)
def test_python_says_where_the_files_are(option):
    done = run_python("-m", "adamas", option)
    package = Path(adamas.__file__).parent
    if not (package / "lib").exists():
        assert done.returncode == 1
        assert "not installed but used in place" in done.stderr
        return
    path = Path(done.stdout.rstrip("\n"))
    assert path.is_relative_to(package)
    wanted = {"--cmake-dir": "adamasConfig.cmake", "--include-dir": "adamas/adamas.h"}
    wanted["--pkg-config-dir"] = "adamas.pc"
    assert (path / wanted.get(option, "")).exists()
    if option == "--library":
        assert path == library_path()


def test_options_that_are_unknown_or_too_many():
    assert run_python("-m", "adamas", "--what").returncode == 2
    assert run_python("-m", "adamas", "--library", "--cmake-dir").returncode == 2


def test_builds_of_other_packages_find_ours():
    """scikit-build-core asks the entry points of the group cmake.root for folders."""
    from importlib.metadata import entry_points

    if not (Path(adamas.__file__).parent / "lib").exists():
        pytest.skip("adamas is not installed but used in place")
    (entry,) = (e for e in entry_points(group="cmake.root") if e.name == "adamas")
    root = Path(entry.load().__file__).parent
    assert (root / "lib/cmake/adamas/adamasConfig.cmake").exists()
