// The options that steps compute with: those of the optimizer, and those of each group of
// parameters, which ParameterSpec::rates tells.
//
// A group has a whole AdamConfig.  In its members that are not a group's it equals the optimizer's;
// its max_grad_norm is that of its own gradients, or of each with clip_per_array, and 0 for none.
#pragma once

#include <algorithm>
#include <vector>

#include "adamas/types.hpp"
#include "rules/decision.hpp"

namespace adamas::core {

struct Options {
  AdamConfig all;
  std::vector<AdamConfig> groups;

  const AdamConfig& of(const ParameterSpec& parameter) const {
    return groups[static_cast<std::size_t>(parameter.rates)];
  }

  // Whether a step needs to know the sums of squares of its gradients.
  bool measures() const { return rules::measures(all) || clips_groups(); }
  // Whether it needs those of groups, or of single gradients.
  bool clips_groups() const {
    return std::any_of(groups.begin(), groups.end(),
                       [](const AdamConfig& group) { return group.max_grad_norm > 0.0; });
  }
  // Whether what a clipped gradient is multiplied with depends on its parameter.
  bool clips_apart() const {
    return clips_groups() || std::any_of(groups.begin(), groups.end(), [](const AdamConfig& group) {
             return group.clip_after_decay;
           });
  }
};

}  // namespace adamas::core
