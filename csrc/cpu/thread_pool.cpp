#include "cpu/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#include "core/float_environment.hpp"

namespace adamas::cpu {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);  // wake-ups cost about as much
constexpr std::uint32_t kNoChunk = ~std::uint32_t{0};
constexpr int kPausesPerLook = 64;
constexpr int kPausesBeforeYield = 4096;

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Signals are the business of the program's own threads.
class BlockSignals {
 public:
  BlockSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
};

}  // namespace

ThreadPool::ThreadPool(int threads) noexcept
    : threads_(threads), lanes_(new (std::nothrow) Lane[static_cast<std::size_t>(threads)]) {
  if (!lanes_) threads_ = 1;
  const BlockSignals block;
  for (int lane = 1; lane < threads_; ++lane) {
    try {
      lanes_[static_cast<std::size_t>(lane)].worker = std::thread([this, lane] { work(lane); });
    } catch (const std::exception&) {  // no thread, or no memory for it
      threads_ = lane;
    }
  }
}

// Between jobs workers hold nothing and wait for nothing else: joining takes as long as they need
// to wake, at the exit of an interpreter too.
ThreadPool::~ThreadPool() {
  ends_.store(true, std::memory_order_relaxed);
  job_.store(job_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
  wake(threads_ - 1);
  for (int lane = 1; lane < threads_; ++lane) lanes_[static_cast<std::size_t>(lane)].worker.join();
}

void ThreadPool::run(Task task, void* context, std::int64_t chunks) noexcept {
  if (threads_ == 1 || chunks < 2) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) task(context, chunk);
    return;
  }
  task_ = task;
  context_ = context;
  unfinished_.store(chunks, std::memory_order_relaxed);
  const std::uint32_t job = job_.load(std::memory_order_relaxed) + 1;
  const int lanes = static_cast<int>(std::min<std::int64_t>(threads_, chunks));
  lanes_in_use_.store(lanes, std::memory_order_relaxed);
  for (int lane = 0; lane < lanes; ++lane) {
    Lane& share = lanes_[static_cast<std::size_t>(lane)];
    // A worker may still look at this lane for the last job.  Its claims fail from here on, and it
    // can't see the new end before that.
    share.cursor.store(std::uint64_t{job} << 32 | kNoChunk, std::memory_order_release);
    const auto begin = static_cast<std::uint64_t>(chunks * lane / lanes);
    const auto end = static_cast<std::uint32_t>(chunks * (lane + 1) / lanes);
    share.end.store(end, std::memory_order_release);
    share.cursor.store(std::uint64_t{job} << 32 | begin, std::memory_order_release);
  }
  job_.store(job, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) wake(lanes - 1);
  drain(0, job);
  for (int pauses = 0; unfinished_.load(std::memory_order_acquire) > 0; ++pauses) {
    if (pauses < kPausesBeforeYield) {
      pause();
    } else {
      sched_yield();
    }
  }
}

// Wakes as many sleepers as can help.  Those that spin come by themselves.
void ThreadPool::wake(int helpers) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (helpers >= sleepers_.load(std::memory_order_relaxed)) {
    wake_.notify_all();
  } else {
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
  }
}

void ThreadPool::drain(int lane, std::uint32_t job) noexcept {
  const int lanes = lanes_in_use_.load(std::memory_order_relaxed);
  for (int offset = 0; offset < lanes; ++offset) {
    Lane& share = lanes_[static_cast<std::size_t>((lane + offset) % lanes)];
    std::uint64_t cursor = share.cursor.load(std::memory_order_acquire);
    while (static_cast<std::uint32_t>(cursor >> 32) == job) {
      const auto chunk = static_cast<std::uint32_t>(cursor);
      if (chunk >= share.end.load(std::memory_order_acquire)) break;
      if (!share.cursor.compare_exchange_weak(cursor, cursor + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
        continue;
      }
      task_(context_, chunk);
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
      cursor = share.cursor.load(std::memory_order_acquire);
    }
  }
}

void ThreadPool::work(int lane) noexcept {
  std::uint32_t job = 0;
  for (;;) {
    job = wait_for_job(job);
    if (ends_.load(std::memory_order_relaxed)) return;
    const core::FloatEnvironment pinned;
    drain(lane, job);
  }
}

std::uint32_t ThreadPool::wait_for_job(std::uint32_t last) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const std::uint32_t job = job_.load(std::memory_order_acquire);
      if (job != last) return job;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);

  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return job_.load(std::memory_order_seq_cst) != last; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  return job_.load(std::memory_order_acquire);
}

