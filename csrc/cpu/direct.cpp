#include "cpu/direct.hpp"

namespace adamas::cpu {

DirectTensor::DirectTensor(const Tensor& tensor)
    : param_(tensor.data()),
      moment1_(tensor.state(StateKind::moment1)),
      moment2_(tensor.state(StateKind::moment2)),
      vhat_(tensor.state(StateKind::vhat)),
      rates_(tensor.spec.rates),
      dtype_(tensor.spec.dtype),
      is_direct_(!tensor.is_half() && tensor.format == StateFormat::real &&
                 !tensor.spec.centralize && tensor.row_steps() == nullptr &&
                 tensor.state(StateKind::ema) == nullptr && tensor.spec.delta == nullptr) {}

void DirectTensor::update(const KernelTable& kernels, const Block& block, const Gradient& grad,
                          const Folded& folded) const {
  const std::int64_t offset = block.begin * static_cast<std::int64_t>(item_size(dtype_));
  kernels.dense[dense_index(dtype_, StateFormat::real)][folded.variant](
      {param_ + offset, static_cast<const char*>(grad.values) + offset, moment1_ + offset,
       moment2_ + offset, vhat_ == nullptr ? nullptr : vhat_ + offset, block.count},
      folded, 0.0);
}

}  // namespace adamas::cpu
