// Tests of the thread pool: each chunk of each job runs exactly once, before run() returns; and of
// how long pools live.
//
// Jobs follow each other at once and have different numbers of chunks, so that workers which are
// late for one job meet the next: such a worker once took a chunk twice.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
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

// Those of this process, whoever made them.
int threads_now() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

// A thread that was joined is listed for a moment longer, and a sanitizer may start one of its own
// with the first.
int threads_at_rest() {
  std::thread([] {}).join();
  int last = threads_now();
  for (int same = 0; same < 20;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const int now = threads_now();
    same = now == last ? same + 1 : 0;
    last = now;
  }
  return last;
}

bool threads_become(int wanted) {
  for (int tries = 0; tries < 5000 && threads_now() != wanted; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return threads_now() == wanted;
}

bool is_asleep(const std::filesystem::path& task) {
  std::ifstream file(task / "stat");
  std::string stat;
  std::getline(file, stat);
  const std::size_t name_end = stat.rfind(") ");
  return name_end == std::string::npos || stat[name_end + 2] == 'S';
}

// A child must not inherit a lock of the sanitizer's allocator, which a thread holds while it
// starts: a job may be over before its workers have.
void wait_until_others_sleep() {
  const std::string own = std::to_string(gettid());
  for (int same = 0; same < 20;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    const bool all = std::all_of(begin(tasks), end(tasks), [&](const auto& task) {
      return task.path().filename() == own || is_asleep(task.path());
    });
    same = all ? same + 1 : 0;
  }
}

void lease_and_run(int threads) {
  cpu::PoolLease pool(threads);
  check_jobs(pool, kBurst, static_cast<std::uint64_t>(threads));
}

// Runs in a child process, which must end well and soon.
template <class Function>
void in_child(Function function) {
  wait_until_others_sleep();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    function();
    std::_Exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

std::int64_t jobs_in_all() { return 50 * operations(); }  // usually 100,000

}  // namespace

void pool_runs_each_chunk_once() {
  for (int threads = 1; threads <= 4; ++threads) {
    cpu::ThreadPool pool(threads);
    check_jobs(pool, jobs_in_all() / 4, static_cast<std::uint64_t>(threads));
  }
}

// With pools that stay, and with new ones for every lease.
void leases_run_side_by_side() {
  const cpu::PoolShare share(2);
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

void pools_end_with_the_last_share() {
  const int before = threads_at_rest();
  std::optional<cpu::PoolShare> first(3), second(3), other(2);
  CHECK(threads_now() == before);
  for (int again = 0; again < 3; ++again) {
    lease_and_run(3);
    lease_and_run(2);
    CHECK(threads_now() == before + 2 + 1);
  }
  first.reset();
  lease_and_run(3);
  CHECK(threads_now() == before + 2 + 1);
  second.reset();
  CHECK(threads_become(before + 1));
  lease_and_run(2);
  CHECK(threads_now() == before + 1);
  other.reset();
  CHECK(threads_become(before));
}

void all_idle_pools_end() {
  const int before = threads_at_rest();
  std::optional<cpu::PoolShare> share(4);
  {
    const cpu::PoolLease one(4), two(4), three(4);
    CHECK(threads_now() == before + 3 * 3);
  }
  CHECK(threads_now() == before + 3 * 3);
  share.reset();
  CHECK(threads_become(before));
}

void a_lease_without_a_share_ends_its_pool() {
  const int before = threads_at_rest();
  for (int threads = 1; threads <= 4; ++threads) {
    {
      cpu::PoolLease pool(threads);
      CHECK(threads_now() == before + threads - 1);
      check_jobs(pool, kBurst, 1);
    }
    CHECK(threads_become(before));
  }
}

void a_lease_outlives_the_last_share() {
  const int before = threads_at_rest();
  std::optional<cpu::PoolShare> share(3);
  {
    cpu::PoolLease pool(3);
    check_jobs(pool, kBurst, 1);
    share.reset();
    CHECK(threads_now() == before + 2);
    check_jobs(pool, kBurst, 2);
  }
  CHECK(threads_become(before));
}

void pools_come_and_go_beside_leases() {
  const int before = threads_at_rest();
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller] {
      for (std::int64_t k = 0; k < operations() / 8; ++k) {
        const int threads = 1 + (caller + static_cast<int>(k)) % 3;
        const cpu::PoolShare share(threads);
        for (int steps = 0; steps < 3; ++steps) lease_and_run(threads);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(threads_become(before));
}

// A child has the shares of its parent, and no threads.  ThreadSanitizer lets none start there, so
// its preset leaves this out.
void a_forked_child_has_pools_of_its_own() {
  const int before = threads_at_rest();
  std::optional<cpu::PoolShare> share(3);
  lease_and_run(3);
  in_child([&] {
    const int alone = threads_at_rest();
    lease_and_run(3);
    lease_and_run(3);
    CHECK(threads_now() == alone + 2);
    share.reset();
    CHECK(threads_become(alone));
  });
  {
    std::optional<cpu::PoolLease> pool(3);
    in_child([&] {
      const int alone = threads_at_rest();
      pool.reset();
      lease_and_run(3);
      CHECK(threads_now() == alone + 2);
      share.reset();
      CHECK(threads_become(alone));
    });
    check_jobs(*pool, kBurst, 1);
  }
  CHECK(threads_now() == before + 2);
  share.reset();
  CHECK(threads_become(before));
}

}  // namespace adamas::tests
