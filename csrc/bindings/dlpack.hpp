// DLPack (dlpack.h, versions 1.0 to 1.3): how array libraries describe their memory to each other.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "adamas/types.hpp"

namespace adamas::bindings {

struct DLTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  std::uint8_t code;  // of the element type
  std::uint8_t bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C-contiguous
  std::uint64_t byte_offset;

  bool is_on_cpu() const;
  bool is_on_cuda() const;
  bool is_contiguous() const;
  // False if there is no such DType.
  bool find_dtype(DType* dtype) const;
  void* first() const { return static_cast<char*>(data) + byte_offset; }
};

// Codes of element types.
inline constexpr std::uint8_t kDLInt = 0;
inline constexpr std::uint8_t kDLFloat = 2;
inline constexpr std::uint8_t kDLBfloat = 4;

// Takes over a capsule "dltensor" or "dltensor_versioned"; returns what frees the tensor.  Raises
// BufferError for one of another version.
pybind11::object take_dlpack(const pybind11::object& capsule, DLTensor** tensor, bool* readonly);

// What types of arrays offer for reading thousands of them quickly: functions of C (DLPack 1.2,
// torch since 2.10).
class DLExchange {
 public:
  // Null if the type offers none, or its objects are more than their memory says (subclasses of
  // torch's that wrap other tensors).  With the GIL; remembered for each type.
  static const DLExchange* of(PyTypeObject* type);

  // Describes an object of the type while it lives; false, with no exception set, if it can't.
  bool describe(pybind11::handle object, DLTensor* tensor) const;

  // Whether the values are those of the memory with the other sign (torch's lazy negation).
  bool is_negated(pybind11::handle object) const;

  // The stream on which the library works at present.
  void* current_stream(const DLTensor& tensor) const;

  // The same of any object; null if that can't be told.  With the GIL.
  static void* current_stream_of(pybind11::handle object);

 private:
  struct Table;
  const Table* table_ = nullptr;
  bool can_be_negated_ = false;
};

}  // namespace adamas::bindings
