// Gradients of micro-batches that are summed for one step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "adamas/types.hpp"
#include "core/storage.hpp"

namespace adamas::core {

// The sums, in the type of the arithmetic, by parameter; memory of the engine.
struct Accumulation {
  std::int64_t count = 0;     // of micro-batches
  std::vector<char*> sums;    // empty: there is no memory yet
  std::vector<char> has_any;  // whether a gradient has come; else the sum is anything

  void clear() noexcept {
    count = 0;
    std::fill(has_any.begin(), has_any.end(), char{0});
  }
};

}  // namespace adamas::core
