// Elements of the arrays of a parameter, whatever their types, as kernels read and write them.
#pragma once

#include "cuda/kernels/args.hpp"
#include "cuda/kernels/cta.hpp"
#include "rules/low_precision.hpp"

namespace adamas::cuda {

// A type of parameters and gradients, how it is stored and what the arithmetic sees: one of
// rules::Halves, or a type of the arithmetic.
template <class Half>
struct StoredAs {
  static constexpr DType kDType = Half::kDType;
  using Real = float;
  using Bits = std::uint16_t;
  ADAMAS_DEVICE static float load(std::uint16_t half) { return Half::load(half); }
  ADAMAS_DEVICE static std::uint16_t store(float value) { return Half::store(value); }
};

template <class Type>
struct StoredAsItself {
  using Real = Type;
  using Bits = Type;
  ADAMAS_DEVICE static Type load(Type value) { return value; }
  ADAMAS_DEVICE static Type store(Type value) { return value; }
};
template <>
struct StoredAs<float> : StoredAsItself<float> {
  static constexpr DType kDType = DType::float32;
};
template <>
struct StoredAs<double> : StoredAsItself<double> {
  static constexpr DType kDType = DType::float64;
};

// Calls visit(StoredAs<Type>()) for the type that `dtype` names, of those with one arithmetic.
template <class Visit, class... Halves>
ADAMAS_DEVICE void visit_half(rules::TypeList<Halves...>, DType dtype, Visit visit) {
  (void)((dtype == Halves::kDType && (visit(StoredAs<Halves>()), true)) || ...);
}
template <class Real, class Visit>
ADAMAS_DEVICE void visit_type(DType dtype, Visit visit) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    visit(StoredAs<double>());
  } else if (dtype == DType::float32) {
    visit(StoredAs<float>());
  } else {
    visit_half(rules::Halves(), dtype, visit);
  }
}

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
  Real value = 0;
  visit_type<Real>(dtype, [&](auto type) {
    value = type.load(static_cast<const typename decltype(type)::Bits*>(data)[i]);
  });
  return value;
}

template <class Real>
ADAMAS_DEVICE void store_at(DType dtype, void* data, std::int64_t i, Real value) {
  visit_type<Real>(dtype, [&](auto type) {
    static_cast<typename decltype(type)::Bits*>(data)[i] = type.store(value);
  });
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
  const auto place = step.places == nullptr ? static_cast<std::uint32_t>(tensor.rates)
                                            : step.places[tensor.position];
  return step.rates == nullptr ? step.inline_rates[place] : step.rates[place];
}

// The key of a parameter's random bits in the step at hand.
ADAMAS_DEVICE std::uint32_t random_key(const StepArgs& step, const TensorEntry& tensor) {
  return rules::random_key(step.seed, rates_of(step, tensor).step, tensor.key);
}

ADAMAS_DEVICE std::uint32_t random_of(std::uint32_t key, std::int64_t element) {
  return rules::random_bits(rules::random_state(key, static_cast<std::uint32_t>(element)));
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
ADAMAS_DEVICE void move_average(const TensorEntry& tensor, std::int64_t i, Real param) {
  if (tensor.ema == nullptr) return;
  Real* average = static_cast<Real*>(tensor.ema) + i;
  *average = rules::averaged(*average, param, static_cast<Real>(tensor.ema_rate));
}

// The new value, or with `delta` the change.
template <class Real>
ADAMAS_DEVICE void store_param(const TensorEntry& tensor, std::int64_t i, Real value) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (tensor.master != nullptr) tensor.master[i] = value;
  }
  store_at<Real>(tensor.dtype, tensor.delta == nullptr ? tensor.param : tensor.delta, i, value);
  move_average(tensor, i, value);
}

}  // namespace adamas::cuda
