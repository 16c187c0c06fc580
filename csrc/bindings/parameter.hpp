// A parameter as the bindings hold it, and the check of the gradients that are given for it.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <vector>

#include "adamas/types.hpp"
#include "bindings/host_array.hpp"

namespace adamas::bindings {

// The element type of an array in native byte order; false if there is no such DType.  Types are
// known by name, since bfloat16 is one of ml_dtypes.
bool find_dtype(pybind11::handle array, DType* dtype);

// How the elements of an array lie: without gaps, the axes in some order.
struct Layout {
  std::vector<pybind11::ssize_t> lengths;
  std::vector<int> order;                // of the axes, the last one fastest
  std::vector<pybind11::ssize_t> steps;  // elements from one index to the next, by axis

  bool operator!=(const Layout& other) const {
    return lengths != other.lengths || steps != other.steps;
  }
};

// Keeps the array alive and remembers what it was like, so that a later change is noticed.
//
// One cache line: a step looks at this for each of perhaps thousands of parameters.  What it needs
// not look at stands elsewhere.
class alignas(64) BoundParameter {
 public:
  // Raises TypeError or ValueError unless `array` is a writable, aligned array of a known type
  // whose elements lie without gaps.
  BoundParameter(pybind11::array array, std::string name);

  // Raises ValueError if the array was made read-only, moved or given another type since.
  void check_unchanged() const;

  bool has_shape_of(const HostArray& array) const;
  // Whether elements that are neighbours here are neighbours there too, aligned to their size.
  bool is_laid_out_like(const HostArray& array) const;

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
  const Layout& layout() const { return details_->layout; }
  bool is_c_contiguous() const { return fits_ != kNone; }
  std::int64_t row_length() const;  // elements of a row, even if there is none
  void* data() const { return data_; }

 private:
  static constexpr std::uint16_t kNone = 0xffff;  // no array's
  static constexpr int kInline = 4;               // axes whose lengths stand in the object itself

  struct Details {
    std::string name;
    std::int64_t count;
    Layout layout;
  };

  const pybind11::ssize_t* lengths() const {
    return axes_ <= kInline ? inline_ : details_->layout.lengths.data();
  }
  bool is_writeable() const;
  bool is_in_place() const;
  bool is_in_order() const;
  bool has_usual_type() const;
  bool is_like(
      const PyObject* grad) const;  // an array of the same shape, C-contiguous as it, aligned
  bool has_shape_of(const pybind11::detail::PyArray_Proxy& other) const;

  pybind11::array array_;
  void* data_;
  int axes_;
  DType dtype_;
  std::uint16_t fits_;  // the flags of arrays that lie like this one, if it is C-contiguous
  pybind11::ssize_t inline_[kInline] = {};
  std::unique_ptr<const Details> details_;
};

}  // namespace adamas::bindings
