// Saving and loading: copies of parameters, states and counters, and moments as real numbers.
#include <cstring>

#include "core/float_environment.hpp"
#include "core/layout.hpp"
#include "core/optimizer_impl.hpp"

namespace adamas {

using core::bad;
using core::check;

namespace {

// The distance of a row to the current step must not be negative, nor overflow.
Status check_row_steps(const ArrayCopy& copy, std::int64_t newest) {
  const auto* row_steps = static_cast<const char*>(copy.data);
  for (std::size_t offset = 0; offset < copy.nbytes; offset += sizeof(std::int64_t)) {
    std::int64_t step;
    std::memcpy(&step, row_steps + offset, sizeof step);
    if (step > newest || step < -core::kMaxStep) {
      return bad("row_step must be in [-2^62, the steps of its parameter]",
                 static_cast<std::int64_t>(copy.parameter));
    }
  }
  return {};
}

}  // namespace

Status Optimizer::Impl::check_copies(Span<const ArrayCopy> copies) const noexcept {
  if (Status status = parts.check_closed(); !status.ok()) return status;
  if (Status status = check_unaccumulated(); !status.ok()) return status;
  for (const ArrayCopy& copy : copies) {
    const auto index = static_cast<std::int64_t>(copy.parameter);
    if (copy.parameter >= storage.tensors().size()) return bad("there is no such parameter", index);
    const core::Tensor& tensor = storage.tensors()[copy.parameter];
    const std::size_t wanted =
        copy.kind ? core::layout_of(*copy.kind, tensor, options.all).nbytes() : tensor.nbytes;
    if (copy.nbytes != wanted) return bad("an array to copy has another size", index);
    if (copy.nbytes > 0 && copy.data == nullptr) return bad("an array to copy is missing", index);
    if (storage.overlaps(copy.data, copy.nbytes)) {
      return {StatusCode::overlap, "an array to copy shares memory with a parameter or the state",
              index};
    }
  }
  return {};
}

Status Optimizer::Impl::check_load(Span<const ArrayCopy> from, const Counters& wanted,
                                   Span<const std::int64_t> own) const noexcept {
  if (Status status = check_copies(from); !status.ok()) return status;
  if (own.size > 0) {
    if (Status status = core::check_steps(own, storage); !status.ok()) return status;
  }
  if (wanted.global_step < 0 || wanted.global_step > core::kMaxStep) {
    return bad("global_step must be in [0, 2^62]");
  }
  if (wanted.skipped_steps < 0) return bad("skipped_steps must not be negative");
  if (wanted.last_grad_norm < 0.0) return bad("last_grad_norm must not be negative");
  AdamConfig changed = options.all;
  changed.loss_scale = wanted.loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (copy.kind != StateKind::row_step) continue;
    const std::int64_t newest = own.size > 0 ? own[copy.parameter] : wanted.global_step;
    if (Status status = check_row_steps(copy, newest); !status.ok()) return status;
  }
  return {};
}

Status Optimizer::save(Span<const ArrayCopy> to, Counters* counters,
                       Span<std::int64_t> steps) const noexcept {
  const Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_copies(to); !status.ok()) return status;
  if (steps.size > 0 && steps.size != impl.storage.tensors().size()) {
    return bad(core::kNotAsManySteps);
  }
  for (const ArrayCopy& copy : to) {
    if (copy.nbytes == 0) continue;
    if (Status status = impl.engine->copy_out(copy); !status.ok()) return status;
  }
  counters->loss_scale = impl.options.all.loss_scale;
  Status status = impl.read_counters(counters);
  if (!status.ok() || steps.size == 0) return status;
  return impl.read_steps(steps);
}

Status Optimizer::load(Span<const ArrayCopy> from, const Counters& counters,
                       Span<const std::int64_t> steps) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  Status status = impl.check_load(from, counters, steps);
  core::ParameterSteps fresh;
  fresh.prepare(impl.storage.tensors().size());
  if (status.ok()) status = fresh.write(counters.global_step, steps);
  if (status.ok() && fresh.differing() != nullptr)
    status = impl.engine->allow_differing_steps(nullptr);
  if (!status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (status.ok() && copy.nbytes > 0) status = impl.engine->copy_in(copy);
  }
  if (status.ok()) status = impl.engine->write_counters(counters);
  const bool differs = fresh.differing() != nullptr;
  if (status.ok()) status = impl.engine->write_steps(differs ? steps : Span<const std::int64_t>{});
  if (!status.ok()) return impl.engine->close(), status;
  impl.steps = std::move(fresh);
  impl.counters.write(counters);
  impl.set_loss_scale(counters.loss_scale);
  return {};
}

Status Optimizer::decode_moment(StateKind kind, std::size_t i, float* values) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  if (i >= tensors.size() || kind > StateKind::moment2) return bad("there is no such moment");
  if (tensors[i].format == StateFormat::real) return bad("the moment is stored as it is");
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  const core::FloatEnvironment pinned;
  return impl_->engine->decode(tensors[i], kind, values);
}

}  // namespace adamas
