// adamas._core.Optimizer and Rates: the step from Python.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "adamas/optimizer.hpp"
#include "bindings/device_gradients.hpp"
#include "bindings/dtypes.hpp"
#include "bindings/gradients.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// Calls a function of the core without Python's global lock.
//
// While the interpreter shuts down, taking the lock again ends a daemon thread, before Python 3.14
// by unwinding its stack.  A stack with noexcept functions can't be unwound, so the thread is
// parked instead, as 3.14 does.
template <class Function>
Status without_gil(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  const Status status = function();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) ::pause();
  }
  return status;
}

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
  py::object array;
  std::string name;
  std::int32_t rates;
  bool centralize;
};

// The scratch memory of a call, kept for the next.  A call beside another gets memory of its own.
class ViewsLease {
 public:
  explicit ViewsLease(std::atomic<Views*>& idle) : idle_(idle), views_(idle.exchange(nullptr)) {
    if (!views_) views_ = std::make_unique<Views>();
  }
  ~ViewsLease() {
    views_->converted.clear();
    views_->rows.clear();
    views_->streams.clear();
    delete idle_.exchange(views_.release());
  }
  ViewsLease(const ViewsLease&) = delete;
  ViewsLease& operator=(const ViewsLease&) = delete;

  Views& operator*() const { return *views_; }
  Span<const Gradient> grads() const { return {views_->grads.data(), views_->grads.size()}; }

 private:
  std::atomic<Views*>& idle_;
  std::unique_ptr<Views> views_;
};

// A parameter's position, a kind of state or None for the parameter itself, and the array that it
// is copied to or from.
using PyArrayCopy = std::tuple<std::size_t, std::optional<StateKind>, py::array>;

class PyOptimizer {
 public:
  // `convert` is that of GradientReader or DeviceReader.
  PyOptimizer(const std::vector<PyParameter>& parameters, const AdamConfig& config,
              const py::function& convert)
      : reader_(convert), device_reader_(convert) {
    std::vector<ParameterSpec> specs;
    std::vector<void*> streams;
    for (const PyParameter& parameter : parameters) {
      specs.push_back(py::isinstance<DeviceArray>(parameter.array)
                          ? add_on_device(parameter, &streams)
                          : add(parameter));
      specs.back().rates = parameter.rates;
      specs.back().centralize = parameter.centralize;
    }
    if (reader_.size() > 0 && device_reader_.size() > 0) {
      throw py::value_error(
          "all parameters of an optimizer must be on one device; make one for each device");
    }
    raise(Optimizer::create(config, {specs.data(), specs.size()}, &optimizer_,
                            {streams.data(), streams.size()}));
  }
  ~PyOptimizer() { delete idle_views_.load(); }

  void step(py::handle grads, const RatesTable& rates) {
    const py::tuple list = as_tuple(grads);
    check_count(list);
    const ViewsLease views(idle_views_);
    reader_.read(list, optimizer_->num_threads(), *views);
    raise(without_gil([&] { return optimizer_->step(views.grads(), span(rates)); }));
  }

  // Of parameters on a device.  Without `stream`: on the one that a gradient's producer names, or
  // the default one.
  void step_on_device(py::handle grads, const RatesTable& rates,
                      std::optional<std::uintptr_t> stream) {
    const py::tuple list = as_tuple(grads);
    check_count(list);
    const ViewsLease views(idle_views_);
    device_reader_.read(list, *views);
    raise(without_gil([&] {
      return optimizer_->step(views.grads(), span(rates), DeviceReader::queueing(stream, *views));
    }));
  }

  void begin_step(const RatesTable& rates) {
    raise(without_gil([&] { return optimizer_->begin_step(span(rates)); }));
  }

  void apply(std::size_t i, py::handle grad, std::optional<std::uintptr_t> stream) {
    const ViewsLease views(idle_views_);
    if (is_on_device()) {
      device_reader_.read(i, grad, *views);
      raise(without_gil([&] {
        return optimizer_->apply(i, views.grads()[0], DeviceReader::queueing(stream, *views));
      }));
      return;
    }
    reader_.read(i, grad, *views);
    raise(without_gil([&] { return optimizer_->apply(i, views.grads()[0]); }));
  }

