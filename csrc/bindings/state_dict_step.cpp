// adamas._core.StateDictStep: one step over parameters that carry their gradients (`param.grad`),
// and whose state stands in dicts of the caller's, by name, as frameworks keep it.
//
// The objects are read anew in every step: nothing that was replaced, moved or resized in between
// is written at its old address.  What it can't read as it is (rows, complex or strided tensors,
// those of devices, state that is not there yet) it names by position, having done nothing, and
// Python brings it into another form.
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "adamas/update.hpp"
#include "bindings/given_state.hpp"
#include "bindings/memory_view.hpp"
#include "bindings/owner.hpp"
#include "bindings/register.hpp"
#include "bindings/without_gil.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// What stands instead of a parameter, its gradient and its state.
constexpr py::ssize_t kSubstituteItems = 2 + static_cast<py::ssize_t>(kGivenKindCount);

// Where a number of steps is counted: a tensor of one element, or an int in the dict.
struct Counter {
  void* memory = nullptr;
  DType dtype = DType::float32;
  PyObject* dict = nullptr;

  bool read(PyObject* given, PyObject* state, std::int64_t* steps) {
    dict = state;
    if (PyLong_CheckExact(given)) {
      *steps = PyLong_AsLongLong(given);
      if (*steps == -1 && PyErr_Occurred() != nullptr) PyErr_Clear();
      return *steps >= 0;
    }
    MemoryView view;
    if (!view_memory(given, &view, true) || view.count != 1 || view.device != kCpu ||
        !view.is_aligned) {
      return false;
    }
    memory = view.data;
    dtype = view.dtype;
    double value = -1.0;
    if (dtype == DType::float32) value = *static_cast<const float*>(memory);
    if (dtype == DType::float64) value = *static_cast<const double*>(memory);
    if (!(value >= 0.0 && value <= 0x1p62) || value != std::floor(value)) return false;
    *steps = static_cast<std::int64_t>(value);
    return true;
  }

  void write(PyObject* key, std::int64_t steps) const {
    if (memory == nullptr) {
      const auto number = py::reinterpret_steal<py::object>(PyLong_FromLongLong(steps));
      if (!number || PyDict_SetItem(dict, key, number.ptr()) != 0) throw py::error_already_set();
    } else if (dtype == DType::float32) {
      *static_cast<float*>(memory) = static_cast<float>(steps);
    } else {
      *static_cast<double*>(memory) = static_cast<double>(steps);
    }
  }
};

// The parameters of a group, as Python passes them.
struct Group {
  const AdamConfig* config;
  Rates rates;
  PyObject* params;  // the group's own list or tuple
  PyObject* known;   // what was in it when `states` was made
  PyObject* states;  // a dict for each, or None

  explicit Group(const py::handle& given) {
    const auto items = py::reinterpret_borrow<py::tuple>(given);
    config = &items[0].cast<const AdamConfig&>();
    rates = {items[1].cast<double>(), items[2].cast<double>()};
    params = py::object(items[3]).ptr();
    known = py::object(items[4]).ptr();
    states = py::object(items[5]).ptr();
  }

  py::ssize_t size() const { return PyTuple_GET_SIZE(known); }

  bool is_current() const {
    if (!PyList_Check(params) && !PyTuple_Check(params)) return false;
    if (PySequence_Fast_GET_SIZE(params) != size()) return false;
    for (py::ssize_t i = 0; i < size(); ++i) {
      if (PySequence_Fast_GET_ITEM(params, i) != PyTuple_GET_ITEM(known, i)) return false;
    }
    return true;
  }
};

class StateDictStep {
 public:
  // The keys of the number of steps and of the arrays by kGivenKinds.
  StateDictStep(py::str step, std::array<py::str, kGivenKindCount> keys)
      : step_key_(std::move(step)), keys_(std::move(keys)) {
    intern(step_key_);
    for (py::str& key : keys_) intern(key);
  }

