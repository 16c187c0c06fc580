#include "bindings/jax/idle_updates.hpp"

#include <algorithm>
#include <new>
#include <utility>

namespace adamas::bindings::jax {
namespace {

// More than the programs of a process that take turns; each keeps some 200 bytes per parameter.
constexpr std::size_t kMostIdle = 16;

// Never destroyed: XLA's threads may outlive all objects of a program.
alignas(IdleUpdates) unsigned char storage[sizeof(IdleUpdates)];

}  // namespace

std::unique_ptr<Update> IdleUpdates::take(const void* first) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = std::find_if(idle_.begin(), idle_.end(),
                              [&](const auto& update) { return update->first == first; });
    // The one that was not used for the longest time is learned anew, but not while others could
    // still come back to theirs.
    if (found == idle_.end() && idle_.size() == kMostIdle) found = idle_.begin();
    if (found != idle_.end()) {
      std::unique_ptr<Update> taken = std::move(*found);
      idle_.erase(found);
      taken->first = first;
      return taken;
    }
    idle_.reserve(kMostIdle);
  }
  auto made = std::make_unique<Update>();
  made->first = first;
  return made;
}

void IdleUpdates::give_back(std::unique_ptr<Update> update) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.size() < kMostIdle) idle_.push_back(std::move(update));  // reserved by take()
}

IdleUpdates& idle_updates() noexcept {
  static IdleUpdates& updates = *new (storage) IdleUpdates;
  return updates;
}

}  // namespace adamas::bindings::jax
