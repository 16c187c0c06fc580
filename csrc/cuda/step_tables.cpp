// What the kernels of a step find in device memory: parameters, gradients, rates, and which of them
// a launch is about.  It is sent when it has changed.
#include <algorithm>
#include <limits>

#include "cuda/device/layout.hpp"
#include "cuda/stepper.hpp"

namespace adamas::cuda {
namespace {

constexpr std::int64_t kChunk = 4096;  // elements per block of threads

TensorEntry entry_of(const core::Tensor& tensor) {
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
  entry.index = tensor.index;
  entry.rates = tensor.spec.rates;
  entry.dtype = tensor.spec.dtype;
  entry.format = tensor.format;
  return entry;
}

}  // namespace

void Stepper::prepare_tensors(Queue& queue) {
  const std::size_t count = entries_.size();
  TensorEntry* tensors = nullptr;
  place(queue, tables_, [&](Layout& layout) {
    tensors = layout.take<TensorEntry>(count);
    grads_ = layout.take<GradEntry>(count);
  });
  queue.copy(tensors, entries_.data(), count * sizeof(TensorEntry));
  sent_grads_.assign(count, {nullptr, DType::float32});
  queue.fill(grads_, 0, count * sizeof(GradEntry));
  flags_.reserve(queue, count * sizeof(std::int32_t));
  queue.note(pinned_.create(device_, Handle::Kind::pinned,
                            sizeof(Control) + count * sizeof(std::int32_t)));

  const std::size_t rates_count = folded_.size();
  Control fresh{};
  fresh.last_grad_norm = std::numeric_limits<double>::quiet_NaN();
  fresh.power1 = 1.0F;
  fresh.power2 = 1.0F;
  place(queue, rates_, [&](Layout& layout) {
    control_ = layout.take<Control>(1);
    loss_scale_ = layout.take<double>(1);
    device_rates_ = layout.take<Rates>(rates_count);
    rate_entries_ = layout.take<RateEntry>(rates_count);
  });
  queue.store(control_, &fresh, sizeof(fresh));
}

void Stepper::prepare_blocks(Queue& queue) {
  std::vector<Chunk> blocks;
  blocks.reserve(plan_.blocks.size());
  for (const core::Block& block : plan_.blocks) {
    blocks.push_back({block.begin, static_cast<std::int32_t>(block.count), block.parameter});
  }
  Chunk* target = nullptr;
  place(queue, blocks_, [&](Layout& layout) {
    target = layout.take<Chunk>(blocks.size());
    squares_ = layout.take<double>(blocks.size());
  });
  queue.copy(target, blocks.data(), blocks.size() * sizeof(Chunk));
  queue.finish();  // the copy has been taken
}

// The entries of all parameters, and what the centralized ones need.
void Stepper::prepare_rows(Queue& queue) {
  const std::vector<core::Tensor>& tensors = storage_->tensors();
  std::vector<Chunk> works;
  std::size_t means = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    first_work_.push_back(static_cast<std::int64_t>(works.size()));
    const std::int32_t index = plan_.rows_of_parameter[i];
    if (index < 0) continue;
    const core::Rows& rows = plan_.rows[static_cast<std::size_t>(index)];
    const std::int64_t segments = tensors[i].spec.rows * rows.segments_per_row;
    const std::int64_t longest = std::min(rows.row_length, core::kBlock);
    const std::int64_t per_work =
        std::max<std::int64_t>(1, kSumGroups / ((longest + core::kTile - 1) / core::kTile));
    for (std::int64_t begin = 0; begin < segments; begin += per_work) {
      works.push_back({begin, static_cast<std::int32_t>(std::min(per_work, segments - begin)),
                       static_cast<std::int32_t>(i)});
    }
    means += static_cast<std::size_t>(tensors[i].spec.rows);
  }
  first_work_.push_back(static_cast<std::int64_t>(works.size()));
  Chunk* target = nullptr;
  double* segment_sums = nullptr;
  double* row_means = nullptr;
  place(queue, rows_, [&](Layout& layout) {
    target = layout.take<Chunk>(works.size());
    segment_sums = layout.take<double>(static_cast<std::size_t>(plan_.segment_sums));
    row_means = layout.take<double>(means);
  });
  queue.copy(target, works.data(), works.size() * sizeof(Chunk));
  queue.finish();

  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const core::Tensor& tensor = tensors[i];
    const std::int32_t index = plan_.rows_of_parameter[i];
    TensorEntry entry = entry_of(tensor);
    if (index >= 0) {
      const core::Rows& rows = plan_.rows[static_cast<std::size_t>(index)];
      entry.segments_per_row = rows.segments_per_row;
      entry.segment_sums = segment_sums + rows.first_sum;
      entry.means = row_means;
      row_means += tensor.spec.rows;
    }
    entries_.push_back(entry);
  }
}

void Stepper::load_masters(Queue& queue) {
  for (const TensorEntry& entry : entries_) {
    if (entry.master == nullptr) continue;
    const LoadMasterArgs args{entry.param, entry.master, entry.count, entry.dtype};
    queue.launch_for(Kernel::load_master, entry.count, kForEach, args);
  }
}

