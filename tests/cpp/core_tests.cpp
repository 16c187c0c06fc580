// Runs the tests of core_tests.hpp one after the other and says which and how long.
#include "core_tests.hpp"

#include <chrono>
#include <cstdio>

namespace {

using namespace adamas::tests;

struct Test {
  const char* name;
  void (*run)();
};

#define TEST(name) \
  Test { #name, name }
constexpr Test kTests[] = {
    TEST(steps_follow_the_formula),
    TEST(sparse_steps_equal_dense_steps),
    TEST(lazy_steps_touch_listed_rows_only),
    TEST(steps_in_parts_equal_whole_steps),
    TEST(refused_optimizers),
    TEST(refused_steps_change_nothing),
    TEST(refused_parts),
    TEST(skipped_steps_change_nothing),
    TEST(loaded_states_go_on_with_the_same_bits),
    TEST(refused_copies_change_nothing),
    TEST(row_merge_equals_a_map),
    TEST(sums_of_pairs_fit),
    TEST(row_merge_refuses_rows_outside),
    TEST(overlapping_ranges_share_a_lock),
    TEST(locks_come_in_one_order),
    TEST(locks_of_the_dead_are_dropped),
    TEST(a_thread_may_fork_inside_its_own_call),
    TEST(plan_covers_everything_once),
    TEST(zeroed_block_is_aligned_and_zero),
    TEST(powers_from_squares_have_the_same_bits),
    TEST(pool_runs_each_chunk_once),
    TEST(leases_run_side_by_side),
};

}  // namespace

int main() {
  using Clock = std::chrono::steady_clock;
  for (const Test& test : kTests) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    const auto start = Clock::now();
    test.run();
    const std::chrono::duration<double> seconds = Clock::now() - start;
    std::printf("  ok, %.2f s\n", seconds.count());
  }
  std::printf("%zu tests passed\n", sizeof(kTests) / sizeof(kTests[0]));
}
