// A step on the CPU, and what the host folds for steps wherever they are made.
#include <cmath>

#include "core/optimizer_impl.hpp"

namespace adamas {

rules::Corrections Optimizer::Impl::corrections(std::int64_t step) noexcept {
  if (!config.bias_correction) return {};
  if (config.numerics == Numerics::standard) {
    return rules::exact_corrections(squares1, squares2, step);
  }
  if (step < powers.step) powers = {};
  const auto advance = [&](double beta, float power) {
    return rules::running_power(static_cast<float>(beta), power, powers.step, step);
  };
  powers = {step, advance(config.beta1, powers.beta1), advance(config.beta2, powers.beta2)};
  return rules::running_corrections(powers.beta1, powers.beta2);
}

Status Optimizer::Impl::fold(Span<const Rates> rates, double factor) noexcept {
  const std::int64_t step = global_step.load() + 1;
  if (device_stepper) return device_stepper->fold(rates, corrections(step), step, factor);
  return stepper.fold(rates, corrections(step), step, factor);
}

// Folds once more if the gradients are longer than allowed.
Status Optimizer::Impl::clip(const cpu::Measure& measure, Span<const Rates> rates) noexcept {
  const double norm = std::sqrt(measure.squares) / config.loss_scale;
  if (config.max_grad_norm > 0.0 && norm > config.max_grad_norm) {
    if (std::isinf(norm)) return bad("the norm of the gradients overflows, so it can't be clipped");
    Status status = fold(rates, config.max_grad_norm / norm / config.loss_scale);
    if (!status.ok()) return status;
  }
  last_grad_norm.store(norm);
  return {};
}

// The work of a step on the CPU, unless gradients that are not finite skip it.
Status Optimizer::Impl::update_on_host(const core::Selection& selection,
                                       Span<const Rates> rates) noexcept {
  if (Status status = fold(rates, 1.0 / config.loss_scale); !status.ok()) return status;
  if (Status status = stepper.merge(selection, measures()); !status.ok()) return status;
  if (measures()) {
    const cpu::Measure measure = stepper.measure();
    if (!measure.finite && config.skip_nonfinite) {
      last_grad_norm.store(std::sqrt(measure.squares) / config.loss_scale);
      last_step_skipped.store(true);
      skipped_steps.fetch_add(1);
      return {};
    }
    if (!measure.finite)
      return bad("a gradient holds a NaN or infinity, so its norm can't be clipped");
    if (Status status = clip(measure, rates); !status.ok()) return status;
  }
  stepper.update();
  count_step();
  return {};
}

}  // namespace adamas
