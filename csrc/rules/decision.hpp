// What a step does about its gradients as a whole: it is made, made with clipped gradients,
// skipped, or refused.  One function for the host and for devices that decide by themselves.
//
// With G the sum of squares of all gradients as they came, over all parameters together:
//
//   norm   = sqrt(G) / loss_scale
//   factor = 1 / loss_scale                              what gradients are multiplied with
//   factor = (max_grad_norm / norm) / loss_scale         if norm > max_grad_norm > 0
//
// (Pascanu et al. 2013.)  Each operation rounds in double.
#pragma once

#include "adamas/types.hpp"
#include "rules/arithmetic.hpp"

namespace adamas::rules {

// Why a step can't be made.
enum class Refusal : std::int32_t {
  none,
  scalars,     // they leave the range of a parameter's type (fold_rates.hpp)
  not_finite,  // a NaN or infinity in a gradient, and no norm to clip by
  norm,        // it overflows
};

struct Decision {
  Refusal refusal;
  bool skips;     // nothing but counters changes
  bool clips;     // `factor` is another than that of an unclipped step
  double norm;    //
  double factor;  //
};

// Whether a step needs to know the sum of squares of its gradients.
ADAMAS_RULE bool measures(const AdamConfig& config) {
  return config.max_grad_norm > 0.0 || config.skip_nonfinite;
}

// The factor of a step that is not clipped.
ADAMAS_RULE double unclipped_factor(double loss_scale) { return divide(1.0, loss_scale); }

// `finite`: whether all gradients are.
ADAMAS_RULE Decision decide(const AdamConfig& config, double loss_scale, double squares,
                            bool finite) {
  Decision decision{Refusal::none, false, false, divide(square_root(squares), loss_scale),
                    unclipped_factor(loss_scale)};
  const double norm = decision.norm;
  const double largest = config.max_grad_norm;
  if (!finite) {
    decision.skips = config.skip_nonfinite;
    if (!decision.skips) decision.refusal = Refusal::not_finite;
  } else if (largest > 0.0 && norm > largest) {
    decision.clips = true;
    decision.factor = divide(divide(largest, norm), loss_scale);
    if (norm - norm != 0) decision.refusal = Refusal::norm;
  }
  return decision;
}

}  // namespace adamas::rules
