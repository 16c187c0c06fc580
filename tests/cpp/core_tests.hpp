// The tests of `core_tests`, as CMakeLists.txt lists them.  Each ends the program if it fails.
#pragma once

namespace adamas::tests {

#define ADAMAS_CORE_TEST(name) void name();
#include "core_tests.inc"
#undef ADAMAS_CORE_TEST

}  // namespace adamas::tests
