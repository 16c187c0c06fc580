// Arrays of any library in the host's memory, as far as a step can read them: described where they
// lie, and copied where they must be.  What is not recognised here _arrays.py looks at.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "adamas/types.hpp"

namespace adamas::bindings {

struct HostArray {
  static constexpr int kMaxAxes = 64;  // NumPy's

  const void* data;
  DType dtype;
  int axes;
  pybind11::ssize_t lengths[kMaxAxes];
  pybind11::ssize_t strides[kMaxAxes];  // in bytes
};

// Describes a NumPy array, or what exports its memory by DLPack or the buffer protocol, in native
// byte order; what keeps the memory besides `object` is added to `keep`.  False, with no exception
// set, if it is something else, or more than its memory says (masked, negated, sparse).
bool describe(pybind11::handle object, HostArray* array, std::vector<pybind11::object>* keep);

// The same of what has the exchange functions of DLPack, negated or not.
bool describe_exchanged(pybind11::handle object, HostArray* array);

// Whether copy() makes a gradient of this type one of that type.
bool can_copy(DType from, DType to);

// Copies the elements to neighbouring places, the axes in this order, the last one fastest.
void copy(const HostArray& array, const std::vector<int>& order, DType to, void* target);

}  // namespace adamas::bindings
