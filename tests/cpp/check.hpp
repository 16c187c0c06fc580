// What the C++ tests share: a check that ends the program, and how much they are to do.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace adamas::tests {

// Says where, and leaves without touching what other threads still use.
[[noreturn]] inline void fail(const char* what, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  std::fflush(nullptr);
  std::_Exit(1);
}

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) ::adamas::tests::fail(#condition, __FILE__, __LINE__); \
  } while (false)

// Operations of each thread of `stress`; the other tests scale with it.
inline std::int64_t operations() {
  constexpr std::int64_t kUsual = 2000;
  const char* given = std::getenv("ADAMAS_TEST_OPERATIONS");
  if (given == nullptr || *given == '\0') return kUsual;
  const std::int64_t wanted = std::strtoll(given, nullptr, 10);
  CHECK(wanted > 0);
  return wanted;
}

}  // namespace adamas::tests
