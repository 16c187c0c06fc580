#include "core/rate_folder.hpp"

#include <algorithm>

#include "core/checks.hpp"

namespace adamas::core {

void RateFolder::prepare(const AdamConfig& config, const std::vector<Tensor>& tensors,
                         std::size_t rates_count) {
  config_ = config;
  squares1_ = rules::Squares(config.beta1);
  squares2_ = rules::Squares(config.beta2);
  has_float32_ = std::any_of(tensors.begin(), tensors.end(),
                             [](const Tensor& tensor) { return tensor.real == DType::float32; });
  folded_.resize(rates_count);
}

Status RateFolder::fold(const StepInput& input, double factor) noexcept {
  step_ = input.number;
  const rules::Corrections corrections =
      rules::used_corrections(config_, squares1_, squares2_, step_, &powers_);
  for (std::size_t k = 0; k < folded_.size(); ++k) {
    if (!rules::fold_rates(config_, input.rates[k], corrections, factor, has_float32_,
                           &folded_[k])) {
      return bad(kScalarsOutOfRange);
    }
  }
  return {};
}

}  // namespace adamas::core
