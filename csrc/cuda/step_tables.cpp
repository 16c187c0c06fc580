#include "cuda/step_tables.hpp"

#include <algorithm>
#include <iterator>

#include "cuda/device/layout.hpp"
#include "cuda/kernels/sizes.hpp"

namespace adamas::cuda {
namespace {

TensorEntry entry_of(const AdamConfig& config, const core::Tensor& tensor) {
  TensorEntry entry{};
  entry.param = tensor.spec.data;
  entry.moment1 = tensor.state(StateKind::moment1);
  entry.moment2 = tensor.state(StateKind::moment2);
  entry.vhat = tensor.state(StateKind::vhat);
  entry.master = reinterpret_cast<float*>(tensor.state(StateKind::master));
  entry.scale1 = reinterpret_cast<std::uint8_t*>(tensor.state(StateKind::scale1));
  entry.scale2 = reinterpret_cast<std::uint8_t*>(tensor.state(StateKind::scale2));
  entry.row_steps = tensor.row_steps();
  entry.count = tensor.spec.count;
  entry.row_length = tensor.row_length;
  entry.scale_block = tensor.scale_block;
  entry.ema = tensor.state(StateKind::ema);
  entry.ema_rate = 1.0 - config.ema_decay;
  entry.delta = tensor.spec.delta;
  entry.key = tensor.key;
  entry.position = static_cast<std::int32_t>(tensor.index);
  entry.rates = tensor.spec.rates;
  entry.dtype = tensor.spec.dtype;
  entry.format = tensor.format;
  return entry;
}

// The segments of all rows of a centralized parameter, in as large slices as a block of threads
// sums at a time.
void add_segments(const core::Tensor& tensor, const core::Rows& rows, std::vector<Slice>* slices) {
  const std::int64_t segments = tensor.spec.rows * rows.segments_per_row;
  const std::int64_t longest = std::min(rows.row_length, core::kBlock);
  const std::int64_t tiles = (longest + rules::kTile - 1) / rules::kTile;
  const std::int64_t per_slice = std::max(std::int64_t{1}, kSumGroups / tiles);
  for (std::int64_t begin = 0; begin < segments; begin += per_slice) {
    slices->push_back({begin, static_cast<std::int32_t>(std::min(per_slice, segments - begin)),
                       static_cast<std::int32_t>(tensor.index)});
  }
}

}  // namespace

void StepTables::prepare(Queue& queue, const AdamConfig& config,
                         const std::vector<core::Tensor>& tensors, const core::Plan& plan) {
  const std::size_t count = tensors.size();
  entries_.clear();
  first_segments_.clear();
  chosen_ = false;
  kinds_.assign(count, kNone);
  range_of_.resize(count);
  prepare_rows(queue, config, tensors, plan);
  lay_out(queue, memory_, [&](Layout& layout) {
    tensors_ = layout.take<TensorEntry>(count);
    grads_ = layout.take<GradEntry>(count);
  });
  queue.copy(tensors_, entries_.data(), count * sizeof(TensorEntry));
  sent_grads_.assign(count, {nullptr, DType::float32, false});
  queue.fill(grads_, 0, count * sizeof(GradEntry));
  prepare_blocks(queue, plan);
}

void StepTables::release(Stream stream) {
  for (Buffer* buffer : {&memory_, &block_memory_, &row_memory_, &slice_memory_}) {
    buffer->release(stream);
  }
}

// The entries of all parameters, and what the centralized ones need.
void StepTables::prepare_rows(Queue& queue, const AdamConfig& config,
                              const std::vector<core::Tensor>& tensors, const core::Plan& plan) {
  std::vector<Slice> slices;
  std::size_t means = 0;
  const auto rows_of = [&](std::size_t i) {
    const std::int32_t index = plan.rows_of_parameter[i];
    return index < 0 ? nullptr : &plan.rows[static_cast<std::size_t>(index)];
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    first_segments_.push_back(static_cast<std::int64_t>(slices.size()));
    const core::Rows* rows = rows_of(i);
    if (rows == nullptr) continue;
    add_segments(tensors[i], *rows, &slices);
    means += static_cast<std::size_t>(tensors[i].spec.rows);
  }
  first_segments_.push_back(static_cast<std::int64_t>(slices.size()));
  double* segment_sums = nullptr;
  double* row_means = nullptr;
  lay_out(queue, row_memory_, [&](Layout& layout) {
    segments_ = layout.take<Slice>(slices.size());
    segment_sums = layout.take<double>(static_cast<std::size_t>(plan.segment_sums));
    row_means = layout.take<double>(means);
  });
  if (!slices.empty()) {
    queue.copy(segments_, slices.data(), slices.size() * sizeof(Slice));
    queue.finish();  // the copy has been taken
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    TensorEntry entry = entry_of(config, tensors[i]);
    if (const core::Rows* rows = rows_of(i); rows != nullptr) {
      entry.segments_per_row = rows->segments_per_row;
      entry.segment_sums = segment_sums + rows->first_sum;
      entry.means = row_means;
      row_means += tensors[i].spec.rows;
    }
    entries_.push_back(entry);
  }
}

void StepTables::prepare_blocks(Queue& queue, const core::Plan& plan) {
  std::vector<Slice> blocks;
  blocks.reserve(plan.blocks.size());
  for (const core::Block& block : plan.blocks) {
    blocks.push_back({block.begin, static_cast<std::int32_t>(block.count), block.parameter});
  }
  lay_out(queue, block_memory_, [&](Layout& layout) {
    blocks_ = layout.take<Slice>(blocks.size());
    squares_ = layout.take<double>(blocks.size());
    first_blocks_ = layout.take<std::int64_t>(plan.blocks_of_parameter.size());
  });
  blocks_count_ = static_cast<std::int64_t>(blocks.size());
  queue.copy(first_blocks_, plan.blocks_of_parameter.data(),
             plan.blocks_of_parameter.size() * sizeof(std::int64_t));
  queue.copy(blocks_, blocks.data(), blocks.size() * sizeof(Slice));
  queue.finish();  // the copy has been taken
}

// Sparse gradients go to their kernel as arguments.
void StepTables::send_grads(Queue& queue, const core::Selection& selection, bool all) {
  constexpr std::size_t kPerStore = StoreArgs::kMaxBytes / sizeof(GradEntry);
  const auto wanted = [&](std::size_t i) -> GradEntry {
    const Gradient& grad = selection.grad(i);
    const bool is_here = grad.rows == nullptr && !grad.is_absent;
    return {is_here ? grad.values : nullptr, grad.dtype, grad.is_absent};
  };
  for (std::size_t begin = selection.first; begin < selection.last; begin += kPerStore) {
    const std::size_t end = std::min(begin + kPerStore, selection.last);
    bool changed = all;
    for (std::size_t i = begin; i < end; ++i) {
      const GradEntry entry = wanted(i);
      changed |= entry.values != sent_grads_[i].values || entry.dtype != sent_grads_[i].dtype ||
                 entry.is_absent != sent_grads_[i].is_absent;
      sent_grads_[i] = entry;
    }
    if (changed)
      queue.store(grads_ + begin, &sent_grads_[begin], (end - begin) * sizeof(GradEntry));
  }
}

StepTables::GradKind StepTables::kind_of(std::size_t i, const Gradient& grad) const {
  return goes_by_row(i, grad) ? kByRow : static_cast<GradKind>(grad.dtype);
}

bool StepTables::are_chosen(const core::Selection& selection) const {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (!chosen_ || (!selection.grad(i).is_absent && kind_of(i, selection.grad(i)) != kinds_[i])) {
      return false;
    }
  }
  return true;
}

