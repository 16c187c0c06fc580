// Saving and loading: copies of parameters, states and counters, and moments as real numbers.
#include <algorithm>
#include <cstring>
#include <new>

#include "core/optimizer_impl.hpp"
#include "cpu/kernels/isa.hpp"

namespace adamas {
namespace {

char* array_of(const core::Storage& storage, const ArrayCopy& copy) {
  const core::Tensor& tensor = storage.tensors()[copy.parameter];
  return copy.kind ? tensor.state(*copy.kind) : tensor.data();
}

// The distance of a row to the current step must not be negative, nor overflow.
Status check_row_steps(const ArrayCopy& copy, std::int64_t newest) {
  const auto* row_steps = static_cast<const char*>(copy.data);
  for (std::size_t offset = 0; offset < copy.nbytes; offset += sizeof(std::int64_t)) {
    std::int64_t step;
    std::memcpy(&step, row_steps + offset, sizeof step);
    if (step > newest || step < -core::kMaxStep) {
      return bad("row_step must be in [-2^62, global_step]",
                 static_cast<std::int64_t>(copy.parameter));
    }
  }
  return {};
}

void decode(const core::Tensor& tensor, StateKind kind, float* values) {
  const std::int64_t length = core::kTile / tensor.scale_block * tensor.scale_block;
  for (std::int64_t begin = 0; begin < tensor.spec.count; begin += length) {
    const std::int64_t count = std::min(length, tensor.spec.count - begin);
    float moments[2][core::kTile];
    core::decode_moments(cpu::kernels(), tensor, begin, count, moments[0], moments[1]);
    std::copy_n(moments[static_cast<std::size_t>(kind)], count, values + begin);
  }
}

// The same of moments on a device.
Status decode(cuda::Stepper& device, const core::Tensor& tensor, StateKind kind, float* values) {
  constexpr StateKind kStored[] = {StateKind::moment1, StateKind::moment2, StateKind::scale1,
                                   StateKind::scale2};
  try {
    core::Tensor copy = tensor;
    std::vector<char> copies[std::size(kStored)];
    for (std::size_t k = 0; k < std::size(kStored); ++k) {
      const char* stored = tensor.state(kStored[k]);
      if (stored == nullptr) continue;
      const std::int64_t items =
          k < 2 ? tensor.spec.count * tensor.moment_nbytes()
                : (tensor.spec.count + tensor.scale_block - 1) / tensor.scale_block;
      copies[k].resize(static_cast<std::size_t>(items));
      Status status = device.read(stored, copies[k].data(), copies[k].size());
      if (!status.ok()) return status;
      copy.states[static_cast<std::size_t>(kStored[k])] = copies[k].data();
    }
    decode(copy, kind, values);
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory to decode a moment"};
  }
}

}  // namespace

Status Optimizer::Impl::copy_out(const ArrayCopy& copy) const noexcept {
  if (copy.nbytes == 0) return {};
  if (device_stepper) return device_stepper->read(array_of(storage, copy), copy.data, copy.nbytes);
  if (offload && !copy.kind) {
    if (Status status = offload->read(copy.parameter); !status.ok()) return status;
  }
  std::memcpy(copy.data, array_of(storage, copy), copy.nbytes);
  return {};
}

Status Optimizer::Impl::copy_in(const ArrayCopy& copy) noexcept {
  if (copy.nbytes == 0) return {};
  if (device_stepper) return device_stepper->write(array_of(storage, copy), copy.data, copy.nbytes);
  std::memcpy(array_of(storage, copy), copy.data, copy.nbytes);
  return offload && !copy.kind ? offload->write(copy.parameter) : Status{};
}

// After an error of a device that left something half done.
void Optimizer::Impl::close() noexcept {
  if (device_stepper) device_stepper->close();
  if (offload) offload->close();
}

Status Optimizer::Impl::check_copies(Span<const ArrayCopy> copies) const noexcept {
  if (open) return {StatusCode::bad_state, kOpen};
  for (const ArrayCopy& copy : copies) {
    const auto index = static_cast<std::int64_t>(copy.parameter);
    if (copy.parameter >= storage.tensors().size()) return bad("there is no such parameter", index);
    const core::Tensor& tensor = storage.tensors()[copy.parameter];
    const std::size_t wanted =
        copy.kind ? storage.state_nbytes_of(*copy.kind, tensor, config) : tensor.nbytes;
    if (copy.nbytes != wanted) return bad("an array to copy has another size", index);
    if (copy.nbytes > 0 && copy.data == nullptr) return bad("an array to copy is missing", index);
    if (storage.overlaps(copy.data, copy.nbytes)) {
      return {StatusCode::overlap, "an array to copy shares memory with a parameter or the state",
              index};
    }
  }
  return {};
}

Status Optimizer::Impl::check_load(Span<const ArrayCopy> from,
                                   const Counters& counters) const noexcept {
  if (Status status = check_copies(from); !status.ok()) return status;
  if (counters.global_step < 0 || counters.global_step > core::kMaxStep) {
    return bad("global_step must be in [0, 2^62]");
  }
  if (counters.skipped_steps < 0) return bad("skipped_steps must not be negative");
  if (counters.last_grad_norm < 0.0) return bad("last_grad_norm must not be negative");
  AdamConfig changed = config;
  changed.loss_scale = counters.loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (copy.kind != StateKind::row_step) continue;
    if (Status status = check_row_steps(copy, counters.global_step); !status.ok()) return status;
  }
  return {};
}

Status Optimizer::save(Span<const ArrayCopy> to, Counters* counters) const noexcept {
  const Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_copies(to); !status.ok()) return status;
  for (const ArrayCopy& copy : to) {
    if (Status status = impl.copy_out(copy); !status.ok()) return status;
  }
  if (!impl.device_decides()) {
    *counters = {impl.global_step.load(), impl.skipped_steps.load(), impl.config.loss_scale,
                 impl.last_grad_norm.load(), impl.last_step_skipped.load()};
    return {};
  }
  cuda::Control control{};
  const Status status = impl.device_stepper->outcome(&control);
  *counters = {control.step, control.skipped_steps, impl.config.loss_scale, control.last_grad_norm,
               control.last_step_skipped != 0};
  return status;
}

Status Optimizer::load(Span<const ArrayCopy> from, const Counters& counters) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<core::CallMutex> lock(impl.mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_load(from, counters); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (Status status = impl.copy_in(copy); !status.ok()) return impl.close(), status;
  }
  if (impl.device_decides()) {
    if (Status status = impl.device_stepper->set_counters(counters); !status.ok()) {
      return impl.close(), status;
    }
  }
  impl.global_step.store(counters.global_step);
  impl.skipped_steps.store(counters.skipped_steps);
  impl.config.loss_scale = counters.loss_scale;
  impl.last_grad_norm.store(counters.last_grad_norm);
  impl.last_step_skipped.store(counters.last_step_skipped);
  return {};
}

Status Optimizer::decode_moment(StateKind kind, std::size_t i, float* values) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  if (i >= tensors.size() || kind > StateKind::moment2) return bad("there is no such moment");
  const core::Tensor& tensor = tensors[i];
  if (tensor.format == StateFormat::real) return bad("the moment is stored as it is");
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (impl_->device_stepper) return decode(*impl_->device_stepper, tensor, kind, values);
  decode(tensor, kind, values);
  return {};
}

}  // namespace adamas
