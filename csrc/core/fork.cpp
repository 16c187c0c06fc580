#include "core/fork.hpp"

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstddef>

namespace adamas::core {
namespace {

// How many threads are inside a call, counted apart so that threads share no cache line.
struct alignas(64) Slot {
  std::atomic<int> threads{0};
};
constexpr std::size_t kSlots = 16;
Slot slots[kSlots];
std::atomic<int> forks{0};  // that wait, or are happening

struct Thread {
  Slot& slot;
  int calls = 0;

  static Thread& own() noexcept {
    static std::atomic<std::size_t> threads{0};
    thread_local Thread thread{slots[threads.fetch_add(1, std::memory_order_relaxed) % kSlots]};
    return thread;
  }
  // What this thread, which forks, has counted in a slot: a crash handler may fork inside a call.
  int counted_in(const Slot& other) const noexcept { return &other == &slot && calls > 0 ? 1 : 0; }
};

void sleep_a_little() noexcept {
  const timespec duration{0, 50'000};
  nanosleep(&duration, nullptr);
}

void before_fork() noexcept {
  forks.fetch_add(1);
  for (const Slot& slot : slots) {
    while (slot.threads.load() > Thread::own().counted_in(slot)) sleep_a_little();
  }
}

void after_fork_in_parent() noexcept { forks.fetch_sub(1); }

// Threads that were about to enter are not here to leave.
void after_fork_in_child() noexcept {
  for (Slot& slot : slots) slot.threads.store(Thread::own().counted_in(slot));
  forks.store(0);
}

// When the library is loaded: some C libraries hold a lock over all handlers, which a call that
// registered its own would wait for.
[[maybe_unused]] const int registered =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

void NoFork::enter() noexcept {
  Thread& thread = Thread::own();
  if (thread.calls++ > 0) return;
  for (;;) {
    thread.slot.threads.fetch_add(1);
    if (forks.load() == 0) return;
    thread.slot.threads.fetch_sub(1);
    while (forks.load() > 0) sleep_a_little();
  }
}

void NoFork::leave() noexcept {
  Thread& thread = Thread::own();
  if (--thread.calls == 0) thread.slot.threads.fetch_sub(1, std::memory_order_release);
}

}  // namespace adamas::core
