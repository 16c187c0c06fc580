// Tests of the parts of the core: merging rows, locks, the plan and the memory of the state.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/fork.hpp"
#include "core/locks.hpp"
#include "core/memory.hpp"
#include "core/plan.hpp"
#include "core_tests.hpp"
#include "cpu/default_threads.hpp"
#include "cpu/kernels/isa.hpp"
#include "cpu/rows/duplicate_sums.hpp"
#include "cpu/rows/row_merge.hpp"
#include "cpu/thread_pool.hpp"
#include "rules/beta_power.hpp"

namespace adamas::tests {
namespace {

using cpu::ListedRow;
using cpu::RowMerge;
using EntriesOfRow = std::map<std::int64_t, std::vector<std::uint32_t>>;

std::int64_t random_in(std::int64_t first, std::int64_t last, std::mt19937_64& random) {
  return std::uniform_int_distribution<std::int64_t>(first, last)(random);
}

template <void (RowMerge::*round)(std::int64_t) noexcept>
void run_round(RowMerge& merge, std::int64_t tasks) {
  cpu::PoolLease pool(3);
  pool.run([](void* self, std::int64_t k) { (static_cast<RowMerge*>(self)->*round)(k); }, &merge,
           tasks);
}

template <class Index>
RowIndices view(const std::vector<Index>& indices) {
  return {indices.data(), static_cast<std::int64_t>(indices.size()), sizeof(Index) == 8};
}

bool merge_rows(RowMerge& merge, const RowIndices& indices, std::int64_t table_rows, bool sorted,
                int threads = 2) {
  merge.prepare(indices, table_rows, sorted, threads);
  run_round<&RowMerge::count>(merge, merge.segments());
  if (!merge.finish_count()) return false;
  run_round<&RowMerge::scatter>(merge, merge.segments());
  run_round<&RowMerge::unite>(merge, merge.partitions());
  return true;
}

std::vector<std::uint32_t> entries_of(const RowMerge& merge, const ListedRow& listed) {
  std::vector<std::uint32_t> entries;
  for (std::uint32_t place = listed.first; place != RowMerge::kEnd; place = merge.next(place)) {
    entries.push_back(merge.index(place));
  }
  return entries;
}

void check_merge(const RowMerge& merge, const EntriesOfRow& wanted, bool sorted) {
  std::size_t rows = 0;
  std::int64_t last_row = -1;
  for (std::int64_t p = 0; p < merge.partitions(); ++p) {
    std::uint32_t last_place = 0;
    for (const ListedRow* listed = merge.begin(p); listed != merge.end(p); ++listed) {
      const auto found = wanted.find(listed->row);
      CHECK(found != wanted.end());
      CHECK(found->second == entries_of(merge, *listed));
      ++rows;
      if (sorted) {
        CHECK(merge.range_partition(listed->row) == p);
        CHECK(listed->row > last_row);
      } else {
        CHECK(listed == merge.begin(p) || listed->first > last_place);
      }
      last_row = listed->row;
      last_place = listed->first;
    }
  }
  CHECK(rows == wanted.size());
}

// From a row on, the walk meets what the map lists from there on.
void check_walk(const RowMerge& merge, const EntriesOfRow& wanted, std::int64_t from) {
  cpu::ListedRows walk(merge, from);
  for (auto row = wanted.lower_bound(from); row != wanted.end(); ++row) {
    CHECK(walk.get() != nullptr);
    CHECK(walk.get()->row == row->first);
    walk.advance();
  }
  CHECK(walk.get() == nullptr);
}

// Evenly spread, or most of them among the first rows.
template <class Index>
std::vector<Index> random_indices(std::int64_t count, std::int64_t table_rows,
                                  std::mt19937_64& random) {
  std::vector<Index> indices(static_cast<std::size_t>(count));
  const bool skewed = random_in(0, 1, random) == 1;
  for (Index& index : indices) {
    std::int64_t last = table_rows - 1;
    if (skewed) last = random_in(0, last, random);
    index = static_cast<Index>(random_in(0, last, random));
  }
  return indices;
}

// The sums of repeated rows are those of their entries, and no two share memory.
void check_sums(const RowMerge& merge, const EntriesOfRow& wanted, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(2 * count));
  std::iota(values.begin(), values.end(), 1.0F);
  cpu::DuplicateSums sums;
  sums.prepare(count, 2, DType::float32);
  const Gradient grad{values.data(), nullptr, DType::float32};
  for (std::int64_t p = 0; p < merge.partitions(); ++p) sums.sum(cpu::kernels(), merge, grad, p);
  for (std::int64_t p = 0; p < merge.partitions(); ++p) {
    for (const cpu::ListedRow* row = merge.begin(p); row != merge.end(p); ++row) {
      if (row->first == row->last) continue;
      float sum[2] = {};
      for (const std::uint32_t entry : wanted.at(row->row)) {
        for (std::size_t k = 0; k < 2; ++k) sum[k] += values[2 * std::size_t{entry} + k];
      }
      const void* got = sums.of(row - merge.begin(0));
      CHECK(got >= sums.begin() && got < sums.end());
      CHECK(std::memcmp(got, sum, sizeof(sum)) == 0);
    }
  }
}

// Exponents make small and large numbers of rows and entries equally frequent.
template <class Index>
void check_random_merge(RowMerge& merge, std::mt19937_64& random) {
  const std::int64_t table_rows = random_in(1, std::int64_t{1} << random_in(0, 20, random), random);
  const std::int64_t count = random_in(0, std::int64_t{1} << random_in(0, 16, random), random);
  const bool sorted = random_in(0, 1, random) == 1;
  const auto indices = random_indices<Index>(count, table_rows, random);
  EntriesOfRow wanted;
  for (std::size_t k = 0; k < indices.size(); ++k) {
    wanted[indices[k]].push_back(static_cast<std::uint32_t>(k));
  }
  const int threads = static_cast<int>(random_in(1, 9, random));
  CHECK(merge_rows(merge, view(indices), table_rows, sorted, threads));
  check_merge(merge, wanted, sorted);
  if (!sorted) return check_sums(merge, wanted, count);
  check_walk(merge, wanted, 0);
  check_walk(merge, wanted, table_rows - 1);
  check_walk(merge, wanted, random_in(0, table_rows - 1, random));
}

// One optimizer's locks on ranges of one array.
struct Holder {
  std::vector<core::Range> ranges;
  core::ParameterLocks locks;

