#include "core/rate_folder.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/checks.hpp"

namespace adamas::core {
namespace {

constexpr std::uint32_t kFree = ~std::uint32_t{0};

// What one element of the rates is folded from.
struct Source {
  const AdamConfig& config;
  const Rates& rates;
  std::int64_t step;
  const rules::Factor& factor;
  const rules::Reals& reals;
};

ADAMAS_RULE bool fold_source(const Source& source, rules::Squares& squares1,
                             rules::Squares& squares2, rules::RunningPowers* running,
                             rules::FoldedRates* folded) {
  const rules::Corrections corrections =
      rules::used_corrections(source.config, squares1, squares2, source.step, running);
  return rules::fold_rates(source.config, source.rates, corrections, source.step, source.factor,
                           source.reals, folded);
}

// The powers of the betas are made of fused multiply-adds, each a call where the machine is not
// known to have them.  The bits are the same.
using Fold = bool (*)(const Source& source, rules::Squares& squares1, rules::Squares& squares2,
                      rules::RunningPowers* running, rules::FoldedRates* folded);

bool fold_anywhere(const Source& source, rules::Squares& squares1, rules::Squares& squares2,
                   rules::RunningPowers* running, rules::FoldedRates* folded) {
  return fold_source(source, squares1, squares2, running, folded);
}

#if defined(__x86_64__)
__attribute__((target("fma"))) bool fold_with_fma(const Source& source, rules::Squares& squares1,
                                                  rules::Squares& squares2,
                                                  rules::RunningPowers* running,
                                                  rules::FoldedRates* folded) {
  return fold_source(source, squares1, squares2, running, folded);
}

Fold choose_fold() { return __builtin_cpu_supports("fma") ? fold_with_fma : fold_anywhere; }
#else
Fold choose_fold() { return fold_anywhere; }
#endif

}  // namespace

void RateFolder::prepare(const Options& options, const std::vector<Tensor>& tensors) {
  options_ = &options;
  tensors_ = &tensors;
  const auto has = [&](DType real) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [real](const Tensor& tensor) { return tensor.real == real; });
  };
  reals_ = {has(DType::float32), has(DType::float64)};
  powers_.resize(options.groups.size());
  folded_.resize(options.groups.size());
  places_ = nullptr;
}

Status RateFolder::fold(const StepInput& input, const Factors& factors) noexcept {
  if (input.steps == nullptr && factors.by_parameter == nullptr) {
    return fold_by_rates(input, factors.all);
  }
  try {
    return fold_by_parameter(input, factors);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the scalars of the step"};
  }
}

Status RateFolder::fold_by_rates(const StepInput& input, const rules::Factor& factor) noexcept {
  places_ = nullptr;
  for (std::size_t k = 0; k < powers_.size(); ++k) {
    Status status = fold_one(input, k, input.number, factor, &powers_[k].running, &folded_[k]);
    if (!status.ok()) return status;
  }
  return {};
}

Status RateFolder::fold_by_parameter(const StepInput& input, const Factors& factors) {
  const std::size_t count = tensors_->size();
  std::size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  slots_.assign(slots, kFree);
  place_of_.resize(count);
  running_.resize(count);
  keys_.clear();
  places_ = place_of_.data();
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t rates = (*tensors_)[i].spec.rates;
    const rules::Factor& factor =
        factors.by_parameter == nullptr ? factors.all : factors.by_parameter[i];
    const Key key{rates, input.step_of(i), factor};
    const std::size_t used = keys_.size();
    const std::uint32_t place = find(key, used);
    place_of_[i] = place;
    if (place < used) continue;
    if (folded_.size() <= used) folded_.resize(2 * used + 1);
    Status status = fold_one(input, static_cast<std::size_t>(rates), key.step, factor, &running_[i],
                             &folded_[used]);
    if (!status.ok()) return status;
  }
  return {};
}

// Where what `key` folds to stands: `used` if that is still to be done.
std::uint32_t RateFolder::find(const Key& key, std::size_t used) {
  std::uint64_t factor_bits;
  std::memcpy(&factor_bits, &key.factor.grad, sizeof factor_bits);
  std::uint64_t hash = static_cast<std::uint64_t>(key.step) * 0x9e3779b97f4a7c15U;
  hash = (hash ^ factor_bits ^ static_cast<std::uint64_t>(key.rates)) * 0xbf58476d1ce4e5b9U;
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t slot = (hash >> 32) & mask;; slot = (slot + 1) & mask) {
    const std::uint32_t place = slots_[slot];
    if (place == kFree) {
      keys_.push_back(key);
      return slots_[slot] = static_cast<std::uint32_t>(used);
    }
    const Key& other = keys_[place];
    if (other.rates == key.rates && other.step == key.step &&
        other.factor.grad == key.factor.grad && other.factor.decay == key.factor.decay) {
      return place;
    }
  }
}

Status RateFolder::fold_one(const StepInput& input, std::size_t rates, std::int64_t step,
                            const rules::Factor& factor, rules::RunningPowers* running,
                            rules::FoldedRates* folded) noexcept {
  const AdamConfig& config = options_->groups[rates];
  Powers& powers = powers_[rates];
  if (powers.squares1.beta() != config.beta1) powers.squares1 = rules::Squares(config.beta1);
  if (powers.squares2.beta() != config.beta2) powers.squares2 = rules::Squares(config.beta2);
  const Source source{config, input.rates[rates], step, factor, reals_};
  static const Fold fold_here = choose_fold();
  const bool fits = fold_here(source, powers.squares1, powers.squares2, running, folded);
  return fits ? Status{} : bad(kScalarsOutOfRange);
}

}  // namespace adamas::core
