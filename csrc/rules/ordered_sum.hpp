// Sums over many values, in double and in an order that is a promise: the same on every instruction
// set and device.
//
// Value i is added to lane i % kLanes, and the lanes are then added as a tree.  Longer arrays are
// summed in tiles, and those of whole parameters in blocks of tiles, from first to last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/arithmetic.hpp"

namespace adamas::rules {

inline constexpr int kLanes = 16;
inline constexpr std::int64_t kTile = 1024;    // elements
inline constexpr std::int64_t kBlock = 16384;  // elements

// Adds up the lanes, in place.
ADAMAS_RULE double tree_sum(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

struct Lanes {
  double sum[kLanes] = {};

  ADAMAS_RULE_MEMBER double total() { return tree_sum(sum); }
};

ADAMAS_RULE double ordered_sum(const double* values, std::size_t count) {
  Lanes lanes;
  for (std::size_t i = 0; i < count; ++i) lanes.sum[i % kLanes] += values[i];
  return lanes.total();
}

}  // namespace adamas::rules