  Holder(char* base, const std::vector<core::Range>& offsets) {
    for (const core::Range& offset : offsets) {
      ranges.push_back(core::range_of(base + offset.begin, offset.end - offset.begin));
    }
    locks.prepare(ranges);
  }
};

std::unique_ptr<Holder> random_holder(char* base, std::mt19937_64& random) {
  std::vector<core::Range> ranges;
  for (std::int64_t k = random_in(1, 4, random); k > 0; --k) {
    const auto begin = static_cast<std::uintptr_t>(random_in(0, 90, random));
    ranges.push_back({begin, begin + static_cast<std::uintptr_t>(random_in(1, 40, random))});
  }
  return std::make_unique<Holder>(base, ranges);
}

bool overlap(const core::Range& a, const core::Range& b) {
  return a.begin < b.end && b.begin < a.end;
}

bool share_a_lock(const std::vector<core::RangeLock*>& a, const std::vector<core::RangeLock*>& b) {
  return std::find_first_of(a.begin(), a.end(), b.begin(), b.end()) != a.end();
}

void check_pair(const Holder& a, const Holder& b) {
  for (std::size_t i = 0; i < a.ranges.size(); ++i) {
    for (std::size_t k = 0; k < b.ranges.size(); ++k) {
      if (!overlap(a.ranges[i], b.ranges[k])) continue;
      CHECK(share_a_lock(a.locks.of(i), b.locks.of(k)));
      CHECK(share_a_lock(a.locks.all(), b.locks.of(k)));
      CHECK(share_a_lock(a.locks.all(), b.locks.all()));
    }
  }
}

void check_order(const std::vector<core::RangeLock*>& locks) {
  const auto place = [](const core::RangeLock* lock) {
    return std::make_pair(lock->range.begin, lock->id);
  };
  for (std::size_t k = 1; k < locks.size(); ++k) CHECK(place(locks[k - 1]) < place(locks[k]));
}

// Makes and destroys holders of random ranges, in random order; visits those alive each time.
template <class Visit>
void with_random_holders(std::uint64_t seed, Visit visit) {
  std::mt19937_64 random(seed);
  std::vector<char> memory(256);
  std::vector<std::unique_ptr<Holder>> holders(8);
  for (int round = 0; round < 400; ++round) {
    auto& holder = holders[static_cast<std::size_t>(random_in(0, 7, random))];
    holder = random_in(0, 2, random) == 0 ? nullptr : random_holder(memory.data(), random);
    visit(holders);
  }
}

std::vector<ParameterSpec> random_specs(std::mt19937_64& random) {
  constexpr std::int64_t kCounts[] = {0, 1, 16383, 16384, 16385, 32768, 100003};
  std::vector<ParameterSpec> specs;
  for (std::int64_t k = random_in(0, 30, random); k > 0; --k) {
    ParameterSpec spec;
    spec.rows = random_in(1, 3, random);
    spec.count = random_in(0, 1, random) == 0 ? random_in(0, 300, random) * spec.rows
                                              : kCounts[random_in(0, 6, random)] * spec.rows;
    spec.centralize = random_in(0, 2, random) == 0;
    specs.push_back(spec);
  }
  return specs;
}

void check_blocks(const core::Plan& plan, const std::vector<ParameterSpec>& specs) {
  CHECK(plan.blocks_of_parameter.size() == specs.size() + 1);
  CHECK(plan.blocks_of_parameter.front() == 0);
  CHECK(plan.blocks_of_parameter.back() == static_cast<std::int64_t>(plan.blocks.size()));
  for (std::size_t i = 0; i < specs.size(); ++i) {
    std::int64_t covered = 0;
    for (std::int64_t b = plan.blocks_of_parameter[i]; b < plan.blocks_of_parameter[i + 1]; ++b) {
      const core::Block& block = plan.blocks[static_cast<std::size_t>(b)];
      CHECK(block.parameter == static_cast<std::int32_t>(i));
      CHECK(block.begin == covered);
      CHECK(block.count > 0 && block.count <= core::kBlock);
      covered += block.count;
    }
    CHECK(covered == specs[i].count);
  }
}

void check_chunks(const core::Plan& plan) {
  CHECK(plan.chunks.front() == 0);
  CHECK(plan.chunks.back() == static_cast<std::int64_t>(plan.blocks.size()));
  for (std::size_t k = 0; k + 1 < plan.chunks.size(); ++k) {
    CHECK(plan.chunks[k] < plan.chunks[k + 1]);
    std::int64_t elements = 0;
    for (std::int64_t b = plan.chunks[k]; b < plan.chunks[k + 1]; ++b) {
      elements += plan.blocks[static_cast<std::size_t>(b)].count;
    }
    CHECK(elements <= core::kBlock);
  }
}

void check_segments(const core::Plan& plan, const std::vector<ParameterSpec>& specs) {
  std::int64_t sums = 0;
  std::int64_t chunks = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const std::int32_t index = plan.rows_of_parameter[i];
    CHECK((index >= 0) == (specs[i].centralize && specs[i].count > 0));
    if (index < 0) continue;
    const core::Rows& rows = plan.rows[static_cast<std::size_t>(index)];
    CHECK(rows.parameter == static_cast<std::int32_t>(i));
    CHECK(rows.row_length * specs[i].rows == specs[i].count);
    CHECK((rows.segments_per_row - 1) * core::kBlock < rows.row_length);
    CHECK(rows.segments_per_row * core::kBlock >= rows.row_length);
    CHECK(rows.first_sum == sums);
    CHECK(rows.first_chunk == chunks);
    std::int64_t covered = 0;
    for (; chunks < rows.last_chunk; ++chunks) {
      const core::SegmentChunk& chunk = plan.segment_chunks[static_cast<std::size_t>(chunks)];
      CHECK(chunk.rows == index);
      CHECK(chunk.begin == covered && chunk.end > covered);
      covered = chunk.end;
    }
    CHECK(covered == specs[i].rows * rows.segments_per_row);
    sums += covered;
  }
  CHECK(plan.segment_sums == sums);
  CHECK(static_cast<std::int64_t>(plan.segment_chunks.size()) == chunks);
}

