// Asks for memory that is about to be read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/memory.hpp"

namespace adamas::core {

// Brings the first kilobyte of a run to the cache; the rest of a longer run follows by itself.
// Always inlined: gcc takes a function that does nothing but prefetch for one without effect, and
// drops the call.
__attribute__((always_inline)) inline void prefetch_run(const void* data, std::int64_t nbytes) {
  constexpr std::int64_t kMaxBytes = 1024;
  const char* begin = static_cast<const char*>(data);
  const std::int64_t fetched = std::min(nbytes, kMaxBytes);
  for (std::int64_t k = 0; k < fetched; k += std::int64_t{kLine}) __builtin_prefetch(begin + k);
  __builtin_prefetch(begin + fetched - 1);  // a run that starts within a line ends in another
}

}  // namespace adamas::core
