#include "bindings/dlpack.hpp"

#include <unordered_map>

namespace py = pybind11;

namespace adamas::bindings {

// DLPackExchangeAPI of dlpack.h.
struct DLExchange::Table {
  std::uint32_t major;
  std::uint32_t minor;
  const Table* older;
  void* allocate;
  void* export_managed;
  void* import_managed;
  int (*describe)(void* object, DLTensor* tensor);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

namespace {

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr std::uint32_t kMajor = 1;
constexpr std::int32_t kDLCuda = 2;
constexpr std::int32_t kDLCudaManaged = 13;

}  // namespace

bool DLTensor::is_on_cuda() const {
  return device_type == kDLCuda || device_type == kDLCudaManaged;
}

bool DLTensor::is_contiguous() const {
  if (strides == nullptr) return true;
  std::int64_t step = 1;
  bool contiguous = true;
  for (int axis = ndim - 1; axis >= 0; --axis) {
    if (shape[axis] == 0) return true;
    contiguous = contiguous && (shape[axis] == 1 || strides[axis] == step);
    step *= shape[axis];
  }
  return contiguous;
}

bool DLTensor::find_dtype(DType* dtype) const {
  if (lanes != 1) return false;
  if (code == kDLBfloat && bits == 16) {
    *dtype = DType::bfloat16;
    return true;
  }
  if (code != kDLFloat || (bits != 16 && bits != 32 && bits != 64)) return false;
  *dtype = bits == 16 ? DType::float16 : bits == 32 ? DType::float32 : DType::float64;
  return true;
}

// Types are kept: there are few.
const DLExchange* DLExchange::of(PyTypeObject* type) {
  static thread_local std::unordered_map<PyTypeObject*, DLExchange> known;
  static thread_local PyTypeObject* last_type = nullptr;
  static thread_local const DLExchange* last = nullptr;
  if (type == last_type) return last;
  auto found = known.find(type);
  if (found == known.end()) {
    DLExchange exchange;
    const auto object = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(object, kAttribute, py::none());
    if (PyCapsule_IsValid(capsule.ptr(), kCapsule) != 0) {
      exchange.table_ = static_cast<const Table*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
    }
    while (exchange.table_ != nullptr && exchange.table_->major != kMajor) {
      exchange.table_ = exchange.table_->older;
    }
    if (exchange.table_ != nullptr && exchange.table_->describe == nullptr) {
      exchange.table_ = nullptr;
    }
    found = known.emplace(type, exchange).first;
    Py_INCREF(type);
  }
  last_type = type;
  last = found->second.table_ == nullptr ? nullptr : &found->second;
  return last;
}

bool DLExchange::describe(py::handle object, DLTensor* tensor) const {
  if (table_->describe(object.ptr(), tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

void* DLExchange::current_stream(const DLTensor& tensor) const {
  void* stream = nullptr;
  if (table_->current_stream(tensor.device_type, tensor.device_id, &stream) != 0) PyErr_Clear();
  return stream;
}

void* DLExchange::current_stream_of(py::handle object) {
  DLTensor tensor;
  const DLExchange* exchange = of(Py_TYPE(object.ptr()));
  if (exchange == nullptr || !exchange->describe(object, &tensor)) return nullptr;
  return tensor.is_on_cuda() ? exchange->current_stream(tensor) : nullptr;
}

}  // namespace adamas::bindings
