// What an optimizer counts of its steps; read by any thread at any time.  Of an engine that counts
// by itself these are the calls, and nobody asks for them.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "adamas/optimizer.hpp"
#include "core/engine.hpp"

namespace adamas::core {

class StepCounters {
 public:
  std::int64_t global_step() const noexcept { return global_step_.load(); }
  void set_global_step(std::int64_t step) noexcept { global_step_.store(step); }

  // A step that was made or skipped.
  void commit(const StepResult& result) noexcept {
    if (result.grad_norm) last_grad_norm_.store(*result.grad_norm);
    last_step_skipped_.store(result.skipped);
    (result.skipped ? skipped_steps_ : global_step_).fetch_add(1);
  }

  // All but the loss scale, which is an option.
  void read(Counters* counters) const noexcept {
    counters->global_step = global_step_.load();
    counters->skipped_steps = skipped_steps_.load();
    counters->last_grad_norm = last_grad_norm_.load();
    counters->last_step_skipped = last_step_skipped_.load();
  }
  void write(const Counters& counters) noexcept {
    global_step_.store(counters.global_step);
    skipped_steps_.store(counters.skipped_steps);
    last_grad_norm_.store(counters.last_grad_norm);
    last_step_skipped_.store(counters.last_step_skipped);
  }

 private:
  std::atomic<std::int64_t> global_step_{0};
  std::atomic<std::int64_t> skipped_steps_{0};
  std::atomic<bool> last_step_skipped_{false};
  // NaN: none was measured.
  std::atomic<double> last_grad_norm_{std::numeric_limits<double>::quiet_NaN()};
};

}  // namespace adamas::core
