// A step on the CPU of parameters that are on a device (use_offload): cuda/offload.hpp brings
// gradients down and parameters up.
#include <algorithm>

#include "core/float_environment.hpp"
#include "core/optimizer_impl.hpp"

namespace adamas {

// Whether the update of a parameter depends on its own gradient alone, and nothing in it can fail.
bool Optimizer::Impl::streams(Span<const Gradient> grads) const noexcept {
  return !measures() && std::all_of(grads.begin(), grads.end(),
                                    [](const Gradient& grad) { return grad.rows == nullptr; });
}

// What step() does for parameters on the CPU, with the copies of parameters and gradients.
Status Optimizer::Impl::step_offloaded(Span<const Gradient> grads, Span<const Rates> rates,
                                       const Queueing& queueing) noexcept {
  if (Status status = offload->check_usable(); !status.ok()) return status;
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = offload->place(0, grads); !status.ok()) return status;
  const Span<const Gradient> copies{offload->grads(), grads.size};
  if (Status status = check_closed(); !status.ok()) return status;
  core::Selection selection{0, grads.size, copies.data};
  if (Status status = check_grads(selection); !status.ok()) return status;
  if (Status status = offload->fetch(queueing); !status.ok()) return status;
  if (streams(grads)) {
    if (Status status = update_offloaded(copies, rates); !status.ok()) return status;
  } else {
    for (std::size_t i = 0; i < grads.size; ++i) {
      if (Status status = offload->wait(i); !status.ok()) return status;
    }
    if (Status status = step(copies, rates, {}); !status.ok()) return status;
    for (std::size_t i = 0; i < grads.size; ++i) {
      if (Status status = offload->send(i); !status.ok()) return offload->close(), status;
    }
  }
  return finish_offloaded({}, queueing);
}

// One parameter after the other, while the copies of others are under way.
Status Optimizer::Impl::update_offloaded(Span<const Gradient> grads,
                                         Span<const Rates> rates) noexcept {
  if (Status status = check(rates, rates_count); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = fold(rates, 1.0 / config.loss_scale); !status.ok()) return status;
  for (std::size_t i = 0; i < grads.size; ++i) {
    Status status = offload->wait(i);
    if (status.ok()) status = stepper.merge({i, i + 1, &grads[i]}, false);
    if (status.ok()) {
      stepper.update();
      status = offload->send(i);
    }
    if (!status.ok()) return offload->close(), status;
  }
  count_step();
  return {};
}

// One parameter of an open step.
Status Optimizer::Impl::apply_offloaded(std::size_t i, const Gradient& grad,
                                        const Queueing& queueing) noexcept {
  if (Status status = offload->check_usable(); !status.ok()) return status;
  if (Status status = offload->place(i, {&grad, 1}); !status.ok()) return status;
  if (Status status = offload->fetch(queueing); !status.ok()) return status;
  if (Status status = offload->wait(i); !status.ok()) return status;
  if (Status status = apply(i, *offload->grads(), {}); !status.ok()) return status;
  return finish_offloaded(offload->send(i), queueing);
}

// After the last parameter was sent, or could not be.
Status Optimizer::Impl::finish_offloaded(Status sent, const Queueing& queueing) noexcept {
  if (sent.ok()) sent = offload->finish(queueing.stream, config.use_locking);
  if (!sent.ok()) offload->close();
  return sent;
}

}  // namespace adamas
