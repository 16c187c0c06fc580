#include "bindings/device_array.hpp"

#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/dlpack.hpp"
#include "bindings/dtypes.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

py::dtype type_of(const DLTensor& tensor) {
  const std::string bits = std::to_string(tensor.bits);
  if (tensor.lanes == 1 && tensor.code == kDLInt) return py::dtype("int" + bits);
  if (tensor.lanes == 1 && tensor.code == kDLFloat && tensor.bits >= 16) {
    return py::dtype("float" + bits);
  }
  if (tensor.lanes == 1 && tensor.code == kDLBfloat && tensor.bits == 16) {
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  }
  throw py::type_error("an array must be of a float type, got DLPack type code " +
                       std::to_string(tensor.code) + " of " + bits + " bits");
}

py::dict cuda_array_interface(const DeviceArray& array) {
  py::dict interface;
  interface["shape"] = py::tuple(py::cast(array.shape()));
  interface["typestr"] = array.type().attr("str");
  interface["data"] =
      py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data()), array.is_readonly());
  interface["strides"] = py::none();
  interface["version"] = 3;
  return interface;
}

}  // namespace

DeviceArray::DeviceArray(void* data, std::vector<py::ssize_t> shape, py::dtype type,
                         std::int32_t device, py::object owner)
    : data_(data),
      shape_(std::move(shape)),
      type_(std::move(type)),
      item_nbytes_(type_.itemsize()),
      device_(device),
      owner_(std::move(owner)) {
  for (const py::ssize_t length : shape_) size_ *= length;
  // On a device a misaligned access is the end of the whole process' context.
  if (item_nbytes_ > 0 && !is_aligned(data, static_cast<std::size_t>(item_nbytes_))) {
    throw py::value_error("an array on a device must be aligned to its items of " +
                          std::to_string(item_nbytes_) + " bytes");
  }
  const auto name = type_.attr("name").cast<std::string>();
  is_float_ = find_dtype(name, &dtype_);
  is_index_ = name == "int32" || name == "int64";
  tells_address_ = py::hasattr(owner_, "data_ptr");
}

DeviceArray DeviceArray::from_dlpack(const py::object& capsule, std::uintptr_t stream,
                                     py::object owner) {
  DLTensor* tensor = nullptr;
  bool readonly = false;
  const py::object holder = take_dlpack(capsule, &tensor, &readonly);
  if (!tensor->is_on_cuda()) {
    throw py::buffer_error("an array is not on a CUDA device");
  }
  if (!tensor->is_contiguous()) {
    throw py::value_error("an array on a device must be C-contiguous; pass a contiguous copy");
  }
  const std::vector<py::ssize_t> shape(tensor->shape, tensor->shape + tensor->ndim);
  DeviceArray array(tensor->first(), shape, type_of(*tensor), tensor->device_id, std::move(owner));
  array.is_readonly_ = readonly;
  array.set_stream(stream);
  array.owner_ = py::make_tuple(array.owner_, holder);
  return array;
}

bool DeviceArray::has_moved() const {
  if (!tells_address_ || size_ == 0) return false;
  const py::handle teller = PyTuple_Check(owner_.ptr())
                                ? py::handle(PyTuple_GET_ITEM(owner_.ptr(), 0))
                                : py::handle(owner_);
  DLTensor tensor;
  const DLExchange* exchange = DLExchange::of(Py_TYPE(teller.ptr()));
  if (exchange != nullptr && exchange->describe(teller, &tensor)) return tensor.first() != data_;
  return teller.attr("data_ptr")().cast<std::uintptr_t>() !=
         reinterpret_cast<std::uintptr_t>(data_);
}

void register_device_array(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray")
      .def(
          py::init([](std::uintptr_t data, std::vector<py::ssize_t> shape, py::dtype type,
                      std::int32_t device, bool readonly, std::uintptr_t stream, py::object owner) {
            DeviceArray array(reinterpret_cast<void*>(data), std::move(shape), std::move(type),
                              device, std::move(owner));
            array.set_readonly(readonly);
            array.set_stream(stream);
            return array;
          }),
          py::arg("data"), py::arg("shape"), py::arg("dtype"), py::arg("device"),
          py::arg("readonly"), py::arg("stream"), py::arg("owner"))
      .def_static("from_dlpack", &DeviceArray::from_dlpack, py::arg("capsule"), py::arg("stream"),
                  py::arg("owner"))
      .def_static(
          "current_stream_of",
          [](py::handle array) {
            return reinterpret_cast<std::uintptr_t>(DLExchange::current_stream_of(array));
          },
          py::arg("array"))
      .def_property_readonly(
          "shape", [](const DeviceArray& self) { return py::tuple(py::cast(self.shape())); })
      .def_property_readonly("ndim", [](const DeviceArray& self) { return self.shape().size(); })
      .def_property_readonly("dtype", &DeviceArray::type)
      .def_property_readonly("size", &DeviceArray::size)
      .def_property_readonly(
          "nbytes", [](const DeviceArray& self) { return self.size() * self.item_nbytes(); })
      .def_property_readonly("device", &DeviceArray::device)
      .def_property_readonly("readonly", &DeviceArray::is_readonly)
      .def_property_readonly("owner", &DeviceArray::owner)
      .def_property_readonly("__cuda_array_interface__", &cuda_array_interface)
      // The owner of state is its optimizer, which knows when it is up to date.
      .def("numpy",
           [](const py::object& self) {
             const auto& array = self.cast<const DeviceArray&>();
             py::array host(array.type(), array.shape());
             array.owner().attr("read_device")(self, host);
             return host;
           })
      .def(
          "assign",
          [](const py::object& self, const py::object& values) {
            const auto& array = self.cast<const DeviceArray&>();
            const py::module_ numpy = py::module_::import("numpy");
            py::array host(array.type(), array.shape());
            numpy.attr("copyto")(host, values);
            array.owner().attr("write_device")(self, host);
          },
          py::arg("values"));
}

}  // namespace adamas::bindings
