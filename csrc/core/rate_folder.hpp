// The scalars of a step, folded on the host from its rates, for engines that decide there.
//
// Parameters with the same rates, number of steps and factor share what is folded: mostly all of
// one element of the rates.
#pragma once

#include <cstdint>
#include <vector>

#include "core/engine.hpp"
#include "rules/fold_rates.hpp"
#include "rules/mindspore.hpp"

namespace adamas::core {

// What the gradients of a step are multiplied with: all alike, or each parameter's by its own.
struct Factors {
  rules::Factor all;
  const rules::Factor* by_parameter = nullptr;
};

class RateFolder {
 public:
  // Throws std::bad_alloc.  The options and tensors outlive this object.
  void prepare(const Options& options, const std::vector<Tensor>& tensors);

  // Folds the rates of a step; an error if the scalars leave the range of a parameter's type.
  Status fold(const StepInput& input, const Factors& factors) noexcept;

  // As fold() left them.
  const rules::FoldedRates& of(std::size_t parameter, std::int32_t rates) const {
    return folded_[places_ == nullptr ? static_cast<std::size_t>(rates) : places_[parameter]];
  }
  const std::vector<rules::FoldedRates>& folded() const { return folded_; }
  std::size_t folded_count() const { return places_ == nullptr ? powers_.size() : keys_.size(); }
  // By parameter, which of folded() is its own; null: that of its rates.
  const std::uint32_t* places() const { return places_; }

  const rules::Reals& reals() const { return reals_; }

 private:
  // The powers of one group's betas.
  struct Powers {
    rules::Squares squares1{0.0};
    rules::Squares squares2{0.0};
    rules::RunningPowers running;
  };

  // What parameters share that share their scalars.
  struct Key {
    std::int32_t rates;
    std::int64_t step;
    rules::Factor factor;
  };

  Status fold_by_rates(const StepInput& input, const rules::Factor& factor) noexcept;
  Status fold_by_parameter(const StepInput& input, const Factors& factors);
  Status fold_one(const StepInput& input, std::size_t rates, std::int64_t step,
                  const rules::Factor& factor, rules::RunningPowers* running,
                  rules::FoldedRates* folded) noexcept;
  std::uint32_t find(const Key& key, std::size_t used);

  const Options* options_ = nullptr;
  const std::vector<Tensor>* tensors_ = nullptr;
  rules::Reals reals_{};
  std::vector<Powers> powers_;  // by rates
  std::vector<rules::FoldedRates> folded_;
  const std::uint32_t* places_ = nullptr;

  // Of steps whose parameters differ.
  std::vector<std::uint32_t> place_of_;        // by parameter
  std::vector<rules::RunningPowers> running_;  // likewise
  std::vector<Key> keys_;                      // of folded_
  std::vector<std::uint32_t> slots_;           // a hash table of places
};

}  // namespace adamas::core
