// Sparse gradients on a device, and the tables that are updated row by row.
#include <algorithm>

#include "cuda/device/layout.hpp"
#include "cuda/stepper.hpp"

namespace adamas::cuda {
namespace {

constexpr std::int64_t kListedPiece = 128;  // elements of a row that a warp takes: of listed rows
constexpr std::int64_t kTablePiece = 512;   // of all rows
constexpr std::int64_t kTableWarps = 4;     // per block of threads

int bits_of_rows(std::int64_t rows) {
  int bits = 1;
  while (bits < 63 && (std::int64_t{1} << bits) < rows) ++bits;
  return bits;
}

}  // namespace

// Finds the listed rows of the sparse gradients.  The host waits for the check of their indices.
Status Stepper::sort_rows(Queue& queue, const core::Selection& selection) {
  bool any = false;
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (grad.rows == nullptr || grad.rows->count == 0) continue;
    if (!sparse_[i]) sparse_[i] = std::make_unique<Sparse>();
    reserve_rows(queue, i, *grad.rows);
    any = true;
  }
  if (!any) return queue.status();
  if (Status status = check_rows(queue, selection); !status.ok()) return status;
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const RowIndices* rows = selection.grad(i).rows;
    if (rows != nullptr && rows->count > 0) group_rows(queue, i);
  }
  return queue.status();
}

void Stepper::reserve_rows(Queue& queue, std::size_t i, const RowIndices& rows) {
  const bool measured = measures();
  Sparse& sparse = *sparse_[i];
  const auto count = static_cast<std::size_t>(rows.count);
  const bool exact = config_.row_policy == RowPolicy::exact;
  const auto table_rows = static_cast<std::size_t>(storage_->tensors()[i].spec.rows);
  std::uint64_t* sorted_rows = nullptr;
  std::uint32_t* sorted_entry = nullptr;
  place(queue, sparse.memory, [&](Layout& layout) {
    sparse.rows = layout.take<std::uint64_t>(count);
    sparse.entry = layout.take<std::uint32_t>(count);
    sorted_rows = layout.take<std::uint64_t>(count);
    sorted_entry = layout.take<std::uint32_t>(count);
    sparse.ranks = layout.take<std::uint32_t>(measured ? count : 0);
    sparse.squares = layout.take<double>(measured ? count : 0);
    sparse.first = layout.take<std::uint32_t>(exact ? table_rows : 0);
  });
  if (!measured) sparse.ranks = nullptr;
  if (!exact) sparse.first = nullptr;
  sparse.sorted = {sorted_rows, sorted_entry, rows.count};
}

// All parameters at once, so that the host waits once.
Status Stepper::check_rows(Queue& queue, const core::Selection& selection) {
  auto* outside = reinterpret_cast<std::int32_t*>(pinned_.as<char>() + sizeof(Control));
  const std::size_t nbytes = entries_.size() * sizeof(std::int32_t);
  queue.fill(flags_.data(), 0, nbytes);
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const RowIndices* rows = selection.grad(i).rows;
    if (rows == nullptr || rows->count == 0) continue;
    const Sparse& sparse = *sparse_[i];
    queue.launch_for(
        Kernel::index_rows, rows->count, kForEach,
        IndexRowsArgs{rows->data, rows->is_int64, rows->count, storage_->tensors()[i].spec.rows,
                      sparse.rows, sparse.entry, flags_.as<std::int32_t>() + i});
  }
  queue.copy(outside, flags_.data(), nbytes);
  queue.finish();
  if (queue.error() != 0) return queue.status();
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (outside[i] == 0) continue;
    return {StatusCode::bad_index, "a row index of a sparse gradient is outside the parameter",
            static_cast<std::int64_t>(i)};
  }
  return {};
}

