"""The C++ headers as compilers see them: by themselves, in later standards, and used wrongly."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

INCLUDE = Path(__file__).resolve().parent.parent / "csrc/include"
HEADERS = sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.glob("adamas/*.h*"))
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wold-style-cast")
STANDARDS = ("c++17", "c++20", "c++2b")

PROGRAM = """
#include <adamas/adamas.hpp>
#include <array>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

struct Half { std::uint16_t bits; };
template <>
struct adamas::DTypeOf<Half> { static constexpr DType kValue = DType::float16; };

#define CHECK(condition) if (!(condition)) return __LINE__

bool is(const adamas::ParameterSpec& spec, const void* data, int count, adamas::DType dtype,
        int rows = 1) {
  return spec.data == data && spec.count == count && spec.dtype == dtype && spec.rows == rows;
}
bool is(const adamas::Gradient& grad, const void* values, int count, adamas::DType dtype) {
  return grad.values == values && grad.count == count && grad.dtype == dtype && !grad.rows;
}

int main() {
  using adamas::DType;
  std::vector<double> doubles(6);
  const std::vector<float> floats(7), none;
  std::array<float, 5> array{};
  float table[4][5] = {};
  const double numbers[3] = {};
  std::vector<Half> halves(3);
  CHECK(is(adamas::parameter_of(doubles, 3), doubles.data(), 6, DType::float64, 3));
  CHECK(is(adamas::parameter_of(array), array.data(), 5, DType::float32));
  CHECK(is(adamas::parameter_of(table), table, 20, DType::float32, 4));
  CHECK(is(adamas::parameter_of(table, 10), table, 20, DType::float32, 10));
  CHECK(is(adamas::parameter_of(halves), halves.data(), 3, DType::float16));
  CHECK(is(adamas::parameter_of(adamas::Span<double>(doubles)), doubles.data(), 6, DType::float64));
  CHECK(is(adamas::gradient_of(floats), floats.data(), 7, DType::float32));
  CHECK(is(adamas::gradient_of(none), none.data(), 0, DType::float32));
  CHECK(is(adamas::gradient_of(numbers), numbers, 3, DType::float64));
  CHECK(is(adamas::gradient_of(table), table, 20, DType::float32));
  const std::vector<std::int32_t> few = {1, 0};
  const std::vector<std::size_t> many = {2, 0, 1};
  const adamas::RowIndices rows = adamas::rows_of(few), more = adamas::rows_of(many);
  CHECK(rows.data == few.data() && rows.count == 2 && !rows.is_int64);
  CHECK(more.data == many.data() && more.count == 3 && more.is_int64);
  const adamas::Gradient sparse = adamas::gradient_of(floats, rows);
  CHECK(sparse.rows == &rows && sparse.count == 7);
  const adamas::Span<const double> span = numbers;
  CHECK(span.data == numbers && span.size == 3);
#if __cplusplus >= 202002L
  CHECK(is(adamas::parameter_of(std::span(doubles)), doubles.data(), 6, DType::float64));
  CHECK(is(adamas::gradient_of(std::span(floats).first(2)), floats.data(), 2, DType::float32));
#endif
#ifdef WRONG
  WRONG;
#endif
  return 0;
}
"""
MISTAKES = {
    "adamas::gradient_of(std::vector<float>(3))": "this range ends with the expression",
    "adamas::rows_of(std::vector<int>(3))": "this range ends with the expression",
    "adamas::parameter_of(floats)": "must not be const",
    "adamas::parameter_of(numbers)": "must not be const",
    "std::vector<int> w(3); adamas::parameter_of(w)": "DTypeOf is specialised",
    "adamas::gradient_of(many)": "DTypeOf is specialised",
    "adamas::rows_of(floats)": "integers of 32 or 64 bits",
    "adamas::parameter_of(3.0)": "have data() and size()",
    "adamas::gradient_of(floats, adamas::rows_of(few))": "deleted function",
}


@pytest.fixture(params=["c++", "clang++"])
def compiler(request):
    name = os.environ.get("CXX", "c++") if request.param == "c++" else request.param
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def compiled(compiler, source, *flags):
    """Compile a source that is given as text; return what the compiler did."""
    command = [compiler, f"-I{INCLUDE}", *flags, "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("standard", STANDARDS)
def test_ranges_are_described(compiler, standard, tmp_path):
    program = tmp_path / "program"
    done = compiled(compiler, PROGRAM, f"-std={standard}", *STRICT, "-Werror", "-o", program)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([program], check=False).returncode == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    done = compiled(compiler, PROGRAM, "-std=c++17", "-fsyntax-only", f"-DWRONG={mistake}")
    assert done.returncode != 0
    assert MISTAKES[mistake] in done.stderr


@pytest.mark.parametrize("header", [h for h in HEADERS if h.endswith(".hpp")])
def test_a_header_needs_no_other(header):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = f"#include <{header}>\n#include <{header}>\n"
    done = compiled(compiler, source, "-std=c++17", *STRICT, "-Werror", "-fsyntax-only")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("standard", ["c++14", "c++11"])
@pytest.mark.parametrize("header", [h for h in HEADERS if h.endswith(".hpp")])
def test_older_standards_are_told_first(header, standard):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    done = compiled(compiler, f"#include <{header}>\n", f"-std={standard}", "-fsyntax-only")
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "adamas needs C++17: compile with -std=c++17" in errors[0]
    if header == "adamas/adamas.hpp":
        assert len(errors) == 1


def test_the_c_header_is_for_older_cpp_too(compiler):
    done = compiled(
        compiler, "#include <adamas/adamas.h>\n", "-std=c++98", "-Wall", "-Werror", "-fsyntax-only"
    )
    assert done.returncode == 0, done.stderr
