#include "cpu/engine.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "core/checks.hpp"
#include "cpu/kernels/isa.hpp"
#include "rules/decision.hpp"
#include "rules/ordered_sum.hpp"

namespace adamas::cpu {
namespace {

using core::bad;

void load_masters(const std::vector<Tensor>& tensors, std::size_t first) {
  for (std::size_t i = first; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    char* master = tensor.state(StateKind::master);
    const bool is_given =
        tensor.spec.states[static_cast<std::size_t>(StateKind::master)] != nullptr;
    if (master == nullptr || is_given) continue;
    kernels().load[half_index(tensor.spec.dtype)](tensor.data(), reinterpret_cast<float*>(master),
                                                  tensor.spec.count);
  }
}

Status status_of(rules::Refusal refusal) {
  switch (refusal) {
    case rules::Refusal::none:
      return {};
    case rules::Refusal::scalars:
      return bad(core::kScalarsOutOfRange);
    case rules::Refusal::not_finite:
      return bad("a gradient holds a NaN or infinity, so its norm can't be clipped");
    case rules::Refusal::norm:
      return bad("the norm of the gradients overflows, so it can't be clipped");
  }
  return {};
}

// Where they are not the caller's, which are as they are.
void start_averages(const std::vector<Tensor>& tensors, std::size_t first) {
  for (std::size_t i = first; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    char* average = tensor.state(StateKind::ema);
    const bool is_given = tensor.spec.states[static_cast<std::size_t>(StateKind::ema)] != nullptr;
    if (average == nullptr || is_given) continue;
    if (tensor.is_half()) {
      const char* master = tensor.state(StateKind::master);
      auto* values = reinterpret_cast<float*>(average);
      if (master != nullptr) {
        std::memcpy(values, master, static_cast<std::size_t>(tensor.spec.count) * sizeof(float));
      } else {
        kernels().load[half_index(tensor.spec.dtype)](tensor.data(), values, tensor.spec.count);
      }
    } else {
      std::memcpy(average, tensor.data(), tensor.nbytes);
    }
  }
}

}  // namespace

Status Engine::open(const AdamConfig& config, std::unique_ptr<core::Engine>* engine) {
  if (config.capturable) return bad("capturable must be False for parameters in CPU memory");
  *engine = std::make_unique<Engine>();
  return {};
}

char* Engine::allocate_state(std::size_t nbytes) {
  core::ZeroedBlock& block = state_.emplace_back();
  if (block.allocate(nbytes)) return block.data();
  state_.pop_back();
  return nullptr;
}

void Engine::release_state(char* memory) noexcept {
  state_.remove_if([&](const core::ZeroedBlock& block) { return block.data() == memory; });
}

Status Engine::start(const core::Options& options, const std::vector<Tensor>& tensors,
                     Span<void* const>) {
  options_ = &options;
  tensors_ = &tensors;
  rates_.prepare(options, tensors);
  if (!stepper_) stepper_ = std::make_unique<Stepper>();
  stepper_->prepare(options, tensors, rates_);
  by_group_.clear();
  load_masters(tensors, 0);
  start_averages(tensors, 0);
  return {};
}

Status Engine::extend(std::size_t first, Span<void* const>) {
  auto stepper = std::make_unique<Stepper>();
  core::RateFolder rates;
  rates.prepare(*options_, *tensors_);
  stepper->prepare(*options_, *tensors_, rates_);
  rates_ = std::move(rates);
  stepper_ = std::move(stepper);
  by_group_.clear();
  load_masters(*tensors_, first);
  start_averages(*tensors_, first);
  return {};
}

// Clips or skips, by the sums of squares of gradients.
Status Engine::decide(const core::StepInput& input, core::StepResult* result) noexcept {
  const SquareSum sum = stepper_->measure(input);
  const bool clips_groups = options_->clips_groups();
  const rules::Decision decision =
      rules::decide(options_->all, input.loss_scale, sum.squares, sum.finite, clips_groups);
  if (decision.refusal != rules::Refusal::none) return status_of(decision.refusal);
  result->skipped = decision.skips;
  result->grad_norm = decision.norm;
  if (decision.skips) return {};
  if (decision.clip == 1.0 && !clips_groups) return {};
  if (options_->clips_apart()) return clip_groups(input, decision.clip);
  return rates_.fold(input, {rules::factor_of(options_->all, decision.clip, input.loss_scale)});
}

void Engine::sort_by_group() {
  by_group_.resize(tensors_->size());
  std::iota(by_group_.begin(), by_group_.end(), std::size_t{0});
  std::stable_sort(by_group_.begin(), by_group_.end(), [&](std::size_t a, std::size_t b) {
    return (*tensors_)[a].spec.rates < (*tensors_)[b].spec.rates;
  });
}

// `clip`: of all gradients.
Status Engine::clip_groups(const core::StepInput& input, double clip) noexcept {
  try {
    if (by_group_.size() != tensors_->size()) sort_by_group();
    factors_.resize(tensors_->size());
    squares_.resize(tensors_->size());
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory to clip groups"};
  }
  const auto rates_of = [&](std::size_t i) { return (*tensors_)[i].spec.rates; };
  for (std::size_t first = 0, last = 0; first < by_group_.size(); first = last) {
    const AdamConfig& group = options_->of((*tensors_)[by_group_[first]].spec);
    while (last < by_group_.size() && rates_of(by_group_[last]) == rates_of(by_group_[first])) {
      squares_[last] = stepper_->squares_of(by_group_[last]);
      ++last;
    }
    const double of_group = rules::ordered_sum(squares_.data() + first, last - first);
    for (std::size_t k = first; k < last; ++k) {
      const double squares = group.clip_per_array ? squares_[k] : of_group;
      const double norm = rules::norm_of(squares, input.loss_scale);
      if (rules::overflows(group.max_grad_norm, norm)) return status_of(rules::Refusal::norm);
      const double own = rules::clip_to(group.max_grad_norm, norm);
      factors_[by_group_[k]] = rules::factor_of(group, own < clip ? own : clip, input.loss_scale);
    }
  }
  return rates_.fold(input, {{1.0}, factors_.data()});
}

Status Engine::step(const Selection& all, const core::StepInput& input,
                    const core::Ordering& ordering, core::StepResult* result) noexcept {
  ordering.wait_for_last();
  const bool measures = options_->measures();
  Status status = rates_.fold(input, {rules::factor_of(options_->all, 1.0, input.loss_scale)});
  if (status.ok()) status = stepper_->merge(all, measures);
  if (status.ok() && measures) status = decide(input, result);
  if (status.ok() && !result->skipped) stepper_->update();
  return status;
}

Status Engine::begin(const core::StepInput& input) noexcept {
  return rates_.fold(input, {rules::factor_of(options_->all, 1.0, input.loss_scale)});
}

Status Engine::apply(const Selection& one, const core::Ordering& ordering) noexcept {
  ordering.wait_for_last();
  Status status = stepper_->merge(one, false);
  if (status.ok()) stepper_->update();
  return status;
}

Status Engine::accumulate(const Selection& all, const core::Accumulation& sums,
                          const core::Ordering&) noexcept {
  stepper_->accumulate(all, sums);
  return {};
}

Status Engine::move_steps(std::int64_t, Span<const std::int64_t> moved) noexcept {
  for (std::size_t i = 0; i < moved.size; ++i) {
    const Tensor& tensor = (*tensors_)[i];
    std::int64_t* row_steps = tensor.row_steps();
    if (row_steps == nullptr) continue;
    for (std::int64_t row = 0; row < tensor.spec.rows; ++row) row_steps[row] += moved[i];
  }
  return {};
}

Status Engine::copy_out(const ArrayCopy& copy) noexcept {
  std::memcpy(copy.data, (*tensors_)[copy.parameter].array(copy.kind), copy.nbytes);
  return {};
}

Status Engine::copy_in(const ArrayCopy& copy) noexcept {
  std::memcpy((*tensors_)[copy.parameter].array(copy.kind), copy.data, copy.nbytes);
  return {};
}

Status Engine::decode(const Tensor& tensor, StateKind kind, float* values) noexcept {
  decode_moment(kernels(), tensor, kind, values);
  return {};
}

}  // namespace adamas::cpu
