// The public optimizer: checks everything, decides whether a step happens, counts.
//
// The work itself is core/stepper.cpp's.  After the first store nothing can fail.
#include "adamas/optimizer.hpp"

#include <algorithm>
#include <new>

#include "adamas/system.hpp"
#include "core/float_environment.hpp"
#include "core/optimizer_impl.hpp"
#include "cpu/kernels/isa.hpp"

namespace adamas {

Status Optimizer::Impl::prepare(const AdamConfig& options, Span<const ParameterSpec> parameters,
                                Span<void* const> after) {
  const cpu::FloatEnvironment pinned;  // master weights are loaded here
  config = options;
  squares1 = rules::Squares(config.beta1);
  squares2 = rules::Squares(config.beta2);
  if (config.num_threads == 0) config.num_threads = available_threads();
  if (Status status = check(config, parameters); !status.ok()) return status;
  for (const ParameterSpec& parameter : parameters) {
    rates_count = std::max(rates_count, static_cast<std::size_t>(parameter.rates) + 1);
  }
  std::vector<ParameterSpec> copies;
  if (Status status = open_device(parameters, &copies); !status.ok()) return status;
  core::Storage::Allocate allocate;
  if (device_stepper) {
    allocate = [this](std::size_t nbytes) { return device_stepper->allocate_state(nbytes); };
  }
  const Span<const ParameterSpec> placed =
      offload ? Span<const ParameterSpec>{copies.data(), copies.size()} : parameters;
  if (Status status = storage.prepare(config, placed, allocate); !status.ok()) return status;
  if (Status status = core::check_scales(storage); !status.ok()) return status;
  if (config.use_locking) {
    std::vector<core::Range> ranges;
    for (std::size_t i = 0; i < parameters.size; ++i) {
      ranges.push_back(core::range_of(parameters[i].data, storage.tensors()[i].nbytes));
    }
    locks.prepare(ranges);
  }
  applied.resize(parameters.size);
  accepted.resize(parameters.size);
  if (device_stepper) return device_stepper->prepare(config, storage, rates_count, after);
  stepper.prepare(config, storage, rates_count);
  load_masters();
  return {};
}

Status Optimizer::Impl::open_device(Span<const ParameterSpec> parameters,
                                    std::vector<ParameterSpec>* copies) {
  const std::int32_t device = parameters.size == 0 ? kCpu : parameters[0].device;
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].device == device) continue;
    return bad("all parameters of an optimizer must be on one device; make one for each device",
               static_cast<std::int64_t>(i));
  }
  if (device == kCpu) return {};
  if (!config.use_offload) return cuda::Stepper::open(device, &device_stepper);
  if (config.capturable) return bad("capturable and use_offload exclude each other");
  return cuda::Offload::open(parameters, &offload, copies);
}

void Optimizer::Impl::load_masters() {
  for (const core::Tensor& tensor : storage.tensors()) {
    char* master = tensor.state(StateKind::master);
    if (master == nullptr) continue;
    cpu::kernels().load[cpu::half_index(tensor.spec.dtype)](
        tensor.data(), reinterpret_cast<float*>(master), tensor.spec.count);
  }
}

Status Optimizer::Impl::check_grads(core::Selection& selection) noexcept {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (accepted[i].is(grad)) continue;
    if (grad.rows != nullptr) selection.has_sparse = true;
    const core::Tensor& tensor = storage.tensors()[i];
    if (Status status = check(storage, tensor, grad); !status.ok()) return status;
    if (grad.rows == nullptr && tensor.spec.count > 0) accepted[i] = {grad.values, grad.dtype};
  }
  return {};
}

Status Optimizer::Impl::check_closed() const noexcept {
  if (open) return {StatusCode::bad_state, kOpen};
  if (global_step.load() >= core::kMaxStep) return bad("global_step has reached its limit of 2^62");
  return {};
}

Status Optimizer::Impl::step(Span<const Gradient> grads, Span<const Rates> rates,
                             const Queueing& queueing) noexcept {
  if (Status status = check_closed(); !status.ok()) return status;
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = check(rates, rates_count); !status.ok()) return status;
  core::Selection selection{0, grads.size, grads.data};
  if (Status status = check_grads(selection); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (device_stepper) return update_on_device(selection, rates, queueing);
  return update_on_host(selection, rates);
}

Status Optimizer::Impl::apply(std::size_t i, const Gradient& grad,
                              const Queueing& queueing) noexcept {
  core::Selection selection{i, i + 1, &grad};
  if (Status status = check_grads(selection); !status.ok()) return status;
  static const std::vector<core::RangeLock*> kNoLocks;
  const auto& taken = config.use_locking ? locks.of(i) : kNoLocks;
  const core::ParameterLocks::Guard guard(taken);
  const cpu::FloatEnvironment pinned;
  if (device_stepper) {
    if (Status status = device_stepper->update(selection, {queueing, taken}); !status.ok()) {
      return status;
    }
  } else {
    if (Status status = stepper.merge(selection, false); !status.ok()) return status;
    stepper.update();
  }
  applied[i] = 1;
  return {};
}

