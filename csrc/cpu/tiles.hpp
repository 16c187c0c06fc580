// Runs of elements whatever their types: 16-bit parameters and gradients, and rows whose entries
// are still to be summed, pass through small float buffers in the first-level cache, tile by tile.
// A run that needs no conversion goes to the kernel in one piece.
#pragma once

#include <cstdint>

#include "core/storage.hpp"
#include "cpu/kernels/kernel_table.hpp"
#include "cpu/rows/row_merge.hpp"
#include "rules/ordered_sum.hpp"

namespace adamas::cpu {

using core::Tensor;
using rules::kTile;

// Where the gradient of a run comes from.
class GradSource {
 public:
  // Zero everywhere: a row that a sparse gradient does not list.
  GradSource() = default;

  // The whole of a dense gradient.
  explicit GradSource(const Gradient& grad) : values_(grad.values), dtype_(grad.dtype) {}

  // One listed row: the sum of its entries, in their order.
  GradSource(const Gradient& grad, const RowMerge& merge, std::uint32_t place,
             std::int64_t row_length)
      : values_(grad.values),
        dtype_(grad.dtype),
        row_length_(row_length),
        merge_(&merge),
        place_(place) {}

  // Whether fetch() of any length needs no buffer.
  bool is_direct(DType real) const;

  // The elements [begin, begin + count) in type `real`: where they lie, or put into `buffer`.
  // Up to kTile elements, more if is_direct().
  const void* fetch(const KernelTable& kernels, DType real, std::int64_t begin, std::int64_t count,
                    void* buffer) const;

 private:
  const void* values_ = nullptr;
  DType dtype_ = DType::float32;
  std::int64_t row_length_ = 0;
  const RowMerge* merge_ = nullptr;
  std::uint32_t place_ = 0;
};

// Elements [begin, begin + count) of a tensor, with the gradient from `source_begin` on.
struct Run {
  const Tensor* tensor;
  std::int64_t begin;
  std::int64_t count;
  const GradSource* source;
  std::int64_t source_begin;
};

// The scalars of a run, and what its random bits depend on besides the element.
struct Scaling {
  const Folded* folded;
  std::uint64_t seed;
  std::int64_t step;
  double ema_rate;  // 1 - ema_decay
};

// Updates a run; a non-null `mean` is subtracted from its gradient.
void update_run(const KernelTable& kernels, const Run& run, const Scaling& scaling,
                const double* mean = nullptr);

// Decodes a moment of a tensor whose format is not `real`.
void decode_moment(const KernelTable& kernels, const Tensor& tensor, StateKind kind, float* values);

// The sum of the gradients of a run as the rule sees them, tile by tile from first to last.
double sum_run(const KernelTable& kernels, const Run& run, const Scaling& scaling);

// Adds the gradients of a run to their sums, or if there are none yet puts them there; `sums`
// begins with the first element of the tensor.
void add_run(const KernelTable& kernels, const Run& run, char* sums, bool has_any);

// The sum of squares of the gradients of a run as they came, likewise; or with `decay` times the
// parameter added.
SquareSum square_sum_run(const KernelTable& kernels, const Run& run, double decay = 0.0);

// Multiplies the moments of a run by beta^missed each (RowPolicy::catch_up).
void decay_moments(const KernelTable& kernels, const Run& run, double factor1, double factor2);

}  // namespace adamas::cpu
