// Asks for memory that is about to be used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/memory.hpp"

namespace adamas::cpu {

// How near the memory is brought.  A core waits for more lines at a time on their way to the second
// level than to the first: 2 x on sparse rows.
enum class CacheLevel { first, second };

// Brings the first kilobyte of a run to a cache; the rest of a longer run follows by itself.
// Always inlined: gcc takes a function that does nothing but prefetch for one without effect, and
// drops the call.
template <CacheLevel level = CacheLevel::first>
__attribute__((always_inline)) inline void prefetch_run(const void* data, std::int64_t nbytes) {
  constexpr std::int64_t kMaxBytes = 1024;
  constexpr int kLocality = level == CacheLevel::first ? 3 : 2;
  const char* begin = static_cast<const char*>(data);
  const std::int64_t fetched = std::min(nbytes, kMaxBytes);
  if (fetched == 0) return;  // there may be no memory at all
  for (std::int64_t k = 0; k < fetched; k += std::int64_t{core::kLine}) {
    __builtin_prefetch(begin + k, 0, kLocality);
  }
  // A run that starts within a line ends in another.
  __builtin_prefetch(begin + fetched - 1, 0, kLocality);
}

}  // namespace adamas::cpu
