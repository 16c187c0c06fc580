#include "cuda/step_control.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

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

void StepControl::prepare(Queue& queue, const core::Options& options, std::size_t tensors,
                          bool has_float32) {
  options_ = &options;
  decides_ = options.measures() || options.all.capturable;
  has_float32_ = has_float32;
  tensors_count_ = tensors;
  const std::size_t groups = options.groups.size();
  queue.note(pinned_.create(queue.device(), Handle::Kind::pinned, sizeof(Control)));
  lay_out(queue, memory_, [&](Layout& layout) {
    control_ = layout.take<Control>(1);
    loss_scale_ = layout.take<double>(1);
    groups_ = layout.take<AdamConfig>(groups);
    rates_ = layout.take<Rates>(groups);
    group_squares_ = layout.take<double>(groups);
    entries_ = layout.take<RateEntry>(groups);
    powers_ = layout.take<rules::RunningPowers>(groups);
  });
  queue.fill(powers_, 0, groups * sizeof(rules::RunningPowers));
  Counters none;
  none.last_grad_norm = std::numeric_limits<double>::quiet_NaN();
  const Control fresh = control_of(none);
  queue.store(control_, &fresh, sizeof(fresh));
  if (decides_ && options.clips_apart()) differ(queue);
}

void StepControl::release(Stream stream) {
  memory_.release(stream);
  differing_.release(stream);
}

// With numbers of steps that are all the same until they are written.  An error leaves all as it
// is.
void StepControl::differ(Queue& queue) {
  if (has_differing() || queue.error() != 0) return;
  ByParameter made;
  lay_out(queue, differing_, [&](Layout& layout) {
    made.behind = layout.take<std::int64_t>(tensors_count_);
    made.array_squares = layout.take<double>(tensors_count_);
    made.entries = layout.take<RateEntry>(tensors_count_);
    made.powers = layout.take<rules::RunningPowers>(tensors_count_);
    made.places = layout.take<std::uint32_t>(tensors_count_);
  });
  std::vector<std::uint32_t> own(tensors_count_);
  std::iota(own.begin(), own.end(), std::uint32_t{0});
  if (queue.error() == 0) {
    queue.fill(made.behind, 0, tensors_count_ * sizeof(std::int64_t));
    queue.fill(made.powers, 0, tensors_count_ * sizeof(rules::RunningPowers));
    queue.store(made.places, own.data(), tensors_count_ * sizeof(std::uint32_t));
    queue.finish();
  }
  if (queue.error() != 0) return differing_.release(queue.stream());
  behind_ = made.behind;
  array_squares_ = made.array_squares;
  entries_ = made.entries;
  powers_ = made.powers;
  places_ = made.places;
  sent_places_ = std::move(own);
}

const std::uint32_t* StepControl::send_places(Queue& queue, const std::uint32_t* places) {
  if (sent_places_.size() != tensors_count_ ||
      !std::equal(sent_places_.begin(), sent_places_.end(), places)) {
    sent_places_.assign(places, places + tensors_count_);
    queue.store(places_, sent_places_.data(), tensors_count_ * sizeof(std::uint32_t));
  }
  return places_;
}

void StepControl::forget() {
  sent_rates_.clear();
  sent_places_.clear();
  sent_groups_ = false;
}

void StepControl::send(Queue& queue, Span<const Rates> rates, double loss_scale) {
  if (loss_scale != sent_loss_scale_ || sent_rates_.empty()) {
    queue.store(loss_scale_, &loss_scale, sizeof(loss_scale));
    sent_loss_scale_ = loss_scale;
  }
  const std::size_t count = options_->groups.size();
  if (!sent_groups_) {
    queue.store(groups_, options_->groups.data(), count * sizeof(AdamConfig));
    sent_groups_ = true;
  }
  const auto is_same = [](const Rates& a, const Rates& b) {
    return a.learning_rate == b.learning_rate && a.weight_decay == b.weight_decay;
  };
  if (sent_rates_.size() == count &&
      std::equal(rates.data, rates.data + count, sent_rates_.begin(), is_same)) {
    return;
  }
  sent_rates_.assign(rates.data, rates.data + count);
  queue.store(rates_, sent_rates_.data(), count * sizeof(Rates));
}

void StepControl::sum_arrays(Queue& queue, const StepTables& tables) {
  queue.launch_for(Kernel::array_squares, static_cast<std::int64_t>(tensors_count_), 1,
                   ArraySquaresArgs{tables.squares(), tables.first_blocks(),
                                    static_cast<std::int64_t>(tensors_count_), array_squares_});
}

void StepControl::decide(Queue& queue, const StepTables& tables) {
  DecideArgs args{};
  args.config = options_->all;
  args.control = control_;
  args.loss_scale = loss_scale_;
  args.groups = groups_;
  args.rates = rates_;
  args.group_squares = group_squares_;
  args.rates_count = static_cast<std::int32_t>(options_->groups.size());
  args.measured = options_->measures();
  args.has_float32 = has_float32_;
  args.clips_groups = options_->clips_groups();
  args.squares = tables.squares();
  args.blocks = tables.blocks_count();
  args.entries = entries_;
  args.powers = powers_;
  if (places_ != nullptr) {
    args.tensors = tables.tensors();
    args.grads = tables.grads();
    args.behind = behind_;
    args.array_squares = array_squares_;
    args.tensors_count = static_cast<std::int64_t>(tensors_count_);
  }
  if (args.clips_groups) sum_arrays(queue, tables);
  queue.launch(Kernel::decide, 1, args);
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

// Without differ() all move alike, with the optimizer.
void StepControl::move_steps(Queue& queue, std::int64_t step, Span<const std::int64_t> moved) {
  if (!decides_) return;
  std::vector<std::int64_t> steps(tensors_count_);
  if (behind_ != nullptr) read_steps(queue, steps);
  queue.store(&control_->step, &step, sizeof(step));
  if (behind_ == nullptr) return;
  for (std::size_t i = 0; i < moved.size; ++i) steps[i] += moved[i];
  write_steps(queue, steps);
}

void StepControl::read_steps(Queue& queue, Span<std::int64_t> steps) {
  Counters counters;
  read(queue, &counters);
  std::vector<std::int64_t> behind(tensors_count_);
  if (behind_ != nullptr) {
    queue.copy(behind.data(), behind_, behind.size() * sizeof(std::int64_t));
    queue.finish();
  }
  for (std::size_t i = 0; i < steps.size; ++i) steps[i] = counters.global_step - behind[i];
}

void StepControl::write_steps(Queue& queue, Span<const std::int64_t> steps) {
  Counters counters;
  read(queue, &counters);
  const auto is_same = [&](std::int64_t step) { return step == counters.global_step; };
  if (behind_ == nullptr && std::all_of(steps.begin(), steps.end(), is_same)) return;
  differ(queue);
  if (queue.error() != 0) return;
  std::vector<std::int64_t> behind(tensors_count_);
  for (std::size_t i = 0; i < steps.size; ++i) behind[i] = counters.global_step - steps[i];
  queue.copy(behind_, behind.data(), behind.size() * sizeof(std::int64_t));
  queue.finish();
}

}  // namespace adamas::cuda
