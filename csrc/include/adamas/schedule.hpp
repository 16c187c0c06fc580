// Learning rates and weight decays as functions of the step.  Header only: what a schedule throws
// passes through, before anything has changed.
//
//   adamas::RateSchedule schedule;
//   schedule.learning_rate = [](double step) { return 1e-3 / (1.0 + step); };
//   status = adamas::step(*optimizer, grads, {&schedule, 1});
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "adamas/optimizer.hpp"

namespace adamas {

// The value for a step, the first of which is 0.
using Schedule = std::function<double(std::int64_t step)>;

inline Schedule constant(double value) {
  return [value](std::int64_t) { return value; };
}

struct RateSchedule {
  Schedule learning_rate = constant(Rates{}.learning_rate);
  Schedule weight_decay = constant(Rates{}.weight_decay);

  Rates at(std::int64_t step) const { return {learning_rate(step), weight_decay(step)}; }
};

// The rates of one step, for Optimizer::step and begin_step.
inline std::vector<Rates> rates_at(Span<const RateSchedule> schedules, std::int64_t step) {
  std::vector<Rates> rates;
  rates.reserve(schedules.size);
  for (const RateSchedule& schedule : schedules) rates.push_back(schedule.at(step));
  return rates;
}

// One step with the rates of global_step(): schedules[k] is for the parameters with
// ParameterSpec::rates == k.  Threads that share an optimizer take turns around this call, or two
// may ask the schedules for the same step.
inline Status step(Optimizer& optimizer, Span<const Gradient> grads,
                   Span<const RateSchedule> schedules, const Queueing& queueing = {}) {
  const std::vector<Rates> rates = rates_at(schedules, optimizer.global_step());
  return optimizer.step(grads, rates, queueing);
}

}  // namespace adamas
