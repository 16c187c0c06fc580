// Folds the rates of a step into what the kernels read, on the host or by the kernel `decide`.
#pragma once

#include "cuda/kernel_args.hpp"
#include "rules/fold.hpp"

namespace adamas::cuda {

template <class Real>
ADAMAS_RULE bool is_finite(const rules::Scalars<Real>& s) {
  // A difference of a value with itself is 0, or NaN if the value is not finite.
  return s.decay - s.decay == 0 && s.keep - s.keep == 0 && s.negative_step - s.negative_step == 0 &&
         s.one_minus_beta1 > 0;
}

ADAMAS_RULE bool decays_all_rows(const AdamConfig& config) {
  return config.numerics == Numerics::standard || config.decoupled_weight_decay;
}

ADAMAS_RULE Folded fold(const AdamConfig& config, const Rates& rates, double decay_factor,
                        const rules::Corrections& corrections, double factor) {
  const Rates used{rates.learning_rate, rates.weight_decay * decay_factor};
  Folded folded;
  folded.float32 = rules::fold<float>(config, used, corrections, factor);
  folded.float64 = rules::fold<double>(config, used, corrections, factor);
  folded.variant = 0;
  if (config.use_nesterov) folded.variant |= rules::kNesterov;
  if (config.use_amsgrad) folded.variant |= rules::kAmsgrad;
  if (used.weight_decay != 0.0 && !config.decoupled_weight_decay) folded.variant |= rules::kL2;
  return folded;
}

// False if the scalars leave the range of a parameter's type.
ADAMAS_RULE bool fold_rates(const AdamConfig& config, const Rates& rates,
                            const rules::Corrections& corrections, double factor, bool has_float32,
                            RateEntry* entry) {
  const bool all = decays_all_rows(config);
  entry->listed = fold(config, rates, 1.0, corrections, factor);
  entry->unlisted = all ? entry->listed : fold(config, rates, 0.0, corrections, factor);
  entry->weight_decay = rates.weight_decay;
  entry->factor = factor;
  // Where decay is counted by entries, the largest count must stay finite too.
  const Folded largest =
      all ? entry->listed : fold(config, rates, static_cast<double>(kNone), corrections, factor);
  return is_finite(largest.float64) && (!has_float32 || is_finite(largest.float32));
}

// The decay of a row with several entries, where each entry decays.
template <class Real>
ADAMAS_RULE Real decay_of_entries(const RateEntry& entry, double entries) {
  return static_cast<Real>(rules::divide(entry.weight_decay * entries,
                                         rules::split_factor<Real>(entry.factor).fraction));
}

}  // namespace adamas::cuda
