// The public optimizer: checks everything, has its engine make the steps, and counts.
#include "adamas/optimizer.hpp"

#include <algorithm>
#include <new>

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

Status Optimizer::Impl::prepare(const AdamConfig& options, Span<const ParameterSpec> parameters,
                                Span<void* const> after) {
  const core::FloatEnvironment pinned;
  config = rules::used_config(options);
  if (Status status = check(config); !status.ok()) return status;
  if (config.num_threads == 0) {
    DefaultThreads usual;
    if (Status status = default_threads(&usual); !status.ok()) return status;
    config.num_threads = usual.threads;
  }
  if (Status status = check(config, parameters); !status.ok()) return status;
  for (const ParameterSpec& parameter : parameters) {
    rates_count = std::max(rates_count, static_cast<std::size_t>(parameter.rates) + 1);
  }
  const std::int32_t device = parameters.size == 0 ? kCpu : parameters[0].device;
  if (Status status = core::open_engine(config, device, &engine); !status.ok()) return status;
  const auto allocate = [this](std::size_t nbytes) { return engine->allocate_state(nbytes); };
  Status status = storage.prepare(config, parameters, allocate, engine->access_width());
  if (status.ok()) status = core::check_scales(storage);
  if (!status.ok()) return status;
  if (config.use_locking) locks.prepare(storage.parameter_ranges());
  gradients.prepare(storage);
  parts.prepare(parameters.size);
  return engine->start(config, storage.tensors(), rates_count, after);
}

// Whether a step may begin.
Status Optimizer::Impl::check_ready(Span<const Rates> rates) const noexcept {
  if (Status status = parts.check_closed(); !status.ok()) return status;
  if (counters.global_step() >= core::kMaxStep) {
    return bad("global_step has reached its limit of 2^62");
  }
  return check(config, rates, rates_count);
}

core::StepInput Optimizer::Impl::input(Span<const Rates> rates) const noexcept {
  return {counters.global_step() + 1, rates, config.loss_scale};
}

Status Optimizer::Impl::step(Span<const Gradient> grads, Span<const Rates> rates,
                             const Queueing& queueing) noexcept {
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = check_ready(rates); !status.ok()) return status;
  core::Selection all{0, grads.size, grads.data};
  if (Status status = gradients.check(all); !status.ok()) return status;
  const core::FloatEnvironment pinned;
  core::StepResult result;
  Status status = engine->step(all, input(rates), {queueing, locks.all()}, &result);
  if (status.ok()) counters.commit(result);
  return status;
}

Status Optimizer::Impl::apply(std::size_t i, const Gradient& grad,
                              const Queueing& queueing) noexcept {
  core::Selection one{i, i + 1, &grad};
  if (Status status = gradients.check(one); !status.ok()) return status;
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
                         std::unique_ptr<Optimizer>* optimizer, Span<void* const> after) noexcept {
  try {
    auto impl = std::make_unique<Impl>();
    if (Status status = impl->prepare(config, parameters, after); !status.ok()) return status;
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
  if (rules::measures(impl.config)) {
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

Status Optimizer::end_step() noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_complete(); !status.ok()) return status;
  impl_->parts.close();
  impl_->counters.commit({});
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
  return impl_->config.loss_scale;
}

Status Optimizer::set_loss_scale(double loss_scale) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  AdamConfig changed = impl_->config;
  changed.loss_scale = loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  impl_->config = changed;
  return {};
}

bool Optimizer::last_step_skipped() const noexcept { return impl_->counted().last_step_skipped; }

std::int64_t Optimizer::skipped_steps() const noexcept { return impl_->counted().skipped_steps; }

double Optimizer::last_grad_norm() const noexcept { return impl_->counted().last_grad_norm; }

std::int64_t Optimizer::global_step() const noexcept { return impl_->counted().global_step; }

// Rows keep their distance to the current step.
Status Optimizer::set_global_step(std::int64_t step) noexcept {
  Impl& impl = *impl_;
  if (step < 0 || step > core::kMaxStep) return bad("global_step must be in [0, 2^62]");
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (Status status = impl.parts.check_closed(); !status.ok()) return status;
  Counters now;
  Status status = impl.read_counters(&now);
  if (status.ok()) status = impl.engine->set_global_step(step, step - now.global_step);
  if (status.ok()) impl.counters.set_global_step(step);
  return status;
}

AdamConfig Optimizer::config() const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->config;
}

double Optimizer::used_learning_rate(double learning_rate) const noexcept {
  return rules::used_learning_rate(impl_->config, learning_rate);
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
  return i < tensors.size() ? core::layout_of(kind, tensors[i], impl_->config) : StateLayout{};
}

std::int64_t Optimizer::scale_block(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  const bool has_scales = i < tensors.size() && tensors[i].format == StateFormat::int8;
  return has_scales ? tensors[i].scale_block : 0;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->storage.state_nbytes(); }

Status Optimizer::set_rates(Span<const Rates> rates, void* stream) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = check(impl_->config, rates, impl_->rates_count); !status.ok()) return status;
  return impl_->engine->send_rates(rates, impl_->config.loss_scale, stream);
}

std::int32_t Optimizer::device() const noexcept { return impl_->engine->device(); }

int Optimizer::num_threads() const noexcept { return impl_->config.num_threads; }

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