  void end_step() {
    raise(without_gil([&] { return optimizer_->end_step(); }));
  }

  void cancel_step() {
    raise(without_gil([&] { return optimizer_->cancel_step(); }));
  }

  void set_rates(const RatesTable& rates, std::uintptr_t stream) {
    raise(without_gil(
        [&] { return optimizer_->set_rates(span(rates), reinterpret_cast<void*>(stream)); }));
  }

  // Whether the stream that a step with these gradients would be queued on is being captured.
  bool is_capturing(py::handle grads, std::optional<std::uintptr_t> stream) const {
    Views views;
    if (!stream) device_reader_.find_streams(as_tuple(grads), &views.streams);
    return optimizer_->is_capturing(DeviceReader::queueing(stream, views).stream);
  }

  void set_loss_scale(double loss_scale) {
    raise(without_gil([&] { return optimizer_->set_loss_scale(loss_scale); }));
  }

  void set_global_step(std::int64_t step) {
    raise(without_gil([&] { return optimizer_->set_global_step(step); }));
  }

  // The state of parameter i as an array that keeps this object alive, or None.
  py::object state(StateKind kind, std::size_t i, const py::object& self) const {
    const StateLayout layout = optimizer_->layout(kind, i);
    if (!layout.is_kept) return py::none();
    const std::vector<py::ssize_t> shape = shape_of(layout, i);
    if (kind <= StateKind::moment2 && is_encoded(layout)) return decoded(kind, i, shape);
    const py::dtype dtype = dtype_of(layout.type);
    void* data = optimizer_->state(kind, i);
    if (data == nullptr) return py::array(dtype, shape);  // empty
    if (optimizer_->device() == kCpu) return py::array(dtype, shape, data, self);
    return py::cast(DeviceArray(data, shape, dtype, optimizer_->device(), self));
  }

  // The memory of a moment or of its scales in its stored format, as unsigned integers.
  py::array stored(StateKind kind, std::size_t i, const py::object& self) const {
    const StateLayout layout = optimizer_->layout(kind, i);
    if (!is_encoded(layout)) {
      throw py::value_error("there is no such state in a stored format");
    }
    const py::dtype dtype = dtype_of(layout.type);
    void* data = optimizer_->state(kind, i);
    if (data != nullptr && optimizer_->device() != kCpu) {
      py::array copy(dtype, layout.count);
      read_device(data, copy);
      return copy;
    }
    return data == nullptr ? py::array(dtype, layout.count)
                           : py::array(dtype, {layout.count}, data, self);
  }

