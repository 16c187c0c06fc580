#include "core/gradient_checks.hpp"

namespace adamas::core {

void GradientChecks::prepare(const Storage& storage) {
  storage_ = &storage;
  accepted_.resize(storage.tensors().size());
}

Status GradientChecks::check(Selection& selection) noexcept {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (accepted_[i].is(grad)) continue;
    if (grad.rows != nullptr) selection.has_sparse = true;
    const Tensor& tensor = storage_->tensors()[i];
    if (Status status = core::check(*storage_, tensor, grad); !status.ok()) return status;
    if (grad.rows == nullptr && tensor.spec.count > 0) {
      accepted_[i] = {grad.values, grad.dtype, grad.device, grad.count};
    }
  }
  return {};
}

}  // namespace adamas::core
