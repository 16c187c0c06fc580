// How each array of state is laid out: what storage reserves, checkpoints save and Python shows.
#pragma once

#include "adamas/optimizer.hpp"
#include "core/storage.hpp"

namespace adamas::core {

StateLayout layout_of(StateKind kind, const Tensor& tensor, const AdamConfig& config);

}  // namespace adamas::core
