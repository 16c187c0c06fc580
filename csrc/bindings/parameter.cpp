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
    if (usual_descriptor(type).compare_exchange_strong(none, descriptor)) Py_INCREF(descriptor);
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

Shape::Shape(const py::array& array) : axes_(static_cast<int>(array.ndim())) {
  if (axes_ > kInline) heap_.assign(array.shape(), array.shape() + axes_);
  if (axes_ <= kInline) std::copy_n(array.shape(), axes_, inline_);
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

BoundParameter::BoundParameter(py::array array, std::string name)
    : array_(std::move(array)),
      name_(std::move(name)),
      dtype_(dtype_of(array_, name_)),
      shape_(array_),
      count_(array_.size()),
      data_(py::detail::array_proxy(array_.ptr())->data) {
  if ((array_.flags() & kFits) != kFits) {
    throw py::value_error("parameter '" + name_ + "' must be C-contiguous and aligned");
  }
  check_unchanged();
}

void BoundParameter::check_unchanged() const {
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
  // Subclasses may mean something else by their memory (a masked array): gradient() looks at them.
  if (Py_TYPE(grad.ptr()) != Py_TYPE(array_.ptr())) return false;
  const auto* proxy = py::detail::array_proxy(grad.ptr());
  const bool fits = (proxy->flags & kFits) == kFits && shape_.is_of(*proxy) &&
                    find_dtype(grad, &gradient->dtype) && accepts(gradient->dtype);
  gradient->values = proxy->data;
  return fits;
}

}  // namespace adamas::bindings
