// What the public optimizer is made of, for the files that define its members: optimizer.cpp (the
// steps) and those named below.
#pragma once

#include <memory>

#include "adamas/optimizer.hpp"
#include "core/accumulation.hpp"
#include "core/checks.hpp"
#include "core/counters.hpp"
#include "core/engine.hpp"
#include "core/fork.hpp"
#include "core/gradient_checks.hpp"
#include "core/locks.hpp"
#include "core/open_step.hpp"
#include "core/options.hpp"
#include "core/parameter_steps.hpp"
#include "core/storage.hpp"

namespace adamas {

struct Optimizer::Impl {
  // optimizer.cpp
  Status prepare(const AdamConfig& config, Span<const ParameterSpec> parameters,
                 Span<void* const> after, Span<const AdamConfig> groups);
  void set_loss_scale(double loss_scale) noexcept;
  Status check_ready(Span<const Rates> rates) const noexcept;
  core::StepInput input(Span<const Rates> rates) const noexcept;
  Status make_step(Span<const Gradient> grads, Span<const Rates> rates, double loss_scale,
                   const Queueing& queueing) noexcept;
  Status step(Span<const Gradient> grads, Span<const Rates> rates,
              const Queueing& queueing) noexcept;
  Status apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept;
  Status allow_differing_steps(void* stream) noexcept;
  Status read_counters(Counters* now) const noexcept;
  Status read_steps(Span<std::int64_t> to) const noexcept;
  Status set_global_step(std::int64_t step);
  Status set_steps(Span<const std::int64_t> wanted);
  Status move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept;
  Counters counted() const noexcept;

  // accumulation.cpp
  Status reserve_sums();
  Status accumulate(Span<const Gradient> grads, const Queueing& queueing);
  Status step_accumulated(Span<const Rates> rates, const Queueing& queueing);

  // changes.cpp
  Status set_group(std::size_t k, AdamConfig group) noexcept;
  Status check_unaccumulated() const noexcept {
    if (accumulation.count == 0) return {};
    return {StatusCode::bad_state,
            "gradients are accumulated: make the step of them, or discard them"};
  }
  Status add(Span<const ParameterSpec> parameters, Span<const AdamConfig> groups,
             Span<void* const> after);
  Status check_memory(Span<const NewMemory> memory) const noexcept;
  Status rebind(Span<const NewMemory> memory);

  // state_copies.cpp
  Status check_copies(Span<const ArrayCopy> copies) const noexcept;
  Status check_load(Span<const ArrayCopy> from, const Counters& wanted,
                    Span<const std::int64_t> steps) const noexcept;

  // clone.cpp
  Status check_clone(Span<const ParameterSpec> parameters) const noexcept;
  Status copy_state_to(Impl* clone) const;
  Status clone(Span<const ParameterSpec> parameters, std::unique_ptr<Optimizer>* clone,
               Span<void* const> after) const;

  core::Options options;
  std::unique_ptr<core::Engine> engine;  // first, so that it goes last: it owns the state
  core::Storage storage;
  core::ParameterLocks locks;
  core::GradientChecks gradients;
  core::OpenStep parts;
  core::StepCounters counters;
  core::ParameterSteps steps;
  core::Accumulation accumulation;
  mutable core::CallMutex mutex;  // of one call at a time; taken before `locks`
};

}  // namespace adamas
