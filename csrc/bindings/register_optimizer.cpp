// adamas._core.Optimizer and what its calls take.
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/device_array.hpp"
#include "bindings/optimizer.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {

void register_optimizer(py::module_& module) {
  py::class_<PyRates>(module, "Rates")
      .def(py::init<const std::vector<std::pair<double, double>>&>(), py::arg("pairs"))
      .def(
          "with_learning_rate",
          [](const PyRates& self, const std::vector<std::size_t>& indices, double value) {
            return self.with(&Rates::learning_rate, indices, value);
          },
          py::arg("indices"), py::arg("value"))
      .def(
          "with_weight_decay",
          [](const PyRates& self, const std::vector<std::size_t>& indices, double value) {
            return self.with(&Rates::weight_decay, indices, value);
          },
          py::arg("indices"), py::arg("value"));
  py::class_<PyParameter>(module, "ParameterSpec")
      .def(
          py::init([](py::object array, std::string name, std::int32_t rates, bool centralize,
                      std::map<StateKind, py::object> states, std::int64_t key, py::object source) {
            return PyParameter{std::move(array), std::move(name),   rates,
                               centralize,       std::move(states), key,
                               std::move(source)};
          }),
          py::arg("array"), py::arg("name"), py::arg("rates"), py::arg("centralize"),
          py::arg("states") = std::map<StateKind, py::object>(), py::arg("key") = -1,
          py::arg("source") = py::none());
  module.def("note_rebinding", &note_rebinding);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const std::vector<PyParameter>&, const AdamConfig&, const py::function&,
                    const std::vector<AdamConfig>&>(),
           py::arg("parameters"), py::arg("config"), py::arg("convert"),
           py::arg("groups") = std::vector<AdamConfig>())
      .def("add", &PyOptimizer::add, py::arg("parameters"), py::arg("groups"))
      .def("step", &PyOptimizer::step, py::arg("grads"), py::arg("rates"),
           py::arg("stream") = py::none())
      .def("accumulate", &PyOptimizer::accumulate, py::arg("grads"), py::arg("stream") = py::none())
      .def("step_accumulated", &PyOptimizer::step_accumulated, py::arg("rates"),
           py::arg("stream") = py::none())
      .def_property_readonly("accumulated",
                             [](const PyOptimizer& self) { return self.native().accumulated(); })
      .def("discard_accumulated", [](PyOptimizer& self) { self.native().discard_accumulated(); })
      .def("begin_step", &PyOptimizer::begin_step, py::arg("rates"))
      .def("apply", &PyOptimizer::apply, py::arg("index"), py::arg("grad"),
           py::arg("stream") = py::none())
      .def(
          "read_device",
          [](const PyOptimizer& self, const DeviceArray& array, py::array host) {
            self.read_device(array.data(), host);
          },
          py::arg("array"), py::arg("host"))
      .def(
          "write_device",
          [](PyOptimizer& self, const DeviceArray& array, const py::array& host) {
            self.write_device(array.data(), host);
          },
          py::arg("array"), py::arg("host"))
      .def("set_rates", &PyOptimizer::set_rates, py::arg("rates"), py::arg("stream"))
      .def("is_capturing", &PyOptimizer::is_capturing, py::arg("grads"), py::arg("stream"))
      .def("end_step", &PyOptimizer::end_step, py::arg("skip_missing") = false)
      .def("cancel_step", &PyOptimizer::cancel_step)
      .def_property(
          "loss_scale", [](const PyOptimizer& self) { return self.native().loss_scale(); },
          &PyOptimizer::set_loss_scale)
      .def_property_readonly(
          "last_step_skipped",
          [](const PyOptimizer& self) { return self.native().last_step_skipped(); })
      .def_property_readonly("skipped_steps",
                             [](const PyOptimizer& self) { return self.native().skipped_steps(); })
      .def_property_readonly("last_grad_norm",
                             [](const PyOptimizer& self) { return self.native().last_grad_norm(); })
      .def(
          "state",
          [](const py::object& self, StateKind kind, std::size_t i) {
            return self.cast<const PyOptimizer&>().state(kind, i, self);
          },
          py::arg("kind"), py::arg("index"))
      .def(
          "stored",
          [](const py::object& self, StateKind kind, std::size_t i) {
            return self.cast<const PyOptimizer&>().stored(kind, i, self);
          },
          py::arg("kind"), py::arg("index"))
      .def("layout", &PyOptimizer::layout, py::arg("index"))
      .def(
          "centralizes",
          [](const PyOptimizer& self, std::size_t i) { return self.native().centralizes(i); },
          py::arg("index"))
      .def_property_readonly("config",
                             [](const PyOptimizer& self) { return self.native().config(); })
      .def(
          "used_learning_rate",
          [](const PyOptimizer& self, double learning_rate) {
            return self.native().used_learning_rate(learning_rate);
          },
          py::arg("learning_rate"))
      .def("save", &PyOptimizer::save, py::arg("to"))
      .def("load", &PyOptimizer::load, py::arg("from_"), py::arg("counters"),
           py::arg("steps") = std::vector<std::int64_t>())
      .def(
          "group", [](const PyOptimizer& self, std::size_t k) { return self.native().group(k); },
          py::arg("index"))
      .def("set_group", &PyOptimizer::set_group, py::arg("index"), py::arg("group"))
      .def_property("steps", &PyOptimizer::steps, &PyOptimizer::set_steps)
      .def_property(
          "global_step", [](const PyOptimizer& self) { return self.native().global_step(); },
          &PyOptimizer::set_global_step)
      .def_property_readonly("state_nbytes",
                             [](const PyOptimizer& self) { return self.native().state_nbytes(); })
      .def_property_readonly("device",
                             [](const PyOptimizer& self) { return self.native().device(); })
      .def_property_readonly("num_threads",
                             [](const PyOptimizer& self) { return self.native().num_threads(); });
}

}  // namespace adamas::bindings
