#include "cuda/stepper.hpp"

#include <algorithm>
#include <limits>
#include <new>

#include "cuda/fold_rates.hpp"
#include "cuda/library.hpp"

namespace adamas::cuda {
namespace {

constexpr std::int64_t kChunk = 4096;       // elements per block of threads
constexpr std::int64_t kListedPiece = 128;  // elements of a row that a warp takes: of listed rows
constexpr std::int64_t kTablePiece = 512;   // of all rows
constexpr std::int64_t kTableWarps = 4;     // per block of threads
constexpr std::int64_t kForEach = 256;      // items per block of threads
constexpr std::int64_t kSumGroups = 16;     // per block of threads
constexpr std::size_t kAlignment = 256;     // of arrays within a buffer
constexpr const char* kScalars =
    "a learning rate or weight decay is too large for the arithmetic, or the factor of the "
    "gradients too small";

static_assert(kSumTile == core::kTile && kSumBlock == core::kBlock);
static_assert(kMaxScaleBlock == cpu::kLargestScaleBlock);

Status bad(const char* what) { return {StatusCode::invalid_argument, what}; }

Status status_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::scalars:
      return bad(kScalars);
    case Refusal::not_finite:
      return bad(
          "a gradient of an earlier step held a NaN or infinity, so its norm could not be "
          "clipped: that step and this one were not made");
    case Refusal::norm:
      return bad(
          "the norm of the gradients of an earlier step overflowed, so it could not be "
          "clipped: that step and this one were not made");
    default:
      return {};
  }
}

// Lays out arrays one after the other; twice: first without memory, for the size.
class Layout {
 public:
  explicit Layout(char* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    T* array = reinterpret_cast<T*>(memory_ + size_);
    size_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ == nullptr ? nullptr : array;
  }
  std::size_t size() const { return size_; }

 private:
  char* memory_;
  std::size_t size_ = 0;
};

// Reserves what `lay_out` takes, and places its arrays.
template <class LayOut>
void place(Queue& queue, Buffer& buffer, LayOut lay_out) {
  Layout sizes(nullptr);
  lay_out(sizes);
  buffer.reserve(queue, sizes.size());
  if (queue.error() != 0) return;
  Layout places(buffer.as<char>());
  lay_out(places);
}

int bits_of_rows(std::int64_t rows) {
  int bits = 1;
  while (bits < 63 && (std::int64_t{1} << bits) < rows) ++bits;
  return bits;
}

}  // namespace

Status Stepper::open(std::int32_t device, std::unique_ptr<Stepper>* stepper) {
  const DeviceApi* api = library();
  if (api == nullptr) return {StatusCode::unavailable, "CUDA can't be used"};
  std::unique_ptr<Stepper> made(new Stepper);
  made->device_ = {api, device};
  int devices = 0;
  Error error = api->count(&devices);
  if (error == 0 && device >= devices) return bad("there is no such device");
  if (error == 0) error = made->stream_.create(made->device_, Handle::Kind::stream);
  if (error == 0) error = made->last_event_->create(made->device_, Handle::Kind::event);
  if (error == 0) error = made->arrival_.create(made->device_, Handle::Kind::event);
  if (error == 0) *stepper = std::move(made);
  return Device{api, device}.status(error);
}

// Waits for the last step, which uses the memory.
Stepper::~Stepper() {
  const DeviceScope scope(device_);
  if (has_last_) device_.api->wait_for_event(last_event_->get());
  if (captured_) device_.api->wait_for_device();
  for (Buffer* buffer :
       {&state_, &tables_, &blocks_, &chunks_, &rows_, &rates_, &flags_, &scratch_}) {
    buffer->release(stream_.get());
  }
  for (const auto& sparse : sparse_) {
    if (sparse) sparse->memory.release(stream_.get());
  }
}

char* Stepper::allocate_state(std::size_t nbytes) {
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  state_.reserve(queue, std::max<std::size_t>(nbytes, 1));
  queue.fill(state_.data(), 0, nbytes);
  return queue.error() == 0 ? state_.as<char>() : nullptr;
}

