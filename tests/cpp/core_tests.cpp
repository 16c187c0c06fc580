// Runs the tests that it is given the names of, or all, one after the other.
#include "core_tests.hpp"

#include <cstdio>
#include <string_view>

namespace {

struct Test {
  const char* name;
  void (*run)();
};

constexpr Test kTests[] = {
#define ADAMAS_CORE_TEST(name) {#name, adamas::tests::name},
#include "core_tests.inc"
#undef ADAMAS_CORE_TEST
};

void run(const Test& test) {
  std::puts(test.name);
  std::fflush(stdout);
  test.run();
}

bool run_named(const char* name) {
  for (const Test& test : kTests) {
    if (std::string_view(name) == test.name) return run(test), true;
  }
  std::fprintf(stderr, "core_tests: no test is called %s\n", name);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (!run_named(argv[i])) return 2;
  }
  if (argc > 1) return 0;
  for (const Test& test : kTests) run(test);
}
