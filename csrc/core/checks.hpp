// What the optimizer refuses: configurations, parameters, rates and gradients that it can't take.
//
// Nothing here changes anything.
#pragma once

#include <cstdint>

#include "adamas/optimizer.hpp"
#include "core/storage.hpp"

namespace adamas::core {

inline constexpr std::int64_t kMaxStep = std::int64_t{1} << 62;

// What a step is refused for whose scalars (rules/fold_rates.hpp) do not fit.
inline constexpr const char* kScalarsOutOfRange =
    "a learning rate or weight decay is too large for the arithmetic, or the factor of the "
    "gradients too small";

inline Status bad(const char* what, std::int64_t index = -1) {
  return {StatusCode::invalid_argument, what, index};
}

Status check(const AdamConfig& config);

// All parameters, for a configuration that was checked.
Status check(const AdamConfig& config, Span<const ParameterSpec> parameters);

// `wanted`: how many the parameters refer to.
Status check(const AdamConfig& config, Span<const Rates> rates, std::size_t wanted);

// Where 8-bit moments have their scales, which storage decides.
Status check_scales(const Storage& storage);

// The gradient of one tensor of the storage.
Status check(const Storage& storage, const Tensor& tensor, const Gradient& grad);

}  // namespace adamas::core
