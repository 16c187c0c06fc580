// The public optimizer: checks everything, has its engine make the steps, and counts.
#include "adamas/optimizer.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "adamas/system.hpp"
#include "core/float_environment.hpp"
#include "core/internals.hpp"
#include "core/layout.hpp"
#include "core/optimizer_impl.hpp"
#include "rules/decision.hpp"
#include "rules/mindspore.hpp"

namespace adamas {

using core::bad;
using core::check;

namespace {

constexpr const char* kNoMemoryForSteps = "no memory for the steps of parameters";

}  // namespace

Status Optimizer::Impl::prepare(const AdamConfig& config, Span<const ParameterSpec> parameters,
                                Span<void* const> after, Span<const AdamConfig> groups) {
  const core::FloatEnvironment pinned;
  options.all = rules::used_config(config);
  if (Status status = check(options.all); !status.ok()) return status;
  if (options.all.num_threads == 0) {
    DefaultThreads usual;
    if (Status status = default_threads(&usual); !status.ok()) return status;
    options.all.num_threads = usual.threads;
  }
  if (Status status = core::make_groups(groups, parameters, &options); !status.ok()) return status;
  if (Status status = check(options, parameters); !status.ok()) return status;
  const std::int32_t device = parameters.size == 0 ? kCpu : parameters[0].device;
  Status status = core::open_engine(options.all, device, &engine);
  if (!status.ok()) return status;
  const auto allocate = [this](std::size_t nbytes) { return engine->allocate_state(nbytes); };
  status = storage.prepare(options, parameters, allocate, engine->access_width());
  if (status.ok()) status = core::check_state(options, storage);
  if (!status.ok()) return status;
  if (options.all.use_locking) locks.prepare(storage.parameter_ranges());
  gradients.prepare(options, storage);
  parts.prepare(parameters.size);
  steps.prepare(parameters.size);
  return engine->start(options, storage.tensors(), after);
}

// Whether a step may begin.
Status Optimizer::Impl::check_ready(Span<const Rates> rates) const noexcept {
  if (Status status = parts.check_closed(); !status.ok()) return status;
  if (counters.global_step() >= core::kMaxStep) {
    return bad("global_step has reached its limit of 2^62");
  }
  return check(options, rates);
}

core::StepInput Optimizer::Impl::input(Span<const Rates> rates) const noexcept {
  return {counters.global_step() + 1, steps.differing(), rates, options.all.loss_scale};
}

void Optimizer::Impl::set_loss_scale(double loss_scale) noexcept {
  options.all.loss_scale = loss_scale;
  for (AdamConfig& group : options.groups) group.loss_scale = loss_scale;
}

// Before the first step in which parameters differ in their numbers of steps.
Status Optimizer::Impl::allow_differing_steps(void* stream) noexcept {
  if (steps.differing() != nullptr) return {};
  if (Status status = engine->allow_differing_steps(stream); !status.ok()) return status;
  return steps.differ(counters.global_step());
}

Status Optimizer::Impl::step(Span<const Gradient> grads, Span<const Rates> rates,
                             const Queueing& queueing) noexcept {
  if (Status status = check_unaccumulated(); !status.ok()) return status;
  return make_step(grads, rates, options.all.loss_scale, queueing);
}

Status Optimizer::Impl::make_step(Span<const Gradient> grads, Span<const Rates> rates,
                                  double loss_scale, const Queueing& queueing) noexcept {
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = check_ready(rates); !status.ok()) return status;
  core::Selection all{0, grads.size, grads.data};
  if (Status status = gradients.check(all); !status.ok()) return status;
  const core::FloatEnvironment pinned;
  if (all.has_absent) {
    if (Status status = allow_differing_steps(queueing.stream); !status.ok()) return status;
  }
  core::StepInput made_with = input(rates);
  made_with.loss_scale = loss_scale;
  core::StepResult result;
  Status status = engine->step(all, made_with, {queueing, locks.all()}, &result);
  if (!status.ok()) return status;
  counters.commit(result);
  if (!result.skipped) steps.count(all);
  return {};
}

