#include "core/gradient_checks.hpp"

#include <algorithm>

namespace adamas::core {

void GradientChecks::prepare(const Options& options, const Storage& storage) {
  options_ = &options;
  storage_ = &storage;
  accepted_.assign(storage.tensors().size(), {});
}

void GradientChecks::forget() noexcept {
  std::fill(accepted_.begin(), accepted_.end(), Accepted{});
}

Status GradientChecks::check(Selection& selection) noexcept {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (accepted_[i].is(grad)) continue;
    if (grad.is_absent) {
      selection.has_absent = true;
      continue;
    }
    if (grad.rows != nullptr) selection.has_sparse = true;
    const Tensor& tensor = storage_->tensors()[i];
    Status status = core::check(*options_, *storage_, tensor, grad);
    if (!status.ok()) return status;
    if (grad.rows == nullptr && tensor.spec.count > 0) {
      accepted_[i] = {grad.values, grad.dtype, grad.device, grad.count};
    }
  }
  return {};
}

}  // namespace adamas::core
