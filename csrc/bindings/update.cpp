// adamas._core.update: one step over arrays of the caller's, without an optimizer.
//
// It reads arrays of NumPy, of libraries with the exchange functions of DLPack, and DeviceArray.
// For others it returns NotImplemented, having done nothing: python/adamas/functional.py brings
// them into these forms.  A plain function of C, because it may be called for each parameter.
#include "bindings/update.hpp"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "adamas/update.hpp"
#include "bindings/device_array.hpp"
#include "bindings/given_state.hpp"
#include "bindings/memory_view.hpp"
#include "bindings/owner.hpp"
#include "bindings/parameter.hpp"
#include "bindings/register.hpp"
#include "bindings/without_gil.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// The items of a tuple or list, held: another thread may change a list while the GIL is released.
struct Items {
  py::object held;
  PyObject* const* items = nullptr;  // null: None was given
  py::ssize_t size = 0;

  Items() = default;
  Items(PyObject* given, const char* name) {
    if (given == Py_None) return;
    if (!PyTuple_Check(given) && !PyList_Check(given)) {
      throw py::type_error(std::string(name) + " must be a tuple or list of arrays, got " +
                           Py_TYPE(given)->tp_name);
    }
    held = PyTuple_Check(given) ? py::reinterpret_borrow<py::object>(given)
                                : py::reinterpret_steal<py::object>(PyList_AsTuple(given));
    if (!held) throw py::error_already_set();
    items = reinterpret_cast<PyTupleObject*>(held.ptr())->ob_item;
    size = PyTuple_GET_SIZE(held.ptr());
  }
};

std::string label(const char* name, py::ssize_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

constexpr const char* kStateNames[kStateKinds + 1] = {
    "moment1", "moment2", "vhat", "master", "row_step", "scale1", "scale2", "ema", "delta"};

// What a call needs, kept for the next one of the thread.
struct Scratch {
  std::vector<ParameterSpec> specs;
  std::vector<Gradient> grads;
  std::vector<std::int64_t> steps;
  ReadGradients read;
  AdamUpdate update;
  bool is_busy = false;  // objects are asked for their memory, and may call this function
};

// The scratch memory of the thread, or some of its own for a call inside another.
class ScratchLease {
 public:
  ScratchLease() {
    thread_local Scratch usual;
    if (usual.is_busy) own_ = std::make_unique<Scratch>();
    scratch_ = own_ ? own_.get() : &usual;
    scratch_->is_busy = true;
  }
  ~ScratchLease() { scratch_->is_busy = false; }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;
  Scratch& operator*() const { return *scratch_; }

 private:
  std::unique_ptr<Scratch> own_;
  Scratch* scratch_;
};

// Memory that is written, of a parameter or of its state; false: of another kind.
bool view_written(PyObject* object, const char* name, py::ssize_t i, MemoryView* array) {
  if (!view_memory(object, array)) return false;
  if (!array->is_writeable) {
    throw py::value_error(label(name, i) + " must be writable, but it is read-only");
  }
  if (!array->is_aligned || !array->is_dense()) {
    throw py::value_error(label(name, i) +
                          " must be aligned, and its elements lie without gaps, because it is "
                          "updated in place");
  }
  return true;
}

bool view_state(const AdamConfig& config, PyObject* object, std::size_t k, py::ssize_t i,
                const MemoryView& param, ParameterSpec* spec) {
  MemoryView array;
  const char* const name = kStateNames[k];
  if (!view_written(object, name, i, &array)) return false;
  const bool is_delta = k == kStateKinds;
  const DType wanted =
      is_delta ? param.dtype : state_dtype(static_cast<StateKind>(k), config, param.dtype);
  if (array.dtype != wanted) {
    throw py::type_error(label(name, i) + " must be of type " +
                         kDTypeNames[static_cast<std::size_t>(wanted)] + ", got " +
                         kDTypeNames[static_cast<std::size_t>(array.dtype)]);
  }
  if (!array.has_shape_of(param) || !array.has_strides_of(param)) {
    throw py::value_error(label(name, i) +
                          " must have the shape of its parameter, and lie in memory like it");
  }
  if (array.device != param.device) {
    throw py::value_error(label(name, i) + " must be where its parameter is");
  }
  (is_delta ? spec->delta : spec->states[k]) = array.data;
  return true;
}

// The steps: an array of int64, which is used in place, or a list of int.
class Steps {
 public:
  Steps(PyObject* given, py::ssize_t count, std::vector<std::int64_t>& memory) {
    if (PyList_Check(given)) {
      list_ = given;
      for (py::ssize_t i = 0; i < PyList_GET_SIZE(given); ++i) {
        PyObject* const item = PyList_GET_ITEM(given, i);
        if (!PyLong_Check(item) || PyBool_Check(item)) {
          throw py::type_error(label("steps", i) + " must be an int, got " +
                               Py_TYPE(item)->tp_name);
        }
        memory.push_back(PyLong_AsLongLong(item));
        if (memory.back() == -1 && PyErr_Occurred() != nullptr) {
          PyErr_Clear();
          throw py::value_error(label("steps", i) + " must be in [0, 2^62]");
        }
      }
      span_ = memory;
    } else {
      if (!py::isinstance<py::array_t<std::int64_t>>(given)) {
        throw py::type_error("steps must be an array of int64 or a list of int, got " +
                             std::string(Py_TYPE(given)->tp_name));
      }
      auto array = py::reinterpret_borrow<py::array>(given);
      constexpr int kWanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ |
                              py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                              py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
      if ((array.flags() & kWanted) != kWanted) {
        throw py::value_error("steps must be writable, contiguous and aligned: it is counted in");
      }
      span_ = {static_cast<std::int64_t*>(array.mutable_data()),
               static_cast<std::size_t>(array.size())};
    }
    if (span_.size == static_cast<std::size_t>(count)) return;
    throw py::value_error("steps must hold one number for each of the " + std::to_string(count) +
                          " parameters, got " + std::to_string(span_.size));
  }

  Span<std::int64_t> span() const { return span_; }

  // Puts the numbers back where they came from.
  void store() const {
    for (std::size_t i = 0; list_ != nullptr && i < span_.size; ++i) {
      PyObject* const step = PyLong_FromLongLong(span_[i]);
      if (step == nullptr) throw py::error_already_set();
      if (PyList_SetItem(list_, static_cast<py::ssize_t>(i), step) != 0) {
        throw py::error_already_set();
      }
    }
  }

 private:
  PyObject* list_ = nullptr;
  Span<std::int64_t> span_;
};

// A learning rate or weight decay.
double number(PyObject* given, const char* name) {
  const double value = PyFloat_AsDouble(given);
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw py::type_error(std::string(name) + " must be a float or int, got " +
                         Py_TYPE(given)->tp_name);
  }
  if (!(value >= 0.0) || std::isinf(value)) {
    throw py::value_error(std::string(name) + " must be a finite number >= 0, got " +
                          py::repr(given).cast<std::string>());
  }
  return value;
}

