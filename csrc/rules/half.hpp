// The 16-bit types as bits: float16 (IEEE binary16) and bfloat16, to and from float32.
//
// Written with integers and without branches, so that compilers vectorise the loops and every
// machine gives the same bits.  (The vcvtneps2bf16 instruction flushes subnormals: never use it.)
// Rounding is to nearest even; what is too large becomes infinity; a NaN stays a NaN.
#pragma once

#include <cstdint>

#include "adamas/types.hpp"
#include "rules/arithmetic.hpp"

namespace adamas::rules {

ADAMAS_RULE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

ADAMAS_RULE float float_of(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Float16 {
  static constexpr DType kDType = DType::float16;

  ADAMAS_RULE float load(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t magnitude = (half & 0x7fffU) << 13;
    // As a float32 the magnitude is 2^-112 times too small; the product is exact, subnormals too.
    const float scaled = float_of(magnitude) * 0x1p112F;
    const std::uint32_t special = magnitude >= 0x0f800000U ? 0x7f800000U : 0U;  // infinity or NaN
    return float_of(bits_of(scaled) | special | sign);
  }

  ADAMAS_RULE std::uint16_t store(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t sign = bits & 0x80000000U;
    const std::uint32_t magnitude = bits ^ sign;
    // Normal: move the exponent and round the 13 bits that go; a carry is the right next number.
    const std::uint32_t odd = (magnitude >> 13) & 1U;
    const std::uint32_t normal = (magnitude - 0x38000000U + 0xfffU + odd) >> 13;
    // Subnormal: adding 1/2 leaves multiples of 2^-24 in the last places, rounded by the addition.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5F) - 0x3f000000U;
    const std::uint32_t special = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
    std::uint32_t half = magnitude < 0x38800000U ? subnormal : normal;  // below 2^-14
    half = magnitude >= 0x47800000U ? special : half;                   // from 2^16 on
    return static_cast<std::uint16_t>(half | sign >> 16);
  }
};

// The bfloat16 that is left of a float32 when `addend`, below 2^16, has been added to the bits that
// go: the addend decides the rounding.
ADAMAS_RULE std::uint16_t round_to_bfloat16(float value, std::uint32_t addend) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t quiet = bits | 0x400000U;
  return static_cast<std::uint16_t>((value != value ? quiet : bits + addend) >> 16);
}

struct BFloat16 {
  static constexpr DType kDType = DType::bfloat16;

  ADAMAS_RULE float load(std::uint16_t half) {
    return float_of(static_cast<std::uint32_t>(half) << 16);
  }

  ADAMAS_RULE std::uint16_t store(float value) {
    const std::uint32_t odd = (bits_of(value) >> 16) & 1U;
    return round_to_bfloat16(value, 0x7fffU + odd);
  }
};

template <class... Types>
struct TypeList {};

// The types that are only stored, in the order of DType: kernels on the CPU and on devices are made
// for each.
using Halves = TypeList<Float16, BFloat16>;

}  // namespace adamas::rules
