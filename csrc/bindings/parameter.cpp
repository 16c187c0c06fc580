#include "bindings/parameter.hpp"

#include <algorithm>
#include <utility>

namespace py = pybind11;

namespace adamas::bindings {
namespace {

constexpr int kContiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

DType dtype_of(const py::array& array, const std::string& name) {
  if (array.dtype().equal(py::dtype::of<float>())) return DType::float32;
  if (array.dtype().equal(py::dtype::of<double>())) return DType::float64;
  throw py::type_error("parameter '" + name +
                       "' must be float32 or float64 in native byte order, " + "got " +
                       py::str(array.dtype()).cast<std::string>());
}

}  // namespace

BoundParameter::BoundParameter(py::array array, std::string name)
    : array_(std::move(array)),
      name_(std::move(name)),
      dtype_(dtype_of(array_, name_)),
      descriptor_(dtype_ == DType::float32 ? py::dtype::of<float>() : py::dtype::of<double>()),
      shape_(array_.shape(), array_.shape() + array_.ndim()),
      data_(py::detail::array_proxy(array_.ptr())->data) {
  constexpr int kWanted = kContiguous | kAligned;
  if ((array_.flags() & kWanted) != kWanted) {
    throw py::value_error("parameter '" + name_ + "' must be C-contiguous and aligned");
  }
  check_unchanged();
}

void BoundParameter::check_unchanged() const {
  const auto* proxy = py::detail::array_proxy(array_.ptr());
  if ((proxy->flags & kWriteable) == 0) {
    throw py::value_error("parameter '" + name_ + "' must be writable, but it is read-only");
  }
  if (proxy->data != data_) {
    throw py::value_error("parameter '" + name_ + "' was moved in memory after the optimizer " +
                          "was made; make a new optimizer");
  }
}

const void* BoundParameter::view(py::handle grad) const {
  if (!py::isinstance<py::array>(grad)) return nullptr;
  const auto* proxy = py::detail::array_proxy(grad.ptr());
  constexpr int kWanted = kContiguous | kAligned;
  const bool fits = proxy->descr == descriptor_.ptr() && (proxy->flags & kWanted) == kWanted &&
                    proxy->nd == static_cast<int>(shape_.size()) &&
                    std::equal(shape_.begin(), shape_.end(), proxy->dimensions);
  return fits ? proxy->data : nullptr;
}

}  // namespace adamas::bindings
