// One function for each topic of the module.
#pragma once

#include <pybind11/pybind11.h>

#include "adamas/status.hpp"

namespace adamas::bindings {

void register_system(pybind11::module_& module);
void register_optimizer(pybind11::module_& module);

// Raises the Python exception that fits an error: MemoryError, else ValueError.
inline void raise_if_error(const Status& status) {
  if (status.ok()) return;
  if (status.code() == StatusCode::out_of_memory) {
    PyErr_SetString(PyExc_MemoryError, status.message().c_str());
    throw pybind11::error_already_set();
  }
  throw pybind11::value_error(status.message());
}

}  // namespace adamas::bindings
