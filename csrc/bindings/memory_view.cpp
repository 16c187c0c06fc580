#include "bindings/memory_view.hpp"

#include <pybind11/numpy.h>

#include "bindings/device_array.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/parameter.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

void count_elements(MemoryView* array) {
  array->count = 1;
  for (int axis = 0; axis < array->axes; ++axis) array->count *= array->lengths[axis];
}

bool view_numpy(PyObject* object, MemoryView* array) {
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));
  const py::detail::PyArray_Proxy& fields = *py::detail::array_proxy(object);
  if (fields.nd > MemoryView::kMaxAxes || !find_dtype(object, &array->dtype)) return false;
  array->data = fields.data;
  array->axes = fields.nd;
  array->lengths = reinterpret_cast<const std::int64_t*>(fields.dimensions);
  const auto item = static_cast<py::ssize_t>(item_size(array->dtype));
  for (int axis = 0; axis < fields.nd; ++axis) {
    if (fields.strides[axis] % item != 0) return false;
    array->strides[axis] = fields.strides[axis] / item;
  }
  array->is_writeable = (fields.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
  array->is_aligned = (fields.flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  array->device = kCpu;
  array->stream = nullptr;
  count_elements(array);
  return true;
}

bool view_exchanged(const DLExchange& exchange, PyObject* object, MemoryView* array,
                    bool knows_sign) {
  DLTensor tensor;
  if (!exchange.describe(object, &tensor) || !tensor.is_on_cpu() ||
      tensor.ndim > MemoryView::kMaxAxes || !tensor.find_dtype(&array->dtype) ||
      (!knows_sign && exchange.is_negated(object))) {
    return false;
  }
  array->data = tensor.first();
  array->axes = tensor.ndim;
  array->lengths = tensor.shape;
  std::int64_t step = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    array->strides[axis] = tensor.strides == nullptr ? step : tensor.strides[axis];
    step *= tensor.shape[axis];
  }
  array->is_writeable = true;
  array->is_aligned = reinterpret_cast<std::uintptr_t>(array->data) % item_size(array->dtype) == 0;
  array->device = kCpu;
  array->stream = nullptr;
  count_elements(array);
  return true;
}

bool view_device(const DeviceArray& given, MemoryView* array) {
  if (!given.is_float() || given.shape().size() > MemoryView::kMaxAxes) return false;
  array->data = given.data();
  array->dtype = given.dtype();
  array->axes = static_cast<int>(given.shape().size());
  array->lengths = reinterpret_cast<const std::int64_t*>(given.shape().data());
  std::int64_t step = 1;
  for (int axis = array->axes - 1; axis >= 0; --axis) {
    array->strides[axis] = step;
    step *= array->lengths[axis];
  }
  array->is_writeable = !given.is_readonly();
  array->is_aligned = true;
  array->device = given.device();
  array->stream = given.stream();
  array->count = given.size();
  return true;
}

// The indices of rows, where their parameter is; false: of another kind.
bool view_indices(PyObject* object, const MemoryView& param, ReadGradients* read,
                  RowIndices* rows) {
  if (py::isinstance<DeviceArray>(object)) {
    const auto& array = py::handle(object).cast<const DeviceArray&>();
    if (!array.is_index() || array.device() != param.device) return false;
    *rows = {array.data(), array.size(), array.item_nbytes() == 8};
    if (array.stream() != nullptr) read->streams.push_back(array.stream());
    return true;
  }
  if (!py::isinstance<py::array>(object) || param.device != kCpu) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  *rows = {array.data(), array.size(), array.itemsize() == 8};
  return array.dtype().kind() == 'i' && array.itemsize() >= 4 &&
         (array.flags() & py::array::c_style) != 0;
}

}  // namespace

bool view_memory(PyObject* object, MemoryView* view, bool knows_sign) {
  if (Py_TYPE(object) == py::detail::npy_api::get().PyArray_Type_) {
    return view_numpy(object, view);
  }
  if (const DLExchange* exchange = DLExchange::of(Py_TYPE(object)); exchange != nullptr) {
    return view_exchanged(*exchange, object, view, knows_sign);
  }
  return py::isinstance<DeviceArray>(object) &&
         view_device(py::handle(object).cast<const DeviceArray&>(), view);
}

bool view_grad(PyObject* object, const MemoryView& param, ReadGradients* read, Gradient* grad) {
  if (object == Py_None) {
    grad->is_absent = true;
    return true;
  }
  MemoryView array;
  if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2) {
    RowIndices rows{};
    if (!view_indices(PyTuple_GET_ITEM(object, 0), param, read, &rows) ||
        !view_memory(PyTuple_GET_ITEM(object, 1), &array)) {
      return false;
    }
    const std::int64_t row_length =
        param.axes == 0 || param.lengths[0] == 0 ? 0 : param.count / param.lengths[0];
    if (!array.is_c_contiguous() || array.count != rows.count * row_length) return false;
    read->rows.push_back(rows);
    grad->rows = &read->rows.back();
  } else if (!view_memory(object, &array) || !array.is_aligned || !array.has_shape_of(param) ||
             !array.has_strides_of(param)) {
    return false;
  }
  if (!goes_with(array.dtype, param.dtype)) return false;
  grad->values = array.data;
  grad->dtype = array.dtype;
  grad->device = array.device;
  if (array.stream != nullptr) read->streams.push_back(array.stream);
  return true;
}

}  // namespace adamas::bindings
