// The arrays of state that a step without an optimizer is given for each parameter.
#pragma once

#include <cstddef>
#include <iterator>

#include "adamas/types.hpp"

namespace adamas::bindings {

// In the order in which they are given.
inline constexpr StateKind kGivenKinds[] = {StateKind::moment1, StateKind::moment2, StateKind::vhat,
                                            StateKind::master, StateKind::ema};
inline constexpr std::size_t kGivenKindCount = std::size(kGivenKinds);

// Whether one of those kinds is kept for a parameter of this type.
constexpr bool is_kept(StateKind kind, const AdamConfig& config, DType param) {
  switch (kind) {
    case StateKind::vhat:
      return config.use_amsgrad;
    case StateKind::master:
      return config.master_weights && item_size(param) == 2;
    case StateKind::ema:
      return config.ema_decay > 0.0;
    default:
      return true;
  }
}

// The type that an array of state has; 16-bit moments are known as bfloat16.
constexpr DType state_dtype(StateKind kind, const AdamConfig& config, DType param) {
  const bool is_moment = kind == StateKind::moment1 || kind == StateKind::moment2;
  const bool is_narrow = is_moment && config.state_format == StateFormat::bfloat16;
  return is_narrow ? DType::bfloat16 : real_type(param);
}

}  // namespace adamas::bindings
