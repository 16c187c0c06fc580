// The Adam family over a list of parameters, updated in place.
//
//   adamas::ParameterSpec weights{data, count, adamas::DType::float32};
//   std::unique_ptr<adamas::Optimizer> optimizer;
//   adamas::Status status = adamas::Optimizer::create({}, {&weights, 1}, &optimizer);
//   adamas::Gradient grad{values};
//   adamas::Rates rates{1e-3, 0.0};
//   status = optimizer->step({&grad, 1}, {&rates, 1});
//
// No function throws.  A step that returns an error has changed nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>

#include "adamas/api.h"
#include "adamas/span.hpp"
#include "adamas/status.hpp"
#include "adamas/types.hpp"

namespace adamas {

// The items of an array of state.  uint16 and uint8 are moments in 16 and 8 bits, and scales.
enum class ItemType : std::uint8_t { float32, float64, uint8, uint16, int64 };

constexpr std::size_t item_size(ItemType type) {
  return type == ItemType::uint8     ? 1
         : type == ItemType::uint16  ? 2
         : type == ItemType::float32 ? 4
                                     : 8;
}

struct StateLayout {
  bool is_kept = false;            // else all is zero
  bool is_like_parameter = false;  // of its shape, an item for each element; else of one axis
  ItemType type = ItemType::float32;
  std::int64_t count = 0;  // of items

  std::size_t nbytes() const { return static_cast<std::size_t>(count) * item_size(type); }
};

// Where a step of parameters on a device is queued.
struct Queueing {
  void* stream = nullptr;   // a cudaStream_t; null: the default one
  Span<void* const> after;  // streams whose work until now it waits for: of gradients' producers
};

// What decides later steps besides arrays, options and rates, or tells of the last one.
struct Counters {
  std::int64_t global_step = 0;
  std::int64_t skipped_steps = 0;
  double loss_scale = 1.0;
  double last_grad_norm = 0.0;
  bool last_step_skipped = false;
};

// Memory of the caller, to or from which one array of an optimizer is copied as it is stored.
struct ArrayCopy {
  std::size_t parameter = 0;
  std::optional<StateKind> kind;  // none: the parameter itself
  void* data = nullptr;           // load() only reads it
  std::size_t nbytes = 0;         // exactly those of the array: StateLayout::nbytes()
};

// Where the memory of a parameter is from now on.
struct NewMemory {
  std::size_t parameter = 0;
  void* data = nullptr;
};

namespace core {
struct Internals;
}

class ADAMAS_API Optimizer {
 public:
  // Reserves the state, zeroed, of all parameters, where they are: on the CPU, or all on one CUDA
  // device.  Their memory must outlive the optimizer.  `after`: streams of a device on which the
  // parameters are still being made.  `groups`: options of the parameters by ParameterSpec::rates,
  // which may differ from `config` where ADAMAS_OPTIONS says so; their max_grad_norm is for the
  // gradients of the group.  Where there is none, they are those of `config`.
  static Status create(const AdamConfig& config, Span<const ParameterSpec> parameters,
                       std::unique_ptr<Optimizer>* optimizer, Span<void* const> after = {},
                       Span<const AdamConfig> groups = {}) noexcept;
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Adds parameters at the end of the list, and the options of groups at the end of theirs; the new
  // parameters may refer to any.  State, steps and bits of the others stay as they are.
  Status add(Span<const ParameterSpec> parameters, Span<const AdamConfig> groups = {},
             Span<void* const> after = {}) noexcept;

  // One step: grads[i] is the gradient of parameter i, and rates[k] what the parameters with
  // ParameterSpec::rates == k use.  Safe to call from several threads, each call being one whole
  // step.  A parameter whose gradient is absent is left as it is, and its own number of steps
  // stays.
  //
  // On a device the step is queued, and an error of an earlier step may be reported: a NaN or
  // infinity, say, that kept it from being clipped.
  Status step(Span<const Gradient> grads, Span<const Rates> rates,
              const Queueing& queueing = {}) noexcept;

  // The same step in parts: begin_step, apply for each parameter once in any order, end_step.
  // Not with max_grad_norm or skip_nonfinite, which need all gradients first.
  Status begin_step(Span<const Rates> rates) noexcept;
  Status apply(std::size_t i, const Gradient& grad, const Queueing& queueing = {}) noexcept;
  Status end_step(bool skip_missing = false) noexcept;  // true: what was not applied is left out

