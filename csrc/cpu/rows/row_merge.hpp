// Finds, for one sparse gradient, the rows that are listed and the entries of each, in order.
//
// Entries are partitioned by row, each partition is worked on by one thread, and within it entries
// keep their order: which thread does what never changes a sum.  The work is three rounds of tasks
// for the thread pool: count, scatter, unite.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "adamas/types.hpp"

namespace adamas::cpu {

// A listed row and the places of its entries: first, then next(first), and so on to kEnd.
struct ListedRow {
  std::int64_t row;
  std::uint32_t first;
  std::uint32_t last;
};

class RowMerge {
 public:
  struct Entry {
    std::int64_t row;
    std::uint32_t index;   // of the entry in the gradient
    std::uint32_t listed;  // after round 3, if not sorted: of its row within the partition
  };

  static constexpr std::uint32_t kEnd = ~std::uint32_t{0};

  // Reserves memory for a gradient of a table with this many rows.  `sorted`: rows will ascend
  // within each partition and from partition to partition; else each partition lists its rows as
  // they first appear, and partitions are about equally long.  Throws std::bad_alloc.
  // `threads` chooses the number of partitions, which changes no result.
  void prepare(const RowIndices& indices, std::int64_t table_rows, bool sorted, int threads);

  std::int64_t segments() const { return segments_; }
  std::int64_t partitions() const { return partitions_; }

  // Round 1, for each segment: counts the entries of each partition and checks their rows.
  void count(std::int64_t segment) noexcept;

  // After round 1: false if an index is outside the table.  Makes ready for round 2.
  bool finish_count() noexcept;

  // Round 2, for each segment: puts entries into their partitions, in order.
  void scatter(std::int64_t segment) noexcept;

  // Round 3, for each partition: unites the entries of equal rows.
  void unite(std::int64_t partition) noexcept;

  // After round 3: the listed rows of a partition, and the place after another of the same row.
  const ListedRow* begin(std::int64_t partition) const;
  const ListedRow* end(std::int64_t partition) const;
  std::uint32_t next(std::uint32_t place) const { return next_[place]; }

  // After round 2: the entries of a partition, in order, and which one is at a place.
  const Entry* entries_begin(std::int64_t partition) const;
  const Entry* entries_end(std::int64_t partition) const;
  std::uint32_t index(std::uint32_t place) const { return entries_[place].index; }

  // The number of entries in the partitions before.
  std::uint32_t partition_start(std::int64_t partition) const {
    return partition_starts_[static_cast<std::size_t>(partition)];
  }

  // If `sorted`: the partition that would list a row.
  std::int64_t range_partition(std::int64_t row) const { return row >> range_shift_; }

 private:
  std::size_t partition_of(std::int64_t row) const;
  std::uint32_t& start(std::int64_t segment, std::int64_t partition);

  RowIndices indices_;
  std::int64_t table_rows_ = 0;
  bool sorted_ = false;
  std::int64_t segments_ = 0;
  std::int64_t partitions_ = 0;
  int range_shift_ = 0;
  std::atomic<bool> outside_{false};
  std::vector<std::uint32_t> starts_;            // by segment and partition: counts, then positions
  std::vector<std::uint32_t> partition_starts_;  // and one past the last
  std::vector<std::uint32_t> partition_rows_;    // how many rows each partition lists
  std::vector<std::int64_t> checked_rows_;       // by entry: what round 1 has seen
  std::vector<Entry> entries_;                   // by partition
  std::vector<std::uint32_t> slots_;             // the hash tables of all partitions
  std::vector<ListedRow> rows_;                  // by partition
  std::vector<std::uint32_t> next_;              // by place, so that threads write apart
};

// Walks the listed rows of a sorted merge, from a row on.
class ListedRows {
 public:
  ListedRows(const RowMerge& merge, std::int64_t from);

  // The row, or null after the last one.
  const ListedRow* get() const { return at_; }
  void advance();

 private:
  void skip_empty();

  const RowMerge* merge_;
  std::int64_t partition_;
  const ListedRow* at_;
};

}  // namespace adamas::cpu
