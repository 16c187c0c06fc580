// adamas._core.Optimizer and Rates: the step from Python.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "adamas/optimizer.hpp"
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
  py::array array;
  std::string name;
  std::int32_t rates;
  bool centralize;
  bool dense_only;
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
  // `convert` is that of GradientReader.
  PyOptimizer(const std::vector<PyParameter>& parameters, const AdamConfig& config,
              py::function convert)
      : format_(config.state_format), reader_(std::move(convert)) {
    std::vector<ParameterSpec> specs;
    for (const PyParameter& parameter : parameters) {
      const BoundParameter& bound =
          reader_.add(parameter.array, parameter.name, parameter.dense_only);
      ParameterSpec spec;
      spec.data = bound.data();
      spec.count = bound.count();
      spec.dtype = bound.dtype();
      spec.rates = parameter.rates;
      spec.rows = bound.rows();
      spec.centralize = parameter.centralize;
      specs.push_back(spec);
    }
    raise(Optimizer::create(config, {specs.data(), specs.size()}, &optimizer_));
  }
  ~PyOptimizer() { delete idle_views_.load(); }

  void step(py::handle grads, const RatesTable& rates) {
    const py::tuple list = as_tuple(grads);
    if (list.size() != reader_.size()) {
      throw py::value_error("grads must hold one gradient for each of the " +
                            std::to_string(reader_.size()) + " parameters, got " +
                            std::to_string(list.size()));
    }
    const ViewsLease views(idle_views_);
    reader_.read(list, optimizer_->num_threads(), *views);
    raise(without_gil([&] { return optimizer_->step(views.grads(), span(rates)); }));
  }

  void begin_step(const RatesTable& rates) {
    raise(without_gil([&] { return optimizer_->begin_step(span(rates)); }));
  }

  void apply(std::size_t i, py::handle grad) {
    const ViewsLease views(idle_views_);
    reader_.read(i, grad, *views);
    raise(without_gil([&] { return optimizer_->apply(i, views.grads()[0]); }));
  }

  void end_step() {
    raise(without_gil([&] { return optimizer_->end_step(); }));
  }

  void cancel_step() {
    raise(without_gil([&] { return optimizer_->cancel_step(); }));
  }

  void set_loss_scale(double loss_scale) {
    raise(without_gil([&] { return optimizer_->set_loss_scale(loss_scale); }));
  }

  void set_global_step(std::int64_t step) {
    raise(without_gil([&] { return optimizer_->set_global_step(step); }));
  }

  // The state of parameter i as an array that keeps this object alive, or None.
  py::object state(StateKind kind, std::size_t i, const py::object& self) const {
    const BoundParameter& parameter = reader_.parameter(i);
    const py::array& array = parameter.array();
    std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    py::dtype dtype = real_type(parameter.dtype()) == DType::float64 ? py::dtype::of<double>()
                                                                     : py::dtype::of<float>();
    if (kind == StateKind::row_step) {
      shape = {parameter.rows()};
      dtype = py::dtype::of<std::int64_t>();
    }
    if (kind == StateKind::moment1 || kind == StateKind::moment2) {
      if (format_ != StateFormat::real) return decoded(kind, i, shape);
    }
    void* data = optimizer_->state(kind, i);
    if (data != nullptr) return py::array(dtype, shape, data, self);
    const bool is_kept =
        kind != StateKind::master || real_type(parameter.dtype()) != parameter.dtype();
    if (parameter.count() == 0 && is_kept) return py::array(dtype, shape);
    return py::none();
  }

  // The memory of a moment or of its scales in its stored format, as unsigned integers.
  py::array stored(StateKind kind, std::size_t i, const py::object& self) const {
    const BoundParameter& parameter = reader_.parameter(i);
    const std::int64_t block = optimizer_->scale_block(i);
    const bool is_moment = kind == StateKind::moment1 || kind == StateKind::moment2;
    const bool is_scale = kind == StateKind::scale1 || kind == StateKind::scale2;
    if (format_ == StateFormat::real || !(is_moment || (is_scale && block > 0))) {
      throw py::value_error("there is no such state in a stored format");
    }
    const bool is_bfloat16 = format_ == StateFormat::bfloat16;
    const py::dtype dtype =
        is_bfloat16 ? py::dtype::of<std::uint16_t>() : py::dtype::of<std::uint8_t>();
    const std::int64_t count =
        is_moment ? parameter.count() : (parameter.count() + block - 1) / block;
    void* data = optimizer_->state(kind, i);
    return data == nullptr ? py::array(dtype, count) : py::array(dtype, {count}, data, self);
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

  // Views arrays that have all of `flags`; the core looks at their sizes.
  std::vector<ArrayCopy> views(const std::vector<PyArrayCopy>& arrays, int flags) const {
    std::vector<ArrayCopy> copies;
    for (const auto& [i, kind, array] : arrays) {
      if ((array.flags() & flags) != flags) {
        throw py::value_error("an array to copy must be C-contiguous, and writable to be saved to");
      }
      if (!kind) reader_.parameter(i).check_unchanged();
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
    raise_if_error(status, status.index() < 0 ? "" : ": '" + reader_.parameter(i).name() + "'");
  }

  StateFormat format_;
  GradientReader reader_;
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
      .def(py::init([](py::array array, std::string name, std::int32_t rates, bool centralize,
                       bool dense_only) {
             return PyParameter{std::move(array), std::move(name), rates, centralize, dense_only};
           }),
           py::arg("array"), py::arg("name"), py::arg("rates"), py::arg("centralize"),
           py::arg("dense_only"));
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
      .def_readwrite("num_threads", &AdamConfig::num_threads);
  py::class_<Counters>(module, "Counters")
      .def(py::init<>())
      .def_readwrite("global_step", &Counters::global_step)
      .def_readwrite("skipped_steps", &Counters::skipped_steps)
      .def_readwrite("loss_scale", &Counters::loss_scale)
      .def_readwrite("last_grad_norm", &Counters::last_grad_norm)
      .def_readwrite("last_step_skipped", &Counters::last_step_skipped);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const std::vector<PyParameter>&, const AdamConfig&, py::function>(),
           py::arg("parameters"), py::arg("config"), py::arg("convert"))
      .def("step", &PyOptimizer::step, py::arg("grads"), py::arg("rates"))
      .def("begin_step", &PyOptimizer::begin_step, py::arg("rates"))
      .def("apply", &PyOptimizer::apply, py::arg("index"), py::arg("grad"))
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