constexpr std::size_t kGivenStates[] = {
    static_cast<std::size_t>(StateKind::moment1), static_cast<std::size_t>(StateKind::moment2),
    static_cast<std::size_t>(StateKind::vhat),    static_cast<std::size_t>(StateKind::master),
    static_cast<std::size_t>(StateKind::ema),     kStateKinds};

void check_length(const Items& items, py::ssize_t wanted, const char* name) {
  if (items.size == wanted) return;
  throw py::value_error(std::string(name) + " must hold one array for each of the " +
                        std::to_string(wanted) + " parameters, got " + std::to_string(items.size));
}

// The lists of a call.
struct Lists {
  Items params;
  Items grads;
  Items states[std::size(kGivenStates)];

  Lists(PyObject* const* args, PyObject* const* given)
      : params(args[kParams], "params"), grads(args[kGrads], "grads") {
    check_length(grads, params.size, "grads");
    for (std::size_t s = 0; s < std::size(kGivenStates); ++s) {
      const char* const name = kStateNames[kGivenStates[s]];
      states[s] = Items(given[s], name);
      if (states[s].items != nullptr) check_length(states[s], params.size, name);
    }
  }
};

// Fills specs and gradients; false if an object is of another kind.
bool read(const Lists& lists, bool centralize, const AdamConfig& config, Scratch& scratch) {
  const auto& [params, grads, states] = lists;
  const auto count = static_cast<std::size_t>(params.size);
  scratch.specs.assign(count, {});
  scratch.grads.assign(count, {});
  scratch.read.clear(count);
  MemoryView param;
  for (py::ssize_t i = 0; i < params.size; ++i) {
    ParameterSpec& spec = scratch.specs[static_cast<std::size_t>(i)];
    if (!view_written(params.items[i], "params", i, &param)) return false;
    spec.data = param.data;
    spec.count = param.count;
    spec.dtype = param.dtype;
    spec.device = param.device;
    spec.centralize = centralize;
    spec.rows = param.axes == 0 ? 1 : param.lengths[0];
    spec.axes = param.axes == 0 ? 1 : param.axes;
    spec.second_axis = param.axes < 2 ? 0 : param.lengths[1];
    if (param.stream != nullptr) scratch.read.streams.push_back(param.stream);
    for (std::size_t s = 0; s < std::size(kGivenStates); ++s) {
      if (states[s].items == nullptr) continue;
      if (!view_state(config, states[s].items[i], kGivenStates[s], i, param, &spec)) return false;
    }
    Gradient& grad = scratch.grads[static_cast<std::size_t>(i)];
    if (!view_grad(grads.items[i], param, &scratch.read, &grad)) return false;
    if ((centralize || grad.rows != nullptr) && !param.is_c_contiguous()) {
      throw py::value_error(label("params", i) +
                            " must be C-contiguous for grad_centralization and sparse gradients");
    }
  }
  return true;
}

