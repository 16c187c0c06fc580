#include "cpu/rows/row_merge.hpp"

#include <algorithm>

namespace adamas::cpu {
namespace {

constexpr std::int64_t kSegment = 8192;   // entries per task of rounds 1 and 2
constexpr std::int64_t kSmallest = 256;   // entries that are worth a partition
constexpr std::int64_t kLargest = 65536;  // entries whose rows still fit the second-level cache
constexpr std::int64_t kPerThread = 8;    // partitions
constexpr std::int64_t kMaxPartitions = 1024;
constexpr std::uint32_t kEmpty = ~std::uint32_t{0};

// Fibonacci hashing; the upper half is well mixed: its top chooses the partition, its bottom the
// slot within.
std::uint32_t hash(std::int64_t row) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(row) * 0x9e3779b97f4a7c15U) >> 32);
}

// Slots of a partition with n entries: a power of two, at most half full.
std::uint32_t capacity(std::uint32_t n) {
  std::uint32_t result = 2;
  while (result < 2 * std::uint64_t{n}) result *= 2;
  return result;
}

}  // namespace

void RowMerge::prepare(const RowIndices& indices, std::int64_t table_rows, bool sorted,
                       int threads) {
  indices_ = indices;
  table_rows_ = table_rows;
  sorted_ = sorted;
  segments_ = (indices.count + kSegment - 1) / kSegment;
  // Few partitions keep entries near each other, several per thread let threads share the work.
  const std::int64_t wanted = threads == 1 ? 1 : std::int64_t{kPerThread} * threads;
  const std::int64_t useful =
      std::clamp<std::int64_t>(indices.count / kSmallest, 1, kMaxPartitions);
  partitions_ = std::min(std::max(wanted, indices.count / kLargest), useful);
  range_shift_ = 0;
  while (table_rows > 0 && (table_rows - 1) >> range_shift_ >= partitions_) ++range_shift_;
  outside_.store(false, std::memory_order_relaxed);
  const auto count = static_cast<std::size_t>(indices.count);
  const auto partitions = static_cast<std::size_t>(partitions_);
  starts_.assign(static_cast<std::size_t>(segments_) * partitions, 0);
  partition_starts_.assign(partitions + 1, 0);
  partition_rows_.assign(partitions, 0);
  if (entries_.size() < count) {
    checked_rows_.resize(count);
    rows_.resize(count);
    next_.resize(count);
    entries_.resize(count);  // last: its size says that of all four
  }
  // capacity(n) <= 4 n, but at least 2.
  if (slots_.size() < 4 * count + 2 * partitions) slots_.resize(4 * count + 2 * partitions);
}

std::size_t RowMerge::partition_of(std::int64_t row) const {
  if (sorted_) return static_cast<std::size_t>(row >> range_shift_);
  return static_cast<std::size_t>(
      (std::uint64_t{hash(row)} * static_cast<std::uint64_t>(partitions_)) >> 32);
}

std::uint32_t& RowMerge::start(std::int64_t segment, std::int64_t partition) {
  return starts_[static_cast<std::size_t>(segment * partitions_ + partition)];
}

// Rows are read from the caller's memory once, here: it might change under a later round.
void RowMerge::count(std::int64_t segment) noexcept {
  std::uint32_t counts[kMaxPartitions];  // starts_ has lines that threads share
  std::fill_n(counts, partitions_, 0);
  const std::int64_t last = std::min((segment + 1) * kSegment, indices_.count);
  for (std::int64_t entry = segment * kSegment; entry < last; ++entry) {
    const std::int64_t row = indices_.is_int64
                                 ? static_cast<const std::int64_t*>(indices_.data)[entry]
                                 : static_cast<const std::int32_t*>(indices_.data)[entry];
    if (row < 0 || row >= table_rows_) {
      outside_.store(true, std::memory_order_relaxed);
      return;
    }
    checked_rows_[static_cast<std::size_t>(entry)] = row;
    ++counts[partition_of(row)];
  }
  std::copy_n(counts, partitions_, &start(segment, 0));
}

