#include "bindings/parameter.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

namespace py = pybind11;

namespace adamas::bindings {
namespace {

constexpr int kFits =
    py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

constexpr std::array<std::pair<const char*, DType>, 4> kTypes = {{{"float32", DType::float32},
                                                                  {"float64", DType::float64},
                                                                  {"float16", DType::float16},
                                                                  {"bfloat16", DType::bfloat16}}};

// The descriptor object that arrays of a type usually share, as soon as it was seen; never freed.
std::atomic<PyObject*>& usual_descriptor(DType dtype) {
  static std::array<std::atomic<PyObject*>, kTypes.size()> descriptors{};
  return descriptors[static_cast<std::size_t>(dtype)];
}

// Finds the type by its name, which is slow, and remembers the descriptor.
bool find_by_name(PyObject* descriptor, DType* dtype) {
  const auto object = py::reinterpret_borrow<py::dtype>(descriptor);
  if (!object.attr("isnative").cast<bool>()) return false;
  const auto name = object.attr("name").cast<std::string>();
  for (const auto& [known, type] : kTypes) {
    if (name != known) continue;
    *dtype = type;
    PyObject* none = nullptr;
    Py_INCREF(descriptor);  // first: another thread may look as soon as it is there
    if (!usual_descriptor(type).compare_exchange_strong(none, descriptor)) Py_DECREF(descriptor);
    return true;
  }
  return false;
}

DType dtype_of(const py::array& array, const std::string& name) {
  DType dtype;
  if (find_dtype(array, &dtype)) return dtype;
  throw py::type_error(
      "parameter '" + name +
      "' must be float32, float64, float16 or bfloat16 in native byte order, got " +
      py::str(array.dtype()).cast<std::string>());
}

}  // namespace

bool find_dtype(py::handle array, DType* dtype) {
  PyObject* descriptor = py::detail::array_proxy(array.ptr())->descr;
  for (const auto& [name, type] : kTypes) {
    if (descriptor != usual_descriptor(type).load(std::memory_order_relaxed)) continue;
    *dtype = type;
    return true;
  }
  return find_by_name(descriptor, dtype);
}

Shape::Shape(const py::ssize_t* lengths, py::ssize_t axes) : axes_(static_cast<int>(axes)) {
  if (axes_ > kInline) heap_.assign(lengths, lengths + axes_);
  if (axes_ <= kInline) std::copy_n(lengths, axes_, inline_);
}

bool Shape::is(const std::vector<py::ssize_t>& shape) const {
  return std::equal(shape.begin(), shape.end(), lengths(), lengths() + axes_);
}

std::int64_t Shape::row_length() const {
  std::int64_t length = 1;
  for (int axis = 1; axis < axes_; ++axis) length *= lengths()[axis];
  return length;
}

bool Shape::is_of(const py::detail::PyArray_Proxy& array) const {
  if (array.nd != axes_) return false;
  const py::ssize_t* wanted = lengths();
  for (int axis = 0; axis < axes_; ++axis) {  // a call of memcmp would cost more
    if (array.dimensions[axis] != wanted[axis]) return false;
  }
  return true;
}

BoundParameter::BoundParameter(py::object array, std::string name)
    : BoundParameter(py::isinstance<DeviceArray>(array)
                         ? BoundParameter(array.cast<const DeviceArray&>(), array, std::move(name))
                         : BoundParameter(array.cast<py::array>(), std::move(name))) {}

BoundParameter::BoundParameter(const py::array& array, std::string name)
    : array_(array),
      name_(std::move(name)),
      dtype_(dtype_of(array, name_)),
      shape_(array.shape(), array.ndim()),
      count_(array.size()),
      data_(py::detail::array_proxy(array.ptr())->data) {
  if ((array.flags() & kFits) != kFits) {
    throw py::value_error("parameter '" + name_ + "' must be C-contiguous and aligned");
  }
  check_unchanged();
}

// What from_device of python/adamas/device_arrays.py has checked is not checked again.
BoundParameter::BoundParameter(const DeviceArray& array, py::object object, std::string name)
    : array_(std::move(object)),
      device_array_(&array),
      name_(std::move(name)),
      dtype_(array.dtype()),
      shape_(array.shape().data(), static_cast<py::ssize_t>(array.shape().size())),
      count_(array.size()),
      data_(array.data()) {}

void BoundParameter::check_unchanged() const {
  if (device_array_ != nullptr) {
    if (device_array_->has_moved()) {
      throw py::value_error("parameter '" + name_ + "' was moved in memory after the optimizer " +
                            "was made; make a new optimizer");
    }
    return;
  }
  const auto* proxy = py::detail::array_proxy(array_.ptr());
  if ((proxy->flags & kWriteable) == 0) {
    throw py::value_error("parameter '" + name_ + "' must be writable, but it is read-only");
  }
  if (proxy->data != data_ || !shape_.is_of(*proxy)) {
    throw py::value_error("parameter '" + name_ + "' was resized or moved in memory after the " +
                          "optimizer was made; make a new optimizer");
  }
}

bool BoundParameter::accepts(DType gradient) const {
  return (gradient == DType::float64) == (dtype_ == DType::float64);
}

bool BoundParameter::view(py::handle grad, Gradient* gradient) const {
  if (device_array_ != nullptr) {
    if (!py::isinstance<DeviceArray>(grad)) return false;
    const auto& array = grad.cast<const DeviceArray&>();
    gradient->values = array.data();
    gradient->dtype = array.dtype();
    gradient->device = array.device();
    return shape_.is(array.shape()) && array.is_float() && accepts(array.dtype());
  }
  // Subclasses may mean something else by their memory (a masked array): gradient() looks at them.
  if (Py_TYPE(grad.ptr()) != Py_TYPE(array_.ptr())) return false;
  const auto* proxy = py::detail::array_proxy(grad.ptr());
  const bool fits = (proxy->flags & kFits) == kFits && shape_.is_of(*proxy) &&
                    find_dtype(grad, &gradient->dtype) && accepts(gradient->dtype);
  gradient->values = proxy->data;
  return fits;
}

}  // namespace adamas::bindings