Status Stepper::prepare(const AdamConfig& config, const core::Storage& storage,
                        std::size_t rates_count, Span<void* const> after) {
  config_ = config;
  storage_ = &storage;
  decides_ = measures() || config.capturable;
  plan_ = core::make_plan(storage.tensors());
  const std::size_t count = storage.tensors().size();
  has_float32_ = std::any_of(storage.tensors().begin(), storage.tensors().end(),
                             [](const core::Tensor& t) { return t.real == DType::float32; });
  folded_.resize(rates_count);
  sparse_.resize(count);
  kinds_.assign(count, GradKind::none);
  range_of_.resize(count);
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  void* const default_stream = nullptr;
  queue.wait_for_streams({&default_stream, 1}, arrival_.get());
  queue.wait_for_streams(after, arrival_.get());
  prepare_rows(queue);
  prepare_tensors(queue);
  prepare_blocks(queue);
  load_masters(queue);
  queue.finish();
  return queue.status();
}

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

// An error of the device may have left an update half done: then nothing more is done.
Status Stepper::finish(Queue& queue) noexcept {
  if (queue.error() == 0) return {};
  listed_ = false;
  sent_grads_.assign(sent_grads_.size(), {nullptr, DType::float32});
  sent_rates_.clear();
  if (queue.has_touched()) close();
  return queue.status();
}

void Stepper::close() noexcept {
  broken_ = {StatusCode::device_error,
             "the device failed in an earlier step, so the parameters and the state can't be "
             "relied on: make a new optimizer"};
}

Status Stepper::set_counters(const Counters& counters) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  order_after_all(queue);
  Control control{};
  control.step = counters.global_step;
  control.skipped_steps = counters.skipped_steps;
  control.last_grad_norm = counters.last_grad_norm;
  control.last_step_skipped = counters.last_step_skipped ? 1 : 0;
  control.power1 = 1.0F;
  control.power2 = 1.0F;
  queue.store(control_, &control, sizeof(control));
  queue.copy(pinned_.get(), control_, sizeof(control));
  queue.finish();
  return queue.status();
}

// On the same stream too: that costs the device nothing, and one handle may name several streams
// (those of threads, and a new one that got the address of one that is gone).
void Stepper::order_after_last(Queue& queue) noexcept {
  if (has_last_) queue.wait_for(last_event_->get());
}

// Graphs that hold a step may be replayed on any stream.
void Stepper::order_after_all(Queue& queue) noexcept {
  if (captured_ && queue.error() == 0) queue.note(device_.api->wait_for_device());
  order_after_last(queue);
}

Status Stepper::fold(Span<const Rates> rates, const rules::Corrections& corrections,
                     std::int64_t step, double factor) noexcept {
  if (!broken_.ok()) return broken_;
  step_ = step;
  for (std::size_t k = 0; k < folded_.size(); ++k) {
    if (!fold_rates(config_, rates[k], corrections, factor, has_float32_, &folded_[k])) {
      return bad(kScalars);
    }
  }
  return {};
}

Status Stepper::update(const core::Selection& selection, const Place& place) noexcept {
  return decide_and_update(selection, {}, 1.0, place);
}

Status Stepper::decide_and_update(const core::Selection& selection, Span<const Rates> rates,
                                  double loss_scale, const Place& place) noexcept {
  try {
    return run(selection, rates, loss_scale, place);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the step"};
  }
}

