#include "cuda/step_control.hpp"

#include <algorithm>
#include <limits>

#include "core/checks.hpp"
#include "cuda/device/layout.hpp"

namespace adamas::cuda {
namespace {

Status status_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::none:
      return {};
    case Refusal::scalars:
      return core::bad(core::kScalarsOutOfRange);
    case Refusal::not_finite:
      return core::bad(
          "a gradient of an earlier step held a NaN or infinity, so its norm could not be "
          "clipped: that step and this one were not made");
    case Refusal::norm:
      return core::bad(
          "the norm of the gradients of an earlier step overflowed, so it could not be "
          "clipped: that step and this one were not made");
  }
  return {};
}

// With running powers that start again from step 0.
Control control_of(const Counters& counters) {
  Control control{};
  control.step = counters.global_step;
  control.skipped_steps = counters.skipped_steps;
  control.last_grad_norm = counters.last_grad_norm;
  control.last_step_skipped = counters.last_step_skipped ? 1 : 0;
  return control;
}

}  // namespace

void StepControl::prepare(Queue& queue, const AdamConfig& config, std::size_t rates_count,
                          bool has_float32) {
  config_ = config;
  decides_ = rules::measures(config) || config.capturable;
  has_float32_ = has_float32;
  rates_count_ = rates_count;
  queue.note(pinned_.create(queue.device(), Handle::Kind::pinned, sizeof(Control)));
  lay_out(queue, memory_, [&](Layout& layout) {
    control_ = layout.take<Control>(1);
    loss_scale_ = layout.take<double>(1);
    rates_ = layout.take<Rates>(rates_count);
    entries_ = layout.take<RateEntry>(rates_count);
  });
  Counters none;
  none.last_grad_norm = std::numeric_limits<double>::quiet_NaN();
  const Control fresh = control_of(none);
  queue.store(control_, &fresh, sizeof(fresh));
}

void StepControl::send(Queue& queue, Span<const Rates> rates, double loss_scale) {
  if (loss_scale != sent_loss_scale_ || sent_rates_.empty()) {
    queue.store(loss_scale_, &loss_scale, sizeof(loss_scale));
    sent_loss_scale_ = loss_scale;
  }
  const auto is_same = [](const Rates& a, const Rates& b) {
    return a.learning_rate == b.learning_rate && a.weight_decay == b.weight_decay;
  };
  if (sent_rates_.size() == rates_count_ &&
      std::equal(rates.data, rates.data + rates_count_, sent_rates_.begin(), is_same)) {
    return;
  }
  sent_rates_.assign(rates.data, rates.data + rates_count_);
  queue.store(rates_, sent_rates_.data(), rates_count_ * sizeof(Rates));
}

void StepControl::decide(Queue& queue, const double* squares, std::int64_t blocks) {
  queue.launch(Kernel::decide, 1,
               DecideArgs{config_, control_, loss_scale_, rates_, entries_,
                          static_cast<std::int32_t>(rates_count_), rules::measures(config_),
                          has_float32_, squares, blocks});
}

void StepControl::end(Queue& queue) {
  if (decides_) queue.copy(pinned_.get(), control_, sizeof(Control));
}

Status StepControl::report_refusal(Queue& queue, Timeline& timeline) {
  if (!timeline.is_last_done(queue)) return {};
  auto* control = pinned_.as<Control>();
  const Refusal refusal = control->refusal;
  if (refusal == Refusal::none) return {};
  constexpr Refusal kNoRefusal = Refusal::none;
  control->refusal = kNoRefusal;
  timeline.follow_last(queue);
  queue.store(&control_->refusal, &kNoRefusal, sizeof(kNoRefusal));
  timeline.extend_last(queue);
  return status_of(refusal);
}

void StepControl::read(Queue& queue, Counters* counters) {
  queue.copy(pinned_.get(), control_, sizeof(Control));
  queue.finish();
  if (queue.error() != 0) return;
  const auto* control = pinned_.as<Control>();
  counters->global_step = control->step;
  counters->skipped_steps = control->skipped_steps;
  counters->last_grad_norm = control->last_grad_norm;
  counters->last_step_skipped = control->last_step_skipped != 0;
}

void StepControl::write(Queue& queue, const Counters& counters) {
  const Control control = control_of(counters);
  queue.store(control_, &control, sizeof(control));
  queue.copy(pinned_.get(), control_, sizeof(control));
}

void StepControl::set_step(Queue& queue, std::int64_t step) {
  if (decides_) queue.store(&control_->step, &step, sizeof(step));
}

}  // namespace adamas::cuda