using Variables = std::map<std::string, std::string>;

// What choose_threads() makes of the variables on 12 cores.
Status choose(const Variables& variables, bool is_bound, DefaultThreads* result) {
  static const Variables* current;
  current = &variables;
  const cpu::Surroundings surroundings{[](const char* name) -> const char* {
                                         const auto found = current->find(name);
                                         return found == current->end() ? nullptr
                                                                        : found->second.c_str();
                                       },
                                       12, is_bound ? [] { return true; } : [] { return false; }};
  return cpu::choose_threads(surroundings, result);
}

void check_chosen(const Variables& variables, int threads, int processes, const char* variable,
                  bool is_bound = false) {
  DefaultThreads chosen;
  CHECK(choose(variables, is_bound, &chosen).ok());
  CHECK(chosen.threads == threads);
  CHECK(chosen.cores == 12);
  CHECK(chosen.processes == processes);
  CHECK((chosen.variable == nullptr) == (variable == nullptr));
  CHECK(variable == nullptr || std::strcmp(chosen.variable, variable) == 0);
}

}  // namespace

void row_merge_equals_a_map() {
  const cpu::PoolShare share(3);
  std::mt19937_64 random(7);
  RowMerge merge;  // one for all: what an earlier gradient left must not matter
  const std::int64_t rounds = std::max<std::int64_t>(50, operations() / 5);
  for (std::int64_t k = 0; k < rounds; ++k) {
    check_random_merge<std::int64_t>(merge, random);
    check_random_merge<std::int32_t>(merge, random);
  }
}

