#include "core/fork.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstddef>

namespace adamas::core {
namespace {

// The calls under way, counted apart for threads so that these share no cache line.
struct alignas(64) Slot {
  std::atomic<int> calls{0};
};
constexpr std::size_t kSlots = 16;
Slot slots[kSlots];
std::atomic<int> forks{0};  // that wait, or are happening

Slot& own_slot() noexcept {
  static std::atomic<std::size_t> threads{0};
  thread_local Slot& slot = slots[threads.fetch_add(1, std::memory_order_relaxed) % kSlots];
  return slot;
}

void before_fork() noexcept {
  forks.fetch_add(1);
  for (const Slot& slot : slots) {
    while (slot.calls.load() > 0) sched_yield();
  }
}

void after_fork_in_parent() noexcept { forks.fetch_sub(1); }

// Threads that were about to enter are not here to leave.
void after_fork_in_child() noexcept {
  for (Slot& slot : slots) slot.calls.store(0);
  forks.store(0);
}

}  // namespace

void NoFork::enter() noexcept {
  static const int registered =
      pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  static_cast<void>(registered);
  Slot& slot = own_slot();
  for (;;) {
    slot.calls.fetch_add(1);
    if (forks.load() == 0) return;
    slot.calls.fetch_sub(1);
    while (forks.load() > 0) sched_yield();
  }
}

void NoFork::leave() noexcept { own_slot().calls.fetch_sub(1, std::memory_order_release); }

}  // namespace adamas::core
