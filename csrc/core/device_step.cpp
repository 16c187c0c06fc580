// A step on a CUDA device, whose work cuda/stepper.cpp queues.
#include "core/optimizer_impl.hpp"

namespace adamas {

// The work of a step on a device; the host decides, unless that depends on the gradients.
Status Optimizer::Impl::update_on_device(const core::Selection& selection, Span<const Rates> rates,
                                         const Queueing& queueing) noexcept {
  const cuda::Place place{queueing, locks.all()};
  if (device_stepper->decides()) {
    return device_stepper->decide_and_update(selection, rates, config.loss_scale, place);
  }
  Status status = fold(rates, 1.0 / config.loss_scale);
  if (status.ok()) status = device_stepper->update(selection, place);
  if (!status.ok()) return status;
  count_step();
  return {};
}

// Zeros if the device fails, which the next step reports.
cuda::Control Optimizer::Impl::outcome() const noexcept {
  const std::lock_guard<core::CallMutex> lock(mutex);
  cuda::Control control{};
  static_cast<void>(device_stepper->outcome(&control));
  return control;
}

}  // namespace adamas
