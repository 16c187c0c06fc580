// fork() waits until no thread is inside a call, so that a child inherits whole steps and open
// mutexes.
#pragma once

#include <mutex>

namespace adamas::core {

// While it lives, fork() waits in every other thread.  Not to be nested.
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

// Of one call at a time.
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
