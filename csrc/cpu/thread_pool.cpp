#include "cpu/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <thread>

#include "adamas/system.hpp"
#include "core/float_environment.hpp"

namespace adamas {
namespace cpu {
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

// Workers are never joined: they hold nothing, a pool lives as long as the process, and joining at
// exit is what hangs interpreters.
ThreadPool::ThreadPool(int threads) noexcept
    : requested_threads_(threads),
      threads_(threads),
      lanes_(new (std::nothrow) Lane[static_cast<std::size_t>(threads)]) {
  if (!lanes_) threads_ = 1;
  const BlockSignals block;
  for (int lane = 1; lane < threads_; ++lane) {
    try {
      std::thread([this, lane] { work(lane); }).detach();
    } catch (const std::exception&) {  // no thread, or no memory for it
      threads_ = lane;
    }
  }
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

namespace {

// The pools that no step uses at the moment, as a list through next_idle_.
struct IdlePools {
  std::mutex mutex;
  ThreadPool* first = nullptr;
};

// Made anew, not repaired, in the child of a fork: its copy of the mutex may be locked, and the
// threads of its pools do not exist.
alignas(IdlePools) unsigned char idle_storage[sizeof(IdlePools)];

IdlePools& idle_pools() noexcept {
  static const bool made = [] {
    const auto make = [] { new (idle_storage) IdlePools; };
    make();
    pthread_atfork(nullptr, nullptr, make);
    return true;
  }();
  static_cast<void>(made);
  return *std::launder(reinterpret_cast<IdlePools*>(idle_storage));
}

// When the library is loaded, and not inside a call, which core/fork.cpp says why.
[[maybe_unused]] const IdlePools& loaded = idle_pools();

}  // namespace

ThreadPool* PoolLease::acquire(int threads) noexcept {
  if (threads < 2) return nullptr;
  IdlePools& idle = idle_pools();
  {
    const std::lock_guard<std::mutex> lock(idle.mutex);
    for (ThreadPool** link = &idle.first; *link != nullptr; link = &(*link)->next_idle_) {
      ThreadPool* pool = *link;
      if (pool->requested_threads() != threads) continue;
      *link = pool->next_idle_;
      return pool;
    }
  }
  return new (std::nothrow) ThreadPool(threads);
}

void PoolLease::release(ThreadPool* pool) noexcept {
  IdlePools& idle = idle_pools();
  const std::lock_guard<std::mutex> lock(idle.mutex);
  pool->next_idle_ = idle.first;
  idle.first = pool;
}

PoolLease::PoolLease(int threads) noexcept : pool_(acquire(threads)) {}

PoolLease::~PoolLease() {
  if (pool_ != nullptr) release(pool_);
}

void PoolLease::run(ThreadPool::Task task, void* context, std::int64_t chunks) noexcept {
  if (pool_ != nullptr) {
    pool_->run(task, context, chunks);
  } else {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) task(context, chunk);
  }
}

}  // namespace cpu

int available_threads() noexcept {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace adamas