// Every row twice but for one: as many sums as there is room for, from partitions of odd lengths.
void sums_of_pairs_fit() {
  for (std::int64_t single = 0; single < 50; ++single) {
    std::vector<std::int64_t> indices;
    EntriesOfRow wanted;
    for (std::int64_t k = 0; k < 601; ++k) {
      const std::int64_t row = k == 600 ? 300 + single : k % 300;
      wanted[row].push_back(static_cast<std::uint32_t>(k));
      indices.push_back(row);
    }
    RowMerge merge;
    CHECK(merge_rows(merge, view(indices), 350, false));
    CHECK(merge.partitions() > 1);
    check_sums(merge, wanted, 601);
  }
}

void row_merge_refuses_rows_outside() {
  RowMerge merge;
  for (const bool sorted : {false, true}) {
    for (const std::int64_t wrong : {-1L, 10L, INT64_MIN, INT64_MAX}) {
      for (const std::size_t at : {0U, 1U, 8191U, 8192U, 19999U}) {
        std::vector<std::int64_t> indices(20000, 9);
        CHECK(merge_rows(merge, view(indices), 10, sorted));
        indices[at] = wrong;
        CHECK(!merge_rows(merge, view(indices), 10, sorted));
      }
    }
    CHECK(merge_rows(merge, {}, 0, sorted));
    CHECK(!merge_rows(merge, view(std::vector<std::int32_t>{0}), 0, sorted));
  }
}

void overlapping_ranges_share_a_lock() {
  with_random_holders(3, [](const auto& holders) {
    for (const auto& a : holders) {
      for (const auto& b : holders) {
        if (a && b && a != b) check_pair(*a, *b);
      }
    }
  });
}

void locks_come_in_one_order() {
  with_random_holders(4, [](const auto& holders) {
    for (const auto& holder : holders) {
      if (!holder) continue;
      check_order(holder->locks.all());
      for (std::size_t i = 0; i < holder->ranges.size(); ++i) check_order(holder->locks.of(i));
    }
  });
}

// One optimizer after another over the same memory must not collect locks.
void locks_of_the_dead_are_dropped() {
  std::vector<char> memory(64);
  std::unique_ptr<Holder> holder;
  for (int k = 0; k < 100; ++k) {
    holder = std::make_unique<Holder>(memory.data(), std::vector<core::Range>{{0, 8}});
  }
  CHECK(holder->locks.all().size() <= 2);
}

