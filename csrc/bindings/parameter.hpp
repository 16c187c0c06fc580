// A parameter as the bindings hold it, and the check of the gradients that are given for it.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "adamas/types.hpp"
#include "bindings/device_array.hpp"

namespace adamas::bindings {

// The element type of an array in native byte order; false if there is no such DType.  Types are
// known by name, since bfloat16 is one of ml_dtypes.
bool find_dtype(pybind11::handle array, DType* dtype);

// Asks for the head of an array object, and of one whose head is there already for its shape.
// Objects lie scattered: without this, looking at thousands of small arrays waits for each.
__attribute__((always_inline)) inline void prefetch_head(pybind11::handle array) {
  __builtin_prefetch(array.ptr());
  __builtin_prefetch(reinterpret_cast<const char*>(array.ptr()) + 64);
}
__attribute__((always_inline)) inline void prefetch_shape(pybind11::handle array) {
  if (pybind11::isinstance<pybind11::array>(array)) {
    __builtin_prefetch(pybind11::detail::array_proxy(array.ptr())->dimensions);
  }
}

// The shape of an array.  Up to kInline lengths stand in the object itself: looking at thousands of
// shapes would otherwise wait for memory once more for each.
class Shape {
 public:
  Shape(const pybind11::ssize_t* lengths, pybind11::ssize_t axes);

  // Whether an array object has this shape.
  bool is_of(const pybind11::detail::PyArray_Proxy& array) const;
  bool is(const pybind11::ssize_t* shape, pybind11::ssize_t axes) const;

  std::int64_t rows() const { return axes_ == 0 ? 1 : lengths()[0]; }
  std::vector<pybind11::ssize_t> to_vector() const { return {lengths(), lengths() + axes_}; }
  std::int64_t row_length() const;  // elements of a row, even if there is none

 private:
  static constexpr int kInline = 4;

  const pybind11::ssize_t* lengths() const { return axes_ <= kInline ? inline_ : heap_.data(); }

  int axes_;
  pybind11::ssize_t inline_[kInline] = {};
  std::vector<pybind11::ssize_t> heap_;
};

// Keeps the array alive and remembers what it was like, so that a later change is noticed.
class BoundParameter {
 public:
  // Raises TypeError or ValueError unless `array` is a writable, C-contiguous, aligned array of a
  // known type, or a DeviceArray of such memory.
  BoundParameter(pybind11::object array, std::string name);

  // Raises ValueError if the array was made read-only or moved since.
  void check_unchanged() const;

  // Views `grad` if it is an array of the parameter's shape and of a type that goes with the
  // parameter's, contiguous and aligned; false if it first needs to be converted.
  bool view(pybind11::handle grad, Gradient* gradient) const;

  // The same for a parameter on a device; adds the stream on which the gradient is made.
  bool view_on_device(pybind11::handle grad, Gradient* gradient, std::vector<void*>* streams) const;

  // Whether a gradient of this type needs no conversion.
  bool accepts(DType gradient) const;

  const pybind11::object& array() const { return array_; }
  std::vector<pybind11::ssize_t> shape() const { return shape_.to_vector(); }
  std::int32_t device() const { return device_array_ == nullptr ? kCpu : device_array_->device(); }
  const std::string& name() const { return name_; }
  DType dtype() const { return dtype_; }
  std::int64_t count() const { return count_; }
  std::int64_t rows() const { return shape_.rows(); }
  std::int64_t row_length() const { return shape_.row_length(); }
  void* data() const { return data_; }

 private:
  BoundParameter(const pybind11::array& array, std::string name);
  BoundParameter(const DeviceArray& array, pybind11::object object, std::string name);
  bool view_interface(pybind11::handle grad, Gradient* gradient, std::vector<void*>* streams) const;

  pybind11::object array_;
  const DeviceArray* device_array_ = nullptr;  // null: a NumPy array
  std::string name_;
  DType dtype_;
  Shape shape_;
  std::int64_t count_;
  void* data_;
  mutable const void* device_checked_ = nullptr;  // the last gradient's memory, if on our device
};

}  // namespace adamas::bindings
