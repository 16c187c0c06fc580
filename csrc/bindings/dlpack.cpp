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
constexpr std::int32_t kDLCpu = 1;
constexpr std::int32_t kDLCuda = 2;
constexpr std::int32_t kDLCudaHost = 3;
constexpr std::int32_t kDLCudaManaged = 13;

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor* self);
};

struct DLManagedTensorVersioned {
  std::uint32_t major;
  std::uint32_t minor;
  void* context;
  void (*deleter)(DLManagedTensorVersioned* self);
  std::uint64_t flags;
  DLTensor tensor;
};

constexpr std::uint64_t kReadOnly = 1;

// Renames the capsule, so that it no longer frees the tensor, and returns one that does.
template <class Managed>
py::object take(const py::object& capsule, const char* name, const char* used, DLTensor** tensor) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0) {
    throw py::error_already_set();
  }
  *tensor = &managed->tensor;
  return py::capsule(managed, [](void* pointer) {
    auto* mine = static_cast<Managed*>(pointer);
    if (mine->deleter != nullptr) mine->deleter(mine);
  });
}

// Whether objects of the type are what they wrap: the class that offers the functions knows its own
// memory, and subclasses that decide about operations (__torch_dispatch__) may have none.
bool is_wrapper(const py::object& type) {
  const auto mro = type.attr("__mro__").cast<py::tuple>();
  const py::object own = py::getattr(type, "__torch_dispatch__", py::none());
  for (const py::handle base : mro) {
    if (!base.attr("__dict__").contains(kAttribute)) continue;
    return !own.is(py::getattr(base, "__torch_dispatch__", py::none()));
  }
  return false;
}

}  // namespace

py::object take_dlpack(const py::object& capsule, DLTensor** tensor, bool* readonly) {
  constexpr const char* kVersioned = "dltensor_versioned";
  if (PyCapsule_IsValid(capsule.ptr(), kVersioned) == 0) {
    *readonly = false;
    return take<DLManagedTensor>(capsule, "dltensor", "used_dltensor", tensor);
  }
  const auto* managed =
      static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersioned));
  if (managed->major != kMajor) {
    throw py::buffer_error("an array comes in a DLPack of another version");
  }
  *readonly = (managed->flags & kReadOnly) != 0;
  return take<DLManagedTensorVersioned>(capsule, kVersioned, "used_dltensor_versioned", tensor);
}

bool DLTensor::is_on_cpu() const { return device_type == kDLCpu || device_type == kDLCudaHost; }

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
    if (exchange.table_ != nullptr &&
        (exchange.table_->describe == nullptr || is_wrapper(object))) {
      exchange.table_ = nullptr;
    }
    exchange.can_be_negated_ = py::hasattr(object, "is_neg");
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

bool DLExchange::is_negated(py::handle object) const {
  if (!can_be_negated_) return false;
  static PyObject* const kName = PyUnicode_InternFromString("is_neg");
  const auto answer =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), kName));
  if (!answer) PyErr_Clear();
  return answer.ptr() != Py_False;
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
