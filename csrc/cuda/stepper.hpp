// The work of a step on a CUDA device, what cpu/stepper.hpp is for the CPU: which kernels are
// queued, in which order.
//
// cuda/engine.cpp decides when, and cuda/step_control.hpp whether and with which scalars.
#pragma once

#include <vector>

#include "core/engine.hpp"
#include "core/plan.hpp"
#include "core/rate_folder.hpp"
#include "cuda/sparse_rows.hpp"
#include "cuda/step_control.hpp"
#include "cuda/step_tables.hpp"

namespace adamas::cuda {

class Stepper {
 public:
  // Throws std::bad_alloc.  `tensors` and `control` outlive this object.  The state of the tensors
  // from `first` on begins here.
  void prepare(Queue& queue, const core::Options& options, const std::vector<core::Tensor>& tensors,
               StepControl& control, std::size_t first);
  void release(Stream stream);

  // Whether the kernels for these gradients were chosen by an earlier step.
  bool is_ready(const core::Selection& selection) const { return tables_.are_chosen(selection); }

  // Starts on these gradients: whatever may refuse them happens here.  Throws std::bad_alloc.
  Status begin(Queue& queue, const core::Selection& selection, bool has_captured);

  // Adds dense gradients to sums.  Throws std::bad_alloc.
  void accumulate(Queue& queue, const core::Selection& all, const core::Accumulation& sums);

  // The sums of squares of the blocks of all parameters.
  void measure(Queue& queue, const core::Selection& selection);
  const StepTables& tables() const { return tables_; }

  // Updates parameters and state, with scalars that the host has folded or the device will.
  void update(Queue& queue, const core::Selection& selection, const core::RateFolder& rates);

  void add_row_steps(Queue& queue, Span<const std::int64_t> moved);  // by parameter

  // After an error: what was sent may not have come.
  void forget() { tables_.forget(); }

 private:
  StepArgs step_args(Queue& queue, const core::RateFolder& rates) const;
  void load_masters(Queue& queue, std::size_t first);
  void start_averages(Queue& queue, std::size_t first);
  bool is_given(std::size_t parameter, StateKind kind) const;
  void measure_rows(Queue& queue, const core::Selection& selection, std::size_t i);
  void centralize(Queue& queue, const StepArgs& step, const core::Selection& selection);
  void update_dense(Queue& queue, const StepArgs& step, const core::Selection& selection);
  void update_by_row(Queue& queue, const StepArgs& step, const core::Selection& selection,
                     std::size_t i);
  void set_row_steps(Queue& queue, const StepArgs& step, const Gradient& grad, std::size_t i);

  const core::Options* options_ = nullptr;
  const std::vector<core::Tensor>* tensors_ = nullptr;
  StepControl* control_ = nullptr;
  core::Plan plan_;
  StepTables tables_;
  SparseRows sparse_;
  Buffer sums_;  // by parameter: Sum
};

}  // namespace adamas::cuda