Status Stepper::run(const core::Selection& selection, Span<const Rates> rates, double loss_scale,
                    const Place& place) {
  if (!broken_.ok()) return broken_;
  const DeviceScope scope(device_);
  Queue queue(device_, place.queueing.stream);
  queue.note(scope.error());
  queue.note(device_.api->is_capturing(queue.stream(), &capturing_));
  if (queue.error() != 0) return finish(queue);
  if (capturing_) {
    if (Status status = check_capture(selection); !status.ok()) return status;
  } else if (decides_) {
    if (Status status = report_refusal(queue.stream()); !status.ok()) return status;
  }
  begin(queue, place);
  Status status = sort_rows(queue, selection);
  if (status.ok()) send_grads(queue, selection);
  if (status.ok()) status = choose_kernels(queue, selection);
  if (!status.ok()) {
    static_cast<void>(finish(queue));  // the same, or nothing
    return status;
  }
  queue_decision(queue, selection, rates, loss_scale);
  queue.touch();
  queue_update(queue, selection);
  end(queue, place);
  return finish(queue);
}

// What can't be part of a graph.
Status Stepper::check_capture(const core::Selection& selection) const {
  if (!config_.capturable) {
    return {StatusCode::bad_state, "a step can be captured in a graph with capturable=True only"};
  }
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (selection.grad(i).rows != nullptr) {
      return {StatusCode::bad_state, "a step with a sparse gradient can't be captured in a graph",
              static_cast<std::int64_t>(i)};
    }
    if (listed_ && kind_of(i, selection.grad(i)) == kinds_[i]) continue;
    return {StatusCode::bad_state,
            "make a step with gradients of the same types before one is captured in a graph"};
  }
  return {};
}

// After producers, our last step, and the last of whoever shares memory and locks.  A graph that is
// being captured comes after what its stream comes after.
void Stepper::begin(Queue& queue, const Place& place) {
  if (capturing_) {
    captured_ = true;
    return;
  }
  queue.wait_for_streams(place.queueing.after, arrival_.get());
  order_after_last(queue);
  for (const core::RangeLock* lock : place.locks) {
    if (lock->done && lock->done != last_event_) queue.wait_for(lock->done->get());
  }
}

void Stepper::end(Queue& queue, const Place& place) {
  if (decides_) queue.copy(pinned_.get(), control_, sizeof(Control));
  if (capturing_) return;
  queue.record(last_event_->get());
  has_last_ = true;
  for (core::RangeLock* lock : place.locks) lock->done = last_event_;
}

// With which scalars the step is made, and if the device decides, whether.
void Stepper::queue_decision(Queue& queue, const core::Selection& selection,
                             Span<const Rates> rates, double loss_scale) {
  if (!decides_) {
    if (folded_.size() <= StepArgs::kInlineRates) return;
    queue.store(rate_entries_, folded_.data(), folded_.size() * sizeof(RateEntry));
    return;
  }
  if (!capturing_) send_inputs(queue, rates, loss_scale);
  if (measures()) measure(queue, selection);
  queue.touch();
  queue.launch(Kernel::decide, 1,
               DecideArgs{config_, control_, loss_scale_, device_rates_, rate_entries_,
                          static_cast<std::int32_t>(folded_.size()), measures(), has_float32_,
                          squares_, static_cast<std::int64_t>(plan_.blocks.size())});
}

Status Stepper::set_rates(Span<const Rates> rates, double loss_scale, Stream stream) noexcept {
  if (!broken_.ok()) return broken_;
  const DeviceScope scope(device_);
  Queue queue(device_, stream);
  queue.note(scope.error());
  order_after_last(queue);
  send_inputs(queue, rates, loss_scale);
  queue.record(last_event_->get());
  has_last_ = true;
  return finish(queue);
}

bool Stepper::is_capturing(Stream stream) const noexcept {
  bool capturing = false;
  return device_.api->is_capturing(stream, &capturing) == 0 && capturing;
}

// Raises what an earlier step was refused for, as soon as that is known.
Status Stepper::report_refusal(Stream stream) noexcept {
  bool finished = false;
  if (!has_last_) return {};
  Queue queue(device_, stream);
  queue.note(device_.api->is_finished(last_event_->get(), &finished));
  if (!finished || queue.error() != 0) return finish(queue);
  auto* control = pinned_.as<Control>();
  if (control->refusal == Refusal::none) return {};
  const Status status = status_of(control->refusal);
  constexpr Refusal kNoRefusal = Refusal::none;
  control->refusal = kNoRefusal;
  order_after_last(queue);
  queue.store(&control_->refusal, &kNoRefusal, sizeof(kNoRefusal));
  queue.record(last_event_->get());
  const Status failed = finish(queue);
  return failed.ok() ? status : failed;
}

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

