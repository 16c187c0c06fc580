#include "cuda/stepper.hpp"

#include <algorithm>

namespace adamas::cuda {

void Stepper::prepare(Queue& queue, const AdamConfig& config,
                      const std::vector<core::Tensor>& tensors, const StepControl& control) {
  config_ = config;
  tensors_ = &tensors;
  control_ = &control;
  plan_ = core::make_plan(tensors);
  tables_.prepare(queue, tensors, plan_);
  sparse_.prepare(queue, config, tensors);
  load_masters(queue);
}

void Stepper::release(Stream stream) {
  tables_.release(stream);
  sparse_.release(stream);
}

void Stepper::load_masters(Queue& queue) {
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    const TensorEntry& entry = tables_.entry(i);
    if (entry.master == nullptr) continue;
    const LoadMasterArgs args{entry.param, entry.master, entry.count, entry.dtype};
    queue.launch_for(Kernel::load_master, entry.count, kItemThreads, args);
  }
}

Status Stepper::begin(Queue& queue, const core::Selection& selection, bool has_captured) {
  if (Status status = sparse_.sort(queue, selection); !status.ok()) return status;
  tables_.send_grads(queue, selection, has_captured);
  return tables_.choose_kernels(queue, selection, has_captured);
}

void Stepper::measure(Queue& queue, const core::Selection& selection) {
  if (selection.has_sparse) queue.fill(tables_.squares(), 0, plan_.blocks.size() * sizeof(double));
  queue.launch_for(Kernel::block_squares, blocks(), 1,
                   BlockSquaresArgs{tables_.grads(), tables_.blocks(), blocks(), tables_.squares(),
                                    control_->control()});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    measure_rows(queue, selection, i);
  }
}

void Stepper::measure_rows(Queue& queue, const core::Selection& selection, std::size_t i) {
  const Gradient& grad = selection.grad(i);
  const core::Tensor& tensor = (*tensors_)[i];
  if (grad.rows == nullptr || grad.rows->count == 0 || tensor.spec.count == 0) return;
  const SparseRows::Rows& rows = sparse_.of(i);
  const std::int64_t count = rows.sorted.count;
  queue.launch_for(Kernel::row_squares, count, kSumGroups,
                   RowSquaresArgs{rows.sorted,
                                  rows.ranks,
                                  {grad.values, grad.dtype},
                                  tensor.real,
                                  tensor.row_length,
                                  rows.squares,
                                  control_->control()});
  queue.launch(Kernel::total_squares, 1,
               TotalSquaresArgs{rows.squares, rows.ranks + count - 1,
                                tables_.squares() + plan_.blocks_of_parameter[i]});
}

// The rates of a step that the host decides are arguments, or stored where the device finds them.
StepArgs Stepper::step_args(Queue& queue, const core::RateFolder& rates) const {
  StepArgs args{};
  args.tensors = tables_.tensors();
  args.grads = tables_.grads();
  args.control = control_->control();
  args.step = rates.step();
  args.seed = config_.seed;
  args.rates = control_->entries();
  if (control_->decides()) return args;
  const std::vector<rules::FoldedRates>& folded = rates.folded();
  if (folded.size() <= StepArgs::kInlineRates) {
    args.rates = nullptr;
    std::copy(folded.begin(), folded.end(), args.inline_rates);
  } else {
    queue.store(control_->entries(), folded.data(), folded.size() * sizeof(RateEntry));
  }
  return args;
}

void Stepper::update(Queue& queue, const core::Selection& selection,
                     const core::RateFolder& rates) {
  const StepArgs step = step_args(queue, rates);
  queue.touch();
  centralize(queue, step, selection);
  update_dense(queue, step, selection);
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (tables_.goes_by_row(i, selection.grad(i))) update_by_row(queue, step, selection, i);
  }
}

