// Elements of the arrays of a parameter, whatever their types, as kernels read and write them.
#pragma once

#include "cuda/kernels/args.hpp"
#include "cuda/kernels/cta.hpp"
#include "rules/low_precision.hpp"

namespace adamas::cuda {

// A type of parameters and gradients: how it is stored and what the arithmetic sees.
template <class Type>
struct StoredAs;
template <>
struct StoredAs<float> {
  using Real = float;
  using Bits = float;
  ADAMAS_DEVICE static float load(float value) { return value; }
  ADAMAS_DEVICE static float store(float value) { return value; }
};
template <>
struct StoredAs<double> {
  using Real = double;
  using Bits = double;
  ADAMAS_DEVICE static double load(double value) { return value; }
  ADAMAS_DEVICE static double store(double value) { return value; }
};
template <class Half>
struct StoredAsHalf {
  using Real = float;
  using Bits = std::uint16_t;
  ADAMAS_DEVICE static float load(std::uint16_t half) { return Half::load(half); }
  ADAMAS_DEVICE static std::uint16_t store(float value) { return Half::store(value); }
};
template <>
struct StoredAs<rules::Float16> : StoredAsHalf<rules::Float16> {};
template <>
struct StoredAs<rules::BFloat16> : StoredAsHalf<rules::BFloat16> {};

template <class Type>
ADAMAS_DEVICE typename StoredAs<Type>::Bits* bits_at(void* data, std::int64_t i) {
  return static_cast<typename StoredAs<Type>::Bits*>(data) + i;
}
template <class Type>
ADAMAS_DEVICE const typename StoredAs<Type>::Bits* bits_at(const void* data, std::int64_t i) {
  return static_cast<const typename StoredAs<Type>::Bits*>(data) + i;
}

template <class Type>
ADAMAS_DEVICE typename StoredAs<Type>::Real load_at(const void* data, std::int64_t i) {
  return StoredAs<Type>::load(*bits_at<Type>(data, i));
}

// Where the type is only known at run time, for kernels that it costs little.
template <class Real>
ADAMAS_DEVICE Real load_at(DType dtype, const void* data, std::int64_t i) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    return load_at<double>(data, i);
  } else {
    if (dtype == DType::float32) return load_at<float>(data, i);
    return dtype == DType::float16 ? load_at<rules::Float16>(data, i)
                                   : load_at<rules::BFloat16>(data, i);
  }
}

template <class Real>
ADAMAS_DEVICE void store_at(DType dtype, void* data, std::int64_t i, Real value) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    *bits_at<double>(data, i) = value;
  } else if (dtype == DType::float32) {
    *bits_at<float>(data, i) = value;
  } else {
    *bits_at<rules::BFloat16>(data, i) =
        dtype == DType::float16 ? rules::Float16::store(value) : rules::BFloat16::store(value);
  }
}

template <class Real>
ADAMAS_DEVICE const rules::Scalars<Real>& scalars_of(const Folded& folded) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    return folded.float32;
  } else {
    return folded.float64;
  }
}

ADAMAS_DEVICE bool goes(const Control* control) { return control == nullptr || control->goes != 0; }

ADAMAS_DEVICE const RateEntry& rates_of(const StepArgs& step, const TensorEntry& tensor) {
  return step.rates == nullptr ? step.inline_rates[tensor.rates] : step.rates[tensor.rates];
}

// The key of a parameter's random bits in the step at hand.
ADAMAS_DEVICE std::uint32_t random_key(const StepArgs& step, const TensorEntry& tensor) {
  const std::int64_t number = step.control == nullptr ? step.step : step.control->step;
  return rules::random_key(step.seed, number, tensor.index);
}

ADAMAS_DEVICE std::uint32_t random_of(std::uint32_t key, std::int64_t element) {
  return rules::random_bits(rules::random_state(key, static_cast<std::uint32_t>(element)));
}

ADAMAS_DEVICE std::uint16_t round_moment1(float value, std::uint32_t random) {
  return rules::round_to_bfloat16(value, rules::random16_of_moment1(random));
}
ADAMAS_DEVICE std::uint16_t round_moment2(float value, std::uint32_t random) {
  return rules::round_to_bfloat16(value, rules::random16_of_moment2(random));
}

// The parameter as the arithmetic sees it.
template <class Real>
ADAMAS_DEVICE Real load_param(const TensorEntry& tensor, std::int64_t i) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (tensor.master != nullptr) return tensor.master[i];
  }
  return load_at<Real>(tensor.dtype, tensor.param, i);
}

template <class Real>
ADAMAS_DEVICE void store_param(const TensorEntry& tensor, std::int64_t i, Real value) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (tensor.master != nullptr) tensor.master[i] = value;
  }
  store_at<Real>(tensor.dtype, tensor.param, i, value);
}

}  // namespace adamas::cuda
