// How many threads an optimizer uses that is not told a number: what the environment says, or the
// cores of this process, shared with the others that a launcher has started on the machine.
#pragma once

#include "adamas/status.hpp"
#include "adamas/system.hpp"

namespace adamas::cpu {

// What default_threads() knows of the outside.
struct Surroundings {
  const char* (*variable)(const char* name);  // of the environment; null: not set
  int cores;                                  // that this process may run on
  bool (*is_bound)();                         // whether they are fewer than it would have by itself
};

Status choose_threads(const Surroundings& surroundings, DefaultThreads* result) noexcept;

}  // namespace adamas::cpu
