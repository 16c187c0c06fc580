// Locks on memory, shared by all optimizers of the process that hold it (use_locking).
//
// Every parameter registers its address range.  To change it, its own lock and those of all ranges
// registered earlier that overlap it are taken; of two overlapping ranges the later one thus always
// takes the lock of the earlier.  A range is listed as long as the optimizer that registered it
// lives; those who share its lock keep the lock alone.  All locks are taken in one order, so nobody
// waits in a circle.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "core/storage.hpp"

namespace adamas::core {

// What goes on after the call that has queued it.
class Completion {
 public:
  virtual ~Completion() = default;
  virtual void wait() noexcept = 0;  // the calling thread waits
};

struct RangeLock {
  std::shared_ptr<Completion> last;  // the last step of whoever had the lock; null: none goes on
  Range range;
  std::uint64_t id;  // orders locks on ranges that begin at the same address
  std::mutex mutex;
};

class ParameterLocks {
 public:
  // Registers the memory of the parameters, wherever it is.  Throws std::bad_alloc.
  void prepare(const std::vector<Range>& ranges);

  // Holds the locks of one parameter, or of all, while it lives.
  class Guard {
   public:
    explicit Guard(const std::vector<RangeLock*>& locks) : locks_(&locks) {
      for (RangeLock* lock : *locks_) lock->mutex.lock();
    }
    ~Guard() {
      for (RangeLock* lock : *locks_) lock->mutex.unlock();
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    const std::vector<RangeLock*>* locks_;
  };

  const std::vector<RangeLock*>& all() const { return all_; }
  const std::vector<RangeLock*>& of(std::size_t parameter) const {
    return all_.empty() ? all_ : of_[parameter];
  }

 private:
  std::shared_ptr<const bool> alive_;              // its registrations last as long
  std::vector<std::shared_ptr<RangeLock>> owned_;  // its own and those it shares
  std::vector<std::vector<RangeLock*>> of_;        // by parameter, in locking order
  std::vector<RangeLock*> all_;                    // in locking order
};

}  // namespace adamas::core
