#include "bindings/parameter.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <utility>

#include "bindings/dtypes.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kFits = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | kAligned;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// The descriptor object that arrays of a type usually share, as soon as it was seen; never freed.
std::atomic<PyObject*>& usual_descriptor(DType dtype) {
  static std::array<std::atomic<PyObject*>, kDTypes> descriptors{};
  return descriptors[static_cast<std::size_t>(dtype)];
}

// Finds the type by its name, which is slow, and remembers the descriptor.
bool find_by_name(PyObject* descriptor, DType* dtype) {
  const auto object = py::reinterpret_borrow<py::dtype>(descriptor);
  if (!object.attr("isnative").cast<bool>()) return false;
  const auto name = object.attr("name").cast<std::string>();
  if (!find_dtype(name, dtype)) return false;
  PyObject* none = nullptr;
  Py_INCREF(descriptor);  // first: another thread may look as soon as it is there
  if (!usual_descriptor(*dtype).compare_exchange_strong(none, descriptor)) Py_DECREF(descriptor);
  return true;
}

// Whether it is a usual descriptor.
bool find_usual(PyObject* descriptor, DType* dtype) {
  for (std::size_t k = 0; k < kDTypes; ++k) {
    const auto type = static_cast<DType>(k);
    if (descriptor != usual_descriptor(type).load(std::memory_order_relaxed)) continue;
    *dtype = type;
    return true;
  }
  return false;
}

const py::detail::PyArray_Proxy& fields(const PyObject* array) {
  return *py::detail::array_proxy(array);
}

// Asks for the head of an array object, and of one whose head is there already for its shape.
// Objects lie scattered: without this, looking at thousands of small arrays waits for each.  Always
// inlined, as core/prefetch.hpp says.
__attribute__((always_inline)) inline void prefetch_head(const PyObject* array) {
  __builtin_prefetch(array);
  __builtin_prefetch(reinterpret_cast<const char*>(array) + 64);
}

__attribute__((always_inline)) inline void prefetch_shape(const PyObject* array,
                                                          const PyObject* known_array) {
  if (Py_TYPE(array) == Py_TYPE(known_array)) __builtin_prefetch(fields(array).dimensions);
}

DType dtype_of(const py::array& array, const std::string& name) {
  DType dtype;
  if (find_dtype(array, &dtype)) return dtype;
  throw py::type_error("parameter '" + name + "' must be " + dtype_names() +
                       " in native byte order, got " + py::str(array.dtype()).cast<std::string>());
}

// The steps of axes that lie in this order without gaps.
std::vector<py::ssize_t> dense_steps(const std::vector<py::ssize_t>& lengths,
                                     const std::vector<int>& order) {
  std::vector<py::ssize_t> steps(lengths.size());
  py::ssize_t step = 1;
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    steps[static_cast<std::size_t>(*axis)] = step;
    step *= lengths[static_cast<std::size_t>(*axis)];
  }
  return steps;
}

// How an array lies if it does so without gaps; otherwise in the order of its axes.
Layout layout_of(const py::array& array) {
  Layout layout{{array.shape(), array.shape() + array.ndim()}, {}, {}};
  layout.order.resize(layout.lengths.size());
  std::iota(layout.order.begin(), layout.order.end(), 0);
  if ((array.flags() & kFits) != kFits) {
    std::stable_sort(layout.order.begin(), layout.order.end(),
                     [&](int a, int b) { return array.strides(a) > array.strides(b); });
  }
  layout.steps = dense_steps(layout.lengths, layout.order);
  return layout;
}

}  // namespace

bool find_dtype(py::handle array, DType* dtype) {
  PyObject* descriptor = fields(array.ptr()).descr;
  return find_usual(descriptor, dtype) || find_by_name(descriptor, dtype);
}

BoundParameter::BoundParameter(py::array array, std::string name)
    : array_(std::move(array)),
      data_(fields(array_.ptr()).data),
      axes_(static_cast<int>(array_.ndim())),
      dtype_(dtype_of(array_, name)),
      fits_((array_.flags() & kFits) == kFits ? kFits : kNone),
      details_(new Details{std::move(name), array_.size(), layout_of(array_)}) {
  std::copy_n(array_.shape(), std::min(axes_, kInline), inline_);
  HostArray described;
  if (!describe(array_, &described, nullptr) || !is_laid_out_like(described)) {
    throw py::value_error("parameter '" + details_->name +
                          "' must be aligned, its elements without gaps between them");
  }
  check_unchanged();
}

