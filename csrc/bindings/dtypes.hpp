// The element types by the names that NumPy, ml_dtypes and messages use, for the other bindings.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "adamas/optimizer.hpp"

namespace adamas::bindings {

// False if there is no such type.
bool find_dtype(const std::string& name, DType* dtype);

// All of them, as in a sentence: "float32, float64, ... or bfloat16".
std::string dtype_names();

pybind11::dtype dtype_of(ItemType item);

}  // namespace adamas::bindings
