// Folds the rates of a step into what a step needs of them: on the host for the CPU and for
// devices, or on a device that decides by itself.
#pragma once

#include "adamas/types.hpp"
#include "rules/fold.hpp"
#include "rules/mindspore.hpp"

namespace adamas::rules {

// Above the number of entries of any sparse gradient.
inline constexpr double kEntryLimit = 4294967295.0;

// What one step makes of one element of the rates, at one number of steps.
struct FoldedRates {
  Folded listed;        // for elements that have a gradient
  Folded unlisted;      // for rows that a sparse gradient does not list
  double weight_decay;  //
  double factor;        // what gradients are multiplied with
  double beta1;         //
  double beta2;         //
  std::int64_t step;    // of the parameter, from 1
};

// Which types of the arithmetic the parameters have; scalars of the other are not folded.
struct Reals {
  bool float32;
  bool float64;
};

template <class Real>
ADAMAS_RULE bool is_finite(const Scalars<Real>& s) {
  // A difference of a value with itself is 0, or NaN if the value is not finite.
  return s.decay - s.decay == 0 && s.keep - s.keep == 0 && s.negative_step - s.negative_step == 0 &&
         s.one_minus_beta1 > 0;
}

ADAMAS_RULE Folded fold_both(const AdamConfig& config, const Rates& rates, double decay_factor,
                             const Corrections& corrections, const Factor& factor,
                             const Reals& reals) {
  const Rates used{rates.learning_rate, rates.weight_decay * decay_factor};
  Folded folded{};
  if (reals.float32) folded.float32 = fold<float>(config, used, corrections, factor);
  if (reals.float64) folded.float64 = fold<double>(config, used, corrections, factor);
  if (config.use_nesterov) folded.variant |= kNesterov;
  if (config.use_amsgrad) folded.variant |= kAmsgrad;
  if (used.weight_decay != 0.0 && !config.decoupled_weight_decay) folded.variant |= kL2;
  return folded;
}

// False if the scalars leave the range of a parameter's type.
ADAMAS_RULE bool fold_rates(const AdamConfig& config, const Rates& rates,
                            const Corrections& corrections, std::int64_t step, const Factor& factor,
                            const Reals& reals, FoldedRates* result) {
  const bool all = decays_all_rows(config);
  result->listed = fold_both(config, rates, 1.0, corrections, factor, reals);
  result->unlisted =
      all ? result->listed : fold_both(config, rates, 0.0, corrections, factor, reals);
  result->weight_decay = rates.weight_decay;
  result->factor = factor.grad;
  result->beta1 = config.beta1;
  result->beta2 = config.beta2;
  result->step = step;
  // Where decay is counted by entries, the largest count must stay finite too.
  const Folded largest =
      all ? result->listed : fold_both(config, rates, kEntryLimit, corrections, factor, reals);
  return (!reals.float64 || is_finite(largest.float64)) &&
         (!reals.float32 || is_finite(largest.float32));
}

// The decay of a row with several entries, where each entry decays.
template <class Real>
ADAMAS_RULE Real decay_of_entries(double weight_decay, double factor, double entries) {
  return static_cast<Real>(divide(weight_decay * entries, split_factor<Real>(factor).fraction));
}

}  // namespace adamas::rules
