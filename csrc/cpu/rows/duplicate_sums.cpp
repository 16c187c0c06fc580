#include "cpu/rows/duplicate_sums.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "cpu/prefetch.hpp"

namespace adamas::cpu {
namespace {

constexpr std::size_t kMaxRow = 4096;  // bytes; longer rows stream by themselves
constexpr std::size_t kMaxTotal = std::size_t{256} << 20;
constexpr std::uint32_t kNone = ~std::uint32_t{0};
constexpr std::ptrdiff_t kAhead = 48;  // entries between prefetch and use

}  // namespace

void DuplicateSums::prepare(std::int64_t entries, std::int64_t row_length, DType real) {
  real_ = real;
  row_length_ = row_length;
  row_nbytes_ = static_cast<std::size_t>(row_length) * item_size(real);
  // At most every second entry can be the first of a repeated row.
  const std::size_t total = static_cast<std::size_t>(entries / 2) * row_nbytes_;
  has_ = row_nbytes_ <= kMaxRow && total <= kMaxTotal;
  if (!has_) return;
  if (total > sums_.size() && !sums_.allocate(total)) throw std::bad_alloc();
  if (slots_.size() < static_cast<std::size_t>(entries)) {
    slots_.resize(static_cast<std::size_t>(entries));
  }
}

void DuplicateSums::sum(const KernelTable& kernels, const RowMerge& merge, const Gradient& grad,
                        std::int64_t partition) noexcept {
  const ListedRow* const rows = merge.begin(partition);
  const RowMerge::Entry* const end = merge.entries_end(partition);
  const RowMerge::Entry* const first = merge.entries_begin(partition);
  std::uint32_t* slots = slots_.data() + (rows - merge.begin(0));
  std::fill_n(slots, merge.end(partition) - rows, kNone);
  // Room for a sum per two entries: a partition's sums end before those of the next begin.
  std::uint32_t next_slot = merge.partition_start(partition) / 2;
  const auto grad_nbytes = row_length_ * static_cast<std::int64_t>(item_size(grad.dtype));
  const auto values = [&](const RowMerge::Entry& entry) {
    return static_cast<const char*>(grad.values) + entry.index * grad_nbytes;
  };
  const bool converts = grad.dtype != real_;
  alignas(core::kLine) float converted[kMaxRow / sizeof(float)];
  for (const RowMerge::Entry* entry = first; entry != end; ++entry) {
    if (end - entry > kAhead) prefetch_run<CacheLevel::second>(values(entry[kAhead]), grad_nbytes);
    const ListedRow& row = rows[entry->listed];
    if (row.first == row.last) continue;
    std::uint32_t& slot = slots[entry->listed];
    const bool is_first = slot == kNone;
    if (is_first) slot = next_slot++;
    char* sum = sums_.data() + slot * row_nbytes_;
    const void* one = values(*entry);
    if (converts) {
      float* target = is_first ? reinterpret_cast<float*>(sum) : converted;
      kernels.load[half_index(grad.dtype)](one, target, row_length_);
      one = converted;
    } else if (is_first) {
      std::memcpy(sum, one, row_nbytes_);
    }
    if (!is_first) kernels.add[real_index(real_)](sum, one, row_length_);
  }
}

}  // namespace adamas::cpu