  // Makes the step.  `substitutes`: by position among all parameters, a tuple of parameter,
  // gradient and state that stand for those that can't be read.  Returns whether it was made
  // (False: it was skipped), the positions of those that can't be read, or None if a list of
  // parameters is another one than `states` was made for.
  py::object step(const AdamConfig& config, const py::sequence& groups,
                  const py::dict& substitutes) {
    if (is_busy_) {
      throw std::runtime_error("step() was called while another step of this optimizer runs");
    }
    const Busy busy(*this);
    groups_.clear();
    configs_.clear();
    rates_.clear();
    for (const py::handle given : groups) {
      groups_.emplace_back(given);
      if (!groups_.back().is_current()) return py::none();
      configs_.push_back(*groups_.back().config);
      rates_.push_back(groups_.back().rates);
    }
    py::list unready = read(substitutes);
    if (!unready.empty()) return unready;
    return py::bool_(make(config));
  }

  double grad_norm() const { return grad_norm_; }

 private:
  // Forgets what the step held: a gradient that the caller drops is freed.
  class Busy {
   public:
    explicit Busy(StateDictStep& step) : step_(step) { step_.is_busy_ = true; }
    ~Busy() {
      step_.held_.clear();
      step_.is_busy_ = false;
    }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    StateDictStep& step_;
  };

  // Dicts find such a key by its address.
  static void intern(py::str& key) {
    PyObject* held = key.release().ptr();
    PyUnicode_InternInPlace(&held);
    key = py::reinterpret_steal<py::str>(held);
  }

  using Seen = std::array<py::object, kGivenKindCount>;

