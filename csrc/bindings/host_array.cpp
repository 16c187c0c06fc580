#include "bindings/host_array.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "bindings/dlpack.hpp"
#include "bindings/parameter.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// Fewer elements are copied before another thread would have taken Python's lock.
constexpr py::ssize_t kManyElements = 1 << 16;

bool describe_numpy(py::handle object, HostArray* array) {
  const py::detail::PyArray_Proxy& fields = *py::detail::array_proxy(object.ptr());
  if (fields.nd > HostArray::kMaxAxes || !find_dtype(object, &array->dtype)) return false;
  array->data = fields.data;
  array->axes = fields.nd;
  std::copy_n(fields.dimensions, fields.nd, array->lengths);
  std::copy_n(fields.strides, fields.nd, array->strides);
  return true;
}

bool describe_tensor(const DLTensor& tensor, HostArray* array) {
  if (!tensor.is_on_cpu() || tensor.ndim > HostArray::kMaxAxes ||
      !tensor.find_dtype(&array->dtype)) {
    return false;
  }
  array->data = tensor.first();
  array->axes = tensor.ndim;
  const auto item_nbytes = static_cast<py::ssize_t>(item_size(array->dtype));
  py::ssize_t step = item_nbytes;
  bool has_elements = true;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    array->lengths[axis] = tensor.shape[axis];
    array->strides[axis] = tensor.strides == nullptr ? step : tensor.strides[axis] * item_nbytes;
    step *= tensor.shape[axis];
    has_elements = has_elements && tensor.shape[axis] != 0;
  }
  return tensor.data != nullptr || !has_elements;  // a tensor that only wraps others has none
}

bool describe_by(const DLExchange& exchange, py::handle object, HostArray* array) {
  DLTensor tensor;
  return exchange.describe(object, &tensor) && describe_tensor(tensor, array);
}

bool find_dtype(const Py_buffer& buffer, DType* dtype) {
  const char* format = buffer.format;
  if (format == nullptr) return false;
  if (*format == '@' || *format == '=' || *format == '<') ++format;  // all platforms are '<'
  if (*format == '\0' || format[1] != '\0') return false;
  for (const auto& [letter, type] :
       {std::pair{'f', DType::float32}, {'d', DType::float64}, {'e', DType::float16}}) {
    if (*format != letter) continue;
    *dtype = type;
    return buffer.itemsize == static_cast<py::ssize_t>(item_size(type));
  }
  return false;
}

bool describe_buffer(py::handle object, HostArray* array, std::vector<py::object>* keep) {
  if (PyObject_CheckBuffer(object.ptr()) == 0) return false;
  auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(object.ptr()));
  if (!view) {
    PyErr_Clear();
    return false;
  }
  const Py_buffer& buffer = *PyMemoryView_GET_BUFFER(view.ptr());
  if (buffer.ndim > HostArray::kMaxAxes || buffer.suboffsets != nullptr ||
      !find_dtype(buffer, &array->dtype)) {
    return false;
  }
  array->data = buffer.buf;
  array->axes = buffer.ndim;
  std::copy_n(buffer.shape, buffer.ndim, array->lengths);
  std::copy_n(buffer.strides, buffer.ndim, array->strides);
  keep->push_back(std::move(view));
  return true;
}

bool describe_capsule(py::handle object, HostArray* array, std::vector<py::object>* keep) {
  static PyObject* const kExport = PyUnicode_InternFromString("__dlpack__");
  auto capsule =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), kExport));
  if (!capsule) {
    PyErr_Clear();
    return false;
  }
  try {
    DLTensor* tensor = nullptr;
    bool readonly = false;
    py::object holder = take_dlpack(capsule, &tensor, &readonly);
    if (!describe_tensor(*tensor, array)) return false;
    keep->push_back(std::move(holder));
    return true;
  } catch (const py::builtin_exception&) {
    return false;
  } catch (const py::error_already_set&) {
    return false;
  }
}

// How objects of a type export their memory, besides by buffers.
struct Exporter {
  PyTypeObject* type = nullptr;
  const DLExchange* exchange = nullptr;
  bool has_capsules = false;
  bool prefers_capsules = false;  // the last was of bfloat16, which no buffer holds
};

