#include "cuda/sparse_rows.hpp"

#include <algorithm>

#include "cuda/device/layout.hpp"

namespace adamas::cuda {
namespace {

int bits_of_rows(std::int64_t rows) {
  int bits = 1;
  while (bits < 63 && (std::int64_t{1} << bits) < rows) ++bits;
  return bits;
}

// Calls visit(parameter, its rows) for each sparse gradient that lists any.
template <class Visit>
void for_sparse(const core::Selection& selection, Visit visit) {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (!grad.is_absent && grad.rows != nullptr && grad.rows->count > 0) visit(i, *grad.rows);
  }
}

}  // namespace

void SparseRows::prepare(Queue& queue, const core::Options& options,
                         const std::vector<core::Tensor>& tensors) {
  tensors_ = &tensors;
  measures_ = options.measures();
  needs_first_ = options.all.row_policy == RowPolicy::exact;
  for (const auto& kept : kept_) {
    if (kept) kept->memory.release(queue.stream());
  }
  kept_.clear();
  kept_.resize(tensors.size());
  outside_.reserve(queue, tensors.size() * sizeof(std::int32_t));
}

void SparseRows::release(Stream stream) {
  outside_.release(stream);
  scratch_.release(stream);
  for (const auto& kept : kept_) {
    if (kept) kept->memory.release(stream);
  }
}

Status SparseRows::sort(Queue& queue, const core::Selection& selection) {
  bool any = false;
  for_sparse(selection, [&](std::size_t i, const RowIndices& rows) {
    reserve(queue, i, rows);
    any = true;
  });
  if (!any) return queue.status();
  if (Status status = check(queue, selection); !status.ok()) return status;
  for_sparse(selection, [&](std::size_t i, const RowIndices&) { group(queue, i); });
  return queue.status();
}

void SparseRows::reserve(Queue& queue, std::size_t i, const RowIndices& given) {
  if (!kept_[i]) kept_[i] = std::make_unique<Kept>();
  Kept& kept = *kept_[i];
  Rows& rows = kept.rows;
  const auto count = static_cast<std::size_t>(given.count);
  const auto table_rows = static_cast<std::size_t>((*tensors_)[i].spec.rows);
  std::uint64_t* sorted_rows = nullptr;
  std::uint32_t* sorted_entry = nullptr;
  lay_out(queue, kept.memory, [&](Layout& layout) {
    kept.given_rows = layout.take<std::uint64_t>(count);
    kept.given_entry = layout.take<std::uint32_t>(count);
    sorted_rows = layout.take<std::uint64_t>(count);
    sorted_entry = layout.take<std::uint32_t>(count);
    rows.ranks = layout.take<std::uint32_t>(measures_ ? count : 0);
    rows.squares = layout.take<double>(measures_ ? count : 0);
    rows.first = layout.take<std::uint32_t>(needs_first_ ? table_rows : 0);
  });
  if (!measures_) rows.ranks = nullptr;
  if (!needs_first_) rows.first = nullptr;
  rows.sorted = {sorted_rows, sorted_entry, given.count};
}

// All parameters at once, so that the host waits once.
Status SparseRows::check(Queue& queue, const core::Selection& selection) {
  const std::size_t nbytes = tensors_->size() * sizeof(std::int32_t);
  if (pinned_nbytes_ < nbytes) {
    Handle larger;
    queue.note(larger.create(queue.device(), Handle::Kind::pinned, nbytes));
    if (queue.error() != 0) return queue.status();
    pinned_.swap(larger);
    pinned_nbytes_ = nbytes;
  }
  auto* outside = pinned_.as<std::int32_t>();
  queue.fill(outside_.data(), 0, nbytes);
  for_sparse(selection, [&](std::size_t i, const RowIndices& rows) {
    queue.launch_for(Kernel::index_rows, rows.count, kItemThreads,
                     IndexRowsArgs{rows.data, rows.is_int64, rows.count, (*tensors_)[i].spec.rows,
                                   kept_[i]->given_rows, kept_[i]->given_entry,
                                   outside_.as<std::int32_t>() + i});
  });
  queue.copy(outside, outside_.data(), nbytes);
  queue.finish();
  if (queue.error() != 0) return queue.status();
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (outside[i] == 0) continue;
    return {StatusCode::bad_index, "a row index of a sparse gradient is outside the parameter",
            static_cast<std::int64_t>(i)};
  }
  return {};
}

// Brings the entries of each row together.
void SparseRows::group(Queue& queue, std::size_t i) {
  if (queue.error() != 0) return;
  const DeviceApi& api = *queue.device().api;
  const Kept& kept = *kept_[i];
  const Rows& rows = kept.rows;
  const std::int64_t count = rows.sorted.count;
  const SortRequest request{kept.given_rows,
                            const_cast<std::uint64_t*>(rows.sorted.rows),
                            kept.given_entry,
                            const_cast<std::uint32_t*>(rows.sorted.entry),
                            count,
                            bits_of_rows((*tensors_)[i].spec.rows)};
  std::size_t sort_nbytes = 0;
  std::size_t scan_nbytes = 0;
  queue.note(api.sort(request, nullptr, &sort_nbytes, queue.stream()));
  if (measures_) queue.note(api.scan(rows.ranks, count, nullptr, &scan_nbytes, queue.stream()));
  scratch_.reserve(queue, std::max<std::size_t>({sort_nbytes, scan_nbytes, 1}));
  if (queue.error() != 0) return;
  queue.note(api.sort(request, scratch_.data(), &sort_nbytes, queue.stream()));
  if (rows.first != nullptr) {
    const auto table_rows = static_cast<std::size_t>((*tensors_)[i].spec.rows);
    queue.fill(rows.first, 0xff, table_rows * sizeof(std::uint32_t));
  }
  if (rows.first != nullptr || measures_) {
    queue.launch_for(Kernel::mark_heads, count, kItemThreads,
                     MarkHeadsArgs{rows.sorted, rows.ranks, rows.first});
  }
  if (measures_ && queue.error() == 0) {
    queue.note(api.scan(rows.ranks, count, scratch_.data(), &scan_nbytes, queue.stream()));
  }
}

}  // namespace adamas::cuda
