// adamas._jax: what JAX registers as a foreign function; adamas.jax calls it.
#include <pybind11/pybind11.h>

#include "bindings/jax/step.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_jax, module, py::mod_gil_not_used()) {
  module.doc() = "The step of adamas as a foreign function of XLA; use adamas.jax instead.";
  module.attr("TARGET") = adamas::bindings::jax::kTarget;
  module.def("handler", [] {
    return py::capsule(reinterpret_cast<void*>(adamas::bindings::jax::step_handler()));
  });
  py::list numbers;
  for (const char* name : adamas::bindings::jax::kNumbers) numbers.append(name);
  module.attr("NUMBERS") = py::tuple(numbers);
  module.attr("API_VERSION") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
