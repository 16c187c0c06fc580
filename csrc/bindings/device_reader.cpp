#include "bindings/device_reader.hpp"

#include <algorithm>
#include <utility>

#include "adamas/system.hpp"
#include "bindings/dlpack.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// A stream that is not the default one, once.
void add_stream(void* stream, std::vector<void*>* streams) {
  if (stream == nullptr || std::find(streams->begin(), streams->end(), stream) != streams->end()) {
    return;
  }
  streams->push_back(stream);
}

bool has_shape(const DeviceArray& parameter, const std::int64_t* shape, std::int64_t axes) {
  const std::vector<py::ssize_t>& wanted = parameter.shape();
  return axes == static_cast<std::int64_t>(wanted.size()) &&
         std::equal(wanted.begin(), wanted.end(), shape);
}

// Looks at a DeviceArray of the parameter's shape.
bool view_array(const DeviceArray& parameter, const DeviceArray& array, Gradient* gradient,
                std::vector<void*>* streams) {
  gradient->values = array.data();
  gradient->dtype = array.dtype();
  gradient->device = array.size() == 0 ? parameter.device() : array.device();
  add_stream(array.stream(), streams);
  return array.shape() == parameter.shape() && array.is_float() &&
         goes_with(array.dtype(), parameter.dtype());
}

// What convert_ returned is checked once more: it decides which memory is read.
void view_rows(py::handle pair, const DeviceArray& parameter, RowIndices* rows, Gradient* gradient,
               std::vector<void*>* streams) {
  const auto [indices, values] = pair.cast<std::pair<const DeviceArray*, const DeviceArray*>>();
  std::int64_t row_length = 1;
  for (std::size_t axis = 1; axis < parameter.shape().size(); ++axis) {
    row_length *= parameter.shape()[axis];
  }
  rows->data = indices->data();
  rows->count = indices->size();
  rows->is_int64 = indices->item_nbytes() == 8;
  gradient->values = values->data();
  gradient->dtype = values->dtype();
  gradient->device = parameter.device();
  gradient->rows = rows;
  add_stream(indices->stream(), streams);
  add_stream(values->stream(), streams);
  const auto is_there = [&](const DeviceArray& array) {
    return array.size() == 0 || array.device() == parameter.device();
  };
  const bool fits = indices->is_index() && values->is_float() && is_there(*indices) &&
                    is_there(*values) && values->size() == rows->count * row_length &&
                    goes_with(gradient->dtype, parameter.dtype());
  if (!fits) throw py::type_error("a sparse gradient could not be converted");
}

}  // namespace

ParameterSpec DeviceReader::add(const PyParameter& parameter, std::vector<void*>* streams) {
  const auto& array = parameter.array.cast<const DeviceArray&>();
  parameters_.push_back({parameter.array, &array, parameter.name, parameter.centralize});
  ParameterSpec spec;
  spec.data = array.data();
  spec.count = array.size();
  spec.dtype = array.dtype();
  set_shape(array.shape().data(), static_cast<py::ssize_t>(array.shape().size()), &spec);
  spec.device = array.device();
  if (array.stream() != nullptr) streams->push_back(array.stream());
  return spec;
}

void* DeviceReader::memory_of(std::size_t i, const PyParameter&) const {
  throw py::value_error("parameter '" + name(i) +
                        "' is on a device and can't be rebound there; make a new optimizer");
}

Queueing DeviceReader::queueing(std::optional<std::uintptr_t> stream, const Views& views) const {
  void* const named = views.streams.empty() ? nullptr : views.streams.front();
  return {stream ? reinterpret_cast<void*>(*stream) : named,
          {views.streams.data(), views.streams.size()}};
}

void DeviceReader::read(const py::tuple& grads, int, Views& views) const {
  views.grads.assign(size(), {});
  for (std::size_t i = 0; i < size(); ++i) {
    read_one(parameters_[i], i, PyTuple_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i)), views,
             &views.grads[i]);
  }
}

void DeviceReader::read(std::size_t i, py::handle grad, Views& views) const {
  views.grads.assign(1, {});
  if (grad.is_none()) throw py::type_error("grad must be an array on the device, got None");
  read_one(parameters_.at(i), i, grad, views, views.grads.data());
}

void DeviceReader::find_streams(const py::tuple& grads, std::vector<void*>* streams) const {
  for (std::size_t i = 0; i < std::min(grads.size(), size()) && streams->empty(); ++i) {
    Gradient gradient;
    if (PyTuple_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i)) == Py_None) continue;
    view(parameters_[i], PyTuple_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i)), &gradient,
         streams);
  }
}

