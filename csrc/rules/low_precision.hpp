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
// most 1.75, kept as its biased float32 exponent in one byte.  A magnitude is stored as an 8-bit
// float with 3 bits of mantissa that passes over to even steps below an offset c: as how many
// eighths of a power of two its sum with c lies above c.
//   moment1   a sign, and 7 bits with c = scale * 2^-15
//   moment2   8 bits with c = scale * 2^-31; what is above zero is stored as at least c / 8: too
//             small a denominator would make the parameter jump
// An infinity or NaN in a block, or a magnitude above 1.75 * 2^127, makes its scale 255, its codes
// 0, and all its elements NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/half.hpp"

namespace adamas::rules {

// 32 random bits for each element: a sequence that adds a constant (Weyl's) from the key on, mixed
// by a bijection.  Loops add the stride themselves.
constexpr std::uint32_t kRandomStride = 0x9e3779b9U;

ADAMAS_RULE std::uint32_t random_state(std::uint32_t key, std::uint32_t element) {
  return key + element * kRandomStride;
}

ADAMAS_RULE std::uint32_t random_bits(std::uint32_t state) {
  std::uint32_t x = state;
  x ^= x >> 15;
  x *= 0x2c1b3c6dU;
  x ^= x >> 16;
  return x;
}

// The key of one parameter in one step (splitmix64's finalizer, twice).  Elements that are 2^32
// apart get the same random bits.
ADAMAS_RULE std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

ADAMAS_RULE std::uint32_t random_key(std::uint64_t seed, std::int64_t step,
                                     std::int64_t parameter) {
  const std::uint64_t of_step = mix(seed ^ mix(static_cast<std::uint64_t>(step)));
  return static_cast<std::uint32_t>(mix(of_step ^ mix(static_cast<std::uint64_t>(parameter))) >>
                                    32);
}

// The random bits of one element for the two moments.  The 20 for an 8-bit code overlap in the
// places that weigh least.
ADAMAS_RULE std::uint32_t random16_of_moment1(std::uint32_t random) { return random >> 16; }
ADAMAS_RULE std::uint32_t random16_of_moment2(std::uint32_t random) { return random & 0xffffU; }
ADAMAS_RULE std::uint32_t random20_of_moment1(std::uint32_t random) { return random >> 12; }
ADAMAS_RULE std::uint32_t random20_of_moment2(std::uint32_t random) { return random & 0xfffffU; }

// The formats that round each element by itself: how the arithmetic sees what is stored, and what
// is stored of it, with the random bits of the element.  Kernels are made for each.
struct BFloat16Moments {
  static constexpr StateFormat kFormat = StateFormat::bfloat16;
  using Bits = std::uint16_t;

  ADAMAS_RULE float load(Bits stored) { return BFloat16::load(stored); }
  ADAMAS_RULE Bits store_moment1(float value, std::uint32_t random) {
    return round_to_bfloat16(value, random16_of_moment1(random));
  }
  ADAMAS_RULE Bits store_moment2(float value, std::uint32_t random) {
    return round_to_bfloat16(value, random16_of_moment2(random));
  }
};

using ElementFormats = TypeList<BFloat16Moments>;

// Bytes of a moment in a format other than `real`; one in int8.
template <class... Formats>
constexpr std::size_t stored_nbytes(TypeList<Formats...>, StateFormat format) {
  std::size_t nbytes = 1;
  ((format == Formats::kFormat ? void(nbytes = sizeof(typename Formats::Bits)) : void()), ...);
  return nbytes;
}

// The most elements that share a scale.
constexpr int kLargestScaleBlock = 256;

constexpr std::uint32_t kNoScale = 255U;

// Magnitudes compare as their bits do; those of NaN are the largest.
ADAMAS_RULE std::uint32_t magnitude_bits(float value) { return bits_of(value) & 0x7fffffffU; }

// The biased exponent of the scale of a block whose largest magnitude has these bits: from 33 on,
// so that all factors below are normal numbers; kNoScale for what is not finite or too large.
ADAMAS_RULE std::uint32_t scale_exponent(std::uint32_t largest) {
  const std::uint32_t exponent = (largest >> 23) + ((largest & 0x7fffffU) > 0x600000U ? 1U : 0U);
  return exponent > kNoScale ? kNoScale : exponent < 33U ? 33U : exponent;
}

// Codes are bits 20 to 27 of a float32: of the magnitude times `up`, with which c becomes 2,
// plus 2. The bits of 2 are zero there.
constexpr std::uint32_t kTwo = 0x40000000U;

// The two moments differ in how far c lies below the scale.
struct Moment1 {
  static constexpr std::uint32_t kOffset = 15;
};
struct Moment2 {
  static constexpr std::uint32_t kOffset = 31;
};

// The factors for the biased exponent of a scale; without one, codes decode to NaN.
template <class Moment>
ADAMAS_RULE float up_factor(std::uint32_t scale) {
  return float_of((255U + Moment::kOffset - scale) << 23);
}

template <class Moment>
ADAMAS_RULE float down_factor(std::uint32_t scale) {
  return scale == kNoScale ? float_of(0x7fc00000U) : float_of((scale - 1U - Moment::kOffset) << 23);
}

// Stored numbers are bytes; here they have 32 bits, which loops over float32 ask for, and what lies
// above the byte of an encoded number is to be cut off.
ADAMAS_RULE float decode_magnitude(std::uint32_t code, float down) {
  return multiply_add(float_of(code << 20 | kTwo), down, -2.0F * down);
}

ADAMAS_RULE std::uint32_t encode_magnitude(float magnitude, float up, std::uint32_t random20) {
  return (bits_of(multiply_add(magnitude, up, 2.0F)) + random20) >> 20;
}

ADAMAS_RULE float decode_moment1(std::uint32_t stored, float down) {
  const float magnitude = decode_magnitude(stored & 0x7fU, down);
  return float_of(bits_of(magnitude) | (stored & 0x80U) << 24);
}

ADAMAS_RULE std::uint32_t encode_moment1(float value, float up, std::uint32_t random20) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t code = encode_magnitude(float_of(magnitude_bits(value)), up, random20);
  return (code & ~0x80U) | ((bits >> 24) & 0x80U);
}

ADAMAS_RULE float decode_moment2(std::uint32_t stored, float down) {
  return decode_magnitude(stored, down);
}

// `value` is not negative.
ADAMAS_RULE std::uint32_t encode_moment2(float value, float up, std::uint32_t random20) {
  const std::uint32_t code = encode_magnitude(value, up, random20);
  const std::uint32_t least = value > 0.0F ? (kTwo >> 20) + 1U : 0U;
  return code > least ? code : least;
}

}  // namespace adamas::rules
