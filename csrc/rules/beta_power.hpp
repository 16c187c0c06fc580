// 1 - beta^t, from t each time, correct to the last bit of double or the one beside it.
//
// A running product drifts and pow() differs between C libraries and devices; this uses only
// operations that IEEE 754 fixes, so a step has the same scalars everywhere.  beta^t is computed by
// repeated squaring in pairs of doubles (106 bits), so the subtraction loses nothing that matters.
// Numerics "mindspore" wants the drift of MindSpore's running product, and gets it (mindspore.hpp).
#pragma once

#include <cstdint>

#include "rules/arithmetic.hpp"

namespace adamas::rules {

// The unevaluated sum high + low, |low| <= ulp(high) / 2.
struct DoublePair {
  double high;
  double low;
};

ADAMAS_RULE DoublePair multiply(DoublePair a, DoublePair b) {
  const double product = a.high * b.high;
  const double error = multiply_add(a.high, b.high, -product);
  const double low = error + (a.high * b.low + a.low * b.high);
  const double high = product + low;
  return {high, low - (high - product)};
}

// beta^t for t >= 0 and 0 <= beta < 1.
ADAMAS_RULE DoublePair pair_power(double beta, std::int64_t t) {
  DoublePair power{1.0, 0.0};
  DoublePair square{beta, 0.0};
  for (; t > 0 && power.high > 0.0; t >>= 1) {
    if ((t & 1) != 0) power = multiply(power, square);
    square = multiply(square, square);
  }
  return power;
}

ADAMAS_RULE double power(double beta, std::int64_t t) { return pair_power(beta, t).high; }

ADAMAS_RULE double one_minus_power(double beta, std::int64_t t) {
  const DoublePair power = pair_power(beta, t);
  return (1.0 - power.high) - power.low;
}

// beta^(2^k), as far as was asked for: for one beta and many t, whose powers are then half the
// work.
struct Squares {
  static constexpr int kBits = 63;
  DoublePair of[kBits];
  int known = 1;

  explicit Squares(double beta) : of{{beta, 0.0}} {}

  double beta() const { return of[0].high; }
};

// The bits of one_minus_power(beta, t).
ADAMAS_RULE double one_minus_power(Squares& squares, std::int64_t t) {
  DoublePair power{1.0, 0.0};
  for (int k = 0; t >> k > 0 && power.high > 0.0; ++k) {
    if (k == squares.known) {
      squares.of[k] = multiply(squares.of[k - 1], squares.of[k - 1]);
      ++squares.known;
    }
    if ((t >> k & 1) != 0) power = multiply(power, squares.of[k]);
  }
  return (1.0 - power.high) - power.low;
}

// The bias corrections at the 1-based step t of a parameter.
struct Corrections {
  double first = 1.0;        // 1 - beta1^t
  double second_root = 1.0;  // sqrt(1 - beta2^t)
};

// A beta is a number, or its Squares.
template <class Beta>
ADAMAS_RULE Corrections exact_corrections(Beta& beta1, Beta& beta2, std::int64_t step) {
  return {one_minus_power(beta1, step), square_root(one_minus_power(beta2, step))};
}

}  // namespace adamas::rules
