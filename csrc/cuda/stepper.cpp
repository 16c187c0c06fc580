#include "cuda/stepper.hpp"

#include <algorithm>

namespace adamas::cuda {

void Stepper::prepare(Queue& queue, const core::Options& options,
                      const std::vector<core::Tensor>& tensors, StepControl& control,
                      std::size_t first) {
  options_ = &options;
  tensors_ = &tensors;
  control_ = &control;
  core::make_plan(tensors, &plan_);
  tables_.prepare(queue, options.all, tensors, plan_);
  sparse_.prepare(queue, options, tensors);
  load_masters(queue, first);
  start_averages(queue, first);
}

void Stepper::release(Stream stream) {
  tables_.release(stream);
  sparse_.release(stream);
  sums_.release(stream);
}

void Stepper::load_masters(Queue& queue, std::size_t first) {
  for (std::size_t i = first; i < tables_.size(); ++i) {
    const TensorEntry& entry = tables_.entry(i);
    if (entry.master == nullptr || is_given(i, StateKind::master)) continue;
    const LoadMasterArgs args{entry.param, entry.master, entry.count, entry.dtype};
    queue.launch_for(Kernel::load_master, entry.count, kItemThreads, args);
  }
}

// Of the caller's, which are as they are.
bool Stepper::is_given(std::size_t parameter, StateKind kind) const {
  return (*tensors_)[parameter].spec.states[static_cast<std::size_t>(kind)] != nullptr;
}

void Stepper::start_averages(Queue& queue, std::size_t first) {
  for (std::size_t i = first; i < tables_.size(); ++i) {
    const TensorEntry& entry = tables_.entry(i);
    if (entry.ema == nullptr || is_given(i, StateKind::ema)) continue;
    const core::Tensor& tensor = (*tensors_)[i];
    if (!tensor.is_half()) {
      queue.copy(entry.ema, entry.param, tensor.nbytes);
    } else if (entry.master != nullptr) {
      queue.copy(entry.ema, entry.master, static_cast<std::size_t>(entry.count) * sizeof(float));
    } else {
      const LoadMasterArgs args{entry.param, static_cast<float*>(entry.ema), entry.count,
                                entry.dtype};
      queue.launch_for(Kernel::load_master, entry.count, kItemThreads, args);
    }
  }
}

Status Stepper::begin(Queue& queue, const core::Selection& selection, bool has_captured) {
  if (Status status = sparse_.sort(queue, selection); !status.ok()) return status;
  tables_.send_grads(queue, selection, has_captured);
  return tables_.choose_kernels(queue, selection, has_captured);
}

void Stepper::accumulate(Queue& queue, const core::Selection& all, const core::Accumulation& sums) {
  tables_.send_grads(queue, all, false);
  std::vector<Sum> entries;
  for (std::size_t i = 0; i < sums.sums.size(); ++i) {
    entries.push_back({sums.sums[i], sums.has_any[i]});
  }
  const std::size_t nbytes = entries.size() * sizeof(Sum);
  sums_.reserve(queue, nbytes);
  queue.store(sums_.data(), entries.data(), nbytes);
  queue.touch();
  queue.launch_for(Kernel::accumulate, tables_.blocks_count(), 1,
                   AccumulateArgs{tables_.tensors(), tables_.grads(), tables_.blocks(),
                                  tables_.blocks_count(), sums_.as<Sum>()});
}

void Stepper::measure(Queue& queue, const core::Selection& selection) {
  if (selection.has_sparse || selection.has_absent) {
    queue.fill(tables_.squares(), 0, plan_.blocks.size() * sizeof(double));
  }
  const bool clips_apart = options_->clips_apart();
  queue.launch_for(
      Kernel::block_squares, tables_.blocks_count(), 1,
      BlockSquaresArgs{tables_.grads(), tables_.blocks(), tables_.blocks_count(), tables_.squares(),
                       control_->control(), clips_apart ? tables_.tensors() : nullptr,
                       control_->groups(), control_->rates(), control_->loss_scale()});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    measure_rows(queue, selection, i);
  }
}

void Stepper::measure_rows(Queue& queue, const core::Selection& selection, std::size_t i) {
  const Gradient& grad = selection.grad(i);
  const core::Tensor& tensor = (*tensors_)[i];
  if (grad.is_absent || grad.rows == nullptr || grad.rows->count == 0 || tensor.spec.count == 0) {
    return;
  }
  const SparseRows::Rows& rows = sparse_.of(i);
  const std::int64_t count = rows.sorted.count;
  queue.launch_for(Kernel::row_squares, count, kSumGroups,
                   RowSquaresArgs{rows.sorted,
                                  rows.ranks,
                                  {grad.values, grad.dtype, false},
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
  args.seed = options_->all.seed;
  args.rates = control_->entries();
  args.places = control_->places();
  if (control_->decides()) return args;
  if (rates.places() != nullptr) args.places = control_->send_places(queue, rates.places());
  const std::vector<rules::FoldedRates>& folded = rates.folded();
  const std::size_t count = rates.folded_count();
  if (count <= StepArgs::kInlineRates) {
    args.rates = nullptr;
    std::copy_n(folded.begin(), count, args.inline_rates);
  } else {
    queue.store(control_->entries(), folded.data(), count * sizeof(RateEntry));
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
    if (selection.grad(i).is_absent) continue;
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
  args.grad = {grad.values, grad.dtype, false};
  args.mode = grad.rows == nullptr                           ? TableRows::gradient
              : options_->all.row_policy == RowPolicy::exact ? TableRows::all
                                                             : TableRows::listed;
  args.catches_up = entry.row_steps != nullptr;
  args.decays_entries = !rules::decays_all_rows(options_->of(tensor.spec));
  if (entries > 0) {
    args.sorted = sparse_.of(i).sorted;
    args.first = sparse_.of(i).first;
  }
  args.units = args.mode == TableRows::listed ? entries : tensor.spec.rows;
  if (args.mode == TableRows::listed && tensor.spec.delta != nullptr) {
    queue.fill(tensor.spec.delta, 0, tensor.nbytes);
  }
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
  SetRowStepsArgs args{tables_.entry(i).row_steps, nullptr, (*tensors_)[i].spec.rows,
                       static_cast<std::int32_t>(i), step};
  if (grad.rows != nullptr) {
    args.count = grad.rows->count;
    if (args.count > 0) args.rows = sparse_.of(i).sorted.rows;
  }
  queue.launch_for(Kernel::set_row_steps, args.count, kItemThreads, args);
}

void Stepper::add_row_steps(Queue& queue, Span<const std::int64_t> moved) {
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    std::int64_t* row_steps = tables_.entry(i).row_steps;
    if (row_steps == nullptr || moved[i] == 0) continue;
    const std::int64_t rows = (*tensors_)[i].spec.rows;
    queue.launch_for(Kernel::add_row_steps, rows, kItemThreads,
                     AddRowStepsArgs{row_steps, rows, moved[i]});
  }
}

}  // namespace adamas::cuda