void Stepper::measure(Queue& queue, const core::Selection& selection) {
  const auto blocks = static_cast<std::int64_t>(plan_.blocks.size());
  bool any_sparse = false;
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    any_sparse |= selection.grad(i).rows != nullptr;
  }
  if (any_sparse) queue.fill(squares_, 0, plan_.blocks.size() * sizeof(double));
  queue.launch(Kernel::measure, std::min<std::int64_t>(blocks, 0x7fffffff),
               MeasureArgs{grads_, blocks_.as<Chunk>(), blocks, squares_, control_});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    const core::Tensor& tensor = storage_->tensors()[i];
    if (grad.rows == nullptr || grad.rows->count == 0 || tensor.spec.count == 0) continue;
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

void Stepper::queue_update(Queue& queue, const core::Selection& selection) {
  centralize(queue, selection);
  update_dense(queue, selection);
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (takes_table(i, selection.grad(i))) update_table(queue, selection, i);
  }
}

void Stepper::centralize(Queue& queue, const core::Selection& selection) {
  const std::int64_t first = first_work_[selection.first];
  const std::int64_t count = first_work_[selection.last] - first;
  if (count == 0) return;
  queue.launch(Kernel::row_sums, std::min<std::int64_t>(count, 0x7fffffff),
               RowSumsArgs{step_args(), rows_.as<Chunk>() + first, count});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (entries_[i].means == nullptr) continue;
    const std::int64_t rows = storage_->tensors()[i].spec.rows;
    queue.launch_for(Kernel::row_means, rows, kForEach,
                     RowMeansArgs{tables_.as<TensorEntry>(), static_cast<std::int32_t>(i), rows});
  }
}

void Stepper::update_dense(Queue& queue, const core::Selection& selection) {
  const auto launch = [&](const ChunkRange& range) {
    const std::int64_t count = range.last - range.first;
    queue.launch(Kernel::dense, std::min<std::int64_t>(count, 0x7fffffff),
                 DenseArgs{step_args(), chunks_.as<Chunk>() + range.first, count}, range.types);
  };
  if (selection.last - selection.first == entries_.size()) {
    std::for_each(ranges_.begin(), ranges_.end(), launch);
  } else if (kinds_[selection.first] != GradKind::sparse) {
    launch(range_of_[selection.first]);
  }
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
  args.decays_entries = !decays_all_rows(config_);
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

Status Stepper::outcome(Control* control) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  order_after_all(queue);
  queue.copy(pinned_.get(), control_, sizeof(Control));
  queue.finish();
  if (queue.error() == 0) *control = *pinned_.as<Control>();
  return queue.status();
}

Status Stepper::set_global_step(std::int64_t step, std::int64_t moved) noexcept {
  if (!broken_.ok()) return broken_;
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  order_after_all(queue);
  queue.touch();
  if (decides_) queue.store(&control_->step, &step, sizeof(step));
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].row_steps == nullptr || moved == 0) continue;
    const std::int64_t rows = storage_->tensors()[i].spec.rows;
    queue.launch_for(Kernel::add_row_steps, rows, kForEach,
                     AddRowStepsArgs{entries_[i].row_steps, rows, moved});
  }
  queue.finish();
  return finish(queue);
}

Status Stepper::read(const void* device, void* host, std::size_t nbytes) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, stream_.get());
  queue.note(scope.error());
  order_after_all(queue);
  queue.copy(host, device, nbytes);
  queue.finish();
  return queue.status();
}

Status Stepper::write(void* device, const void* host, std::size_t nbytes) noexcept {
  return read(host, device, nbytes);
}

}  // namespace adamas::cuda
