// Arrays of the libraries that tell of their memory quickly: what _core.update reads and writes.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adamas/types.hpp"

namespace adamas::bindings {

struct MemoryView {
  static constexpr int kMaxAxes = 64;  // NumPy's

  void* data;
  DType dtype;
  int axes;
  const std::int64_t* lengths;
  std::int64_t strides[kMaxAxes];  // in elements; only of axes longer than 1
  std::int64_t count;
  bool is_writeable;
  bool is_aligned;
  std::int32_t device;
  void* stream;  // on which it is made

  bool has_shape_of(const MemoryView& other) const {
    return axes == other.axes && std::equal(lengths, lengths + axes, other.lengths);
  }
  bool has_strides_of(const MemoryView& other) const {
    for (int axis = 0; axis < axes && count > 0; ++axis) {
      if (lengths[axis] > 1 && strides[axis] != other.strides[axis]) return false;
    }
    return true;
  }
  bool is_c_contiguous() const {
    std::int64_t step = 1;
    for (int axis = axes - 1; axis >= 0 && count > 0; --axis) {
      if (lengths[axis] > 1 && strides[axis] != step) return false;
      step *= lengths[axis];
    }
    return true;
  }
  // Whether the elements lie without gaps, the axes in some order.
  bool is_dense() const {
    if (is_c_contiguous()) return true;
    std::int64_t step = 1;
    for (bool found = true; found && step < count;) {
      found = false;
      for (int axis = 0; axis < axes && !found; ++axis) {
        found = lengths[axis] > 1 && strides[axis] == step;
        if (found) step *= lengths[axis];
      }
    }
    return step == count;
  }
};

// Describes an array of NumPy, of a library with the exchange functions of DLPack, or a
// DeviceArray, for as long as the object lives; false, with no exception set, if it is of another
// kind or type, or its values are not those of its memory (negated).  With `knows_sign` it is known
// that they are, which is not asked again then.
bool view_memory(PyObject* object, MemoryView* view, bool knows_sign = false);

// What gradients refer to, and the streams on which they are made.
struct ReadGradients {
  std::vector<RowIndices> rows;
  std::vector<void*> streams;

  // There must be room for `count` gradients before the first is read.
  void clear(std::size_t count) {
    rows.clear();
    rows.reserve(count);
    streams.clear();
  }
};

// Describes a gradient: None, an array that lies like its parameter, or a tuple of the indices and
// values of rows; false, with no exception set, if it is of another kind.
bool view_grad(PyObject* object, const MemoryView& param, ReadGradients* read, Gradient* grad);

}  // namespace adamas::bindings
