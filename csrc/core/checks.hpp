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

inline constexpr const char* kNotAsManySteps = "there must be as many steps as parameters";

inline Status bad(const char* what, std::int64_t index = -1) {
  return {StatusCode::invalid_argument, what, index};
}

Status check(const AdamConfig& config);

// The options of a group, beside those of the optimizer, which were checked.
Status check_group(const AdamConfig& all, const AdamConfig& group);

// Whether eps survives in the arithmetic of a parameter.
Status check_eps(const AdamConfig& config, DType parameter, std::int64_t index);

// One group for each element of the rates that parameters refer to: `given`, as steps compute with
// them, then default ones.  Throws std::bad_alloc.
Status make_groups(Span<const AdamConfig> given, Span<const ParameterSpec> parameters,
                   Options* options);

// All parameters, for options that were checked.
Status check(const Options& options, Span<const ParameterSpec> parameters);

Status check(const Options& options, Span<const Rates> rates);

// What depends on how the state is laid out: where 8-bit moments have their scales, and what the
// caller has brought.
Status check_state(const Options& options, const Storage& storage);

// The steps of all parameters.
Status check_steps(Span<const std::int64_t> steps, const Storage& storage);

// The gradient of one tensor of the storage.
Status check(const Options& options, const Storage& storage, const Tensor& tensor,
             const Gradient& grad);

}  // namespace adamas::core
