#include "cuda/offload/engine.hpp"

#include "core/checks.hpp"
#include "rules/decision.hpp"

namespace adamas::cuda {
namespace {

// For the host's engine, which has nothing to wait for: fetch() has waited for all parameters.
core::Ordering after_fetch(const core::Ordering& ordering) {
  static const std::vector<core::RangeLock*> kNoLocks;
  return {ordering.queueing, kNoLocks};
}

}  // namespace

Status OffloadEngine::open(const AdamConfig& config, std::int32_t device,
                           std::unique_ptr<core::Engine>* engine) {
  if (config.capturable) return core::bad("capturable and use_offload exclude each other");
  if (config.writes_delta) return core::bad("writes_delta and use_offload exclude each other");
  auto made = std::make_unique<OffloadEngine>();
  Status status = made->copies_.open(device);
  if (status.ok()) *engine = std::move(made);
  return status;
}

Status OffloadEngine::start(const core::Options& options, const std::vector<core::Tensor>& tensors,
                            Span<void* const> after) {
  options_ = &options;
  tensors_ = &tensors;
  if (Status status = copies_.extend(tensors, after); !status.ok()) return status;
  return host_.start(options, copies_.tensors(), {});
}

Status OffloadEngine::extend(std::size_t first, Span<void* const> after) {
  if (!broken_.ok()) return broken_;
  Status status;
  try {
    status = copies_.extend(*tensors_, after);
    if (status.ok()) status = host_.extend(first, {});
  } catch (const std::bad_alloc&) {
    status = {StatusCode::out_of_memory, "no memory for the copies of parameters"};
  }
  if (!status.ok()) copies_.drop(first);
  return status;
}

Status OffloadEngine::fetch(const core::Selection& selection, const core::Ordering& ordering,
                            bool with_parameters, core::Selection* staged) noexcept {
  Status status = broken_;
  if (status.ok()) status = copies_.stage(selection, staged);
  if (status.ok()) status = copies_.fetch(ordering, with_parameters);
  return status;
}

Status OffloadEngine::step(const core::Selection& all, const core::StepInput& input,
                           const core::Ordering& ordering, core::StepResult* result) noexcept {
  core::Selection staged{};
  if (Status status = fetch(all, ordering, true, &staged); !status.ok()) return status;
  // Whether the update of a parameter depends on its own gradient alone, and can't be refused.
  const bool streams = !options_->measures() && !all.has_sparse;
  Status status =
      streams ? stream(staged, input, ordering) : step_at_once(staged, input, ordering, result);
  return status.ok() ? finish({}, ordering) : status;
}

// One parameter after the other, while the copies of others are under way.
Status OffloadEngine::stream(const core::Selection& staged, const core::StepInput& input,
                             const core::Ordering& ordering) noexcept {
  if (Status status = host_.begin(input); !status.ok()) return status;
  for (std::size_t i = staged.first; i < staged.last; ++i) {
    if (staged.grad(i).is_absent) continue;
    Status status = copies_.wait(i);
    if (status.ok()) status = host_.apply({i, i + 1, &staged.grad(i)}, after_fetch(ordering));
    if (status.ok()) status = copies_.send(i);
    if (!status.ok()) return close(), status;
  }
  return {};
}

Status OffloadEngine::step_at_once(const core::Selection& staged, const core::StepInput& input,
                                   const core::Ordering& ordering,
                                   core::StepResult* result) noexcept {
  for (std::size_t i = staged.first; i < staged.last; ++i) {
    if (Status status = copies_.wait(i); !status.ok()) return status;
  }
  if (Status status = host_.step(staged, input, after_fetch(ordering), result); !status.ok())
    return status;
  for (std::size_t i = staged.first; i < staged.last; ++i) {
    if (staged.grad(i).is_absent) continue;
    if (Status status = copies_.send(i); !status.ok()) return close(), status;
  }
  return {};
}

// One parameter of an open step.
Status OffloadEngine::apply(const core::Selection& one, const core::Ordering& ordering) noexcept {
  core::Selection staged{};
  if (Status status = fetch(one, ordering, true, &staged); !status.ok()) return status;
  if (Status status = copies_.wait(one.first); !status.ok()) return status;
  if (Status status = host_.apply(staged, after_fetch(ordering)); !status.ok()) return status;
  return finish(copies_.send(one.first), ordering);
}

// After the last parameter was sent, or could not be.
Status OffloadEngine::finish(Status sent, const core::Ordering& ordering) noexcept {
  if (sent.ok()) sent = copies_.finish(ordering.queueing.stream, options_->all.use_locking);
  if (!sent.ok()) close();
  return sent;
}

// On the host, where the sums are.
Status OffloadEngine::accumulate(const core::Selection& all, const core::Accumulation& sums,
                                 const core::Ordering& ordering) noexcept {
  core::Selection staged{};
  if (Status status = fetch(all, ordering, false, &staged); !status.ok()) return status;
  for (std::size_t i = staged.first; i < staged.last; ++i) {
    if (Status status = copies_.wait(i); !status.ok()) return status;
  }
  return host_.accumulate(staged, sums, after_fetch(ordering));
}

Status OffloadEngine::copy_out(const ArrayCopy& copy) noexcept {
  if (!copy.kind) {
    if (Status status = copies_.read(copy.parameter); !status.ok()) return status;
  }
  return host_.copy_out(copy);
}

Status OffloadEngine::copy_in(const ArrayCopy& copy) noexcept {
  Status status = host_.copy_in(copy);
  return status.ok() && !copy.kind ? copies_.write(copy.parameter) : status;
}

}  // namespace adamas::cuda