// A crash handler may fork inside a call; the calls of other threads it waits for.
void a_thread_may_fork_inside_its_own_call() {
  const core::NoFork call;
  const core::NoFork inner;
  const pid_t child = fork();
  if (child == 0) {
    const core::NoFork another;
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

void plan_covers_everything_once() {
  std::mt19937_64 random(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<ParameterSpec> specs = random_specs(random);
    std::vector<core::Tensor> tensors;
    for (const ParameterSpec& spec : specs) {
      core::Tensor tensor{};
      tensor.spec = spec;
      tensor.scale_block = 1;
      tensors.push_back(tensor);
    }
    core::Plan plan;
    core::make_plan(tensors, &plan);
    check_blocks(plan, specs);
    check_chunks(plan);
    check_segments(plan, specs);
  }
}

void zeroed_block_is_aligned_and_zero() {
  constexpr std::size_t kHuge = std::size_t{2} << 20;
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{4097}, kHuge - 1, kHuge, 2 * kHuge + 3}) {
    core::ZeroedBlock block;
    CHECK(block.allocate(bytes));
    CHECK(block.size() == bytes);
    if (bytes == 0) continue;
    const auto address = reinterpret_cast<std::uintptr_t>(block.data());
    CHECK(address % (bytes < kHuge ? core::kLine : kHuge) == 0);
    CHECK(std::all_of(block.data(), block.data() + bytes, [](char byte) { return byte == 0; }));
    std::memset(block.data(), 1, bytes);
  }
  core::ZeroedBlock impossible;
  CHECK(!impossible.allocate(std::size_t{1} << 60));
}

void powers_from_squares_have_the_same_bits() {
  std::mt19937_64 random(5);
  for (const double beta : {0.9, 0.999, 0.5, 1e-300, 1.0 - 0x1p-53}) {
    rules::Squares squares(beta);
    const auto check = [&](std::int64_t t) {
      const double expected = rules::one_minus_power(beta, t);
      const double found = rules::one_minus_power(squares, t);
      CHECK(std::memcmp(&expected, &found, sizeof(double)) == 0);
    };
    for (std::int64_t t = 0; t < 3000; ++t) check(t);
    for (int bits = 12; bits <= 62; ++bits) {
      const std::int64_t power = std::int64_t{1} << bits;
      check(power - 1);
      check(power);
      check(random_in(1, power, random));
    }
  }
}

void launchers_share_the_cores() {
  check_chosen({}, 12, 1, nullptr);
  for (const char* name : {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                           "SLURM_NTASKS_PER_NODE"}) {
    check_chosen({{name, "4"}}, 3, 4, name);
    check_chosen({{name, "5"}}, 2, 5, name);
    check_chosen({{name, "12"}}, 1, 12, name);
    check_chosen({{name, "100"}}, 1, 100, name);
    check_chosen({{name, "4(x2)"}}, 3, 4, name);
    check_chosen({{name, "4(x2),3"}}, 3, 4, name);
    check_chosen({{name, "4,3"}}, 3, 4, name);
    check_chosen({{name, "4"}}, 12, 1, nullptr, true);
    check_chosen({{name, "1"}}, 12, 1, nullptr);
    for (const char* wrong : {"", "0", "-4", "four", "4x", " 4", "4.5", "99999999999"}) {
      check_chosen({{name, wrong}}, 12, 1, nullptr);
    }
  }
  check_chosen({{"SLURM_NTASKS_PER_NODE", "1"}, {"LOCAL_WORLD_SIZE", "4"}}, 3, 4,
               "LOCAL_WORLD_SIZE");
  for (const char* nothing : {"?", "1"}) {
    check_chosen({{"SLURM_NTASKS_PER_NODE", "2"}, {"LOCAL_WORLD_SIZE", nothing}}, 6, 2,
                 "SLURM_NTASKS_PER_NODE");
  }
}

void one_variable_decides_the_threads() {
  const char* const name = "ADAMAS_NUM_THREADS";
  for (const bool is_bound : {false, true}) {
    for (const int threads : {1, 5, 12, 100, 4096}) {
      check_chosen({{name, std::to_string(threads)}}, threads, 1, name, is_bound);
    }
    check_chosen({{name, "5"}, {"LOCAL_WORLD_SIZE", "4"}}, 5, 1, name, is_bound);
    check_chosen({{name, ""}}, 12, 1, nullptr, is_bound);
  }
  check_chosen({{name, ""}, {"LOCAL_WORLD_SIZE", "4"}}, 3, 4, "LOCAL_WORLD_SIZE");
  for (const char* wrong : {"0", "-1", "4097", "two", "2x", " 2", "2(x2)", "99999999999", "1.5"}) {
    DefaultThreads chosen;
    const Status status = choose({{name, wrong}, {"LOCAL_WORLD_SIZE", "4"}}, false, &chosen);
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(name) != std::string::npos);
  }
}

}  // namespace adamas::tests
