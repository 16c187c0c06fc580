// All that numerics "mindspore" changes: where MindSpore 2.10's Adam differs from the paper, so
// that a training run moves over unchanged.
//
// The core and the rules ask these functions, on the host and on devices; nobody else looks at
// `numerics`.  docs/NUMERICS.md says the same to users, and tests/golden.py reads the recorded runs
// of MindSpore that prove it.
#pragma once

#include <cstdint>

#include "adamas/types.hpp"
#include "rules/arithmetic.hpp"
#include "rules/beta_power.hpp"

namespace adamas::rules {

ADAMAS_RULE bool is_mindspore(const AdamConfig& config) {
  return config.numerics == Numerics::mindspore;
}

// The options that steps compute with.  MindSpore keeps hyper-parameters and learning rates in
// float32 tensors and derives the rest, such as 1 - beta1, from those.  What float32 can't hold
// becomes zero or infinite, for the checks of the core to find.
ADAMAS_RULE AdamConfig used_config(AdamConfig config) {
  if (!is_mindspore(config)) return config;
  config.beta1 = as_float32(config.beta1);
  config.beta2 = as_float32(config.beta2);
  config.eps = as_float32(config.eps);
  // Its AMSGrad kernel has no look ahead.
  if (config.use_amsgrad) config.use_nesterov = false;
  return config;
}

ADAMAS_RULE double used_learning_rate(const AdamConfig& config, double learning_rate) {
  return is_mindspore(config) ? as_float32(learning_rate) : learning_rate;
}

// Whether eps is added to the root as it stands: MindSpore corrects the size of the step alone.
ADAMAS_RULE bool has_eps_inside(const AdamConfig& config) {
  return is_mindspore(config) || config.epsilon_placement == EpsilonPlacement::inside;
}

// What is added to sqrt(v), `root` being sqrt(1 - beta2^t).
ADAMAS_RULE double used_eps(const AdamConfig& config, double root) {
  return has_eps_inside(config) ? config.eps : root * config.eps;
}

// Whether the row means of a parameter's gradients are subtracted.  Where that is asked for,
// "standard" does it to the weights of convolutions; MindSpore to shapes whose second length is a
// multiple of 16, and to none when it offloads.  Where nothing is said of the axes it is done.
ADAMAS_RULE bool centralizes(const AdamConfig& config, const ParameterSpec& parameter) {
  if (!parameter.centralize || parameter.axes == 0) return parameter.centralize;
  if (!is_mindspore(config)) return parameter.axes >= 3;
  return parameter.axes >= 2 && parameter.second_axis % 16 == 0 && !config.use_offload;
}

// MindSpore adds L2 decay to the entries of a sparse gradient, once to each, not to all rows.
ADAMAS_RULE bool decays_all_rows(const AdamConfig& config) {
  return !is_mindspore(config) || config.decoupled_weight_decay;
}

// The powers of the betas as MindSpore keeps them: float32 numbers that are multiplied by beta in
// every step, and drift.
struct RunningPowers {
  std::int64_t step = 0;
  float beta1 = 1.0F;  // to the power of `step`
  float beta2 = 1.0F;
  float of_beta1 = 0.0F;
  float of_beta2 = 0.0F;
};

// beta^t, `power` being beta^from.
ADAMAS_RULE float running_power(float beta, float power, std::int64_t from, std::int64_t t) {
  for (; from < t; ++from) {
    const float next = power * beta;
    if (next == power) break;  // zero or the smallest subnormal: it stays
    power = next;
  }
  return power;
}

// `powers` are of any step and betas; from a later one, or others, they start again.
ADAMAS_RULE Corrections running_corrections(const AdamConfig& config, std::int64_t step,
                                            RunningPowers* powers) {
  const auto beta1 = static_cast<float>(config.beta1);
  const auto beta2 = static_cast<float>(config.beta2);
  const bool follows =
      step >= powers->step && beta1 == powers->of_beta1 && beta2 == powers->of_beta2;
  if (!follows) *powers = RunningPowers{0, 1.0F, 1.0F, beta1, beta2};
  powers->beta1 = running_power(beta1, powers->beta1, powers->step, step);
  powers->beta2 = running_power(beta2, powers->beta2, powers->step, step);
  powers->step = step;
  return {1.0 - static_cast<double>(powers->beta1),
          square_root(1.0 - static_cast<double>(powers->beta2))};
}

// The bias corrections of a step; the betas are those of the options, or their Squares.
template <class Beta>
ADAMAS_RULE Corrections used_corrections(const AdamConfig& config, Beta& beta1, Beta& beta2,
                                         std::int64_t step, RunningPowers* powers) {
  if (!config.bias_correction) return {};
  return is_mindspore(config) ? running_corrections(config, step, powers)
                              : exact_corrections(beta1, beta2, step);
}

}  // namespace adamas::rules
