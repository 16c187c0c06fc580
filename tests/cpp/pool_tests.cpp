// Tests of the thread pool: each chunk of each job runs exactly once, before run() returns.
//
// Jobs follow each other at once and have different numbers of chunks, so that workers which are
// late for one job meet the next: such a worker once took a chunk twice.
#include <array>
#include <cstddef>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core_tests.hpp"
#include "cpu/thread_pool.hpp"

namespace adamas::tests {
namespace {

constexpr std::int64_t kMaxChunks = 67;
constexpr std::int64_t kBurst = 64;  // jobs that follow each other at once, before any is checked

// Plain integers: a chunk that runs twice, or too late, is a race as well.
struct Job {
  std::int64_t chunks = 0;
  std::array<int, kMaxChunks> runs{};

  static void run_chunk(void* context, std::int64_t chunk) {
    ++static_cast<Job*>(context)->runs[static_cast<std::size_t>(chunk)];
  }

  void check() {
    for (std::int64_t k = 0; k < kMaxChunks; ++k) {
      CHECK(runs[static_cast<std::size_t>(k)] == (k < chunks ? 1 : 0));
    }
    runs = {};
  }
};

// Two or three chunks by turns with any number.
template <class Pool>
void check_jobs(Pool& pool, std::int64_t jobs, std::uint64_t seed) {
  std::minstd_rand random(static_cast<std::minstd_rand::result_type>(seed));
  std::array<Job, kBurst> burst;
  for (std::int64_t begin = 0; begin < jobs; begin += kBurst) {
    for (std::size_t k = 0; k < kBurst; ++k) {
      burst[k].chunks = static_cast<std::int64_t>(random()) % kMaxChunks;
      if (k % 2 == 0) burst[k].chunks = 2 + burst[k].chunks % 2;
    }
    for (Job& job : burst) pool.run(Job::run_chunk, &job, job.chunks);
    for (Job& job : burst) job.check();
  }
}

// Workers are never joined, so the pools stay.
cpu::ThreadPool& lasting_pool(int threads) {
  static std::vector<std::unique_ptr<cpu::ThreadPool>>& pools =
      *new std::vector<std::unique_ptr<cpu::ThreadPool>>;
  return *pools.emplace_back(std::make_unique<cpu::ThreadPool>(threads));
}

std::int64_t jobs_in_all() { return 50 * operations(); }  // usually 100,000

}  // namespace

void pool_runs_each_chunk_once() {
  for (int threads = 1; threads <= 4; ++threads) {
    check_jobs(lasting_pool(threads), jobs_in_all() / 4, static_cast<std::uint64_t>(threads));
  }
}

void leases_run_side_by_side() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller] {
      const std::int64_t steps = operations() / 16;
      for (std::int64_t k = 0; k < steps; ++k) {
        cpu::PoolLease pool(1 + (caller + static_cast<int>(k)) % 3);
        check_jobs(pool, kBurst, static_cast<std::uint64_t>(k + 1));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace adamas::tests
