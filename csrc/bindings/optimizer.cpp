#include "bindings/optimizer.hpp"

#include <pybind11/stl.h>

#include <string>

#include "bindings/device_array.hpp"
#include "bindings/dtypes.hpp"
#include "bindings/register.hpp"
#include "bindings/without_gil.hpp"
#include "core/internals.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// The scratch memory of a call, kept for the next.  A call beside another gets memory of its own.
class ViewsLease {
 public:
  explicit ViewsLease(std::atomic<Views*>& idle) : idle_(idle), views_(idle.exchange(nullptr)) {
    if (!views_) views_ = std::make_unique<Views>();
  }
  ~ViewsLease() {
    views_->converted.clear();
    views_->copies.clear();
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

// A tuple holds its items while the GIL is released; a list could be changed by another thread.
py::tuple as_tuple(py::handle grads) {
  if (PyTuple_Check(grads.ptr())) return py::reinterpret_borrow<py::tuple>(grads);
  if (PyList_Check(grads.ptr())) {
    return py::reinterpret_steal<py::tuple>(PyList_AsTuple(grads.ptr()));
  }
  const char* const hint = PyIter_Check(grads.ptr()) != 0     ? "; pass list(grads)"
                           : py::hasattr(grads, "__dlpack__") ? "; pass (grad,) for one parameter"
                                                              : "";
  throw py::type_error("grads must be a tuple or list with one gradient for each parameter, got " +
                       std::string(Py_TYPE(grads.ptr())->tp_name) + hint);
}

// The memory of an array of state of the caller's, which python/adamas has checked; null if empty.
void* state_memory(const py::object& array) {
  if (py::isinstance<DeviceArray>(array)) return array.cast<const DeviceArray&>().data();
  auto host = array.cast<py::array>();
  return host.size() == 0 ? nullptr : host.mutable_data();
}

// Whether the items are floats in fewer bits, or their scales.
bool is_encoded(const StateLayout& layout) {
  return layout.type == ItemType::uint8 || layout.type == ItemType::uint16;
}

// The elements of an array of the same shape, each in its place.
void assign(const py::array& to, const py::array& from) {
  to.attr("__setitem__")(py::ellipsis(), from);
}

// How often Parameters were given other memory in this process.
std::atomic<std::uint64_t>& rebindings() {
  static std::atomic<std::uint64_t> count{0};
  return count;
}

std::vector<py::object> owners_of(const std::vector<PyParameter>& parameters) {
  std::vector<py::object> owners;
  for (const PyParameter& parameter : parameters) owners.push_back(parameter.owner());
  return owners;
}

// What the caller's state belongs to, as far as that can tell where it is.  Raises ValueError if it
// has moved.
std::vector<StateOwner> state_owners_of(const std::vector<PyParameter>& parameters) {
  std::vector<StateOwner> owners;
  for (const PyParameter& parameter : parameters) {
    for (const auto& [kind, array] : parameter.states) {
      if (parameter.source.is_none() || !py::isinstance<py::array>(array)) continue;
      const std::string name = kStateKindNames[static_cast<std::size_t>(kind)];
      py::object owner = parameter.source.attr(name.c_str());
      const auto memory = array.cast<py::array>();
      if (memory.size() == 0 || !tells_memory(owner)) continue;
      const std::string label = name + " of parameter '" + parameter.name + "'";
      check_state_owner(owner, memory.data(), label);
      owners.push_back({std::move(owner), memory.data(), label});
    }
  }
  return owners;
}

}  // namespace

void note_rebinding() { rebindings().fetch_add(1); }

PyRates::PyRates(const std::vector<std::pair<double, double>>& pairs) {
  list.reserve(pairs.size());
  for (const auto& [learning_rate, weight_decay] : pairs) {
    list.push_back({learning_rate, weight_decay});
  }
}

PyRates PyRates::with(double Rates::* member, const std::vector<std::size_t>& elements,
                      double value) const {
  PyRates changed = *this;
  for (const std::size_t k : elements) changed.list.at(k).*member = value;
  return changed;
}

PyOptimizer::PyOptimizer(const std::vector<PyParameter>& parameters, const AdamConfig& config,
                         const py::function& convert, const std::vector<AdamConfig>& groups)
    : parameters_(parameters),
      followed_(rebindings().load()),
      versions_(owners_of(parameters)),
      state_owners_(state_owners_of(parameters)),
      reader_(make_reader(parameters, convert)) {
  std::vector<void*> streams;
  const std::vector<ParameterSpec> specs = read_parameters(parameters, config, &streams);
  raise(Optimizer::create(config, specs, &native_, streams, groups));
}

std::vector<ParameterSpec> PyOptimizer::read_parameters(const std::vector<PyParameter>& parameters,
                                                        const AdamConfig& config,
                                                        std::vector<void*>* streams) {
  std::vector<ParameterSpec> specs;
  for (const PyParameter& parameter : parameters) {
    specs.push_back(reader_->add(parameter, streams));
    specs.back().rates = parameter.rates;
    specs.back().centralize = parameter.centralize;
    specs.back().key = parameter.key;
    for (const auto& [kind, array] : parameter.states) {
      specs.back().states[static_cast<std::size_t>(kind)] = state_memory(array);
    }
    check_layout(config, reader_->size() - 1);
  }
  return specs;
}

void PyOptimizer::add(const std::vector<PyParameter>& parameters,
                      const std::vector<AdamConfig>& groups) {
  follow();
  const std::size_t before = reader_->size();
  std::vector<void*> streams;
  try {
    std::vector<PyParameter> all = parameters_;
    all.insert(all.end(), parameters.begin(), parameters.end());
    VersionCounters versions(owners_of(all));
    std::vector<StateOwner> state_owners = state_owners_of(all);
    const std::vector<ParameterSpec> specs =
        read_parameters(parameters, native_->config(), &streams);
    raise(without_gil([&] { return native_->add(specs, groups, streams); }));
    parameters_ = std::move(all);
    versions_ = std::move(versions);
    state_owners_ = std::move(state_owners);
  } catch (...) {
    reader_->shrink(before);
    throw;
  }
}

void PyOptimizer::check_state_owners() const {
  for (const StateOwner& owner : state_owners_) {
    check_state_owner(owner.object, owner.data, owner.label);
  }
}

// Takes the memory of Parameters that were rebound, or raises and changes nothing.
void PyOptimizer::follow() {
  const std::uint64_t latest = rebindings().load();
  if (latest == followed_.load(std::memory_order_relaxed)) return;
  std::unique_lock<std::mutex> lock(following_, std::defer_lock);
  {
    const py::gil_scoped_release released;  // who has the lock may wait for that of Python
    lock.lock();
  }
  std::vector<NewMemory> moved;
  std::vector<PyParameter> parameters = parameters_;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    PyParameter& parameter = parameters[i];
    if (parameter.source.is_none()) continue;
    const py::object memory = parameter.source.attr("memory");
    if (memory.is(parameter.array)) continue;
    parameter.array = memory;
    moved.push_back({i, reader_->memory_of(i, parameter)});
  }
  if (!moved.empty()) {
    raise(without_gil([&] { return native_->rebind({moved.data(), moved.size()}); }));
    for (const NewMemory& one : moved) reader_->rebind(one.parameter, parameters[one.parameter]);
    parameters_ = std::move(parameters);
    versions_ = VersionCounters(owners_of(parameters_));
  }
  followed_.store(latest);
}

