// Moments in 16 and 8 bits: how they are rounded and laid out.
//
// Both formats round stochastically: up with the probability that makes the expected value exact,
// to within the 16 random bits that each moment gets.  Rounding to nearest would lose the small
// changes of a moment for ever.  The random bits of an element depend on the seed, the step, the
// parameter and the element alone, never on a thread or a launch, so a run can be repeated and
// every device agrees.
//
// bfloat16: the upper half of a float32.
//
// int8: blocks of elements share a scale, the power of two with which the largest magnitude is at
// most 1.875, kept as its biased float32 exponent in one byte.  Within a block, value / scale is an
// 8-bit float, and 0 is zero:
//   moment1   sign, 4 bits of exponent, 3 of mantissa: 1.125 * 2^-15 to 1.875; what is smaller
//             becomes that or zero, by chance
//   moment2   5 bits of exponent, 3 of mantissa: 1.125 * 2^-31 to 1.875; what is smaller, but not
//             zero, becomes that: too small a denominator would make the parameter jump
// An infinity or NaN in a block makes its scale 255, and all its elements NaN.
#pragma once

#include <cstdint>

#include "rules/half.hpp"

namespace adamas::rules {

// 32 random bits for one element: a bijection of its index (Murmur3's finalizer) under a key.
ADAMAS_RULE std::uint32_t random_bits(std::uint32_t key, std::uint32_t index) {
  std::uint32_t x = index + key;
  x ^= x >> 16;
  x *= 0x85ebca6bU;
  x ^= x >> 13;
  x *= 0xc2b2ae35U;
  x ^= x >> 16;
  return x;
}

// A key for 2^32 elements of one parameter in one step (splitmix64's finalizer, twice).
ADAMAS_RULE std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

ADAMAS_RULE std::uint32_t random_key(std::uint64_t seed, std::int64_t step, std::int64_t parameter,
                                     std::int64_t upper_index) {
  const std::uint64_t a = mix(seed ^ mix(static_cast<std::uint64_t>(step)));
  const std::uint64_t b = mix(a ^ mix(static_cast<std::uint64_t>(parameter)));
  return static_cast<std::uint32_t>(mix(b + static_cast<std::uint64_t>(upper_index)) >> 32);
}

// The biased exponent of the scale of a block whose largest magnitude has these bits.  From 32 on,
// so that all codes stand for normal numbers; 255 for infinity and NaN.
ADAMAS_RULE std::uint32_t scale_exponent(std::uint32_t largest) {
  const std::uint32_t exponent = largest >> 23;
  const std::uint32_t above = exponent + ((largest & 0x7fffffU) > 0x700000U ? 1U : 0U);
  const std::uint32_t finite = above > 254U ? 254U : above < 32U ? 32U : above;
  return exponent == 255U ? 255U : finite;
}

// Codes count steps of 2^20 in the bits of a float32, from the power of two with the biased
// exponent `lowest` on: so decoding is a shift, and rounding the addition of 20 random bits.
ADAMAS_RULE float decode(std::uint32_t code, std::uint32_t lowest) {
  const float value = float_of((code << 20) + (lowest << 23));
  return code == 0U ? 0.0F : value;
}

// s is the biased exponent of the scale.
ADAMAS_RULE float load_moment1(std::uint8_t stored, std::uint32_t s) {
  const float magnitude = decode(stored & 0x7fU, s - 15U);
  const float value =
      float_of(bits_of(magnitude) | (static_cast<std::uint32_t>(stored) & 0x80U) << 24);
  return s == 255U ? float_of(0x7fc00000U) : value;
}

ADAMAS_RULE std::uint8_t store_moment1(float value, std::uint32_t s, std::uint32_t random20) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 24) & 0x80U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const std::uint32_t zero = (s - 15U) << 23;
  const std::uint32_t steps = (magnitude - zero + random20) >> 20;
  // Below the smallest number: up to it with the chance magnitude / smallest.  Both products are
  // exact.
  const float smallest = float_of(zero + (1U << 20));
  const bool up = float_of(magnitude) * 0x1p20F > static_cast<float>(random20) * smallest;
  std::uint32_t code = magnitude < zero + (1U << 20) ? (up ? 1U : 0U) : steps;
  code = code > 0x7fU ? 0x7fU : code;
  return static_cast<std::uint8_t>(code | sign);
}

ADAMAS_RULE float load_moment2(std::uint8_t stored, std::uint32_t s) {
  const float value = decode(stored, s - 31U);
  return s == 255U ? float_of(0x7fc00000U) : value;
}

ADAMAS_RULE std::uint8_t store_moment2(float value, std::uint32_t s, std::uint32_t random20) {
  const std::uint32_t bits = bits_of(value) & 0x7fffffffU;
  const std::uint32_t zero = (s - 31U) << 23;
  const std::uint32_t steps = (bits - zero + random20) >> 20;
  std::uint32_t code = bits < zero + (1U << 20) ? (bits == 0U ? 0U : 1U) : steps;
  code = code > 0xffU ? 0xffU : code;
  return static_cast<std::uint8_t>(code);
}

}  // namespace adamas::rules