// Only what has changed since the last step; sparse gradients go to their kernel as arguments.
void Stepper::send_grads(Queue& queue, const core::Selection& selection) {
  constexpr std::size_t kPerStore = StoreArgs::kMaxBytes / sizeof(GradEntry);
  const auto wanted = [&](std::size_t i) -> GradEntry {
    const Gradient& grad = selection.grad(i);
    return {grad.rows == nullptr ? grad.values : nullptr, grad.dtype};
  };
  for (std::size_t begin = selection.first; begin < selection.last; begin += kPerStore) {
    const std::size_t end = std::min(begin + kPerStore, selection.last);
    bool changed = captured_;  // a graph has stored its own, or will
    for (std::size_t i = begin; i < end; ++i) {
      const GradEntry entry = wanted(i);
      changed |= entry.values != sent_grads_[i].values || entry.dtype != sent_grads_[i].dtype;
      sent_grads_[i] = entry;
    }
    if (changed)
      queue.store(grads_ + begin, &sent_grads_[begin], (end - begin) * sizeof(GradEntry));
  }
}

// Dense gradients where rows must be caught up go row by row too.
bool Stepper::takes_table(std::size_t i, const Gradient& grad) const {
  return grad.rows != nullptr || entries_[i].row_steps != nullptr;
}

Stepper::GradKind Stepper::kind_of(std::size_t i, const Gradient& grad) const {
  if (takes_table(i, grad)) return GradKind::sparse;
  switch (grad.dtype) {
    case DType::float64:
      return GradKind::float64;
    case DType::float16:
      return GradKind::float16;
    case DType::bfloat16:
      return GradKind::bfloat16;
    default:
      return GradKind::float32;
  }
}

Status Stepper::choose_kernels(Queue& queue, const core::Selection& selection) {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const GradKind kind = kind_of(i, selection.grad(i));
    if (kind == kinds_[i]) continue;
    if (captured_) {
      return {StatusCode::bad_state,
              "the type of a gradient must not change once a step was captured in a graph",
              static_cast<std::int64_t>(i)};
    }
    kinds_[i] = kind;
    listed_ = false;
  }
  if (listed_) return queue.status();
  std::vector<Chunk> chunks;
  list_chunks(&chunks);
  chunks_.reserve(queue, std::max<std::size_t>(chunks.size() * sizeof(Chunk), 1));
  queue.copy(chunks_.data(), chunks.data(), chunks.size() * sizeof(Chunk));
  queue.finish();  // `chunks` is about to go; seldom
  listed_ = queue.error() == 0;
  return queue.status();
}

// The chunks of all dense gradients, those of one kernel together.
void Stepper::list_chunks(std::vector<Chunk>* chunks) {
  constexpr DType kTypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};
  constexpr GradKind kKinds[] = {GradKind::float32, GradKind::float64, GradKind::float16,
                                 GradKind::bfloat16};
  const auto add_chunks = [&](std::size_t i) {
    const TensorEntry& entry = entries_[i];
    const auto item = item_size(entry.dtype);
    const auto width = static_cast<std::int64_t>(16 / item_size(real_type(entry.dtype)));
    const bool whole_scales = entry.format == StateFormat::int8;
    const std::int64_t length =
        whole_scales ? kChunk / entry.scale_block * entry.scale_block : kChunk;
    // The first chunk is shorter, so that the others begin where wide accesses may.
    const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(entry.param) /
                                                item % static_cast<std::size_t>(width));
    std::int64_t end = 0;
    for (std::int64_t begin = 0; begin < entry.count; begin = end) {
      end = std::min(begin + length - (begin == 0 && !whole_scales ? past : 0), entry.count);
      chunks->push_back(
          {begin, static_cast<std::int32_t>(end - begin), static_cast<std::int32_t>(i)});
    }
  };
  ranges_.clear();
  for (const DType param : kTypes) {
    for (std::size_t g = 0; g < 4; ++g) {
      ChunkRange range{
          {param, kTypes[g], config_.state_format}, static_cast<std::int64_t>(chunks->size()), 0};
      for (std::size_t i = 0; i < entries_.size(); ++i) {
        if (entries_[i].dtype != param || kinds_[i] != kKinds[g]) continue;
        range_of_[i] = {range.types, static_cast<std::int64_t>(chunks->size()), 0};
        add_chunks(i);
        range_of_[i].last = static_cast<std::int64_t>(chunks->size());
      }
      range.last = static_cast<std::int64_t>(chunks->size());
      if (range.last > range.first) ranges_.push_back(range);
    }
  }
}

void Stepper::send_inputs(Queue& queue, Span<const Rates> rates, double loss_scale) {
  if (loss_scale != sent_loss_scale_ || sent_rates_.empty()) {
    queue.store(loss_scale_, &loss_scale, sizeof(loss_scale));
    sent_loss_scale_ = loss_scale;
  }
  const auto is_same = [](const Rates& a, const Rates& b) {
    return a.learning_rate == b.learning_rate && a.weight_decay == b.weight_decay;
  };
  const std::size_t count = folded_.size();
  if (sent_rates_.size() == count &&
      std::equal(rates.data, rates.data + count, sent_rates_.begin(), is_same)) {
    return;
  }
  sent_rates_.assign(rates.data, rates.data + count);
  queue.store(device_rates_, sent_rates_.data(), count * sizeof(Rates));
}

StepArgs Stepper::step_args() const {
  StepArgs args{};
  args.tensors = tables_.as<TensorEntry>();
  args.grads = grads_;
  args.control = decides_ ? control_ : nullptr;
  args.step = step_;
  args.seed = config_.seed;
  const bool fits = !decides_ && folded_.size() <= StepArgs::kInlineRates;
  args.rates = fits ? nullptr : rate_entries_;
  if (fits) std::copy(folded_.begin(), folded_.end(), args.inline_rates);
  return args;
}

}  // namespace adamas::cuda
