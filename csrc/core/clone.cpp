// A second optimizer, which goes on over other memory as the first would: what clone() copies.
#include <algorithm>
#include <new>
#include <vector>

#include "core/layout.hpp"
#include "core/optimizer_impl.hpp"

namespace adamas {

using core::bad;

namespace {

// Whether the state of one parameter fits the other, and their steps have the same bits.
bool is_like(const core::Tensor& tensor, const ParameterSpec& spec) {
  const ParameterSpec& own = tensor.spec;
  const std::int64_t key = spec.key < 0 ? tensor.index : spec.key;
  return spec.count == own.count && spec.dtype == own.dtype && spec.rates == own.rates &&
         spec.rows == own.rows && spec.centralize == tensor.dense_only && spec.axes == own.axes &&
         spec.second_axis == own.second_axis && key == tensor.key;
}

}  // namespace

// The array of a parameter may be the original's; what else the clone writes is its own.
Status Optimizer::Impl::check_clone(Span<const ParameterSpec> parameters) const noexcept {
  const std::vector<core::Tensor>& tensors = storage.tensors();
  if (parameters.size != tensors.size()) {
    return bad("a clone must have as many parameters as the original");
  }
  for (const core::Tensor& tensor : tensors) {
    const ParameterSpec& spec = parameters[static_cast<std::size_t>(tensor.index)];
    if (!is_like(tensor, spec)) {
      return bad(
          "a parameter of a clone must be like the original's, but for its memory and device",
          tensor.index);
    }
    bool overlaps = (spec.data != tensor.spec.data && storage.overlaps(spec.data, tensor.nbytes)) ||
                    (spec.delta != nullptr && storage.overlaps(spec.delta, tensor.nbytes));
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      const StateLayout layout = core::layout_of(static_cast<StateKind>(k), tensor, options.all);
      const void* given = spec.states[k];
      overlaps = overlaps || (given != nullptr && storage.overlaps(given, layout.nbytes()));
    }
    if (overlaps) {
      return {StatusCode::overlap, "a clone's memory is that of the original", tensor.index};
    }
  }
  return {};
}

// All arrays of state, as they are stored; through the host if they are on a device.
Status Optimizer::Impl::copy_state_to(Impl* clone) const {
  const std::vector<core::Tensor>& tensors = storage.tensors();
  std::vector<char> passing;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      const auto kind = static_cast<StateKind>(k);
      const std::size_t nbytes = core::layout_of(kind, tensors[i], options.all).nbytes();
      if (nbytes == 0) continue;
      ArrayCopy copy{i, kind, clone->storage.tensors()[i].state(kind), nbytes};
      const bool is_on_host = clone->engine->device() == kCpu;
      if (!is_on_host) {
        passing.resize(std::max(passing.size(), nbytes));
        copy.data = passing.data();
      }
      Status status = engine->copy_out(copy);
      if (status.ok() && !is_on_host) status = clone->engine->copy_in(copy);
      if (!status.ok()) return status;
    }
  }
  return {};
}

Status Optimizer::Impl::clone(Span<const ParameterSpec> parameters,
                              std::unique_ptr<Optimizer>* clone, Span<void* const> after) const {
  Status status = parts.check_closed();
  if (status.ok()) status = check_unaccumulated();
  if (status.ok()) status = check_clone(parameters);
  if (!status.ok()) return status;
  Counters now;
  now.loss_scale = options.all.loss_scale;
  std::vector<std::int64_t> own_steps(parameters.size);
  status = read_counters(&now);
  if (status.ok()) status = read_steps(own_steps);
  std::unique_ptr<Optimizer> made;
  if (status.ok())
    status = Optimizer::create(options.all, parameters, &made, after, options.groups);
  if (status.ok()) status = copy_state_to(made->impl_.get());
  if (status.ok()) status = made->load({}, now, own_steps);
  if (status.ok()) *clone = std::move(made);
  return status;
}

Status Optimizer::clone(Span<const ParameterSpec> parameters, std::unique_ptr<Optimizer>* clone,
                        Span<void* const> after) const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  try {
    return impl_->clone(parameters, clone, after);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for a clone"};
  }
}

}  // namespace adamas