void Stepper::group_rows(Queue& queue, std::size_t i) {
  const bool measured = measures();
  if (queue.error() != 0) return;
  Sparse& sparse = *sparse_[i];
  const std::int64_t count = sparse.sorted.count;
  const SortRequest request{sparse.rows,  const_cast<std::uint64_t*>(sparse.sorted.rows),
                            sparse.entry, const_cast<std::uint32_t*>(sparse.sorted.entry),
                            count,        bits_of_rows(storage_->tensors()[i].spec.rows)};
  std::size_t sort_nbytes = 0;
  std::size_t scan_nbytes = 0;
  queue.note(device_.api->sort(request, nullptr, &sort_nbytes, queue.stream()));
  if (measured) {
    queue.note(device_.api->scan(sparse.ranks, count, nullptr, &scan_nbytes, queue.stream()));
  }
  scratch_.reserve(queue, std::max<std::size_t>({sort_nbytes, scan_nbytes, 1}));
  if (queue.error() != 0) return;
  queue.note(device_.api->sort(request, scratch_.data(), &sort_nbytes, queue.stream()));
  if (sparse.first != nullptr) {
    const auto rows = static_cast<std::size_t>(storage_->tensors()[i].spec.rows);
    queue.fill(sparse.first, 0xff, rows * sizeof(std::uint32_t));
  }
  if (sparse.first != nullptr || measured) {
    queue.launch_for(Kernel::mark_heads, count, kForEach,
                     MarkHeadsArgs{sparse.sorted, sparse.ranks, sparse.first});
  }
  if (measured && queue.error() == 0) {
    queue.note(
        device_.api->scan(sparse.ranks, count, scratch_.data(), &scan_nbytes, queue.stream()));
  }
}

void Stepper::measure_rows(Queue& queue, const core::Selection& selection, std::size_t i) {
  const Gradient& grad = selection.grad(i);
  const core::Tensor& tensor = storage_->tensors()[i];
  if (grad.rows == nullptr || grad.rows->count == 0 || tensor.spec.count == 0) return;
  const Sparse& sparse = *sparse_[i];
  const std::int64_t count = sparse.sorted.count;
  queue.launch_for(Kernel::measure_rows, count, kSumGroups,
                   MeasureRowsArgs{sparse.sorted,
                                   sparse.ranks,
                                   {grad.values, grad.dtype},
                                   tensor.real,
                                   tensor.row_length,
                                   sparse.squares,
                                   control_});
  queue.launch(Kernel::sum_rows, 1,
               SumRowsArgs{sparse.squares, sparse.ranks + count - 1,
                           squares_ + plan_.blocks_of_parameter[i]});
}

void Stepper::update_table(Queue& queue, const core::Selection& selection, std::size_t i) {
  const Gradient& grad = selection.grad(i);
  const TensorEntry& entry = entries_[i];
  const core::Tensor& tensor = storage_->tensors()[i];
  const bool sparse = grad.rows != nullptr;
  const bool exact = config_.row_policy == RowPolicy::exact;
  const std::int64_t entries = sparse ? grad.rows->count : 0;
  TableArgs args{};
  args.step = step_args();
  args.tensor = static_cast<std::int32_t>(i);
  args.grad = {grad.values, grad.dtype};
  args.mode = !sparse ? TableRows::gradient : exact ? TableRows::all : TableRows::listed;
  args.catches_up = entry.row_steps != nullptr;
  args.decays_entries = !rules::decays_all_rows(config_);
  args.beta1 = config_.beta1;
  args.beta2 = config_.beta2;
  if (entries > 0) {
    args.sorted = sparse_[i]->sorted;
    args.first = sparse_[i]->first;
  }
  args.units = args.mode == TableRows::listed ? entries : tensor.spec.rows;
  args.piece = entry.format == StateFormat::int8 ? entry.scale_block
               : args.mode == TableRows::listed  ? kListedPiece
                                                 : kTablePiece;
  args.pieces_per_row = (entry.row_length + args.piece - 1) / args.piece;
  queue.launch_for(Kernel::table, args.units * args.pieces_per_row, kTableWarps, args,
                   {tensor.real, grad.dtype, entry.format});
  if (entry.row_steps == nullptr) return;
  SetRowStepsArgs steps{entry.row_steps, nullptr, tensor.spec.rows, step_, args.step.control};
  if (sparse) {
    steps.rows = args.sorted.rows;
    steps.count = entries;
  }
  queue.launch_for(Kernel::set_row_steps, steps.count, kForEach, steps);
}

}  // namespace adamas::cuda
