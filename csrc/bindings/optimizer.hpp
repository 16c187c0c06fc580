// adamas._core.Optimizer: the C++ optimizer with Python objects around it.
#pragma once

#include <pybind11/numpy.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "adamas/optimizer.hpp"
#include "bindings/owner.hpp"
#include "bindings/reader.hpp"

namespace adamas::bindings {

// The learning rates and weight decays of one step, ready for the core.
struct PyRates {
  std::vector<Rates> list;

  explicit PyRates(const std::vector<std::pair<double, double>>& pairs);
  // The same with another value of one member in some elements.  Raises IndexError if there are not
  // so many.
  PyRates with(double Rates::* member, const std::vector<std::size_t>& elements,
               double value) const;
};

// A parameter's position, a kind of state or None for the parameter itself, and the array that it
// is copied to or from.
using PyArrayCopy = std::tuple<std::size_t, std::optional<StateKind>, pybind11::array>;

// Tells all optimizers that a Parameter was given other memory: they look at theirs when they are
// used next.
void note_rebinding();

// What state of the caller's belongs to.
struct StateOwner {
  pybind11::object object;
  const void* data;
  std::string label;
};

// Calls run without Python's global lock, and raise what a Status says, naming the parameter.
class PyOptimizer {
 public:
  // `convert` is that of make_reader().
  PyOptimizer(const std::vector<PyParameter>& parameters, const AdamConfig& config,
              const pybind11::function& convert, const std::vector<AdamConfig>& groups);
  ~PyOptimizer() { delete idle_views_.load(); }
  PyOptimizer(const PyOptimizer&) = delete;
  PyOptimizer& operator=(const PyOptimizer&) = delete;

  // Adds parameters and groups at the end, or raises and changes nothing.
  void add(const std::vector<PyParameter>& parameters, const std::vector<AdamConfig>& groups);

  void step(pybind11::handle grads, const PyRates& rates, std::optional<std::uintptr_t> stream);
  void accumulate(pybind11::handle grads, std::optional<std::uintptr_t> stream);
  void step_accumulated(const PyRates& rates, std::optional<std::uintptr_t> stream);
  void begin_step(const PyRates& rates);
  void apply(std::size_t i, pybind11::handle grad, std::optional<std::uintptr_t> stream);
  void end_step(bool skip_missing);
  void cancel_step();

  void set_rates(const PyRates& rates, std::uintptr_t stream);
  // Whether the stream that a step with these gradients would be queued on is being captured.
  bool is_capturing(pybind11::handle grads, std::optional<std::uintptr_t> stream) const;

  void set_loss_scale(double loss_scale);
  void set_global_step(std::int64_t step);
  void set_group(std::size_t k, const AdamConfig& group);
  std::vector<std::int64_t> steps() const;
  void set_steps(const std::vector<std::int64_t>& steps);

  // The state of parameter i as an array that keeps `self`, this object, alive, or None.
  pybind11::object state(StateKind kind, std::size_t i, const pybind11::object& self) const;
  // The memory of a moment or of its scales in its stored format, as unsigned integers.
  pybind11::array stored(StateKind kind, std::size_t i, const pybind11::object& self) const;
  // The shape and type of each array that is kept for parameter i.
  std::map<StateKind, std::pair<pybind11::tuple, pybind11::dtype>> layout(std::size_t i) const;

  // Copies between the device and an array of the host, after the last step.
  void read_device(const void* device, pybind11::array& host) const;
  void write_device(void* device, const pybind11::array& host);

  // The counters, and the steps of each parameter.
  std::pair<Counters, std::vector<std::int64_t>> save(const std::vector<PyArrayCopy>& to);
  void load(const std::vector<PyArrayCopy>& from, const Counters& counters,
            const std::vector<std::int64_t>& steps);

  const Optimizer& native() const { return *native_; }
  Optimizer& native() { return *native_; }

 private:
  void follow();
  std::vector<ParameterSpec> read_parameters(const std::vector<PyParameter>& parameters,
                                             const AdamConfig& config, std::vector<void*>* streams);
  void check_state_owners() const;
  void check_count(const pybind11::tuple& grads) const;
  std::vector<pybind11::ssize_t> shape_of(const StateLayout& layout, std::size_t i) const;
  pybind11::array like_parameter(std::size_t i, const pybind11::dtype& dtype,
                                 const void* data = nullptr,
                                 const pybind11::object& owner = {}) const;
  bool is_reordered(const PyArrayCopy& copy) const;
  void check_layout(const AdamConfig& config, std::size_t i) const;
  std::vector<ArrayCopy> views(const std::vector<PyArrayCopy>& arrays, int flags,
                               std::vector<pybind11::array>* reordered) const;
  pybind11::array decoded(StateKind kind, std::size_t i) const;
  void raise(const Status& status) const;

  std::vector<PyParameter> parameters_;
  std::atomic<std::uint64_t> followed_;  // how many rebindings were looked at
  std::mutex following_;
  VersionCounters versions_;
  std::vector<StateOwner> state_owners_;  // of state of the caller's, if that can tell
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<Optimizer> native_;
  std::atomic<Views*> idle_views_{nullptr};
};

}  // namespace adamas::bindings