Status StepTables::choose_kernels(Queue& queue, const core::Selection& selection,
                                  bool has_captured) {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    // The kernel of a parameter that is left out stays, and finds that there is no gradient.
    if (selection.grad(i).is_absent) continue;
    const GradKind kind = kind_of(i, selection.grad(i));
    if (kind == kinds_[i]) continue;
    if (has_captured) {
      return {StatusCode::bad_state,
              "the type of a gradient must not change once a step was captured in a graph",
              static_cast<std::int64_t>(i)};
    }
    kinds_[i] = kind;
    chosen_ = false;
  }
  if (chosen_) return queue.status();
  std::vector<Slice> slices;
  list_slices(&slices);
  slice_memory_.reserve(queue, std::max<std::size_t>(slices.size() * sizeof(Slice), 1));
  queue.copy(slice_memory_.data(), slices.data(), slices.size() * sizeof(Slice));
  queue.finish();  // `slices` are about to go; seldom
  chosen_ = queue.error() == 0;
  return queue.status();
}

void StepTables::forget() {
  chosen_ = false;
  sent_grads_.assign(sent_grads_.size(), {nullptr, DType::float32, false});
}

void StepTables::add_slices(std::size_t i, std::vector<Slice>* slices) const {
  const TensorEntry& entry = entries_[i];
  const auto width = static_cast<std::int64_t>(16 / item_size(real_type(entry.dtype)));
  const bool has_scales = entry.format == StateFormat::int8;
  const std::int64_t length =
      has_scales ? kSliceLength / entry.scale_block * entry.scale_block : kSliceLength;
  // The first slice is shorter, so that the others begin where wide accesses may.
  const auto past =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(entry.param) /
                                item_size(entry.dtype) % static_cast<std::size_t>(width));
  std::int64_t end = 0;
  for (std::int64_t begin = 0; begin < entry.count; begin = end) {
    end = std::min(begin + length - (begin == 0 && !has_scales ? past : 0), entry.count);
    slices->push_back(
        {begin, static_cast<std::int32_t>(end - begin), static_cast<std::int32_t>(i)});
  }
}

// The slices of all dense gradients, those of one kernel together.
void StepTables::list_slices(std::vector<Slice>* slices) {
  const auto end = [&] { return static_cast<std::int64_t>(slices->size()); };
  ranges_.clear();
  const auto add_range = [&](DType param, DType grad) {
    SliceRange range{{param, grad, StateFormat::real}, end(), 0};
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].dtype != param || kinds_[i] != static_cast<GradKind>(grad)) continue;
      range.types.format = entries_[i].format;
      range_of_[i] = {range.types, end(), 0};
      add_slices(i, slices);
      range_of_[i].last = end();
    }
    range.last = end();
    if (range.last > range.first) ranges_.push_back(range);
  };
  for (std::size_t param = 0; param < kDTypes; ++param) {
    for (std::size_t grad = 0; grad < kDTypes; ++grad) {
      add_range(static_cast<DType>(param), static_cast<DType>(grad));
    }
  }
}

}  // namespace adamas::cuda