void Stepper::centralize(Queue& queue, const StepArgs& step, const core::Selection& selection) {
  const std::int64_t first = tables_.first_segments(selection.first);
  const std::int64_t count = tables_.first_segments(selection.last) - first;
  if (count == 0) return;
  queue.launch_for(Kernel::row_sums, count, 1,
                   RowSumsArgs{step, tables_.segments() + first, count});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (tables_.entry(i).means == nullptr) continue;
    const std::int64_t rows = (*tensors_)[i].spec.rows;
    queue.launch_for(Kernel::row_means, rows, kItemThreads,
                     RowMeansArgs{tables_.tensors(), static_cast<std::int32_t>(i), rows});
  }
}

void Stepper::update_dense(Queue& queue, const StepArgs& step, const core::Selection& selection) {
  const auto launch = [&](const SliceRange& range) {
    const std::int64_t count = range.last - range.first;
    queue.launch_for(Kernel::dense, count, 1,
                     DenseArgs{step, tables_.slices() + range.first, count}, range.types);
  };
  if (selection.last - selection.first == tables_.size()) {
    std::for_each(tables_.ranges().begin(), tables_.ranges().end(), launch);
  } else if (!tables_.goes_by_row(selection.first, selection.grad(selection.first))) {
    launch(tables_.range_of(selection.first));
  }
}

void Stepper::update_by_row(Queue& queue, const StepArgs& step, const core::Selection& selection,
                            std::size_t i) {
  const Gradient& grad = selection.grad(i);
  const TensorEntry& entry = tables_.entry(i);
  const core::Tensor& tensor = (*tensors_)[i];
  const std::int64_t entries = grad.rows == nullptr ? 0 : grad.rows->count;
  TableArgs args{};
  args.step = step;
  args.tensor = static_cast<std::int32_t>(i);
  args.grad = {grad.values, grad.dtype};
  args.mode = grad.rows == nullptr                     ? TableRows::gradient
              : config_.row_policy == RowPolicy::exact ? TableRows::all
                                                       : TableRows::listed;
  args.catches_up = entry.row_steps != nullptr;
  args.decays_entries = !rules::decays_all_rows(config_);
  args.beta1 = config_.beta1;
  args.beta2 = config_.beta2;
  if (entries > 0) {
    args.sorted = sparse_.of(i).sorted;
    args.first = sparse_.of(i).first;
  }
  args.units = args.mode == TableRows::listed ? entries : tensor.spec.rows;
  args.piece = entry.format == StateFormat::int8 ? entry.scale_block
               : args.mode == TableRows::listed  ? kListedPiece
                                                 : kTablePiece;
  args.pieces_per_row = (entry.row_length + args.piece - 1) / args.piece;
  queue.launch_for(Kernel::table, args.units * args.pieces_per_row, kWarpsPerBlock, args,
                   {tensor.real, grad.dtype, entry.format});
  if (entry.row_steps != nullptr) set_row_steps(queue, step, grad, i);
}

// The rows that were updated have seen this step.
void Stepper::set_row_steps(Queue& queue, const StepArgs& step, const Gradient& grad,
                            std::size_t i) {
  SetRowStepsArgs args{tables_.entry(i).row_steps, nullptr, (*tensors_)[i].spec.rows, step.step,
                       step.control};
  if (grad.rows != nullptr) {
    args.count = grad.rows->count;
    if (args.count > 0) args.rows = sparse_.of(i).sorted.rows;
  }
  queue.launch_for(Kernel::set_row_steps, args.count, kItemThreads, args);
}

void Stepper::add_row_steps(Queue& queue, std::int64_t moved) {
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    std::int64_t* row_steps = tables_.entry(i).row_steps;
    if (row_steps == nullptr || moved == 0) continue;
    const std::int64_t rows = (*tensors_)[i].spec.rows;
    queue.launch_for(Kernel::add_row_steps, rows, kItemThreads,
                     AddRowStepsArgs{row_steps, rows, moved});
  }
}

}  // namespace adamas::cuda