void PyOptimizer::step(py::handle grads, const PyRates& rates,
                       std::optional<std::uintptr_t> stream) {
  const py::tuple list = as_tuple(grads);
  check_count(list);
  follow();
  const ViewsLease views(idle_views_);
  reader_->read(list, native_->num_threads(), *views);
  check_state_owners();
  const Queueing queueing = reader_->queueing(stream, *views);
  raise(without_gil([&] { return native_->step(views.grads(), rates.list, queueing); }));
  versions_.advance((*views).grads);
}

void PyOptimizer::accumulate(py::handle grads, std::optional<std::uintptr_t> stream) {
  const py::tuple list = as_tuple(grads);
  check_count(list);
  follow();
  const ViewsLease views(idle_views_);
  reader_->read(list, native_->num_threads(), *views);
  const Queueing queueing = reader_->queueing(stream, *views);
  raise(without_gil([&] { return native_->accumulate(views.grads(), queueing); }));
}

void PyOptimizer::step_accumulated(const PyRates& rates, std::optional<std::uintptr_t> stream) {
  follow();
  const Views none;
  const Queueing queueing = reader_->queueing(stream, none);
  raise(without_gil([&] { return native_->step_accumulated(rates.list, queueing); }));
  versions_.advance(std::vector<Gradient>(reader_->size()));
}

void PyOptimizer::begin_step(const PyRates& rates) {
  follow();
  raise(without_gil([&] { return native_->begin_step(rates.list); }));
}

