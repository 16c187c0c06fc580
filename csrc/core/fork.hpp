// fork() waits until no other thread is inside a call, so that a child inherits no half of one, and
// no mutex that a thread it does not have keeps locked.
#pragma once

#include <mutex>

namespace adamas::core {

// While it lives, fork() waits in every other thread.
class NoFork {
 public:
  NoFork() noexcept { enter(); }
  ~NoFork() { leave(); }
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;

 private:
  friend class CallMutex;
  static void enter() noexcept;
  static void leave() noexcept;
};

// A mutex that fork() waits for.
class CallMutex {
 public:
  void lock() noexcept {
    NoFork::enter();
    mutex_.lock();
  }
  void unlock() noexcept {
    mutex_.unlock();
    NoFork::leave();
  }

 private:
  std::mutex mutex_;
};

}  // namespace adamas::core