Status Optimizer::Impl::apply(std::size_t i, const Gradient& grad,
                              const Queueing& queueing) noexcept {
  core::Selection one{i, i + 1, &grad};
  if (Status status = gradients.check(one); !status.ok()) return status;
  if (one.has_absent) {
    return bad("a parameter without a gradient is left out: end_step with `skip_missing`",
               static_cast<std::int64_t>(i));
  }
  const core::ParameterLocks::Guard guard(locks.of(i));
  const core::FloatEnvironment pinned;
  Status status = engine->apply(one, {queueing, locks.of(i)});
  if (status.ok()) parts.set_applied(i);
  return status;
}

// All but the loss scale, for a caller that holds the mutex.
Status Optimizer::Impl::read_counters(Counters* now) const noexcept {
  if (engine->counts_steps()) return engine->read_counters(now);
  counters.read(now);
  return {};
}

// The same for any caller, who waits for nobody unless an engine counts by itself.  Zeros if that
// fails, which the next step reports.
Counters Optimizer::Impl::counted() const noexcept {
  std::unique_lock<core::CallMutex> lock(mutex, std::defer_lock);
  if (engine->counts_steps()) lock.lock();
  Counters now;
  return read_counters(&now).ok() ? now : Counters{};
}

Status Optimizer::create(const AdamConfig& config, Span<const ParameterSpec> parameters,
                         std::unique_ptr<Optimizer>* optimizer, Span<void* const> after,
                         Span<const AdamConfig> groups) noexcept {
  try {
    auto impl = std::make_unique<Impl>();
    Status status = impl->prepare(config, parameters, after, groups);
    if (!status.ok()) return status;
    optimizer->reset(new Optimizer(std::move(impl)));
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the optimizer"};
  }
}

Optimizer::Optimizer(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Optimizer::~Optimizer() = default;

Status Optimizer::step(Span<const Gradient> grads, Span<const Rates> rates,
                       const Queueing& queueing) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl_->locks.all());
  return impl_->step(grads, rates, queueing);
}

Status Optimizer::begin_step(Span<const Rates> rates) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (Status status = impl.check_ready(rates); !status.ok()) return status;
  if (Status status = impl.check_unaccumulated(); !status.ok()) return status;
  if (impl.options.measures()) {
    return {StatusCode::bad_state,
            "max_grad_norm and skip_nonfinite need all gradients at once: make whole steps"};
  }
  const core::FloatEnvironment pinned;
  Status status = impl.engine->begin(impl.input(rates));
  if (status.ok()) impl.parts.open();
  return status;
}

Status Optimizer::apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  Status status = impl_->parts.check_next(i);
  return status.ok() ? impl_->apply(i, grad, queueing) : status;
}

Status Optimizer::end_step(bool skip_missing) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  Status status = skip_missing ? impl.parts.check_open() : impl.parts.check_complete();
  if (status.ok() && !impl.parts.is_complete()) {
    status = impl.allow_differing_steps(nullptr);
  }
  if (!status.ok()) return status;
  impl.parts.close();
  impl.counters.commit({});
  impl.steps.count(impl.parts.applied());
  return {};
}

Status Optimizer::cancel_step() noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  Status status = impl_->parts.check_open();
  impl_->parts.close();
  return status;
}

double Optimizer::loss_scale() const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->options.all.loss_scale;
}

Status Optimizer::set_loss_scale(double loss_scale) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  AdamConfig changed = impl_->options.all;
  changed.loss_scale = loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  impl_->set_loss_scale(loss_scale);
  return {};
}

bool Optimizer::last_step_skipped() const noexcept { return impl_->counted().last_step_skipped; }

std::int64_t Optimizer::skipped_steps() const noexcept { return impl_->counted().skipped_steps; }

double Optimizer::last_grad_norm() const noexcept { return impl_->counted().last_grad_norm; }

std::int64_t Optimizer::global_step() const noexcept { return impl_->counted().global_step; }

// The steps of each parameter, for a caller that holds the mutex.
Status Optimizer::Impl::read_steps(Span<std::int64_t> to) const noexcept {
  if (engine->counts_steps()) return engine->read_steps(to);
  steps.read(counters.global_step(), to);
  return {};
}

