// adamas._core: raw types only; names, defaults and validation stand in python/adamas.
#include <cstdlib>
#include <string>

#include "adamas/system.hpp"
#include "bindings/register.hpp"

// No GIL is needed: what threads share here is constant, atomic or the core's, which has locks.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The native core of adamas; use the package adamas instead.";
  if (adamas::Status status = adamas::select_isa_from_environment(); !status.ok()) {
    throw pybind11::import_error("environment variable ADAMAS_ISA is '" +
                                 std::string(std::getenv("ADAMAS_ISA")) + "': " + status.message());
  }
  adamas::bindings::register_system(module);
  adamas::bindings::register_dtypes(module);
  adamas::bindings::register_options(module);
  adamas::bindings::register_device_array(module);
  adamas::bindings::register_optimizer(module);
}