void DeviceReader::read_one(const Parameter& parameter, std::size_t i, py::handle grad,
                            Views& views, Gradient* gradient) const {
  if (grad.is_none()) {
    gradient->is_absent = true;
  } else if (!view(parameter, grad, gradient, &views.streams)) {
    const std::string label =
        "grads[" + std::to_string(i) + "] (for parameter '" + parameter.name + "')";
    const py::object result = convert_(grad, parameter.object, label);
    views.converted.push_back(result);
    *gradient = {};
    if (PyTuple_Check(result.ptr())) {
      if (parameter.dense_only) {
        throw py::value_error(label + " must be dense: the parameter has grad_centralization");
      }
      if (views.rows.empty()) views.rows.reserve(views.grads.size());
      view_rows(result, *parameter.array, &views.rows.emplace_back(), gradient, &views.streams);
    } else if (!py::isinstance<DeviceArray>(result) ||
               !view_array(*parameter.array, result.cast<const DeviceArray&>(), gradient,
                           &views.streams)) {
      throw py::type_error(label + " could not be converted");
    }
  }
  check_unchanged(i);
}

void DeviceReader::check_unchanged(std::size_t i) const {
  const Parameter& parameter = parameters_.at(i);
  if (!parameter.array->has_moved()) return;
  throw py::value_error("parameter '" + parameter.name + "' was moved in memory after the " +
                        "optimizer was made; make a new optimizer");
}

bool DeviceReader::view(const Parameter& parameter, py::handle grad, Gradient* gradient,
                        std::vector<void*>* streams) const {
  const DeviceArray& array = *parameter.array;
  if (py::isinstance<DeviceArray>(grad)) {
    return view_array(array, grad.cast<const DeviceArray&>(), gradient, streams);
  }
  const DLExchange* exchange = DLExchange::of(Py_TYPE(grad.ptr()));
  if (exchange == nullptr) return view_interface(parameter, grad, gradient, streams);
  DLTensor tensor;
  if (!exchange->describe(grad, &tensor) || !tensor.is_on_cuda() ||
      tensor.device_id != array.device() || !tensor.is_contiguous() ||
      !tensor.find_dtype(&gradient->dtype) || !goes_with(gradient->dtype, array.dtype()) ||
      !has_shape(array, tensor.shape, tensor.ndim) ||
      !is_aligned(tensor.first(), item_size(gradient->dtype))) {
    return false;
  }
  gradient->values = tensor.first();
  gradient->device = array.device();
  add_stream(exchange->current_stream(tensor), streams);
  return true;
}

// The commonest case of what _device_arrays.py does with __cuda_array_interface__; the others, and
// all errors, are left to it.
bool DeviceReader::view_interface(const Parameter& parameter, py::handle grad, Gradient* gradient,
                                  std::vector<void*>* streams) const {
  static PyObject* const kName = PyUnicode_InternFromString("__cuda_array_interface__");
  const auto interface = py::reinterpret_steal<py::object>(PyObject_GetAttr(grad.ptr(), kName));
  if (!interface || !PyDict_Check(interface.ptr())) {
    PyErr_Clear();
    return false;
  }
  const auto item = [&](const char* key) { return PyDict_GetItemString(interface.ptr(), key); };
  const auto is_none = [](PyObject* value) { return value == nullptr || value == Py_None; };
  PyObject* const data = item("data");
  PyObject* const shape = item("shape");
  PyObject* const type = item("typestr");
  if (data == nullptr || !PyTuple_Check(data) || PyTuple_GET_SIZE(data) != 2 || shape == nullptr ||
      !PyTuple_Check(shape) || type == nullptr || !PyUnicode_Check(type) ||
      !is_none(item("strides")) || !is_none(item("mask"))) {
    return false;
  }
  // Before version 3 it names no stream: _device_arrays.py asks the library for its own.
  PyObject* const version = item("version");
  if (version == nullptr || PyLong_AsLong(version) < 3) {
    PyErr_Clear();
    return false;
  }
  constexpr std::pair<const char*, DType> kTypestrs[] = {
      {"<f4", DType::float32}, {"<f2", DType::float16}, {"<f8", DType::float64}};
  const auto* known = std::find_if(
      std::begin(kTypestrs), std::end(kTypestrs),
      [&](const auto& one) { return PyUnicode_CompareWithASCIIString(type, one.first) == 0; });
  if (known == std::end(kTypestrs) || !goes_with(known->second, parameter.array->dtype())) {
    return false;
  }
  std::vector<std::int64_t> lengths;
  for (py::ssize_t axis = 0; axis < PyTuple_GET_SIZE(shape); ++axis) {
    lengths.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(shape, axis)));
  }
  gradient->values = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data, 0));
  gradient->dtype = known->second;
  gradient->device = parameter.array->device();
  PyObject* const stream = item("stream");
  void* const made_on = is_none(stream) ? nullptr : PyLong_AsVoidPtr(stream);
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  if (!has_shape(*parameter.array, lengths.data(), static_cast<std::int64_t>(lengths.size())) ||
      !is_aligned(gradient->values, item_size(gradient->dtype))) {
    return false;
  }
  if (gradient->values != parameter.checked) {
    if (device_of(gradient->values) != parameter.array->device()) return false;
    parameter.checked = gradient->values;
  }
  add_stream(made_on, streams);
  return true;
}

}  // namespace adamas::bindings