void read_keys(PyObject* given, Scratch& scratch) {
  if (given == Py_None) return;
  const Items keys(given, "keys");
  check_length(keys, static_cast<py::ssize_t>(scratch.specs.size()), "keys");
  for (std::size_t i = 0; i < scratch.specs.size(); ++i) {
    scratch.specs[i].key = py::handle(keys.items[i]).cast<std::int64_t>();
  }
}

PyObject* step(PyObject* const* args, PyObject* const* states) {
  if (args[kSteps] == nullptr) throw py::type_error("adam() needs the argument 'steps'");
  const auto& config = py::handle(args[kConfig]).cast<const AdamConfig&>();
  const ScratchLease lease;
  Scratch& scratch = *lease;
  const Lists lists(args, states);
  const bool centralize = PyObject_IsTrue(args[kCentralize]) == 1;
  if (!read(lists, centralize, config, scratch)) Py_RETURN_NOTIMPLEMENTED;
  read_keys(args[kKeys], scratch);
  scratch.steps.clear();
  const Steps steps(args[kSteps], static_cast<py::ssize_t>(scratch.specs.size()), scratch.steps);
  const Rates rates{number(args[kLearningRate], "learning_rate"),
                    number(args[kWeightDecay], "weight_decay")};
  UpdateResult result;
  const Queueing queueing{scratch.read.streams.empty() ? nullptr : scratch.read.streams.front(),
                          scratch.read.streams};
  const Status status = without_gil([&] {
    return scratch.update.step(config, scratch.specs, scratch.grads, {&rates, 1}, steps.span(),
                               &result, {}, queueing);
  });
  if (!status.ok()) {
    const bool has_index = status.index() >= 0;
    raise_if_error(status,
                   has_index ? ": params[" + std::to_string(status.index()) + "]" : std::string());
  }
  if (!result.skipped) advance_versions(lists.params.items, scratch.grads);
  steps.store();
  return PyBool_FromLong(result.skipped ? 0 : 1);
}

PyObject* call_update(PyObject*, PyObject* const* args, py::ssize_t count) {
  if (count != kArguments || !PyTuple_Check(args[kStates]) ||
      PyTuple_GET_SIZE(args[kStates]) != static_cast<py::ssize_t>(std::size(kGivenStates))) {
    PyErr_SetString(PyExc_TypeError, "update() takes 9 arguments, with a tuple of 6 states");
    return nullptr;
  }
  last_config() = args[kConfig];
  return update(args, reinterpret_cast<PyTupleObject*>(args[kStates])->ob_item);
}

PyMethodDef kMethods[] = {
    {"update", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_update)),
     METH_FASTCALL,
     "Make one step over arrays of the caller's; NotImplemented for unknown arrays."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyObject*& last_config() {
  thread_local PyObject* config = nullptr;
  return config;
}

PyObject* update(PyObject* const* args, PyObject* const* states) {
  try {
    return step(args, states);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

void register_update(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), kMethods) != 0) throw py::error_already_set();
}

}  // namespace adamas::bindings
