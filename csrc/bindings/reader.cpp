#include "bindings/reader.hpp"

#include "bindings/device_array.hpp"
#include "bindings/device_reader.hpp"
#include "bindings/host_reader.hpp"

namespace py = pybind11;

namespace adamas::bindings {

std::unique_ptr<Reader> make_reader(const std::vector<PyParameter>& parameters,
                                    const py::function& convert) {
  const auto is_on_device = [](const PyParameter& parameter) {
    return py::isinstance<DeviceArray>(parameter.array);
  };
  const bool first = !parameters.empty() && is_on_device(parameters.front());
  for (const PyParameter& parameter : parameters) {
    if (is_on_device(parameter) == first) continue;
    throw py::value_error(
        "all parameters of an optimizer must be on one device; make one for each device");
  }
  if (first) return std::make_unique<DeviceReader>(convert);
  return std::make_unique<HostReader>(convert);
}

void set_shape(const py::ssize_t* lengths, py::ssize_t axes, ParameterSpec* spec) {
  spec->rows = axes == 0 ? 1 : lengths[0];
  spec->axes = axes == 0 ? 1 : static_cast<std::int32_t>(axes);
  spec->second_axis = axes < 2 ? 0 : lengths[1];
}

}  // namespace adamas::bindings
