#include "cpu/engine.hpp"

#include <cstring>

#include "core/checks.hpp"
#include "cpu/kernels/isa.hpp"
#include "rules/decision.hpp"

namespace adamas::cpu {
namespace {

using core::bad;

void load_masters(const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    char* master = tensor.state(StateKind::master);
    if (master == nullptr) continue;
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

}  // namespace

Status Engine::open(const AdamConfig& config, std::unique_ptr<core::Engine>* engine) {
  if (config.capturable) return bad("capturable must be False for parameters in CPU memory");
  *engine = std::make_unique<Engine>();
  return {};
}

char* Engine::allocate_state(std::size_t nbytes) {
  return state_.allocate(nbytes) ? state_.data() : nullptr;
}

Status Engine::start(const AdamConfig& config, const std::vector<Tensor>& tensors,
                     std::size_t rates_count, Span<void* const>) {
  config_ = config;
  tensors_ = &tensors;
  rates_.prepare(config, tensors, rates_count);
  stepper_.prepare(config, tensors, rates_count);
  load_masters(tensors);
  return {};
}

Status Engine::fold(const core::StepInput& input, double factor) noexcept {
  Status status = rates_.fold(input, factor);
  if (status.ok()) stepper_.set_scalars(rates_);
  return status;
}

// Clips or skips, by the sum of squares of all gradients.
Status Engine::decide(const core::StepInput& input, core::StepResult* result) noexcept {
  const SquareSum sum = stepper_.measure();
  const rules::Decision decision =
      rules::decide(config_, input.loss_scale, sum.squares, sum.finite);
  if (decision.refusal != rules::Refusal::none) return status_of(decision.refusal);
  result->skipped = decision.skips;
  result->grad_norm = decision.norm;
  return decision.clips ? fold(input, decision.factor) : Status{};
}

Status Engine::step(const Selection& all, const core::StepInput& input,
                    const core::Ordering& ordering, core::StepResult* result) noexcept {
  ordering.wait_for_last();
  const bool measures = rules::measures(config_);
  Status status = fold(input, rules::unclipped_factor(input.loss_scale));
  if (status.ok()) status = stepper_.merge(all, measures);
  if (status.ok() && measures) status = decide(input, result);
  if (status.ok() && !result->skipped) stepper_.update();
  return status;
}

Status Engine::begin(const core::StepInput& input) noexcept {
  return fold(input, rules::unclipped_factor(input.loss_scale));
}

Status Engine::apply(const Selection& one, const core::Ordering& ordering) noexcept {
  ordering.wait_for_last();
  Status status = stepper_.merge(one, false);
  if (status.ok()) stepper_.update();
  return status;
}

Status Engine::set_global_step(std::int64_t, std::int64_t moved) noexcept {
  for (const Tensor& tensor : *tensors_) {
    std::int64_t* row_steps = tensor.row_steps();
    if (row_steps == nullptr) continue;
    for (std::int64_t row = 0; row < tensor.spec.rows; ++row) row_steps[row] += moved;
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