bool RowMerge::finish_count() noexcept {
  if (outside_.load(std::memory_order_relaxed)) return false;
  std::uint32_t position = 0;
  for (std::int64_t partition = 0; partition < partitions_; ++partition) {
    partition_starts_[static_cast<std::size_t>(partition)] = position;
    for (std::int64_t segment = 0; segment < segments_; ++segment) {
      const std::uint32_t entries = start(segment, partition);
      start(segment, partition) = position;
      position += entries;
    }
  }
  partition_starts_[static_cast<std::size_t>(partitions_)] = position;
  return true;
}

void RowMerge::scatter(std::int64_t segment) noexcept {
  std::uint32_t positions[kMaxPartitions];
  std::copy_n(&start(segment, 0), partitions_, positions);
  const std::int64_t last = std::min((segment + 1) * kSegment, indices_.count);
  for (std::int64_t entry = segment * kSegment; entry < last; ++entry) {
    const std::int64_t row = checked_rows_[static_cast<std::size_t>(entry)];
    entries_[positions[partition_of(row)]++] = {row, static_cast<std::uint32_t>(entry), 0};
  }
}

void RowMerge::unite(std::int64_t partition) noexcept {
  const auto p = static_cast<std::size_t>(partition);
  const std::uint32_t begin = partition_starts_[p];
  const std::uint32_t end = partition_starts_[p + 1];
  const std::uint32_t mask = capacity(end - begin) - 1;
  std::uint32_t* slots = &slots_[4 * std::size_t{begin} + 2 * p];
  std::fill(slots, slots + mask + 1, kEmpty);
  ListedRow* rows = rows_.data() + begin;
  std::uint32_t listed = 0;
  for (std::uint32_t k = begin; k < end; ++k) {
    Entry& entry = entries_[k];
    next_[k] = kEnd;
    std::uint32_t slot = hash(entry.row) & mask;
    while (slots[slot] != kEmpty && rows[slots[slot]].row != entry.row) slot = (slot + 1) & mask;
    if (slots[slot] == kEmpty) {
      slots[slot] = listed;
      entry.listed = listed;
      rows[listed++] = {entry.row, k, k};
    } else {
      entry.listed = slots[slot];
      ListedRow& row = rows[entry.listed];
      next_[row.last] = k;
      row.last = k;
    }
  }
  partition_rows_[p] = listed;
  if (sorted_) {
    std::sort(rows, rows + listed,
              [](const ListedRow& a, const ListedRow& b) { return a.row < b.row; });
  }
}

const ListedRow* RowMerge::begin(std::int64_t partition) const {
  return rows_.data() + partition_starts_[static_cast<std::size_t>(partition)];
}

const ListedRow* RowMerge::end(std::int64_t partition) const {
  return begin(partition) + partition_rows_[static_cast<std::size_t>(partition)];
}

const RowMerge::Entry* RowMerge::entries_begin(std::int64_t partition) const {
  return entries_.data() + partition_starts_[static_cast<std::size_t>(partition)];
}

const RowMerge::Entry* RowMerge::entries_end(std::int64_t partition) const {
  return entries_begin(partition + 1);
}

ListedRows::ListedRows(const RowMerge& merge, std::int64_t from)
    : merge_(&merge), partition_(merge.range_partition(from)) {
  at_ =
      std::lower_bound(merge.begin(partition_), merge.end(partition_), from,
                       [](const ListedRow& listed, std::int64_t row) { return listed.row < row; });
  skip_empty();
}

void ListedRows::advance() {
  ++at_;
  skip_empty();
}

void ListedRows::skip_empty() {
  while (at_ == merge_->end(partition_)) {
    if (++partition_ >= merge_->partitions()) {
      at_ = nullptr;
      return;
    }
    at_ = merge_->begin(partition_);
  }
}

}  // namespace adamas::cpu
