// The AdamUpdates that no step uses at the moment.
//
// One makes one step at a time and is quickest with the arrays that it had before, and XLA calls
// from whatever threads it has: a step takes one that knows its arrays, if there is one, and gives
// it back.  Nobody waits for a step of somebody else's.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "adamas/update.hpp"

namespace adamas::bindings::jax {

// With its lists, whose memory it keeps as well.
struct Update {
  AdamUpdate update;
  std::vector<ParameterSpec> specs;
  std::vector<Gradient> grads;
  std::vector<std::int64_t> steps;
  const void* first = nullptr;  // the first parameter of its last step
};

class IdleUpdates {
 public:
  // Throws std::bad_alloc.
  std::unique_ptr<Update> take(const void* first);
  void give_back(std::unique_ptr<Update> update) noexcept;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Update>> idle_;  // the last used one is the last
};

// Those of the process.
IdleUpdates& idle_updates() noexcept;

}  // namespace adamas::bindings::jax
