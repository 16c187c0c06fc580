// What the public optimizer is made of, for the files of core/ that define its members:
// optimizer.cpp (checks, counters and the way of a call), host_step.cpp, device_step.cpp and
// offload_step.cpp (a step by each of those who can make it), state_copies.cpp (saving and
// loading).
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "adamas/optimizer.hpp"
#include "core/checks.hpp"
#include "core/fork.hpp"
#include "core/locks.hpp"
#include "core/storage.hpp"
#include "cpu/stepper.hpp"
#include "cuda/offload/copies.hpp"
#include "cuda/stepper.hpp"
#include "rules/fold.hpp"

namespace adamas {

using core::bad;
using core::check;

inline constexpr const char* kOpen = "a step is open: call end_step or cancel_step first";

struct Optimizer::Impl {
  // The last dense gradient of a parameter that was found to overlap nothing.  Most come again.
  struct Accepted {
    const void* values = nullptr;
    DType dtype = DType::float32;

    bool is(const Gradient& grad) const {
      return values != nullptr && grad.values == values && grad.dtype == dtype &&
             grad.rows == nullptr;
    }
  };

  // beta^step as MindSpore multiplies it up; recomputed when global_step was set back.
  struct RunningPowers {
    std::int64_t step = 0;
    float beta1 = 1.0F;
    float beta2 = 1.0F;
  };

  // optimizer.cpp
  Status prepare(const AdamConfig& options, Span<const ParameterSpec> parameters,
                 Span<void* const> after);
  Status open_device(Span<const ParameterSpec> parameters, std::vector<ParameterSpec>* copies);
  void load_masters();
  Status check_grads(core::Selection& selection) noexcept;
  Status check_closed() const noexcept;
  Status step(Span<const Gradient> grads, Span<const Rates> rates,
              const Queueing& queueing) noexcept;
  Status apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept;
  void count_step() noexcept {
    last_step_skipped.store(false);
    global_step.fetch_add(1);
  }
  bool measures() const { return config.max_grad_norm > 0.0 || config.skip_nonfinite; }
  bool device_decides() const { return device_stepper != nullptr && device_stepper->decides(); }

  // host_step.cpp
  rules::Corrections corrections(std::int64_t step) noexcept;
  Status fold(Span<const Rates> rates, double factor) noexcept;
  Status clip(const cpu::Measure& measure, Span<const Rates> rates) noexcept;
  Status update_on_host(const core::Selection& selection, Span<const Rates> rates) noexcept;

  // device_step.cpp
  Status update_on_device(const core::Selection& selection, Span<const Rates> rates,
                          const Queueing& queueing) noexcept;
  cuda::Control outcome() const noexcept;

  // offload_step.cpp
  Status step_offloaded(Span<const Gradient> grads, Span<const Rates> rates,
                        const Queueing& queueing) noexcept;
  Status update_offloaded(Span<const Gradient> grads, Span<const Rates> rates) noexcept;
  Status finish_offloaded(Status sent, const Queueing& queueing) noexcept;
  Status apply_offloaded(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept;
  bool streams(Span<const Gradient> grads) const noexcept;

  // state_copies.cpp
  Status check_copies(Span<const ArrayCopy> copies) const noexcept;
  Status check_load(Span<const ArrayCopy> from, const Counters& counters) const noexcept;
  Status copy_out(const ArrayCopy& copy) const noexcept;
  Status copy_in(const ArrayCopy& copy) noexcept;
  void close() noexcept;

  AdamConfig config;
  // First, so that it goes last: it owns the state on the device.  Null: the CPU.
  std::unique_ptr<cuda::Stepper> device_stepper;
  // Parameters on a device that are updated on the host; owns the copies.  Null: none are.
  std::unique_ptr<cuda::Offload> offload;
  core::Storage storage;
  core::Stepper stepper;
  core::ParameterLocks locks;
  std::size_t rates_count = 0;
  std::vector<Accepted> accepted;  // by parameter

  mutable core::CallMutex mutex;  // of one call at a time; taken before `locks`
  rules::Squares squares1{0.0};   // of beta1
  rules::Squares squares2{0.0};
  RunningPowers powers;
  bool open = false;          // between begin_step and end_step
  std::vector<char> applied;  // by parameter, while open
  std::atomic<std::int64_t> global_step{0};
  std::atomic<std::int64_t> skipped_steps{0};
  std::atomic<bool> last_step_skipped{false};
  // NaN: none was measured.
  std::atomic<double> last_grad_norm{std::numeric_limits<double>::quiet_NaN()};
};

}  // namespace adamas
