// Sums the entries of the rows that a sparse gradient lists more than once.
//
// One pass over the entries in their order, so that their values stream through the cache, into
// compact sums that stay in it; walking the entries row by row would wait for memory each time.
#pragma once

#include <cstdint>
#include <vector>

#include "adamas/types.hpp"
#include "core/memory.hpp"
#include "cpu/kernels/kernel_table.hpp"
#include "cpu/rows/row_merge.hpp"

namespace adamas::cpu {

class DuplicateSums {
 public:
  // Reserves memory.  Long rows are not worth it, nor is very much of it: then has() is false.
  // Throws std::bad_alloc.
  void prepare(std::int64_t entries, std::int64_t row_length, DType real);

  // Sums the repeated rows of a partition, if its merge is not sorted.
  void sum(const KernelTable& kernels, const RowMerge& merge, const Gradient& grad,
           std::int64_t partition) noexcept;

  bool has() const { return has_; }

  // The memory of all sums.
  const void* begin() const { return sums_.data(); }
  const void* end() const { return sums_.data() + sums_.size(); }

  // The sum of a repeated row, given its place in the merge.
  const void* of(std::int64_t listed) const {
    return sums_.data() + slots_[static_cast<std::size_t>(listed)] * row_nbytes_;
  }

 private:
  bool has_ = false;
  DType real_ = DType::float32;
  std::int64_t row_length_ = 0;
  std::size_t row_nbytes_ = 0;
  core::ZeroedBlock sums_;            // mapped, but not touched before it is needed
  std::vector<std::uint32_t> slots_;  // by listed row
};

}  // namespace adamas::cpu
