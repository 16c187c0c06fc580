// Gradients of micro-batches, summed for one step.
#include "core/accumulation.hpp"

#include <new>

#include "core/float_environment.hpp"
#include "core/memory.hpp"
#include "core/optimizer_impl.hpp"

namespace adamas {

using core::bad;

// Memory for the sums, each on cache lines of its own.
Status Optimizer::Impl::reserve_sums() {
  const std::vector<core::Tensor>& tensors = storage.tensors();
  if (accumulation.sums.size() == tensors.size()) return {};
  std::vector<std::size_t> offsets;
  std::size_t size = 0;
  for (const core::Tensor& tensor : tensors) {
    offsets.push_back(size);
    const std::size_t nbytes = static_cast<std::size_t>(tensor.spec.count) * item_size(tensor.real);
    size += (nbytes + core::kLine - 1) / core::kLine * core::kLine;
  }
  // Those of fewer parameters, which begin with the first.
  if (!accumulation.sums.empty()) engine->release_state(accumulation.sums.front());
  accumulation = {};
  std::vector<char*> sums(tensors.size());
  std::vector<char> has_any(tensors.size());
  char* memory = engine->allocate_state(size);
  if (memory == nullptr && size > 0) {
    return {StatusCode::out_of_memory, "no memory for sums of gradients"};
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) sums[i] = memory + offsets[i];
  accumulation = {0, std::move(sums), std::move(has_any)};
  return {};
}

Status Optimizer::Impl::accumulate(Span<const Gradient> grads, const Queueing& queueing) {
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = parts.check_closed(); !status.ok()) return status;
  if (options.all.capturable) return bad("a capturable optimizer does not accumulate gradients");
  core::Selection all{0, grads.size, grads.data};
  if (Status status = gradients.check(all); !status.ok()) return status;
  for (std::size_t i = 0; all.has_sparse && i < grads.size; ++i) {
    if (grads[i].rows == nullptr) continue;
    return bad("gradients that are accumulated must be dense", static_cast<std::int64_t>(i));
  }
  if (Status status = reserve_sums(); !status.ok()) return status;
  const core::FloatEnvironment pinned;
  const std::vector<core::RangeLock*> no_locks;
  Status status = engine->accumulate(all, accumulation, {queueing, no_locks});
  if (!status.ok()) return status;
  for (std::size_t i = 0; i < grads.size; ++i) {
    if (!grads[i].is_absent) accumulation.has_any[i] = 1;
  }
  ++accumulation.count;
  return {};
}

// With the mean, which divides by the number of micro-batches as a loss scale does.
Status Optimizer::Impl::step_accumulated(Span<const Rates> rates, const Queueing& queueing) {
  if (accumulation.count == 0) {
    return {StatusCode::bad_state, "there are no accumulated gradients for a step"};
  }
  const std::vector<core::Tensor>& tensors = storage.tensors();
  std::vector<Gradient> grads(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    grads[i].values = accumulation.sums[i];
    grads[i].dtype = tensors[i].real;
    grads[i].device = tensors[i].spec.device;
    grads[i].is_absent = accumulation.has_any[i] == 0;
  }
  const bool sums = options.all.reduction == Reduction::sum;
  const double divisor = sums ? 1.0 : static_cast<double>(accumulation.count);
  Status status = make_step(grads, rates, options.all.loss_scale * divisor, queueing);
  if (status.ok()) accumulation.clear();
  return status;
}

Status Optimizer::accumulate(Span<const Gradient> grads, const Queueing& queueing) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  try {
    return impl_->accumulate(grads, queueing);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for sums of gradients"};
  }
}

Status Optimizer::step_accumulated(Span<const Rates> rates, const Queueing& queueing) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl_->locks.all());
  try {
    return impl_->step_accumulated(rates, queueing);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the step"};
  }
}

std::int64_t Optimizer::accumulated() const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->accumulation.count;
}

void Optimizer::discard_accumulated() noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  impl_->accumulation.clear();
}

}  // namespace adamas