std::int64_t BoundParameter::row_length() const {
  std::int64_t length = 1;
  for (int axis = 1; axis < axes_; ++axis) length *= lengths()[axis];
  return length;
}

bool BoundParameter::has_shape_of(const py::detail::PyArray_Proxy& other) const {
  if (other.nd != axes_) return false;
  const py::ssize_t* wanted = lengths();
  for (int axis = 0; axis < axes_; ++axis) {  // a call of memcmp would cost more
    if (other.dimensions[axis] != wanted[axis]) return false;
  }
  return true;
}

bool BoundParameter::is_writeable() const { return (fields(array_.ptr()).flags & kWriteable) != 0; }

bool BoundParameter::is_in_place() const {
  const py::detail::PyArray_Proxy& array = fields(array_.ptr());
  return array.data == data_ && has_shape_of(array) &&
         ((array.flags & kFits) == fits_ || is_in_order());
}

// Whether the array, which is not C-contiguous, lies as it did.  Apart, for the sake of those that
// are.
__attribute__((noinline)) bool BoundParameter::is_in_order() const {
  HostArray now;
  return !is_c_contiguous() && describe(array_, &now, nullptr) && is_laid_out_like(now);
}

bool BoundParameter::has_usual_type() const {
  PyObject* usual = usual_descriptor(dtype_).load(std::memory_order_relaxed);
  return fields(array_.ptr()).descr == usual;
}

void BoundParameter::check_unchanged() const {
  if (!is_writeable()) {
    throw py::value_error("parameter '" + name() + "' must be writable, but it is read-only");
  }
  if (!is_in_place()) {
    throw py::value_error("parameter '" + name() + "' was resized or moved in memory after the " +
                          "optimizer was made; make a new optimizer");
  }
  DType dtype;
  if (!has_usual_type() && !(find_dtype(array_, &dtype) && dtype == dtype_)) {
    throw py::value_error("parameter '" + name() + "' was given another type after the " +
                          "optimizer was made; make a new optimizer");
  }
}

bool BoundParameter::is_like(const PyObject* grad) const {
  // Subclasses may mean something else by their memory (a masked array): gradient() looks at them.
  if (Py_TYPE(grad) != Py_TYPE(array_.ptr())) return false;
  const py::detail::PyArray_Proxy& array = fields(grad);
  return (array.flags & kFits) == fits_ && has_shape_of(array);
}

bool BoundParameter::has_shape_of(const HostArray& array) const {
  return array.axes == axes_ && std::equal(lengths(), lengths() + axes_, array.lengths);
}

bool BoundParameter::is_laid_out_like(const HostArray& array) const {
  const auto item_nbytes = static_cast<py::ssize_t>(item_size(array.dtype));
  if (reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::size_t>(item_nbytes) != 0) {
    return false;
  }
  for (int axis = 0; axis < axes_; ++axis) {
    const py::ssize_t step = layout().steps[static_cast<std::size_t>(axis)] * item_nbytes;
    if (lengths()[axis] > 1 && array.strides[axis] != step && count() > 0) return false;
  }
  return true;
}

bool BoundParameter::view(const BoundParameter* parameters, PyObject* const* grads,
                          std::size_t count, Gradient* gradients) noexcept {
  constexpr std::size_t kAhead = 8;  // parameters between a prefetch and its use
  bool all = true;
  for (std::size_t i = 0; i < count; ++i) {
    if (i + 2 * kAhead < count) {
      prefetch_head(grads[i + 2 * kAhead]);
      prefetch_head(parameters[i + 2 * kAhead].array_.ptr());
    }
    if (i + kAhead < count) {
      prefetch_shape(grads[i + kAhead], parameters[i + kAhead].array_.ptr());
      prefetch_shape(parameters[i + kAhead].array_.ptr(), parameters[i + kAhead].array_.ptr());
    }
    const BoundParameter& parameter = parameters[i];
    Gradient gradient;
    if (parameter.is_like(grads[i]) && find_usual(fields(grads[i]).descr, &gradient.dtype) &&
        goes_with(gradient.dtype, parameter.dtype_)) {
      gradient.values = fields(grads[i]).data;
    } else {
      gradient.is_absent = grads[i] == Py_None;
    }
    gradients[i] = gradient;
    all = all && (gradient.values != nullptr || gradient.is_absent) && parameter.is_writeable() &&
          parameter.is_in_place() && parameter.has_usual_type();
  }
  return all;
}

}  // namespace adamas::bindings
