#include "cuda/step_control.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

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

void StepControl::prepare(Queue& queue, const core::Options& options,
                          const std::vector<core::Tensor>& tensors, const rules::Reals& reals,
                          bool decides) {
  options_ = &options;
  tensors_ = &tensors;
  tensors_count_ = tensors.size();
  decides_ = decides || options.measures() || options.all.capturable;
  reals_ = reals;
  apart_ = {};
  forget();
  const std::size_t groups = options.groups.size();
  if (pinned_.get() == nullptr) {
    queue.note(pinned_.create(queue.device(), Handle::Kind::pinned, sizeof(Control)));
  }
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
  apart_memory_.release(stream);
}

// With numbers of steps that are all the same until they are written.
void StepControl::differ(Queue& queue) {
  if (has_differing() || queue.error() != 0) return;
  const std::size_t count = tensors_count_;
  std::vector<std::uint32_t> own(count);
  std::iota(own.begin(), own.end(), std::uint32_t{0});
  const auto rates_of = [&](std::uint32_t i) { return (*tensors_)[i].spec.rates; };
  std::vector<std::uint32_t> by_group = own;
  std::stable_sort(by_group.begin(), by_group.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return rates_of(a) < rates_of(b); });
  std::vector<std::int64_t> first_of_group(options_->groups.size() + 1);
  for (const std::uint32_t i : own) ++first_of_group[static_cast<std::size_t>(rates_of(i)) + 1];
  std::partial_sum(first_of_group.begin(), first_of_group.end(), first_of_group.begin());
  Apart apart;
  lay_out(queue, apart_memory_, [&](Layout& layout) {
    apart.entries = layout.take<RateEntry>(count);
    apart.powers = layout.take<rules::RunningPowers>(count);
    apart.places = layout.take<std::uint32_t>(count);
    apart.behind = layout.take<std::int64_t>(count);
    apart.squares = layout.take<double>(count);
    apart.by_group = layout.take<std::uint32_t>(count);
    apart.first_of_group = layout.take<std::int64_t>(first_of_group.size());
  });
  queue.fill(apart.powers, 0, count * sizeof(rules::RunningPowers));
  queue.fill(apart.behind, 0, count * sizeof(std::int64_t));
  queue.copy(apart.places, own.data(), count * sizeof(std::uint32_t));
  queue.copy(apart.by_group, by_group.data(), count * sizeof(std::uint32_t));
  queue.copy(apart.first_of_group, first_of_group.data(),
             first_of_group.size() * sizeof(std::int64_t));
  queue.finish();
  if (queue.error() != 0) return;
  apart_ = apart;
  sent_places_ = std::move(own);
}

const std::uint32_t* StepControl::send_places(Queue& queue, const std::uint32_t* places) {
  if (sent_places_.size() != tensors_count_ ||
      !std::equal(sent_places_.begin(), sent_places_.end(), places)) {
    sent_places_.assign(places, places + tensors_count_);
    queue.store(apart_.places, sent_places_.data(), tensors_count_ * sizeof(std::uint32_t));
  }
  return apart_.places;
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

// The squares of single gradients, from those of their blocks, and of the groups from these.
void StepControl::sum_groups(Queue& queue, const StepTables& tables) {
  const auto count = static_cast<std::int64_t>(tensors_count_);
  const auto groups = static_cast<std::int64_t>(options_->groups.size());
  queue.launch_for(
      Kernel::run_sums, count, 1,
      RunSumsArgs{tables.squares(), nullptr, tables.first_blocks(), count, apart_.squares});
  queue.launch_for(
      Kernel::run_sums, groups, 1,
      RunSumsArgs{apart_.squares, apart_.by_group, apart_.first_of_group, groups, group_squares_});
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
  args.reals = reals_;
  args.clips_groups = options_->clips_groups();
  args.squares = tables.squares();
  args.blocks = tables.blocks_count();
  args.entries = entries();
  args.powers = powers_;
  if (has_differing()) {
    args.powers = apart_.powers;
    args.tensors = tables.tensors();
    args.grads = tables.grads();
    args.behind = apart_.behind;
    args.array_squares = apart_.squares;
    args.tensors_count = static_cast<std::int64_t>(tensors_count_);
  }
  if (args.clips_groups) sum_groups(queue, tables);
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

void StepControl::take_over(Queue& queue, const StepControl& other) {
  queue.copy(control_, other.control_, sizeof(Control));
  queue.copy(pinned_.get(), control_, sizeof(Control));
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
  if (has_differing()) read_steps(queue, steps);
  queue.store(&control_->step, &step, sizeof(step));
  if (!has_differing()) return;
  for (std::size_t i = 0; i < moved.size; ++i) steps[i] += moved[i];
  write_steps(queue, steps);
}

void StepControl::read_steps(Queue& queue, Span<std::int64_t> steps) {
  Counters counters;
  read(queue, &counters);
  std::vector<std::int64_t> behind(tensors_count_);
  if (has_differing()) {
    queue.copy(behind.data(), apart_.behind, behind.size() * sizeof(std::int64_t));
    queue.finish();
  }
  for (std::size_t i = 0; i < steps.size; ++i) steps[i] = counters.global_step - behind[i];
}

void StepControl::write_steps(Queue& queue, Span<const std::int64_t> steps) {
  Counters counters;
  read(queue, &counters);
  const auto is_same = [&](std::int64_t step) { return step == counters.global_step; };
  if (!has_differing() && std::all_of(steps.begin(), steps.end(), is_same)) return;
  differ(queue);
  if (queue.error() != 0) return;
  std::vector<std::int64_t> behind(tensors_count_);
  for (std::size_t i = 0; i < steps.size; ++i) behind[i] = counters.global_step - steps[i];
  queue.copy(apart_.behind, behind.data(), behind.size() * sizeof(std::int64_t));
  queue.finish();
}

}  // namespace adamas::cuda