void PyOptimizer::apply(std::size_t i, py::handle grad, std::optional<std::uintptr_t> stream) {
  follow();
  const ViewsLease views(idle_views_);
  reader_->read(i, grad, *views);
  check_state_owners();
  const Queueing queueing = reader_->queueing(stream, *views);
  raise(without_gil([&] { return native_->apply(i, views.grads()[0], queueing); }));
  versions_.advance(i);
}

void PyOptimizer::end_step(bool skip_missing) {
  raise(without_gil([&] { return native_->end_step(skip_missing); }));
}

void PyOptimizer::cancel_step() {
  raise(without_gil([&] { return native_->cancel_step(); }));
}

void PyOptimizer::set_rates(const PyRates& rates, std::uintptr_t stream) {
  raise(
      without_gil([&] { return native_->set_rates(rates.list, reinterpret_cast<void*>(stream)); }));
}

bool PyOptimizer::is_capturing(py::handle grads, std::optional<std::uintptr_t> stream) const {
  Views views;
  if (!stream) reader_->find_streams(as_tuple(grads), &views.streams);
  return core::Internals::is_capturing(*native_, reader_->queueing(stream, views).stream);
}

void PyOptimizer::set_loss_scale(double loss_scale) {
  raise(without_gil([&] { return native_->set_loss_scale(loss_scale); }));
}

void PyOptimizer::set_global_step(std::int64_t step) {
  raise(without_gil([&] { return native_->set_global_step(step); }));
}

void PyOptimizer::set_group(std::size_t k, const AdamConfig& group) {
  raise(without_gil([&] { return native_->set_group(k, group); }));
}

std::vector<std::int64_t> PyOptimizer::steps() const {
  std::vector<std::int64_t> steps(reader_->size());
  raise(without_gil([&] { return native_->steps(steps); }));
  return steps;
}

void PyOptimizer::set_steps(const std::vector<std::int64_t>& steps) {
  raise(without_gil([&] { return native_->set_steps(steps); }));
}

py::object PyOptimizer::state(StateKind kind, std::size_t i, const py::object& self) const {
  const StateLayout layout = native_->layout(kind, i);
  if (!layout.is_kept) return py::none();
  if (kind <= StateKind::moment2 && is_encoded(layout)) return decoded(kind, i);
  const py::dtype dtype = dtype_of(layout.type);
  const std::vector<py::ssize_t> shape = shape_of(layout, i);
  void* data = native_->state(kind, i);
  if (data == nullptr) return py::array(dtype, shape);  // empty
  if (native_->device() != kCpu) {
    return py::cast(DeviceArray(data, shape, dtype, native_->device(), self));
  }
  if (layout.is_like_parameter) return like_parameter(i, dtype, data, self);
  return py::array(dtype, shape, data, self);
}

py::array PyOptimizer::stored(StateKind kind, std::size_t i, const py::object& self) const {
  const StateLayout layout = native_->layout(kind, i);
  if (!is_encoded(layout)) throw py::value_error("there is no such state in a stored format");
  const py::dtype dtype = dtype_of(layout.type);
  void* data = native_->state(kind, i);
  if (data == nullptr) return py::array(dtype, layout.count);
  if (native_->device() == kCpu) return py::array(dtype, {layout.count}, data, self);
  py::array copy(dtype, layout.count);
  read_device(data, copy);
  return copy;
}

std::map<StateKind, std::pair<py::tuple, py::dtype>> PyOptimizer::layout(std::size_t i) const {
  std::map<StateKind, std::pair<py::tuple, py::dtype>> kept;
  for (std::size_t k = 0; k < kStateKinds; ++k) {
    const auto kind = static_cast<StateKind>(k);
    const StateLayout layout = native_->layout(kind, i);
    if (!layout.is_kept) continue;
    kept[kind] = {py::tuple(py::cast(shape_of(layout, i))), dtype_of(layout.type)};
  }
  return kept;
}

void PyOptimizer::read_device(const void* device, py::array& host) const {
  void* target = host.mutable_data();
  const auto nbytes = static_cast<std::size_t>(host.nbytes());
  raise(
      without_gil([&] { return core::Internals::read_device(*native_, device, target, nbytes); }));
}

void PyOptimizer::write_device(void* device, const py::array& host) {
  const void* source = host.data();
  const auto nbytes = static_cast<std::size_t>(host.nbytes());
  raise(
      without_gil([&] { return core::Internals::write_device(*native_, device, source, nbytes); }));
}

