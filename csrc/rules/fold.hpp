// Folds the hyper-parameters of one step into the scalars that the rule multiplies with.
//
// All in double, rounded once to the element type at the end.  The factor on the gradient,
// clip / loss_scale, is split into a power of two, with which each gradient is multiplied exactly,
// and a `fraction` in (1/2, 1], which goes into the constants: no loss scale costs an operation
// or a bit.  Bias correction, the two numerics and AdamWeightDecay differ in these scalars only:
// with r = sqrt(1 - beta2^t), lr / (1 - beta1^t) * m / (sqrt(v) / r + eps), the formula of
// "standard", is lr * r / (1 - beta1^t) * m / (sqrt(v) + r * eps), and "mindspore" has eps in place
// of r * eps.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "adamas/types.hpp"
#include "rules/adam.hpp"
#include "rules/beta_power.hpp"

namespace adamas::rules {

// The bias corrections at the 1-based step t of a parameter.
struct Corrections {
  double first = 1.0;        // 1 - beta1^t
  double second_root = 1.0;  // sqrt(1 - beta2^t)
};

inline Corrections exact_corrections(const Squares& beta1, const Squares& beta2,
                                     std::int64_t step) {
  return {one_minus_power(beta1, step), std::sqrt(one_minus_power(beta2, step))};
}

// The corrections from powers that were multiplied up in float32.
inline Corrections running_corrections(float power1, float power2) {
  return {1.0 - static_cast<double>(power1), std::sqrt(1.0 - static_cast<double>(power2))};
}

// `factor`, > 0, is what each gradient is multiplied with: clip / loss_scale.
template <class Real>
Scalars<Real> fold(const AdamConfig& config, const Rates& rates, const Corrections& correction,
                   double factor) {
  int exponent = 0;
  double fraction = std::frexp(factor, &exponent);  // in [1/2, 1)
  if (fraction == 0.5) {
    fraction = 1.0;
    --exponent;
  }
  // A tinier factor stays in the constants: its power of two would round to zero.
  constexpr int kLowest = std::numeric_limits<Real>::min_exponent - 1;
  if (exponent < kLowest) {
    fraction = std::ldexp(fraction, exponent - kLowest);
    exponent = kLowest;
  }
  const bool standard = config.numerics == Numerics::standard;
  const double learning_rate = rates.learning_rate;
  const double decoupled = config.decoupled_weight_decay ? rates.weight_decay : 0.0;

  Scalars<Real> s;
  s.grad_scale = static_cast<Real>(std::ldexp(1.0, exponent));
  s.decay = static_cast<Real>(rates.weight_decay / fraction);
  s.beta1 = static_cast<Real>(config.beta1);
  s.one_minus_beta1 = static_cast<Real>((1.0 - config.beta1) * fraction);
  s.beta2 = static_cast<Real>(config.beta2);
  s.one_minus_beta2 = static_cast<Real>((1.0 - config.beta2) * fraction * fraction);
  s.keep = static_cast<Real>(1.0 - learning_rate * decoupled);
  const double root = correction.second_root;
  s.negative_step = static_cast<Real>(-learning_rate * root / correction.first);
  s.eps = static_cast<Real>(standard ? root * config.eps : config.eps);
  return s;
}

}  // namespace adamas::rules
