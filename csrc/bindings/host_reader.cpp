#include "bindings/host_reader.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

#include "bindings/owner.hpp"
#include "cpu/thread_pool.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

// Parameters that one thread looks at together; fewer than two such parts are not worth sharing.
constexpr std::size_t kPart = 500;

// What convert_ returned is checked once more: it decides which memory is read.
void view_rows(py::handle pair, const BoundParameter& parameter, RowIndices* rows,
               Gradient* gradient) {
  const auto [indices, values] = pair.cast<std::pair<py::array, py::array>>();
  rows->data = indices.data();
  rows->count = indices.size();
  rows->is_int64 = indices.itemsize() == 8;
  gradient->values = values.data();
  gradient->rows = rows;
  const bool fits =
      indices.dtype().kind() == 'i' && indices.itemsize() >= 4 &&
      (indices.flags() & py::array::c_style) != 0 && (values.flags() & py::array::c_style) != 0 &&
      values.size() == rows->count * parameter.row_length() &&
      find_dtype(values, &gradient->dtype) && goes_with(gradient->dtype, parameter.dtype());
  if (!fits) throw py::type_error("a sparse gradient could not be converted");
}

// Gradients to be viewed by several threads.
struct Job {
  const BoundParameter* parameters;
  PyObject* const* grads;
  std::size_t count;
  Gradient* gradients;
  std::atomic<bool> viewed_all{true};

  void view_part(std::size_t first) {
    const std::size_t part = std::min(kPart, count - first);
    if (!BoundParameter::view(parameters + first, grads + first, part, gradients + first)) {
      viewed_all.store(false, std::memory_order_relaxed);
    }
  }
};

}  // namespace

ParameterSpec HostReader::add(const PyParameter& parameter, std::vector<void*>*) {
  const BoundParameter& bound =
      parameters_.emplace_back(parameter.array.cast<py::array>(), parameter.name);
  dense_only_.push_back(parameter.centralize);
  if (parameter.centralize && !bound.is_c_contiguous()) {
    throw py::value_error("parameter '" + bound.name() +
                          "' must be C-contiguous to have grad_centralization, which takes the "
                          "means of its rows");
  }
  set_owner(size() - 1, parameter.owner());
  const py::array& array = bound.array();
  ParameterSpec spec;
  spec.data = bound.data();
  spec.count = bound.count();
  spec.dtype = bound.dtype();
  set_shape(array.shape(), array.ndim(), &spec);
  return spec;
}

void* HostReader::memory_of(std::size_t i, const PyParameter& parameter) const {
  const BoundParameter& before = parameters_.at(i);
  const BoundParameter now(parameter.array.cast<py::array>(), parameter.name);
  if (now.dtype() != before.dtype() || now.layout() != before.layout()) {
    throw py::value_error("parameter '" + before.name() +
                          "' must be rebound to memory of the same type, shape and order of axes");
  }
  const py::object owner = parameter.owner();
  if (tells_memory(owner)) check_owner(owner, now);
  return now.data();
}

void HostReader::rebind(std::size_t i, const PyParameter& parameter) {
  parameters_[i] = BoundParameter(parameter.array.cast<py::array>(), parameter.name);
  set_owner(i, parameter.owner());
}

void HostReader::set_owner(std::size_t i, py::object owner) {
  const bool tells = tells_memory(owner);
  if (!tells && owners_.empty()) return;
  owners_.resize(size());
  owners_[i] = tells ? std::move(owner) : py::object();
  if (tells) check_owner_of(i);
}

void HostReader::shrink(std::size_t size) {
  parameters_.erase(parameters_.begin() + static_cast<std::ptrdiff_t>(size), parameters_.end());
  dense_only_.resize(size);
  if (owners_.size() > size) owners_.resize(size);
}

std::vector<py::ssize_t> HostReader::shape(std::size_t i) const {
  const py::array& array = parameters_.at(i).array();
  return {array.shape(), array.shape() + array.ndim()};
}

std::vector<py::ssize_t> HostReader::steps(std::size_t i) const {
  const BoundParameter& parameter = parameters_.at(i);
  if (parameter.is_c_contiguous()) return {};
  return parameter.layout().steps;
}