  py::list read(const py::dict& substitutes) {
    static PyObject* const kGrad = PyUnicode_InternFromString("grad");
    std::size_t count = 0;
    for (const Group& group : groups_) count += static_cast<std::size_t>(group.size());
    read_.clear(count);
    seen_.resize(count);
    specs_.clear();
    grads_.clear();
    counters_.clear();
    steps_.clear();
    params_.clear();
    positions_.clear();
    py::list unready;
    std::size_t position = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      for (py::ssize_t i = 0; i < group.size(); ++i, ++position) {
        PyObject* const param = PyTuple_GET_ITEM(group.known, i);
        auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param, kGrad));
        if (!grad) throw py::error_already_set();
        const bool is_absent = grad.is_none();
        PyObject* const state = PyTuple_GET_ITEM(group.states, i);
        PyObject* substitute = nullptr;
        if (!substitutes.empty()) {
          substitute = PyDict_GetItemWithError(substitutes.ptr(), py::int_(position).ptr());
        }
        const Given given{param, grad.ptr(), state, substitute};
        if (read_one(g, position, given)) {
          held_.push_back(std::move(grad));
        } else if (!is_absent) {
          unready.append(position);
        }
      }
    }
    return unready;
  }

  struct Given {
    PyObject* param;
    PyObject* grad;
    PyObject* state;
    PyObject* substitute;
  };

  // Adds a parameter to the lists; false if something of it is not there or can't be read.
  bool read_one(std::size_t g, std::size_t position, const Given& given) {
    if (!PyDict_Check(given.state) || PyDict_GET_SIZE(given.state) == 0) return false;
    PyObject* const counted = PyDict_GetItemWithError(given.state, step_key_.ptr());
    std::int64_t steps = 0;
    Counter counter;
    if (counted == nullptr || !counter.read(counted, given.state, &steps)) return false;

    const AdamConfig& config = configs_[g];
    PyObject* const instead = given.substitute;
    if (instead != nullptr &&
        (!PyTuple_Check(instead) || PyTuple_GET_SIZE(instead) != kSubstituteItems)) {
      throw py::type_error("a substitute must be a tuple of a parameter, a gradient and 5 states");
    }
    PyObject* const param = instead == nullptr ? given.param : PyTuple_GET_ITEM(instead, 0);
    MemoryView view;
    if (!view_memory(param, &view) || !view.is_aligned || !view.is_writeable || !view.is_dense()) {
      return false;
    }
    ParameterSpec spec;
    spec.data = view.data;
    spec.count = view.count;
    spec.dtype = view.dtype;
    spec.device = view.device;
    spec.rates = static_cast<std::int32_t>(g);
    spec.rows = view.axes == 0 ? 1 : view.lengths[0];
    spec.axes = view.axes == 0 ? 1 : view.axes;
    spec.second_axis = view.axes < 2 ? 0 : view.lengths[1];
    spec.key = static_cast<std::int64_t>(position);
    if (view.stream != nullptr) read_.streams.push_back(view.stream);
    for (std::size_t k = 0; k < kGivenKindCount; ++k) {
      if (!is_kept(kGivenKinds[k], config, view.dtype)) continue;
      PyObject* const array = instead == nullptr
                                  ? PyDict_GetItemWithError(given.state, keys_[k].ptr())
                                  : PyTuple_GET_ITEM(instead, 2 + static_cast<py::ssize_t>(k));
      if (array == nullptr || !read_state(array, k, position, view, config, &spec)) return false;
    }
    Gradient grad;
    PyObject* const values = instead == nullptr ? given.grad : PyTuple_GET_ITEM(instead, 1);
    if (!view_grad(values, view, &read_, &grad)) return false;
    if (grad.rows != nullptr && !view.is_c_contiguous()) return false;
    specs_.push_back(spec);
    grads_.push_back(grad);
    counters_.push_back(counter);
    steps_.push_back(steps);
    params_.push_back(param);
    positions_.push_back(position);
    // It is written after others had the GIL, who may have replaced it.
    held_.push_back(py::reinterpret_borrow<py::object>(counted));
    return true;
  }

  // An array that was looked at before is not asked for its sign again.
  bool read_state(PyObject* array, std::size_t k, std::size_t position, const MemoryView& param,
                  const AdamConfig& config, ParameterSpec* spec) {
    py::object& seen = seen_[position][k];
    MemoryView view;
    if (!view_memory(array, &view, seen.ptr() == array)) return false;
    if (seen.ptr() != array) seen = py::reinterpret_borrow<py::object>(array);
    if (view.dtype != state_dtype(kGivenKinds[k], config, param.dtype) || !view.is_writeable ||
        !view.is_aligned || !view.has_shape_of(param) || !view.has_strides_of(param) ||
        view.device != param.device) {
      return false;
    }
    spec->states[static_cast<std::size_t>(kGivenKinds[k])] = view.data;
    return true;
  }

  bool make(const AdamConfig& config) {
    UpdateResult result;
    const Queueing queueing{read_.streams.empty() ? nullptr : read_.streams.front(), read_.streams};
    const Status status = without_gil([&] {
      return update_.step(config, specs_, grads_, rates_, steps_, &result, configs_, queueing);
    });
    if (!status.ok()) {
      if (status.index() < 0) raise_if_error(status);
      const std::size_t position = positions_[static_cast<std::size_t>(status.index())];
      raise_if_error({status.code(), status.what()}, ": parameter " + std::to_string(position));
    }
    grad_norm_ = result.grad_norm;
    if (result.skipped) return false;
    advance_versions(params_.data(), grads_);
    for (std::size_t i = 0; i < counters_.size(); ++i) {
      if (!grads_[i].is_absent) counters_[i].write(step_key_.ptr(), steps_[i]);
    }
    return true;
  }

  py::str step_key_;
  std::array<py::str, kGivenKindCount> keys_;
  AdamUpdate update_;
  bool is_busy_ = false;
  double grad_norm_ = std::numeric_limits<double>::quiet_NaN();
  std::vector<Seen> seen_;

  // Of the step that runs.
  std::vector<Group> groups_;
  std::vector<AdamConfig> configs_;
  std::vector<Rates> rates_;
  std::vector<ParameterSpec> specs_;
  std::vector<Gradient> grads_;
  std::vector<Counter> counters_;
  std::vector<std::int64_t> steps_;
  std::vector<PyObject*> params_;
  std::vector<std::size_t> positions_;
  ReadGradients read_;
  std::vector<py::object> held_;
};

}  // namespace

void register_state_dict_step(py::module_& module) {
  py::class_<StateDictStep>(module, "StateDictStep")
      .def(py::init<py::str, std::array<py::str, kGivenKindCount>>(), py::arg("step"),
           py::arg("keys"))
      .def("step", &StateDictStep::step, py::arg("config"), py::arg("groups"),
           py::arg("substitutes"))
      .def_property_readonly("grad_norm", &StateDictStep::grad_norm);
}

}  // namespace adamas::bindings
