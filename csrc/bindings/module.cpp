// adamas._core: raw types only; names, defaults and validation stand in python/adamas.
#include <cstdlib>
#include <string>

#include "adamas/system.hpp"
#include "bindings/register.hpp"

namespace {

// Of what the environment says.
void require(const adamas::Status& status, const char* variable) {
  if (status.ok()) return;
  throw pybind11::import_error("environment variable " + std::string(variable) + " is '" +
                               std::getenv(variable) + "': " + status.message());
}

}  // namespace

// No GIL is needed: what threads share here is constant, atomic or the core's, which has locks.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The native core of adamas; use the package adamas instead.";
  require(adamas::select_isa_from_environment(), "ADAMAS_ISA");
  adamas::DefaultThreads threads;
  require(adamas::default_threads(&threads), "ADAMAS_NUM_THREADS");
  adamas::bindings::register_system(module);
  adamas::bindings::register_dtypes(module);
  adamas::bindings::register_options(module);
  adamas::bindings::register_device_array(module);
  adamas::bindings::register_optimizer(module);
  adamas::bindings::register_update(module);
  adamas::bindings::register_state_dict_step(module);
  adamas::bindings::register_repeated_call(module);
}