// `step`: of the optimizer.  Rows keep their distance to the steps of their parameter.
Status Optimizer::Impl::move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept {
  if (Status status = engine->move_steps(step, moved); !status.ok()) return status;
  counters.set_global_step(step);
  steps.move(step, moved);
  return {};
}

// All parameters move as far as the optimizer, but not out of the range.
Status Optimizer::Impl::set_global_step(std::int64_t step) {
  Counters now;
  std::vector<std::int64_t> moved(storage.tensors().size());
  Status status = read_counters(&now);
  if (status.ok()) status = read_steps(moved);
  if (!status.ok()) return status;
  const std::int64_t wanted = step - now.global_step;
  for (std::int64_t& one : moved) one = std::clamp(wanted, -one, core::kMaxStep - one);
  return move_steps(step, moved);
}

Status Optimizer::Impl::set_steps(Span<const std::int64_t> wanted) {
  if (Status status = allow_differing_steps(nullptr); !status.ok()) return status;
  Counters now;
  std::vector<std::int64_t> moved(wanted.size);
  Status status = read_counters(&now);
  if (status.ok()) status = read_steps(moved);
  if (!status.ok()) return status;
  for (std::size_t i = 0; i < wanted.size; ++i) moved[i] = wanted[i] - moved[i];
  return move_steps(now.global_step, moved);
}

Status Optimizer::set_global_step(std::int64_t step) noexcept {
  if (step < 0 || step > core::kMaxStep) return bad("global_step must be in [0, 2^62]");
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  try {
    return impl_->set_global_step(step);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, kNoMemoryForSteps};
  }
}

Status Optimizer::steps(Span<std::int64_t> steps) const noexcept {
  if (steps.size != impl_->storage.tensors().size()) return bad(core::kNotAsManySteps);
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->read_steps(steps);
}

Status Optimizer::set_steps(Span<const std::int64_t> steps) noexcept {
  if (Status status = core::check_steps(steps, impl_->storage); !status.ok()) return status;
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  try {
    return impl_->set_steps(steps);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, kNoMemoryForSteps};
  }
}

AdamConfig Optimizer::config() const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->options.all;
}

double Optimizer::used_learning_rate(double learning_rate) const noexcept {
  return rules::used_learning_rate(impl_->options.all, learning_rate);
}

bool Optimizer::centralizes(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return i < tensors.size() && tensors[i].spec.centralize;
}

void* Optimizer::state(StateKind kind, std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return i < tensors.size() ? tensors[i].state(kind) : nullptr;
}

StateLayout Optimizer::layout(StateKind kind, std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return i < tensors.size() ? core::layout_of(kind, tensors[i], impl_->options.all) : StateLayout{};
}

std::int64_t Optimizer::scale_block(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  const bool has_scales = i < tensors.size() && tensors[i].format == StateFormat::int8;
  return has_scales ? tensors[i].scale_block : 0;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->storage.state_nbytes(); }

Status Optimizer::set_rates(Span<const Rates> rates, void* stream) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = check(impl_->options, rates); !status.ok()) return status;
  return impl_->engine->send_rates(rates, impl_->options.all.loss_scale, stream);
}

std::int32_t Optimizer::device() const noexcept { return impl_->engine->device(); }

int Optimizer::num_threads() const noexcept { return impl_->options.all.num_threads; }

namespace core {

bool Internals::is_capturing(const Optimizer& optimizer, void* stream) noexcept {
  return optimizer.impl_->engine->is_capturing(stream);
}

Status Internals::read_device(const Optimizer& optimizer, const void* device, void* host,
                              std::size_t nbytes) noexcept {
  const std::lock_guard<CallMutex> lock(optimizer.impl_->mutex);
  return optimizer.impl_->engine->read(device, host, nbytes);
}

Status Internals::write_device(Optimizer& optimizer, void* device, const void* host,
                               std::size_t nbytes) noexcept {
  const std::lock_guard<CallMutex> lock(optimizer.impl_->mutex);
  return optimizer.impl_->engine->write(device, host, nbytes);
}

}  // namespace core

}  // namespace adamas
