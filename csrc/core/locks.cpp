#include "core/locks.hpp"

#include <algorithm>

#include "core/fork.hpp"

namespace adamas::core {
namespace {

struct Registration {
  std::weak_ptr<const bool> alive;  // expires with the optimizer that registered
  std::weak_ptr<RangeLock> lock;
};

struct Registry {
  std::mutex mutex;
  std::vector<Registration> list;
  std::uint64_t next_id = 0;

  // Drops what has expired and returns the rest.
  std::vector<std::shared_ptr<RangeLock>> living() {
    std::vector<std::shared_ptr<RangeLock>> locks;
    const auto is_dead = [](const Registration& entry) { return entry.alive.expired(); };
    list.erase(std::remove_if(list.begin(), list.end(), is_dead), list.end());
    for (const Registration& entry : list) {
      if (auto lock = entry.lock.lock()) locks.push_back(std::move(lock));
    }
    return locks;
  }
};

// Never destroyed: optimizers may outlive static objects.
Registry& registry() {
  static Registry* instance = new Registry;
  return *instance;
}

bool locks_before(const RangeLock* a, const RangeLock* b) {
  return a->range.begin != b->range.begin ? a->range.begin < b->range.begin : a->id < b->id;
}

void sort_unique(std::vector<RangeLock*>& locks) {
  std::sort(locks.begin(), locks.end(), locks_before);
  locks.erase(std::unique(locks.begin(), locks.end()), locks.end());
}

// The registered ranges, found by what they overlap.
class Overlaps {
 public:
  explicit Overlaps(std::vector<std::shared_ptr<RangeLock>> locks) : locks_(std::move(locks)) {
    std::sort(locks_.begin(), locks_.end(),
              [](const auto& a, const auto& b) { return locks_before(a.get(), b.get()); });
    std::uintptr_t reach = 0;
    for (const auto& lock : locks_) reach_.push_back(reach = std::max(reach, lock->range.end));
  }

  template <class Visit>
  void with(Range range, Visit visit) const {
    // No lock before `first` reaches into the range.
    const auto first = std::upper_bound(reach_.begin(), reach_.end(), range.begin);
    for (auto i = static_cast<std::size_t>(first - reach_.begin()); i < locks_.size(); ++i) {
      if (locks_[i]->range.begin >= range.end) break;
      if (locks_[i]->range.end > range.begin) visit(locks_[i]);
    }
  }

 private:
  std::vector<std::shared_ptr<RangeLock>> locks_;
  std::vector<std::uintptr_t> reach_;  // the largest end up to each lock
};

}  // namespace

void ParameterLocks::prepare(const std::vector<Range>& ranges) {
  const NoFork no_fork;  // a child could never open the mutex
  Registry& all = registry();
  const std::lock_guard<std::mutex> guard(all.mutex);
  const Overlaps overlaps(all.living());
  alive_ = std::make_shared<const bool>(true);
  of_.resize(ranges.size());
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const auto take = [&](const std::shared_ptr<RangeLock>& lock) {
      owned_.push_back(lock);
      of_[i].push_back(lock.get());
    };
    overlaps.with(ranges[i], take);
    auto own = std::make_shared<RangeLock>();
    own->range = ranges[i];
    own->id = all.next_id++;
    all.list.push_back({alive_, own});
    take(own);
    sort_unique(of_[i]);
    all_.insert(all_.end(), of_[i].begin(), of_[i].end());
  }
  sort_unique(all_);
}

}  // namespace adamas::core
