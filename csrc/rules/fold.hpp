// Folds the hyper-parameters of one step into the scalars that the rule multiplies with.
//
// All in double, rounded once to the element type at the end.  The factor on the gradient,
// clip / loss_scale, is split into a power of two, with which each gradient is multiplied exactly,
// and a `fraction` in (1/2, 1], which goes into the constants: no loss scale costs an operation
// or a bit.  Bias correction, the two numerics and AdamWeightDecay differ in these scalars only:
// with r = sqrt(1 - beta2^t), lr / (1 - beta1^t) * m / (sqrt(v) / r + eps), the formula of
// "standard", is lr * r / (1 - beta1^t) * m / (sqrt(v) + r * eps), and "mindspore" has eps in place
// of r * eps (mindspore.hpp).
#pragma once

#include <cstdint>
#include <limits>

#include "adamas/types.hpp"
#include "rules/adam.hpp"
#include "rules/beta_power.hpp"
#include "rules/mindspore.hpp"

namespace adamas::rules {

// 2^exponent for -1022 <= exponent <= 1023.
ADAMAS_RULE double power_of_two(int exponent) {
  const std::uint64_t bits = static_cast<std::uint64_t>(exponent + 1023) << 52;
  double value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// fraction * 2^exponent, the fraction in [1/2, 1): what std::frexp gives, on devices too.
struct SplitNumber {
  double fraction;
  int exponent;
};

// For finite numbers >= 0.
ADAMAS_RULE SplitNumber split(double number) {
  if (number == 0.0) return {0.0, 0};
  const bool subnormal = number < power_of_two(-1022);
  if (subnormal) number *= power_of_two(54);
  std::uint64_t bits;
  __builtin_memcpy(&bits, &number, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 52) - 1022 - (subnormal ? 54 : 0);
  bits = (bits & ((std::uint64_t{1} << 52) - 1)) | std::uint64_t{1022} << 52;
  __builtin_memcpy(&number, &bits, sizeof(number));
  return {number, exponent};
}

// The factor on the gradients as `fraction`, in (1/2, 1], times 2^exponent.
template <class Real>
ADAMAS_RULE SplitNumber split_factor(double factor) {
  SplitNumber parts = split(factor);
  if (parts.fraction == 0.5) {
    parts.fraction = 1.0;
    --parts.exponent;
  }
  // A tinier factor stays in the constants: its power of two would round to zero.
  constexpr int kLowest = std::numeric_limits<Real>::min_exponent - 1;
  if (parts.exponent < kLowest) {
    parts.fraction *= power_of_two(parts.exponent - kLowest);
    parts.exponent = kLowest;
  }
  return parts;
}

// What gradients are multiplied with.
struct Factor {
  double grad;         // > 0: clip / loss_scale
  double decay = 1.0;  // L2 decay: clip with clip_after_decay
};

template <class Real>
ADAMAS_RULE Scalars<Real> fold(const AdamConfig& config, const Rates& rates,
                               const Corrections& correction, const Factor& factor) {
  const SplitNumber parts = split_factor<Real>(factor.grad);
  const double fraction = parts.fraction;
  const double learning_rate = used_learning_rate(config, rates.learning_rate);
  const double decoupled = config.decoupled_weight_decay ? rates.weight_decay : 0.0;

  Scalars<Real> s;
  const double scale = power_of_two(parts.exponent);
  s.grad_scale = static_cast<Real>(config.maximize ? -scale : scale);
  s.decay = static_cast<Real>(divide(rates.weight_decay * factor.decay, fraction));
  s.beta1 = static_cast<Real>(config.beta1);
  s.one_minus_beta1 = static_cast<Real>((1.0 - config.beta1) * fraction);
  s.beta2 = static_cast<Real>(config.beta2);
  s.one_minus_beta2 = static_cast<Real>((1.0 - config.beta2) * fraction * fraction);
  // Where the change is asked for, what is kept of the parameter is not part of it.
  const double kept = config.writes_delta ? 0.0 : 1.0;
  s.keep = static_cast<Real>(kept - learning_rate * decoupled);
  const double root = correction.second_root;
  s.negative_step = static_cast<Real>(divide(-learning_rate * root, correction.first));
  s.eps = static_cast<Real>(used_eps(config, root));
  return s;
}

}  // namespace adamas::rules