  // The shape and type of each array that is kept for parameter i.
  std::map<StateKind, std::pair<py::tuple, py::dtype>> layout(std::size_t i) const {
    std::map<StateKind, std::pair<py::tuple, py::dtype>> kept;
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      const auto kind = static_cast<StateKind>(k);
      const StateLayout layout = optimizer_->layout(kind, i);
      if (!layout.is_kept) continue;
      kept[kind] = {py::tuple(py::cast(shape_of(layout, i))), dtype_of(layout.type)};
    }
    return kept;
  }

  // Copies between the device and an array of the host, after the last step.
  void read_device(const void* device, py::array& host) const {
    void* target = host.mutable_data();
    const auto nbytes = static_cast<std::size_t>(host.nbytes());
    raise(without_gil([&] { return optimizer_->read_device(device, target, nbytes); }));
  }
  void write_device(void* device, const py::array& host) {
    const void* source = host.data();
    const auto nbytes = static_cast<std::size_t>(host.nbytes());
    raise(without_gil([&] { return optimizer_->write_device(device, source, nbytes); }));
  }

  Counters save(const std::vector<PyArrayCopy>& to) const {
    const std::vector<ArrayCopy> copies = views(to, py::array::c_style | kWriteable);
    Counters counters;
    raise(without_gil([&] { return optimizer_->save({copies.data(), copies.size()}, &counters); }));
    return counters;
  }

  void load(const std::vector<PyArrayCopy>& from, const Counters& counters) {
    const std::vector<ArrayCopy> copies = views(from, py::array::c_style);
    raise(without_gil([&] { return optimizer_->load({copies.data(), copies.size()}, counters); }));
  }

  const Optimizer& optimizer() const { return *optimizer_; }

 private:
  static constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

  // Whether the items are floats in fewer bits, or their scales.
  static bool is_encoded(const StateLayout& layout) {
    return layout.type == ItemType::uint8 || layout.type == ItemType::uint16;
  }

  // Of an array of state of parameter i.
  std::vector<py::ssize_t> shape_of(const StateLayout& layout, std::size_t i) const {
    if (!layout.is_like_parameter) return {static_cast<py::ssize_t>(layout.count)};
    if (is_on_device()) return device_reader_.array(i).shape();
    const py::array& array = reader_.parameter(i).array();
    return {array.shape(), array.shape() + array.ndim()};
  }

  bool is_on_device() const { return device_reader_.size() > 0; }
  std::size_t size() const { return is_on_device() ? device_reader_.size() : reader_.size(); }

  void check_count(const py::tuple& grads) const {
    if (grads.size() == size()) return;
    throw py::value_error("grads must hold one gradient for each of the " + std::to_string(size()) +
                          " parameters, got " + std::to_string(grads.size()));
  }

  // A parameter without axes is one row of one element.
  static void set_shape(const py::ssize_t* lengths, py::ssize_t axes, ParameterSpec* spec) {
    spec->rows = axes == 0 ? 1 : lengths[0];
    spec->axes = axes == 0 ? 1 : static_cast<std::int32_t>(axes);
    spec->second_axis = axes < 2 ? 0 : lengths[1];
  }

  ParameterSpec add(const PyParameter& parameter) {
    const BoundParameter& bound =
        reader_.add(parameter.array.cast<py::array>(), parameter.name, parameter.centralize);
    ParameterSpec spec;
    spec.data = bound.data();
    spec.count = bound.count();
    spec.dtype = bound.dtype();
    const py::array& array = bound.array();
    set_shape(array.shape(), array.ndim(), &spec);
    return spec;
  }

  ParameterSpec add_on_device(const PyParameter& parameter, std::vector<void*>* streams) {
    const DeviceArray& array =
        device_reader_.add(parameter.array, parameter.name, parameter.centralize);
    ParameterSpec spec;
    spec.data = array.data();
    spec.count = array.size();
    spec.dtype = array.dtype();
    set_shape(array.shape().data(), static_cast<py::ssize_t>(array.shape().size()), &spec);
    spec.device = array.device();
    if (array.stream() != nullptr) streams->push_back(array.stream());
    return spec;
  }

  // Views arrays that have all of `flags`; the core looks at their sizes.
  std::vector<ArrayCopy> views(const std::vector<PyArrayCopy>& arrays, int flags) const {
    std::vector<ArrayCopy> copies;
    for (const auto& [i, kind, array] : arrays) {
      if ((array.flags() & flags) != flags) {
        throw py::value_error("an array to copy must be C-contiguous, and writable to be saved to");
      }
      if (!kind && is_on_device()) device_reader_.check_unmoved(i);
      if (!kind && !is_on_device()) reader_.parameter(i).check_unchanged();
      copies.push_back(
          {i, kind, const_cast<void*>(array.data()), static_cast<std::size_t>(array.nbytes())});
    }
    return copies;
  }

  // A read-only float32 copy of a moment that is stored in another format.
  py::array decoded(StateKind kind, std::size_t i, const std::vector<py::ssize_t>& shape) const {
    py::array_t<float> values(shape);
    float* target = values.mutable_data();
    raise(without_gil([&] { return optimizer_->decode_moment(kind, i, target); }));
    values.attr("flags").attr("writeable") = false;
    return values;
  }

  static Span<const Rates> span(const RatesTable& rates) {
    return {rates.list.data(), rates.list.size()};
  }

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

  // Names the parameter that a status speaks of.
  void raise(const Status& status) const {
    const auto i = static_cast<std::size_t>(status.index());
    if (status.index() < 0) return raise_if_error(status);
    const std::string& name = is_on_device() ? device_reader_.name(i) : reader_.parameter(i).name();
    raise_if_error(status, ": '" + name + "'");
  }

  GradientReader reader_;  // of NumPy arrays
  DeviceReader device_reader_;
  std::unique_ptr<Optimizer> optimizer_;
  std::atomic<Views*> idle_views_{nullptr};
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
      .value("master", StateKind::master)
      .value("row_step", StateKind::row_step)
      .value("scale1", StateKind::scale1)
      .value("scale2", StateKind::scale2)
      .finalize();
  py::native_enum<RowPolicy>(module, "RowPolicy", "enum.Enum")
      .value("exact", RowPolicy::exact)
      .value("lazy", RowPolicy::lazy)
      .value("catch_up", RowPolicy::catch_up)
      .finalize();
  py::native_enum<StateFormat>(module, "StateFormat", "enum.Enum")
      .value("real", StateFormat::real)
      .value("bfloat16", StateFormat::bfloat16)
      .value("int8", StateFormat::int8)
      .finalize();
  py::class_<RatesTable>(module, "Rates")
      .def(py::init<const std::vector<std::pair<double, double>>&>(), py::arg("pairs"));
  py::class_<PyParameter>(module, "ParameterSpec")
      .def(py::init([](py::object array, std::string name, std::int32_t rates, bool centralize) {
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
      .def_readwrite("row_policy", &AdamConfig::row_policy)
      .def_readwrite("state_format", &AdamConfig::state_format)
      .def_readwrite("seed", &AdamConfig::seed)
      .def_readwrite("master_weights", &AdamConfig::master_weights)
      .def_readwrite("use_locking", &AdamConfig::use_locking)
      .def_readwrite("skip_nonfinite", &AdamConfig::skip_nonfinite)
      .def_readwrite("max_grad_norm", &AdamConfig::max_grad_norm)
      .def_readwrite("num_threads", &AdamConfig::num_threads)
      .def_readwrite("capturable", &AdamConfig::capturable)
      .def_readwrite("use_offload", &AdamConfig::use_offload);
  py::class_<Counters>(module, "Counters")
      .def(py::init<>())
      .def_readwrite("global_step", &Counters::global_step)
      .def_readwrite("skipped_steps", &Counters::skipped_steps)
      .def_readwrite("loss_scale", &Counters::loss_scale)
      .def_readwrite("last_grad_norm", &Counters::last_grad_norm)
      .def_readwrite("last_step_skipped", &Counters::last_step_skipped);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const std::vector<PyParameter>&, const AdamConfig&, const py::function&>(),
           py::arg("parameters"), py::arg("config"), py::arg("convert"))
      .def("step", &PyOptimizer::step, py::arg("grads"), py::arg("rates"))
      .def("step_on_device", &PyOptimizer::step_on_device, py::arg("grads"), py::arg("rates"),
           py::arg("stream"))
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
      .def("end_step", &PyOptimizer::end_step)
      .def("cancel_step", &PyOptimizer::cancel_step)
      .def_property(
          "loss_scale", [](const PyOptimizer& self) { return self.optimizer().loss_scale(); },
          &PyOptimizer::set_loss_scale)
      .def_property_readonly(
          "last_step_skipped",
          [](const PyOptimizer& self) { return self.optimizer().last_step_skipped(); })
      .def_property_readonly(
          "skipped_steps", [](const PyOptimizer& self) { return self.optimizer().skipped_steps(); })
      .def_property_readonly(
          "last_grad_norm",
          [](const PyOptimizer& self) { return self.optimizer().last_grad_norm(); })
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
          [](const PyOptimizer& self, std::size_t i) { return self.optimizer().centralizes(i); },
          py::arg("index"))
      .def_property_readonly("config",
                             [](const PyOptimizer& self) { return self.optimizer().config(); })
      .def(
          "used_learning_rate",
          [](const PyOptimizer& self, double learning_rate) {
            return self.optimizer().used_learning_rate(learning_rate);
          },
          py::arg("learning_rate"))
      .def("save", &PyOptimizer::save, py::arg("to"))
      .def("load", &PyOptimizer::load, py::arg("from_"), py::arg("counters"))
      .def_property(
          "global_step", [](const PyOptimizer& self) { return self.optimizer().global_step(); },
          &PyOptimizer::set_global_step)
      .def_property_readonly(
          "state_nbytes", [](const PyOptimizer& self) { return self.optimizer().state_nbytes(); })
      .def_property_readonly(
          "num_threads", [](const PyOptimizer& self) { return self.optimizer().num_threads(); });
}

}  // namespace adamas::bindings
