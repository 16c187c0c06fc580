// adamas._core.Optimizer and Rates: the step from Python.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adamas/optimizer.hpp"
#include "bindings/parameter.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// The learning rates and weight decays of one step, ready for the core.
struct RatesTable {
  std::vector<Rates> list;

  explicit RatesTable(const std::vector<std::pair<double, double>>& pairs) {
    list.reserve(pairs.size());
    for (const auto& [learning_rate, weight_decay] : pairs) {
      list.push_back({learning_rate, weight_decay});
    }
  }
};

// One parameter and its options, as Python hands them over.
struct PyParameter {
  py::array array;
  std::string name;
  std::int32_t rates;
  bool centralize;
};

class PyOptimizer {
 public:
  // `convert(grad, array, label)` returns an array like the parameter's or raises.
  PyOptimizer(const std::vector<PyParameter>& parameters, const AdamConfig& config,
              py::function convert)
      : convert_(std::move(convert)) {
    std::vector<ParameterSpec> specs;
    for (const PyParameter& parameter : parameters) {
      const BoundParameter& bound = parameters_.emplace_back(parameter.array, parameter.name);
      ParameterSpec spec;
      spec.data = bound.data();
      spec.count = bound.array().size();
      spec.dtype = bound.dtype();
      spec.rates = parameter.rates;
      spec.rows = parameter.centralize ? bound.array().shape(0) : 1;
      spec.centralize = parameter.centralize && spec.count > 0;
      specs.push_back(spec);
    }
    raise(Optimizer::create(config, {specs.data(), specs.size()}, &optimizer_));
  }

  void step(py::handle grads, const RatesTable& rates) {
    const py::tuple list = as_tuple(grads);
    if (list.size() != parameters_.size()) {
      throw py::value_error("grads must hold one gradient for each of the " +
                            std::to_string(parameters_.size()) + " parameters, got " +
                            std::to_string(list.size()));
    }
    std::vector<const void*> views(list.size());
    std::vector<py::object> converted;  // kept alive until the step is done
    for (std::size_t i = 0; i < views.size(); ++i) {
      const BoundParameter& parameter = parameters_[i];
      const py::handle grad = PyTuple_GET_ITEM(list.ptr(), static_cast<py::ssize_t>(i));
      views[i] = parameter.view(grad);
      if (views[i] == nullptr) views[i] = convert(grad, i, converted);
    }
    // After all conversions, which run foreign code.
    for (const BoundParameter& parameter : parameters_) parameter.check_unchanged();
    Status status;
    {
      const py::gil_scoped_release released;
      status =
          optimizer_->step({views.data(), views.size()}, {rates.list.data(), rates.list.size()});
    }
    raise(status);
  }

  // The state of parameter i as an array that keeps this object alive, or None.
  py::object state(StateKind kind, std::size_t i, const py::object& self) const {
    const BoundParameter& parameter = parameters_.at(i);
    void* data = optimizer_->state(kind, i);
    if (data == nullptr) return py::none();
    const py::array& array = parameter.array();
    const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    return py::array(array.dtype(), shape, data, self);
  }

  Optimizer& optimizer() { return *optimizer_; }
  const Optimizer& optimizer() const { return *optimizer_; }

 private:
  // A tuple holds its items while the GIL is released; a list could be changed by another thread.
  static py::tuple as_tuple(py::handle grads) {
    if (PyTuple_Check(grads.ptr())) return py::reinterpret_borrow<py::tuple>(grads);
    if (PyList_Check(grads.ptr())) {
      return py::reinterpret_steal<py::tuple>(PyList_AsTuple(grads.ptr()));
    }
    throw py::type_error(
        "grads must be a tuple or list with one gradient for each parameter, got " +
        std::string(Py_TYPE(grads.ptr())->tp_name));
  }

  const void* convert(py::handle grad, std::size_t i, std::vector<py::object>& converted) const {
    const BoundParameter& parameter = parameters_[i];
    const std::string label =
        "grads[" + std::to_string(i) + "] (for parameter '" + parameter.name() + "')";
    const py::object array = convert_(grad, parameter.array(), label);
    const void* view = parameter.view(array);
    if (view == nullptr) throw py::type_error(label + " could not be converted");
    converted.push_back(array);
    return view;
  }

  // Names the parameter that a status speaks of.
  void raise(const Status& status) const {
    if (status.ok() || status.index() < 0) return raise_if_error(status);
    const std::string& name = parameters_[static_cast<std::size_t>(status.index())].name();
    throw py::value_error(status.message() + ": '" + name + "'");
  }

  std::vector<BoundParameter> parameters_;
  std::unique_ptr<Optimizer> optimizer_;
  py::function convert_;
};

}  // namespace

void register_optimizer(py::module_& module) {
  py::native_enum<Numerics>(module, "Numerics", "enum.Enum")
      .value("standard", Numerics::standard)
      .value("mindspore", Numerics::mindspore)
      .finalize();
  py::native_enum<StateKind>(module, "StateKind", "enum.Enum")
      .value("moment1", StateKind::moment1)
      .value("moment2", StateKind::moment2)
      .value("vhat", StateKind::vhat)
      .finalize();
  py::class_<RatesTable>(module, "Rates")
      .def(py::init<const std::vector<std::pair<double, double>>&>(), py::arg("pairs"));
  py::class_<PyParameter>(module, "ParameterSpec")
      .def(py::init([](py::array array, std::string name, std::int32_t rates, bool centralize) {
             return PyParameter{std::move(array), std::move(name), rates, centralize};
           }),
           py::arg("array"), py::arg("name"), py::arg("rates"), py::arg("centralize"));
  py::class_<AdamConfig>(module, "AdamConfig")
      .def(py::init<>())
      .def_readwrite("beta1", &AdamConfig::beta1)
      .def_readwrite("beta2", &AdamConfig::beta2)
      .def_readwrite("eps", &AdamConfig::eps)
      .def_readwrite("loss_scale", &AdamConfig::loss_scale)
      .def_readwrite("numerics", &AdamConfig::numerics)
      .def_readwrite("use_nesterov", &AdamConfig::use_nesterov)
      .def_readwrite("use_amsgrad", &AdamConfig::use_amsgrad)
      .def_readwrite("decoupled_weight_decay", &AdamConfig::decoupled_weight_decay)
      .def_readwrite("bias_correction", &AdamConfig::bias_correction)
      .def_readwrite("num_threads", &AdamConfig::num_threads);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const std::vector<PyParameter>&, const AdamConfig&, py::function>(),
           py::arg("parameters"), py::arg("config"), py::arg("convert"))
      .def("step", &PyOptimizer::step, py::arg("grads"), py::arg("rates"))
      .def(
          "state",
          [](const py::object& self, StateKind kind, std::size_t i) {
            return self.cast<const PyOptimizer&>().state(kind, i, self);
          },
          py::arg("kind"), py::arg("index"))
      .def_property(
          "global_step", [](const PyOptimizer& self) { return self.optimizer().global_step(); },
          [](PyOptimizer& self, std::int64_t step) {
            raise_if_error(self.optimizer().set_global_step(step));
          })
      .def_property_readonly(
          "state_nbytes", [](const PyOptimizer& self) { return self.optimizer().state_nbytes(); })
      .def_property_readonly(
          "num_threads", [](const PyOptimizer& self) { return self.optimizer().num_threads(); });
}

}  // namespace adamas::bindings
