// What Python asks the core about element types and ranges, so that it need not say it again.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "adamas/types.hpp"
#include "bindings/dtypes.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// The types of gradients that are read as they are; the first is that of the arithmetic.
std::vector<std::string> gradient_dtypes(const std::string& parameter) {
  DType dtype;
  if (!find_dtype(parameter, &dtype)) throw py::value_error("unknown type " + parameter);
  std::vector<std::string> names;
  for (std::size_t k = 0; k < kDTypes; ++k) {
    if (goes_with(static_cast<DType>(k), dtype)) names.emplace_back(kDTypeNames[k]);
  }
  return names;
}

}  // namespace

bool find_dtype(const std::string& name, DType* dtype) {
  for (std::size_t k = 0; k < kDTypes; ++k) {
    if (name != kDTypeNames[k]) continue;
    *dtype = static_cast<DType>(k);
    return true;
  }
  return false;
}

std::string dtype_names() {
  std::string names = kDTypeNames[0];
  for (std::size_t k = 1; k < kDTypes; ++k) {
    names += (k + 1 < kDTypes ? ", " : " or ") + std::string(kDTypeNames[k]);
  }
  return names;
}

py::dtype dtype_of(ItemType item) {
  switch (item) {
    case ItemType::float32:
      return py::dtype::of<float>();
    case ItemType::float64:
      return py::dtype::of<double>();
    case ItemType::uint8:
      return py::dtype::of<std::uint8_t>();
    case ItemType::uint16:
      return py::dtype::of<std::uint16_t>();
    case ItemType::int64:
      return py::dtype::of<std::int64_t>();
  }
  throw py::value_error("unknown type of items");
}

void register_dtypes(py::module_& module) {
  module.attr("DTYPES") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(kDTypeNames), std::end(kDTypeNames))));
  module.attr("DTYPE_NAMES") = dtype_names();
  module.attr("MIN_LOSS_SCALE") = kMinLossScale;
  module.attr("MAX_LOSS_SCALE") = kMaxLossScale;
  module.def("gradient_dtypes", &gradient_dtypes, py::arg("parameter"));
}

}  // namespace adamas::bindings
