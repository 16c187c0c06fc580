// The scalars of a step, folded on the host from its rates, for engines that decide there.
#pragma once

#include <cstdint>
#include <vector>

#include "core/engine.hpp"
#include "rules/fold_rates.hpp"
#include "rules/mindspore.hpp"

namespace adamas::core {

class RateFolder {
 public:
  // Throws std::bad_alloc.
  void prepare(const AdamConfig& config, const std::vector<Tensor>& tensors,
               std::size_t rates_count);

  // Folds the rates of a step whose gradients are multiplied by `factor`; an error if the scalars
  // leave the range of a parameter's type.
  Status fold(const StepInput& input, double factor) noexcept;

  // By rates, as fold() left them, and the number of the step.
  const std::vector<rules::FoldedRates>& folded() const { return folded_; }
  std::int64_t step() const { return step_; }

  bool has_float32() const { return has_float32_; }

 private:
  AdamConfig config_;
  bool has_float32_ = false;      // whether any parameter has the arithmetic of float32
  rules::Squares squares1_{0.0};  // of beta1
  rules::Squares squares2_{0.0};
  rules::RunningPowers powers_;
  std::int64_t step_ = 0;
  std::vector<rules::FoldedRates> folded_;
};

}  // namespace adamas::core
