// A parameter as the bindings hold it, and the check of the gradients that are given for it.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <vector>

#include "adamas/types.hpp"

namespace adamas::bindings {

// The element type of an array in native byte order; false if there is no such DType.  Types are
// known by name, since bfloat16 is one of ml_dtypes.
bool find_dtype(pybind11::handle array, DType* dtype);

// Keeps the array alive and remembers what it was like, so that a later change is noticed.
//
// One cache line: a step looks at this for each of perhaps thousands of parameters.  What it needs
// not look at stands elsewhere.
class alignas(64) BoundParameter {
 public:
  // Raises TypeError or ValueError unless `array` is a writable, C-contiguous, aligned array of a
  // known type.
  BoundParameter(pybind11::array array, std::string name);

  // Raises ValueError if the array was made read-only, moved or given another type since.
  void check_unchanged() const;

  // Views `grad` if it is an array of the parameter's shape and of a type that goes with the
  // parameter's, contiguous and aligned; false if it first needs to be converted.
  bool view(pybind11::handle grad, Gradient* gradient) const;

  // Views grads[i] for each of `count` parameters.  False if one needs to be converted, whose
  // `values` are then null, or if a parameter has changed.  Only reads the fields of array objects:
  // calls nothing of Python's and counts no reference, so that several threads may do this while
  // one of them holds the GIL.
  static bool view(const BoundParameter* parameters, PyObject* const* grads, std::size_t count,
                   Gradient* gradients) noexcept;

  const pybind11::array& array() const { return array_; }
  const std::string& name() const { return details_->name; }
  DType dtype() const { return dtype_; }
  std::int64_t count() const { return details_->count; }
  std::int64_t row_length() const;  // elements of a row, even if there is none
  void* data() const { return data_; }

 private:
  static constexpr int kInline = 4;  // axes whose lengths stand in the object itself

  struct Details {
    std::string name;
    std::int64_t count;
    std::vector<pybind11::ssize_t> lengths;
  };

  const pybind11::ssize_t* lengths() const {
    return axes_ <= kInline ? inline_ : details_->lengths.data();
  }
  bool is_writeable() const;
  bool is_in_place() const;
  bool has_usual_type() const;
  bool is_like(const PyObject* grad) const;  // an array of the same shape, contiguous and aligned
  bool has_shape_of(const pybind11::detail::PyArray_Proxy& other) const;

  pybind11::array array_;
  void* data_;
  int axes_;
  DType dtype_;
  pybind11::ssize_t inline_[kInline] = {};
  std::unique_ptr<const Details> details_;
};

}  // namespace adamas::bindings