Queueing HostReader::queueing(std::optional<std::uintptr_t> stream, const Views&) const {
  if (stream) throw py::value_error("stream must be None for parameters in CPU memory");
  return {};
}

void HostReader::read(const py::tuple& grads, int threads, Views& views) const {
  views.grads.resize(size());
  PyObject* const* items = reinterpret_cast<PyTupleObject*>(grads.ptr())->ob_item;
  if (!view_all(items, threads, views.grads.data())) {
    for (std::size_t i = 0; i < size(); ++i) {
      const Gradient& grad = views.grads[i];
      if (grad.values == nullptr && !grad.is_absent) convert(i, items[i], views, &views.grads[i]);
    }
    // After all conversions, which run foreign code.
    for (const BoundParameter& parameter : parameters_) parameter.check_unchanged();
  }
  for (std::size_t i = 0; i < owners_.size(); ++i) check_owner_of(i);
}

void HostReader::read(std::size_t i, py::handle grad, Views& views) const {
  const BoundParameter& one = parameters_.at(i);
  views.grads.assign(1, {});
  PyObject* item = grad.ptr();
  if (item == Py_None || !BoundParameter::view(&one, &item, 1, views.grads.data())) {
    if (views.grads[0].values == nullptr) convert(i, grad, views, views.grads.data());
    one.check_unchanged();
  }
  if (!owners_.empty()) check_owner_of(i);
}

void HostReader::check_unchanged(std::size_t i) const {
  parameters_.at(i).check_unchanged();
  if (!owners_.empty()) check_owner_of(i);
}

void HostReader::check_owner_of(std::size_t i) const {
  if (owners_[i]) check_owner(owners_[i], parameters_[i]);
}

// False if a gradient needs to be converted, whose `values` are then null, or if a parameter has
// changed.  The caller holds the GIL for all threads, which only read.
bool HostReader::view_all(PyObject* const* grads, int threads, Gradient* gradients) const {
  Job job{parameters_.data(), grads, size(), gradients};
  const std::size_t parts = (size() + kPart - 1) / kPart;
  cpu::PoolLease pool(parts < 2 ? 1 : threads);
  pool.run(
      [](void* self, std::int64_t part) {
        static_cast<Job*>(self)->view_part(static_cast<std::size_t>(part) * kPart);
      },
      &job, static_cast<std::int64_t>(parts));
  return job.viewed_all.load(std::memory_order_relaxed);
}

bool HostReader::place(const BoundParameter& parameter, py::handle grad, Views& views,
                       Gradient* gradient) const {
  HostArray array;
  if (!describe(grad, &array, &views.converted) || !parameter.has_shape_of(array)) return false;
  const bool fits = goes_with(array.dtype, parameter.dtype());
  gradient->dtype = fits ? array.dtype : real_type(parameter.dtype());
  gradient->values = array.data;
  if (fits && parameter.is_laid_out_like(array)) return true;
  if (!can_copy(array.dtype, gradient->dtype)) return false;
  const std::size_t nbytes =
      static_cast<std::size_t>(parameter.count()) * item_size(gradient->dtype);
  char* const memory = views.copies.emplace_back(new char[nbytes]).get();
  copy(array, parameter.layout().order, gradient->dtype, memory);
  gradient->values = memory;
  return true;
}

void HostReader::convert(std::size_t i, py::handle grad, Views& views, Gradient* gradient) const {
  const BoundParameter& parameter = parameters_[i];
  if (place(parameter, grad, views, gradient)) return;
  *gradient = {};
  const std::string label =
      "grads[" + std::to_string(i) + "] (for parameter '" + parameter.name() + "')";
  const py::object result = convert_(grad, parameter.array(), label);
  views.converted.push_back(result);
  if (!PyTuple_Check(result.ptr())) {
    if (place(parameter, result, views, gradient)) return;
    throw py::type_error(label + " could not be converted");
  }
  if (dense_only_[i]) {
    throw py::value_error(label + " must be dense: the parameter has grad_centralization");
  }
  if (!parameter.is_c_contiguous()) {
    throw py::value_error(label + " must be dense: only a C-contiguous parameter has rows");
  }
  if (views.rows.empty()) views.rows.reserve(views.grads.size());
  view_rows(result, parameter, &views.rows.emplace_back(), gradient);
}

}  // namespace adamas::bindings