// That of the last object's type: gradients of one call are usually alike.
Exporter& exporter_of(PyTypeObject* type) {
  static thread_local Exporter last;
  if (last.type == type) return last;
  const auto has = [type](const char* name) {
    return PyObject_HasAttrString(reinterpret_cast<PyObject*>(type), name) != 0;
  };
  // What torch exports without the functions of C (before 2.10) may be negated.
  const Exporter found{type, DLExchange::of(type), has("__dlpack__") && !has("is_neg")};
  Py_INCREF(type);  // so that no other type comes to lie there
  Py_XDECREF(reinterpret_cast<PyObject*>(last.type));
  last = found;
  return last;
}

template <class From, class To>
void copy_line(const char* from, py::ssize_t stride, py::ssize_t count, char* to) {
  const auto move = [&](py::ssize_t step) {
    for (py::ssize_t i = 0; i < count; ++i) {
      From value;
      std::memcpy(&value, from + i * step, sizeof value);
      const To converted = static_cast<To>(value);
      std::memcpy(to + i * static_cast<py::ssize_t>(sizeof converted), &converted,
                  sizeof converted);
    }
  };
  constexpr auto kNeighbour = static_cast<py::ssize_t>(sizeof(From));
  if (stride == kNeighbour) {
    move(kNeighbour);
  } else {
    move(stride);
  }
}

using CopyLine = void (*)(const char*, py::ssize_t, py::ssize_t, char*);

// Bits are copied as integers: a signalling NaN stays one.
CopyLine find_copy(DType from, DType to) {
  if (from == to) {
    return item_size(to) == 8   ? copy_line<std::uint64_t, std::uint64_t>
           : item_size(to) == 4 ? copy_line<std::uint32_t, std::uint32_t>
                                : copy_line<std::uint16_t, std::uint16_t>;
  }
  if (from == DType::float64 && to == DType::float32) return copy_line<double, float>;
  if (from == DType::float32 && to == DType::float64) return copy_line<float, double>;
  return nullptr;
}

void copy_lines(const HostArray& array, const std::vector<int>& order, CopyLine copy_line,
                py::ssize_t item_nbytes, char* target) {
  const int outer = array.axes - 1;  // axes around the last
  const py::ssize_t count = array.axes == 0 ? 1 : array.lengths[order.back()];
  const py::ssize_t stride = array.axes == 0 ? 0 : array.strides[order.back()];
  const char* from = static_cast<const char*>(array.data);
  py::ssize_t place[HostArray::kMaxAxes] = {};
  for (;;) {
    copy_line(from, stride, count, target);
    target += count * item_nbytes;
    int k = outer - 1;
    for (; k >= 0; --k) {
      const int axis = order[static_cast<std::size_t>(k)];
      from += array.strides[axis];
      if (++place[k] < array.lengths[axis]) break;
      from -= array.strides[axis] * array.lengths[axis];
      place[k] = 0;
    }
    if (k < 0) return;
  }
}

}  // namespace

bool describe(py::handle object, HostArray* array, std::vector<py::object>* keep) {
  if (Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_) {
    return describe_numpy(object, array);
  }
  // Subclasses may mean something else by their memory (a masked array).
  if (py::isinstance<py::array>(object)) return false;
  const Exporter exporter = exporter_of(Py_TYPE(object.ptr()));
  if (exporter.exchange != nullptr) {
    return describe_by(*exporter.exchange, object, array) && !exporter.exchange->is_negated(object);
  }
  if (!exporter.prefers_capsules && describe_buffer(object, array, keep)) return true;
  if (exporter.has_capsules && describe_capsule(object, array, keep)) {
    exporter_of(Py_TYPE(object.ptr())).prefers_capsules = array->dtype == DType::bfloat16;
    return true;
  }
  return exporter.prefers_capsules && describe_buffer(object, array, keep);
}

bool describe_exchanged(py::handle object, HostArray* array) {
  const DLExchange* exchange = DLExchange::of(Py_TYPE(object.ptr()));
  return exchange != nullptr && describe_by(*exchange, object, array);
}

bool can_copy(DType from, DType to) { return find_copy(from, to) != nullptr; }

void copy(const HostArray& array, const std::vector<int>& order, DType to, void* target) {
  py::ssize_t count = 1;
  for (int axis = 0; axis < array.axes; ++axis) count *= array.lengths[axis];
  if (count == 0) return;
  std::optional<py::gil_scoped_release> released;
  if (count >= kManyElements) released.emplace();
  copy_lines(array, order, find_copy(array.dtype, to), static_cast<py::ssize_t>(item_size(to)),
             static_cast<char*>(target));
}

}  // namespace adamas::bindings
