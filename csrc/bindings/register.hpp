// One function for each topic of the module.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "adamas/status.hpp"

namespace adamas::bindings {

void register_dtypes(pybind11::module_& module);
void register_system(pybind11::module_& module);
void register_options(pybind11::module_& module);
void register_optimizer(pybind11::module_& module);
void register_device_array(pybind11::module_& module);
void register_update(pybind11::module_& module);
void register_state_dict_step(pybind11::module_& module);
void register_repeated_call(pybind11::module_& module);

// Raises the Python exception that fits an error.
inline void raise_if_error(const Status& status, const std::string& suffix = "") {
  PyObject* type = PyExc_ValueError;
  switch (status.code()) {
    case StatusCode::ok:
      return;
    case StatusCode::out_of_memory:
      type = PyExc_MemoryError;
      break;
    case StatusCode::bad_index:
      type = PyExc_IndexError;
      break;
    case StatusCode::bad_state:
    case StatusCode::device_error:
      type = PyExc_RuntimeError;
      break;
    default:
      break;
  }
  PyErr_SetString(type, (status.message() + suffix).c_str());
  throw pybind11::error_already_set();
}

}  // namespace adamas::bindings
