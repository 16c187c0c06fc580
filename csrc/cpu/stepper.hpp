// The work of a step: what to run on which blocks, in phases that the thread pool shares.
//
// cpu/engine.cpp decides whether a step happens and with which scalars; this class finds listed
// rows, measures gradients and updates.  It holds scratch memory only: after merge(), which may
// refuse indices or run out of memory, nothing can fail.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/engine.hpp"
#include "core/plan.hpp"
#include "core/rate_folder.hpp"
#include "cpu/direct.hpp"
#include "cpu/rows/duplicate_sums.hpp"
#include "cpu/rows/row_merge.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/tiles.hpp"

namespace adamas::cpu {

using core::Block;
using core::Selection;

class Stepper {
 public:
  // Throws std::bad_alloc.  What is given outlives this object; update() works with what `rates`
  // has folded last.
  void prepare(const core::Options& options, const std::vector<Tensor>& tensors,
               const core::RateFolder& rates);

  // The memory of a parameter is another now.
  void rebind(std::size_t parameter) noexcept;

  // Starts on these gradients: finds the listed rows of the sparse ones.  `measured` if measure()
  // will be called.
  Status merge(const Selection& selection, bool measured) noexcept;

  // Adds dense gradients to sums.
  void accumulate(const Selection& selection, const core::Accumulation& sums) noexcept;

  // The sum of squares of all gradients, in an order that only the list of parameters decides, and
  // whether all are finite.
  SquareSum measure(const core::StepInput& input) noexcept;

  // After measure(), what the gradient of one parameter has in it.
  double squares_of(std::size_t parameter) const noexcept;

  // Updates parameters and state.
  void update() noexcept;

 private:
  // What a sparse gradient needs, kept from step to step.
  struct Sparse {
    RowMerge merge;
    DuplicateSums sums;
    std::vector<double> squares;  // by listed row
  };

  template <void (Stepper::*method)(std::int64_t) noexcept>
  void run(std::int64_t chunks) noexcept;

  const rules::FoldedRates& folded(const Tensor& tensor) const;
  Scaling scaling(const rules::FoldedRates& folded, const Folded& used) const;
  Scaling listed_scaling(const Tensor& tensor) const;
  Scaling row_scaling(const Tensor& tensor, const RowMerge& merge, const ListedRow& listed,
                      Folded& own) const;
  bool is_sparse(std::size_t parameter) const {
    return selection_.grad(parameter).rows != nullptr && !is_absent(parameter);
  }
  bool is_absent(std::size_t parameter) const { return selection_.grad(parameter).is_absent; }
  bool updates_all_rows(std::size_t parameter) const;
  bool updates_blocks() const;

  void count_rows(std::int64_t segment) noexcept;
  void scatter_rows(std::int64_t segment) noexcept;
  void unite_rows(std::int64_t partition) noexcept;
  void accumulate_chunk(std::int64_t chunk) noexcept;
  void measure_chunk(std::int64_t chunk) noexcept;
  void measure_rows(std::int64_t partition) noexcept;
  void sum_segments(std::int64_t chunk) noexcept;
  void update_chunk(std::int64_t chunk) noexcept;
  void update_partition(std::int64_t partition) noexcept;

  std::int64_t select_chunks() noexcept;
  void update_block(const Block& block) noexcept;
  void update_centralized(const Block& block) noexcept;
  void update_table(const Block& block) noexcept;
  void catch_up_block(const Block& block) noexcept;
  void catch_up(const Run& run, std::int64_t row) noexcept;
  double row_mean(const core::Rows& rows, std::int64_t row) const noexcept;

  const core::Options* options_ = nullptr;
  const std::vector<Tensor>* tensors_ = nullptr;
  const core::RateFolder* rates_ = nullptr;
  core::Plan plan_;
  std::vector<DirectTensor> direct_;  // by parameter
  int threads_ = 1;
  std::optional<PoolShare> pools_;
  std::vector<double> segment_sums_;             // of the rows that are centralized
  std::vector<double> block_squares_;            // by block; of sparse parameters in the first
  std::vector<std::int64_t> single_blocks_;      // 0, 1, ...: chunks of one block each
  std::vector<std::unique_ptr<Sparse>> sparse_;  // by parameter, made when first needed
  std::vector<std::size_t> sparse_parameters_;   // of this step

  // Of the step, or of the phase that is running.
  const KernelTable* kernels_ = nullptr;
  Selection selection_{};
  const core::StepInput* input_ = nullptr;            // of measure()
  const core::Accumulation* accumulation_ = nullptr;  // of accumulate()
  bool united_ = false;  // whether merge() has run round 3 too, or update() will
  std::atomic<bool> all_finite_{true};
  std::size_t current_ = 0;               // the sparse parameter that the phase is about
  std::int64_t first_segment_ = 0;        // where the segment chunks of the phase begin
  const std::int64_t* chunks_ = nullptr;  // chunk k is blocks [chunks_[k], chunks_[k + 1])
};

}  // namespace adamas::cpu
