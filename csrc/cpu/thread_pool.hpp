// Worker threads that help the calling thread with one job at a time.
//
// A job is a number of chunks.  Each thread owns a contiguous share of them, so that it meets the
// same memory in every step, and takes chunks of others when its own are done; the caller works
// too and so never waits for a thread that has not started.  Workers spin for a while after a job,
// then sleep.  Which thread runs a chunk never influences a result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "adamas/api.h"

namespace adamas::cpu {

struct PoolSize;  // all pools of so many threads

class ThreadPool {
 public:
  using Task = void (*)(void* context, std::int64_t chunk);

  // `threads` includes the caller.  If the system grants fewer, the pool works with these.
  explicit ThreadPool(int threads) noexcept;
  ~ThreadPool();  // waits until its threads are gone
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls task(context, chunk) once for each chunk in [0, chunks), 0 <= chunks < 2^31, and returns
  // when all are done.  One caller at a time (PoolLease sees to it).
  void run(Task task, void* context, std::int64_t chunks) noexcept;

 private:
  friend class IdlePools;

  // The share of one thread: the next chunk, tagged with the job so that a late worker can't take
  // chunks of the next job, and the end of the share.
  struct alignas(64) Lane {
    std::atomic<std::uint64_t> cursor{0};  // job << 32 | next chunk
    std::atomic<std::uint32_t> end{0};
    std::thread worker;  // none for lane 0, the caller's
  };

  void work(int lane) noexcept;
  void drain(int lane, std::uint32_t job) noexcept;
  void wake(int helpers) noexcept;
  std::uint32_t wait_for_job(std::uint32_t last) noexcept;

  int threads_;
  PoolSize* size_ = nullptr;  // of IdlePools, and the following too
  ThreadPool* next_idle_ = nullptr;
  std::uint32_t made_in_ = 0;
  std::unique_ptr<Lane[]> lanes_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint32_t> job_{0};
  std::atomic<int> lanes_in_use_{1};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> ends_{false};
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Lets pools of so many threads live between leases: the last share to go ends the idle ones.
// Whoever makes steps (Stepper) holds one as long as it lives.
class PoolShare {
 public:
  explicit PoolShare(int threads) noexcept;
  ~PoolShare();
  PoolShare(const PoolShare&) = delete;
  PoolShare& operator=(const PoolShare&) = delete;

 private:
  PoolSize* size_;
};

// The exclusive use of a pool during one step.  Two at the same time use two pools and never wait
// for each other.  A pool goes to the next lease of whatever optimizer, or ends with this one if
// nobody has a share.  Works in the child after fork(), which starts with no pools.
//
// Visible, though not in the installed headers, since adamas._core views gradients on it.
class ADAMAS_API PoolLease {
 public:
  explicit PoolLease(int threads) noexcept;
  ~PoolLease();
  PoolLease(const PoolLease&) = delete;
  PoolLease& operator=(const PoolLease&) = delete;

  // Runs the job on the pool, or inline if no pool could be had.
  void run(ThreadPool::Task task, void* context, std::int64_t chunks) noexcept;

 private:
  ThreadPool* pool_;
};

}  // namespace adamas::cpu
