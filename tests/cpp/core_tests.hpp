// The tests of `core_tests`, by subject.  Each ends the program if it fails.
#pragma once

namespace adamas::tests {

// optimizer_tests.cpp: the public API
void steps_follow_the_formula();
void sparse_steps_equal_dense_steps();
void lazy_steps_touch_listed_rows_only();
void steps_in_parts_equal_whole_steps();
void refused_optimizers();
void refused_steps_change_nothing();
void refused_parts();
void skipped_steps_change_nothing();
void loaded_states_go_on_with_the_same_bits();
void refused_copies_change_nothing();

// parts_tests.cpp: the parts of the core
void row_merge_equals_a_map();
void sums_of_pairs_fit();
void row_merge_refuses_rows_outside();
void overlapping_ranges_share_a_lock();
void locks_come_in_one_order();
void locks_of_the_dead_are_dropped();
void a_thread_may_fork_inside_its_own_call();
void plan_covers_everything_once();
void zeroed_block_is_aligned_and_zero();
void powers_from_squares_have_the_same_bits();

// pool_tests.cpp: the thread pool
void pool_runs_each_chunk_once();
void leases_run_side_by_side();

}  // namespace adamas::tests