  // Adds dense gradients of a micro-batch to sums in float32 (float64 for float64 parameters), from
  // which step_accumulated() makes a step: with their mean, or AdamConfig::reduction.  A parameter
  // without any gradient is left out.  Steps and copies in between are refused.  Not with
  // capturable.
  Status accumulate(Span<const Gradient> grads, const Queueing& queueing = {}) noexcept;
  Status step_accumulated(Span<const Rates> rates, const Queueing& queueing = {}) noexcept;
  std::int64_t accumulated() const noexcept;  // how many micro-batches
  void discard_accumulated() noexcept;

  // Ends an open step without counting it.  Parameters that were applied keep their update.
  Status cancel_step() noexcept;

  // What became of the last step, and how many were skipped in all (skip_nonfinite).  The norm is
  // that of the gradients divided by loss_scale, before clipping; NaN if it was not needed.  With
  // max_grad_norm or skip_nonfinite, this and global_step() wait for the steps queued on a device.
  bool last_step_skipped() const noexcept;
  std::int64_t skipped_steps() const noexcept;
  double last_grad_norm() const noexcept;

  // The options and learning rates that steps compute with, which the numerics may have rounded.
  AdamConfig config() const noexcept;
  double used_learning_rate(double learning_rate) const noexcept;

  // Whether the row means of parameter i's gradients are subtracted.
  bool centralizes(std::size_t i) const noexcept;

  // The number of steps made; setting it moves bias correction with it.  In [0, 2^62].
  std::int64_t global_step() const noexcept;
  Status set_global_step(std::int64_t step) noexcept;

  // Parameters on the CPU are elsewhere from the next step on, of the same type and count as
  // before; their state stays as it is.  Not while a step in parts is open.
  Status rebind(Span<const NewMemory> memory) noexcept;

  // The steps that each parameter has made, from which its bias correction is: global_step(), but
  // for those that were left out of steps.  On a device that decides, waits as global_step() does.
  Status steps(Span<std::int64_t> steps) const noexcept;
  Status set_steps(Span<const std::int64_t> steps) noexcept;

  // The options of the parameters with ParameterSpec::rates == k; all may be set between steps but
  // use_amsgrad, whose state is there from the beginning or never.
  AdamConfig group(std::size_t k) const noexcept;
  Status set_group(std::size_t k, const AdamConfig& group) noexcept;

  // What the gradients of the next step are divided by.
  double loss_scale() const noexcept;
  Status set_loss_scale(double loss_scale) noexcept;

  // The state of parameter i, or null if this optimizer keeps none or it is empty; in the memory of
  // the parameter's device.
  void* state(StateKind kind, std::size_t i) const noexcept;
  StateLayout layout(StateKind kind, std::size_t i) const noexcept;

  // Copies arrays out of the optimizer, or into it, and all counters, as one call among the steps:
  // what is saved is the state between two of them.  Arrays that are not listed stay as they are.
  // An error has copied nothing; so it is while a step in parts is open.  `steps`: those of each
  // parameter; loaded without, all are global_step.
  Status save(Span<const ArrayCopy> to, Counters* counters,
              Span<std::int64_t> steps = {}) const noexcept;
  Status load(Span<const ArrayCopy> from, const Counters& counters,
              Span<const std::int64_t> steps = {}) noexcept;

  // A second optimizer, over parameters of its own: copies of the model, each like the one at its
  // position here in all but memory and device.  It has the same options, groups, counters and
  // steps, and copies of the state (written to ParameterSpec::states, where the caller brings any),
  // so that both go on with the same bits if the values of the parameters are the same, which are
  // left as they are; neither sees the other any more.  A parameter's array may be the original's
  // own; state and deltas may not.  Refused as save() is.  `after`: as in create().
  Status clone(Span<const ParameterSpec> parameters, std::unique_ptr<Optimizer>* clone,
               Span<void* const> after = {}) const noexcept;

  // Writes a moment of parameter i as float32 to `values`, whatever its format.
  Status decode_moment(StateKind kind, std::size_t i, float* values) const noexcept;

  // How many elements of parameter i share a scale (StateFormat::int8), else 0.
  std::int64_t scale_block(std::size_t i) const noexcept;

  // Bytes of all state arrays together.
  std::size_t state_nbytes() const noexcept;

  // AdamConfig::capturable: what steps in graphs use from here on, as far as `stream` goes.
  Status set_rates(Span<const Rates> rates, void* stream) noexcept;

  // Where the state is.
  std::int32_t device() const noexcept;

  // The threads that a large step uses.
  int num_threads() const noexcept;

 private:
  friend struct core::Internals;
  struct ADAMAS_HIDDEN Impl;
  ADAMAS_HIDDEN explicit Optimizer(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace adamas
