// What a step does about its gradients as a whole: it is made, made with clipped gradients,
// skipped, or refused.  One set of functions for the host and for devices that decide themselves.
//
// With G the sum of squares of gradients as they came, of all parameters, of those of a group, or
// of one of them:
//
//   norm   = sqrt(G) / loss_scale
//   clip   = max_grad_norm / norm      if norm > max_grad_norm > 0, else 1
//   factor = clip / loss_scale         what gradients are multiplied with
//
// (Pascanu et al. 2013.)  Each operation rounds in double.  Where gradients are clipped as a whole
// and by groups, the smaller clip is taken: both bounds hold.
#pragma once

#include "adamas/types.hpp"
#include "rules/fold.hpp"

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
  bool skips;   // nothing but counters changes
  double norm;  // of all gradients
  double clip;  // of all gradients
};

// Whether the norm over all gradients is bounded.
ADAMAS_RULE bool clips_all(const AdamConfig& config) {
  return config.max_grad_norm > 0.0 && !config.clip_per_array;
}

// Whether a step needs to know the sum of squares of all its gradients.
ADAMAS_RULE bool measures(const AdamConfig& config) {
  return clips_all(config) || config.skip_nonfinite;
}

ADAMAS_RULE double norm_of(double squares, double loss_scale) {
  return divide(square_root(squares), loss_scale);
}

// `norm` is finite, or smaller than `largest`, or there is no `largest` (0).
ADAMAS_RULE double clip_to(double largest, double norm) {
  return largest > 0.0 && norm > largest ? divide(largest, norm) : 1.0;
}

// Whether a norm that is to be clipped overflows.
ADAMAS_RULE bool overflows(double largest, double norm) {
  return largest > 0.0 && norm > largest && norm - norm != 0;
}

// The factor of the gradients of a parameter, of whose group `config` is.
ADAMAS_RULE Factor factor_of(const AdamConfig& config, double clip, double loss_scale) {
  return {divide(clip, loss_scale), config.clip_after_decay ? clip : 1.0};
}

// `finite`: whether all gradients are; `clips_groups`: whether groups or single gradients are
// clipped too.
ADAMAS_RULE Decision decide(const AdamConfig& config, double loss_scale, double squares,
                            bool finite, bool clips_groups) {
  Decision decision{Refusal::none, false, norm_of(squares, loss_scale), 1.0};
  const double largest = clips_all(config) ? config.max_grad_norm : 0.0;
  if (!finite) {
    decision.skips = config.skip_nonfinite;
    if (!decision.skips && (largest > 0.0 || clips_groups)) decision.refusal = Refusal::not_finite;
  } else if (overflows(largest, decision.norm)) {
    decision.refusal = Refusal::norm;
  } else {
    decision.clip = clip_to(largest, decision.norm);
  }
  return decision;
}

// What a gradient with L2 decay adds to the norms, in the units of gradients as they came, is
// grad + decay * param with this decay; 0: there is none.
ADAMAS_RULE double measured_decay(const AdamConfig& config, const Rates& rates, double loss_scale) {
  if (!config.clip_after_decay || config.decoupled_weight_decay) return 0.0;
  const double decay = rates.weight_decay * loss_scale;
  return config.maximize ? -decay : decay;
}

}  // namespace adamas::rules