Status Optimizer::create(const AdamConfig& config, Span<const ParameterSpec> parameters,
                         std::unique_ptr<Optimizer>* optimizer, Span<void* const> after) noexcept {
  try {
    if (Status status = check(config); !status.ok()) return status;
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
  if (impl_->offload) return impl_->step_offloaded(grads, rates, queueing);
  return impl_->step(grads, rates, queueing);
}

Status Optimizer::begin_step(Span<const Rates> rates) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (Status status = impl.check_closed(); !status.ok()) return status;
  if (impl.measures()) {
    return {StatusCode::bad_state,
            "max_grad_norm and skip_nonfinite need all gradients at once: make whole steps"};
  }
  if (impl.device_decides()) {
    return {StatusCode::bad_state, "a capturable optimizer makes whole steps"};
  }
  if (Status status = check(rates, impl.rates_count); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = impl.fold(rates, 1.0 / impl.config.loss_scale); !status.ok()) return status;
  std::fill(impl.applied.begin(), impl.applied.end(), char{0});
  impl.open = true;
  return {};
}

Status Optimizer::apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (!impl.open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  const auto index = static_cast<std::int64_t>(i);
  if (i >= impl.applied.size()) return bad("there is no such parameter", index);
  if (impl.applied[i] != 0) {
    return {StatusCode::bad_state, "a parameter was applied already in this step", index};
  }
  return impl.offload ? impl.apply_offloaded(i, grad, queueing) : impl.apply(i, grad, queueing);
}

Status Optimizer::end_step() noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (!impl.open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  const auto missing = std::find(impl.applied.begin(), impl.applied.end(), char{0});
  if (missing != impl.applied.end()) {
    return {StatusCode::bad_state, "a parameter was not applied in this step",
            missing - impl.applied.begin()};
  }
  impl.open = false;
  impl.count_step();
  return {};
}

Status Optimizer::cancel_step() noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (!impl_->open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  impl_->open = false;
  return {};
}

double Optimizer::loss_scale() const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->config.loss_scale;
}

Status Optimizer::set_loss_scale(double loss_scale) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (impl_->open) return {StatusCode::bad_state, kOpen};
  AdamConfig changed = impl_->config;
  changed.loss_scale = loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  impl_->config = changed;
  return {};
}

bool Optimizer::last_step_skipped() const noexcept {
  return impl_->device_decides() ? impl_->outcome().last_step_skipped != 0
                                 : impl_->last_step_skipped.load();
}

std::int64_t Optimizer::skipped_steps() const noexcept {
  return impl_->device_decides() ? impl_->outcome().skipped_steps : impl_->skipped_steps.load();
}

double Optimizer::last_grad_norm() const noexcept {
  return impl_->device_decides() ? impl_->outcome().last_grad_norm : impl_->last_grad_norm.load();
}

std::int64_t Optimizer::global_step() const noexcept {
  return impl_->device_decides() ? impl_->outcome().step : impl_->global_step.load();
}

// Rows keep their distance to the current step.
Status Optimizer::set_global_step(std::int64_t step) noexcept {
  Impl& impl = *impl_;
  if (step < 0 || step > core::kMaxStep) return bad("global_step must be in [0, 2^62]");
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  if (impl.open) return {StatusCode::bad_state, kOpen};
  const std::int64_t moved = step - impl.global_step.load();
  if (impl.device_stepper) {
    Status status = impl.device_stepper->set_global_step(step, moved);
    if (status.ok()) impl.global_step.store(step);
    return status;
  }
  for (const core::Tensor& tensor : impl.storage.tensors()) {
    std::int64_t* row_steps = tensor.row_steps();
    if (row_steps == nullptr) continue;
    for (std::int64_t row = 0; row < tensor.spec.rows; ++row) row_steps[row] += moved;
  }
  impl.global_step.store(step);
  return {};
}

void* Optimizer::state(StateKind kind, std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return i < tensors.size() ? tensors[i].state(kind) : nullptr;
}

std::int64_t Optimizer::scale_block(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  const bool has_scales = i < tensors.size() && tensors[i].format == StateFormat::int8;
  return has_scales ? tensors[i].scale_block : 0;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->storage.state_nbytes(); }

Status Optimizer::set_rates(Span<const Rates> rates, void* stream) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = check(rates, impl_->rates_count); !status.ok()) return status;
  if (!impl_->device_decides()) return {StatusCode::bad_state, "the optimizer is not capturable"};
  return impl_->device_stepper->set_rates(rates, impl_->config.loss_scale, stream);
}

bool Optimizer::is_capturing(void* stream) const noexcept {
  return impl_->device_stepper && impl_->device_stepper->is_capturing(stream);
}

std::int32_t Optimizer::device() const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return tensors.empty() ? kCpu : tensors[0].spec.device;
}

Status Optimizer::read_device(const void* device, void* host, std::size_t nbytes) const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (!impl_->device_stepper) return bad("the parameters are not on a device");
  return impl_->device_stepper->read(device, host, nbytes);
}

Status Optimizer::write_device(void* device, const void* host, std::size_t nbytes) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (!impl_->device_stepper) return bad("the parameters are not on a device");
  return impl_->device_stepper->write(device, host, nbytes);
}

int Optimizer::num_threads() const noexcept { return impl_->config.num_threads; }

}  // namespace adamas
