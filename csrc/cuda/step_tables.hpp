// What the kernels of a step find in device memory: parameters, gradients, and which elements a
// launch is about.  It is sent when it has changed.
#pragma once

#include <vector>

#include "core/engine.hpp"
#include "core/plan.hpp"
#include "cuda/device/device.hpp"

namespace adamas::cuda {

// Slices of the table of slices that one launch takes.
struct SliceRange {
  KernelTypes types;
  std::int64_t first;
  std::int64_t last;
};

class StepTables {
 public:
  // `tensors` outlive this object.  May be called again, for others.
  void prepare(Queue& queue, const AdamConfig& config, const std::vector<core::Tensor>& tensors,
               const core::Plan& plan);
  void release(Stream stream);

  const TensorEntry& entry(std::size_t parameter) const { return entries_[parameter]; }
  std::size_t size() const { return entries_.size(); }

  // In device memory, by parameter.
  const TensorEntry* tensors() const { return tensors_; }
  const GradEntry* grads() const { return grads_; }

  // Whether a gradient is applied row by row: a sparse one, or where rows must be caught up.
  bool goes_by_row(std::size_t parameter, const Gradient& grad) const {
    return grad.rows != nullptr || entries_[parameter].row_steps != nullptr;
  }

  // Whether kernels for gradients of these types have been chosen.
  bool are_chosen(const core::Selection& selection) const;

  // Sends where gradients are, all of them if graphs have stored their own; chooses kernels.
  void send_grads(Queue& queue, const core::Selection& selection, bool all);
  Status choose_kernels(Queue& queue, const core::Selection& selection, bool has_captured);
  // Sends and chooses anew next time.
  void forget();

  // Of the dense gradients of all parameters, those of one kernel together; or of one of them.
  const std::vector<SliceRange>& ranges() const { return ranges_; }
  const SliceRange& range_of(std::size_t parameter) const { return range_of_[parameter]; }
  const Slice* slices() const { return slice_memory_.as<Slice>(); }

  // Segments of the rows of centralized parameters; those of a parameter are
  // [first_segments(parameter), first_segments(parameter + 1)).
  const Slice* segments() const { return segments_; }
  std::int64_t first_segments(std::size_t parameter) const { return first_segments_[parameter]; }

  // The blocks of the plan, and a place for the sum of squares of each.
  const Slice* blocks() const { return blocks_; }
  std::int64_t blocks_count() const { return blocks_count_; }
  double* squares() const { return squares_; }
  // The blocks of a parameter are [first_blocks()[i], first_blocks()[i + 1]), in device memory.
  const std::int64_t* first_blocks() const { return first_blocks_; }

 private:
  // What the gradient of a parameter is like, by which kernels are chosen: none yet, rows, or a
  // dense one of a type.
  using GradKind = int;
  static constexpr GradKind kNone = -2;
  static constexpr GradKind kByRow = -1;

  GradKind kind_of(std::size_t parameter, const Gradient& grad) const;
  void prepare_rows(Queue& queue, const AdamConfig& config,
                    const std::vector<core::Tensor>& tensors, const core::Plan& plan);
  void prepare_blocks(Queue& queue, const core::Plan& plan);
  void add_slices(std::size_t parameter, std::vector<Slice>* slices) const;
  void list_slices(std::vector<Slice>* slices);

  Buffer memory_;        // tensors, then gradients
  Buffer block_memory_;  // blocks of the plan, then their squares
  Buffer row_memory_;    // segments of rows, their sums, means
  Buffer slice_memory_;
  TensorEntry* tensors_ = nullptr;
  GradEntry* grads_ = nullptr;
  Slice* blocks_ = nullptr;
  double* squares_ = nullptr;
  std::int64_t* first_blocks_ = nullptr;
  std::int64_t blocks_count_ = 0;
  Slice* segments_ = nullptr;

  std::vector<TensorEntry> entries_;          // by parameter, as the following
  std::vector<GradEntry> sent_grads_;         //
  std::vector<GradKind> kinds_;               //
  std::vector<SliceRange> range_of_;          //
  std::vector<std::int64_t> first_segments_;  // and one past the last
  std::vector<SliceRange> ranges_;
  bool chosen_ = false;  // whether `ranges_` fit `kinds_`
};

}  // namespace adamas::cuda
