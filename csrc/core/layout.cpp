#include "core/layout.hpp"

namespace adamas::core {
namespace {

StateLayout like_parameter(ItemType type, const Tensor& tensor) {
  return {true, true, type, tensor.spec.count};
}

StateLayout one_axis(ItemType type, std::int64_t count) { return {true, false, type, count}; }

}  // namespace

StateLayout layout_of(StateKind kind, const Tensor& tensor, const AdamConfig& config) {
  const std::int64_t block = tensor.scale_block;
  switch (kind) {
    case StateKind::moment1:
    case StateKind::moment2:
      return like_parameter(tensor.moment_item(), tensor);
    case StateKind::scale1:
    case StateKind::scale2:
      if (tensor.format != StateFormat::int8) break;
      return one_axis(ItemType::uint8, (tensor.spec.count + block - 1) / block);
    case StateKind::vhat:
      if (!tensor.has_vhat) break;
      return like_parameter(tensor.real_item(), tensor);
    case StateKind::master:
      if (!config.master_weights || !tensor.is_half()) break;
      return like_parameter(tensor.real_item(), tensor);
    case StateKind::row_step:
      if (config.row_policy != RowPolicy::catch_up) break;
      return one_axis(ItemType::int64, tensor.spec.rows);
    case StateKind::ema:
      if (config.ema_decay == 0.0) break;
      return like_parameter(tensor.real_item(), tensor);
  }
  return {};  // not kept
}

}  // namespace adamas::core