// The pools of so many threads.  Stays for ever: there are few sizes.
struct PoolSize {
  int threads;
  PoolSize* next;
  int shares = 0;
  ThreadPool* idle = nullptr;  // those that no step uses at the moment, a list through next_idle_
};

class IdlePools {
 public:
  // Null: there is no memory.
  PoolSize* add_share(int threads) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    PoolSize* size = find(threads);
    if (size != nullptr) ++size->shares;
    return size;
  }

  void drop_share(PoolSize* size) noexcept {
    for (ThreadPool* pool = unneeded(size); pool != nullptr;) {
      delete std::exchange(pool, pool->next_idle_);
    }
  }

  ThreadPool* take(int threads) noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    PoolSize* size = find(threads);
    if (size == nullptr) return nullptr;
    if (ThreadPool* pool = size->idle; pool != nullptr) {
      size->idle = pool->next_idle_;
      return pool;
    }
    lock.unlock();
    auto* pool = new (std::nothrow) ThreadPool(threads);
    if (pool == nullptr) return nullptr;
    pool->size_ = size;
    pool->made_in_ = forks_;
    return pool;
  }

  void give_back(ThreadPool* pool) noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // The child of a fork inside a lease has a pool without threads, which can't even end.
      if (pool->made_in_ != forks_) return;
      if (pool->size_->shares > 0) {
        pool->next_idle_ = std::exchange(pool->size_->idle, pool);
        return;
      }
    }
    delete pool;
  }

  // The copy of the mutex may be locked, and the threads of the pools do not exist.  Sizes and
  // their shares are whole, since another thread changes one number or pointer at a time.
  void restart_in_child() noexcept {
    new (&mutex_) std::mutex;
    ++forks_;
    for (PoolSize* size = first_.load(std::memory_order_relaxed); size != nullptr;
         size = size->next) {
      size->idle = nullptr;
    }
  }

 private:
  PoolSize* find(int threads) noexcept {
    for (PoolSize* size = first_.load(std::memory_order_relaxed); size != nullptr;
         size = size->next) {
      if (size->threads == threads) return size;
    }
    auto* made = new (std::nothrow) PoolSize{threads, first_.load(std::memory_order_relaxed)};
    if (made != nullptr) first_.store(made, std::memory_order_release);
    return made;
  }

  // The idle pools, if that was the last share.
  ThreadPool* unneeded(PoolSize* size) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return --size->shares == 0 ? std::exchange(size->idle, nullptr) : nullptr;
  }

  std::mutex mutex_;
  std::atomic<PoolSize*> first_{nullptr};  // of the sizes
  std::uint32_t forks_ = 0;                // between the first process and this one
};

namespace {

// Never destroyed: optimizers may outlive all objects of a program.
alignas(IdlePools) unsigned char idle_storage[sizeof(IdlePools)];

IdlePools& idle_pools() noexcept {
  static IdlePools& pools = []() -> IdlePools& {
    pthread_atfork(nullptr, nullptr, [] { idle_pools().restart_in_child(); });
    return *new (idle_storage) IdlePools;
  }();
  return pools;
}

// When the library is loaded, and not inside a call, which core/fork.cpp says why.
[[maybe_unused]] const IdlePools& loaded = idle_pools();

}  // namespace

PoolShare::PoolShare(int threads) noexcept
    : size_(threads < 2 ? nullptr : idle_pools().add_share(threads)) {}

PoolShare::~PoolShare() {
  if (size_ != nullptr) idle_pools().drop_share(size_);
}

PoolLease::PoolLease(int threads) noexcept
    : pool_(threads < 2 ? nullptr : idle_pools().take(threads)) {}

PoolLease::~PoolLease() {
  if (pool_ != nullptr) idle_pools().give_back(pool_);
}

void PoolLease::run(ThreadPool::Task task, void* context, std::int64_t chunks) noexcept {
  if (pool_ != nullptr) {
    pool_->run(task, context, chunks);
  } else {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) task(context, chunk);
  }
}

}  // namespace adamas::cpu
