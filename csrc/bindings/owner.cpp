#include "bindings/owner.hpp"

#include <algorithm>

#include "bindings/dlpack.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// The address alone.
const void* address_of(py::handle owner) {
  DLTensor tensor;
  const DLExchange* exchange = DLExchange::of(Py_TYPE(owner.ptr()));
  if (exchange != nullptr && exchange->describe(owner, &tensor)) return tensor.first();
  return reinterpret_cast<const void*>(owner.attr("data_ptr")().cast<std::uintptr_t>());
}

// torch's address, shape, strides and type in one call of C; of others the address.
bool is_in_place(py::handle owner, const BoundParameter& parameter) {
  if (DLExchange::of(Py_TYPE(owner.ptr())) != nullptr) {
    HostArray now;
    return describe_exchanged(owner, &now) && now.dtype == parameter.dtype() &&
           parameter.has_shape_of(now) && parameter.is_laid_out_like(now) &&
           (now.data == parameter.data() || parameter.count() == 0);
  }
  return parameter.count() == 0 || address_of(owner) == parameter.data();
}

// The module if it is imported, or null.
py::object imported_torch() {
  const auto modules = py::module_::import("sys").attr("modules").cast<py::dict>();
  if (!modules.contains("torch")) return {};
  const py::object torch = modules["torch"];
  return py::hasattr(torch, "Tensor") ? torch : py::object();  // none yet while it is imported
}

// torch's function that counts for a list of tensors, or null.
py::object torch_increment(const py::object& torch) {
  try {
    py::object increment = torch.attr("autograd").attr("graph").attr("increment_version");
    increment(py::list());  // before torch 2.5 it takes no lists
    return increment;
  } catch (const py::error_already_set&) {
    return {};
  }
}

bool has_version(const py::object& torch, py::handle owner) {
  return py::isinstance(owner, torch.attr("Tensor")) && !owner.attr("is_inference")().cast<bool>();
}

}  // namespace

bool tells_memory(py::handle owner) {
  return !py::isinstance<py::array>(owner) && py::hasattr(owner, "data_ptr");
}

void check_owner(py::handle owner, const BoundParameter& parameter) {
  if (is_in_place(owner, parameter)) return;
  throw py::value_error(
      "parameter '" + parameter.name() +
      "' must keep its memory, but its data was replaced, resized, moved or given "
      "another type; call rebind(data) of the Parameter, or make a new optimizer");
}

void check_state_owner(py::handle owner, const void* data, const std::string& label) {
  if (address_of(owner) == data) return;
  throw py::value_error(label +
                        " must keep its memory, but it was replaced, resized or moved; make "
                        "a new optimizer");
}

VersionCounters::VersionCounters(const std::vector<py::object>& owners) {
  const py::object torch = imported_torch();
  if (!torch) return;
  tensors_.resize(owners.size());
  for (std::size_t i = 0; i < owners.size(); ++i) {
    if (!has_version(torch, owners[i])) continue;
    all_.append(owners[i]);
    tensors_[i] = owners[i];
  }
  if (!all_.empty()) increment_ = torch_increment(torch);
}

// The step is made: an error here must not say that it was not.
void VersionCounters::advance(const py::object& tensors) const {
  const auto done =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(increment_.ptr(), tensors.ptr()));
  if (!done) PyErr_WriteUnraisable(increment_.ptr());
}

void VersionCounters::advance(const std::vector<Gradient>& grads) const {
  if (!increment_) return;
  const auto is_absent = [](const Gradient& grad) { return grad.is_absent; };
  if (std::none_of(grads.begin(), grads.end(), is_absent)) return advance(all_);
  py::list written;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (tensors_[i] && !grads[i].is_absent) written.append(tensors_[i]);
  }
  advance(written);
}

void VersionCounters::advance(std::size_t i) const {
  if (increment_ && tensors_[i]) advance(tensors_[i]);
}

void advance_versions(PyObject* const* params, const std::vector<Gradient>& grads) {
  py::list written;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (grads[i].is_absent || DLExchange::of(Py_TYPE(params[i])) == nullptr) continue;
    written.append(py::handle(params[i]));
  }
  if (written.empty()) return;
  // Looked up once: there are such objects, and so there is torch, or else another library.
  static thread_local PyObject* const increment = [] {
    const py::object torch = imported_torch();
    return torch ? torch_increment(torch).release().ptr() : nullptr;
  }();
  if (increment == nullptr) return;
  if (py::reinterpret_steal<py::object>(PyObject_CallOneArg(increment, written.ptr()))) return;
  PyErr_Clear();  // one of them has no version: made in inference mode, or not torch's
  for (const py::handle one : written) {
    if (!py::reinterpret_steal<py::object>(PyObject_CallOneArg(increment, one.ptr()))) {
      PyErr_Clear();
    }
  }
}

}  // namespace adamas::bindings
