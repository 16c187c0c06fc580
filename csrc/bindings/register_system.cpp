// What was built and what this machine has.
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "adamas/system.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

std::vector<std::string> isa_names(bool supported_only) {
  int count = 0;
  const IsaInfo* list = isas(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) {
    if (list[i].supported || !supported_only) names.emplace_back(list[i].name);
  }
  return names;
}

}  // namespace

void register_system(py::module_& module) {
  module.attr("__version__") = version();
  module.attr("compiler") = compiler();
  module.def("isas_built", [] { return isa_names(false); });
  module.def("isas_supported", [] { return isa_names(true); });
  module.def("isa_in_use", &isa_in_use);
  module.def("available_threads", &available_threads);
  module.def("default_threads", [] {
    DefaultThreads usual;
    raise_if_error(default_threads(&usual));
    return std::tuple(usual.threads, usual.cores, usual.processes, usual.variable);
  });
  module.def("cuda_unavailable_reason", &cuda_unavailable_reason);
  module.def("cuda_devices", &cuda_devices);
  module.def(
      "device_of",
      [](std::uintptr_t data) { return device_of(reinterpret_cast<const void*>(data)); },
      py::arg("data"));
  module.def(
      "load_cuda_library", [](const char* path) { raise_if_error(load_cuda_library(path)); },
      py::arg("path"));
  module.def(
      "select_isa", [](const char* name) { raise_if_error(select_isa(name)); }, py::arg("name"));
}

}  // namespace adamas::bindings
