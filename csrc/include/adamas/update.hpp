// One step of Adam over arrays of the caller's, for those who keep the state themselves:
// frameworks, functional programs, one call for each parameter.
//
//   adamas::AdamUpdate update;
//   adamas::ParameterSpec weights{data, count};
//   weights.states[std::size_t(adamas::StateKind::moment1)] = moment1;
//   weights.states[std::size_t(adamas::StateKind::moment2)] = moment2;
//   adamas::Gradient grad{values};
//   adamas::Rates rates{1e-3, 0.0};
//   adamas::Status status =
//       update.step(config, {&weights, 1}, {&grad, 1}, {&rates, 1}, {&steps, 1});
//
// The bits are those of an Optimizer with the same options, state and numbers of steps.  No
// function throws.  A step that returns an error has changed nothing.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "adamas/optimizer.hpp"

namespace adamas {

// What became of a step.
struct UpdateResult {
  bool skipped = false;  // skip_nonfinite: nothing was changed
  double grad_norm = std::numeric_limits<double>::quiet_NaN();  // if it was needed
};

// Scratch memory for such steps, and what it has found out about the arrays of the last one: calls
// with the same arrays again are quicker.  One call at a time.
class ADAMAS_API AdamUpdate {
 public:
  AdamUpdate() noexcept;
  ~AdamUpdate();
  AdamUpdate(const AdamUpdate&) = delete;
  AdamUpdate& operator=(const AdamUpdate&) = delete;

  // Updates all parameters whose gradients are not absent.  ParameterSpec::states has all state
  // that the options keep (Optimizer says which).  steps[i]: how many steps parameter i has made;
  // each counts this one unless it is skipped.  `groups` are those of Optimizer::create.  Not with
  // use_locking, capturable or use_offload, nor with state that has scales or steps of its own; on
  // a device, not with max_grad_norm or skip_nonfinite, for which the caller would have to wait.
  Status step(const AdamConfig& config, Span<const ParameterSpec> parameters,
              Span<const Gradient> grads, Span<const Rates> rates, Span<std::int64_t> steps,
              UpdateResult* result = nullptr, Span<const AdamConfig> groups = {},
              const Queueing& queueing = {}) noexcept;

 private:
  struct ADAMAS_HIDDEN Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace adamas
