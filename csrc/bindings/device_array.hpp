// Memory of a CUDA device with a shape and a type: what parameters and gradients there are given
// as, and how state there is shown.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <vector>

#include "adamas/types.hpp"

namespace adamas::bindings {

inline bool is_aligned(const void* data, std::size_t item_nbytes) {
  return reinterpret_cast<std::uintptr_t>(data) % item_nbytes == 0;
}

class DeviceArray {
 public:
  // C-contiguous memory that `owner` keeps alive.  Raises ValueError if it is not aligned to items.
  DeviceArray(void* data, std::vector<pybind11::ssize_t> shape, pybind11::dtype type,
              std::int32_t device, pybind11::object owner);

  // Takes over a capsule "dltensor" or "dltensor_versioned", whose producer was told to make
  // `stream` wait.  Raises BufferError if it is not of a CUDA device, and ValueError if it is not
  // contiguous.
  static DeviceArray from_dlpack(const pybind11::object& capsule, std::uintptr_t stream,
                                 pybind11::object owner);

  void* data() const { return data_; }
  const std::vector<pybind11::ssize_t>& shape() const { return shape_; }
  const pybind11::dtype& type() const { return type_; }
  std::int64_t size() const { return size_; }
  pybind11::ssize_t item_nbytes() const { return item_nbytes_; }
  std::int32_t device() const { return device_; }
  const pybind11::object& owner() const { return owner_; }
  bool is_readonly() const { return is_readonly_; }
  void set_readonly(bool readonly) { is_readonly_ = readonly; }

  // The stream on which the producer makes the values; null: none is named.
  void* stream() const { return stream_; }
  void set_stream(std::uintptr_t stream) { stream_ = reinterpret_cast<void*>(stream); }

  // The element type, if is_float().
  DType dtype() const { return dtype_; }
  bool is_float() const { return is_float_; }
  bool is_index() const { return is_index_; }

  // Whether the owner is an object that can move its memory (a torch tensor), and has.
  bool has_moved() const;

 private:
  void* data_;
  std::vector<pybind11::ssize_t> shape_;
  pybind11::dtype type_;
  std::int64_t size_ = 1;
  pybind11::ssize_t item_nbytes_;
  std::int32_t device_;
  pybind11::object owner_;
  bool is_readonly_ = false;
  void* stream_ = nullptr;
  DType dtype_ = DType::float32;
  bool is_float_ = false;
  bool is_index_ = false;
  bool tells_address_ = false;
};

}  // namespace adamas::bindings