std::pair<Counters, std::vector<std::int64_t>> PyOptimizer::save(
    const std::vector<PyArrayCopy>& to) {
  follow();
  check_state_owners();
  std::vector<py::array> reordered;
  const std::vector<ArrayCopy> copies = views(to, py::array::c_style | kWriteable, &reordered);
  Counters counters;
  std::vector<std::int64_t> steps(reader_->size());
  raise(without_gil([&] { return native_->save(copies, &counters, steps); }));
  auto ours = reordered.begin();
  for (const PyArrayCopy& copy : to) {
    if (is_reordered(copy)) assign(std::get<2>(copy), *ours++);
  }
  return {counters, steps};
}

void PyOptimizer::load(const std::vector<PyArrayCopy>& from, const Counters& counters,
                       const std::vector<std::int64_t>& steps) {
  follow();
  check_state_owners();
  std::vector<py::array> reordered;
  const std::vector<ArrayCopy> copies = views(from, py::array::c_style, &reordered);
  raise(without_gil([&] { return native_->load(copies, counters, steps); }));
  for (const ArrayCopy& copy : copies) {
    if (!copy.kind) versions_.advance(copy.parameter);
  }
}

// Of an array of state of parameter i.
std::vector<py::ssize_t> PyOptimizer::shape_of(const StateLayout& layout, std::size_t i) const {
  if (layout.is_like_parameter) return reader_->shape(i);
  return {static_cast<py::ssize_t>(layout.count)};
}

void PyOptimizer::check_count(const py::tuple& grads) const {
  if (grads.size() == reader_->size()) return;
  throw py::value_error("grads must hold one gradient for each of the " +
                        std::to_string(reader_->size()) + " parameters, got " +
                        std::to_string(grads.size()));
}

// An array of the shape of parameter i, laid out as it: over `data`, or new.
py::array PyOptimizer::like_parameter(std::size_t i, const py::dtype& dtype, const void* data,
                                      const py::object& owner) const {
  std::vector<py::ssize_t> strides = reader_->steps(i);
  for (py::ssize_t& stride : strides) stride *= dtype.itemsize();
  if (data == nullptr) return py::array(dtype, reader_->shape(i), strides);
  return py::array(dtype, reader_->shape(i), strides, data, owner);
}

// Formats and policies that go by rows need these one after the other.
void PyOptimizer::check_layout(const AdamConfig& config, std::size_t i) const {
  const char* const option = config.state_format == StateFormat::int8   ? "state_dtype='int8'"
                             : config.row_policy == RowPolicy::catch_up ? "row_policy='catch_up'"
                                                                        : nullptr;
  if (option == nullptr || reader_->steps(i).empty()) return;
  throw py::value_error("parameter '" + reader_->name(i) + "' must be C-contiguous with " + option);
}

// Whether an array of the optimizer's lies in another order than a copy of it, which is as in C: so
// that files don't depend on it.
bool PyOptimizer::is_reordered(const PyArrayCopy& copy) const {
  const auto& [i, kind, array] = copy;
  const bool is_like_parameter = !kind || native_->layout(*kind, i).is_like_parameter;
  return is_like_parameter && !reader_->steps(i).empty();
}

// Views arrays that have all of `flags`; the core looks at their sizes.  For those that are
// reordered, arrays in the optimizer's order, with the same values, are viewed and added.
std::vector<ArrayCopy> PyOptimizer::views(const std::vector<PyArrayCopy>& arrays, int flags,
                                          std::vector<py::array>* reordered) const {
  std::vector<ArrayCopy> copies;
  for (const PyArrayCopy& copy : arrays) {
    const auto& [i, kind, array] = copy;
    if ((array.flags() & flags) != flags) {
      throw py::value_error("an array to copy must be C-contiguous, and writable to be saved to");
    }
    if (!kind) reader_->check_unchanged(i);
    const void* data = array.data();
    if (is_reordered(copy)) {
      py::array& ours = reordered->emplace_back(like_parameter(i, array.dtype()));
      assign(ours, array);
      data = ours.data();
    }
    copies.push_back({i, kind, const_cast<void*>(data), static_cast<std::size_t>(array.nbytes())});
  }
  return copies;
}

// A read-only float32 copy of a moment that is stored in another format.
py::array PyOptimizer::decoded(StateKind kind, std::size_t i) const {
  py::array values = like_parameter(i, py::dtype::of<float>());
  auto* target = static_cast<float*>(values.mutable_data());
  raise(without_gil([&] { return native_->decode_moment(kind, i, target); }));
  values.attr("flags").attr("writeable") = false;
  return values;
}

// Names the parameter that a status speaks of.
void PyOptimizer::raise(const Status& status) const {
  if (status.index() < 0) return raise_if_error(status);
  raise_if_error(status, ": '" + reader_->name(static_cast<std::size_t>(status.index())) + "'");
}

}  // namespace adamas::bindings
