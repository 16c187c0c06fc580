// A parameter as the bindings hold it, and the check of the gradients that are given for it.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "adamas/types.hpp"

namespace adamas::bindings {

// Keeps the array alive and remembers what it was like, so that a later change is noticed.
class BoundParameter {
 public:
  // Raises TypeError or ValueError unless `array` is a writable, C-contiguous, aligned array of a
  // supported type.
  BoundParameter(pybind11::array array, std::string name);

  // Raises ValueError if the array was made read-only or moved since.
  void check_unchanged() const;

  // The memory of `grad` if it is an array with exactly the parameter's type and shape, contiguous
  // and aligned; null if it first needs to be converted.
  const void* view(pybind11::handle grad) const;

  const pybind11::array& array() const { return array_; }
  const std::string& name() const { return name_; }
  DType dtype() const { return dtype_; }
  void* data() const { return data_; }

 private:
  pybind11::array array_;
  std::string name_;
  DType dtype_;
  pybind11::dtype descriptor_;
  std::vector<pybind11::ssize_t> shape_;
  void* data_;
};

}  // namespace adamas::bindings
