#include "cuda/stepper.hpp"

#include <algorithm>
#include <new>

#include "core/checks.hpp"
#include "cuda/device/library.hpp"

namespace adamas::cuda {

namespace {

using core::bad;

static_assert(kSumTile == core::kTile && kSumBlock == core::kBlock);
static_assert(kMaxScaleBlock == cpu::kLargestScaleBlock);

Status status_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::scalars:
      return bad(core::kScalarsOutOfRange);
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
    if (!rules::fold_rates(config_, rates[k], corrections, factor, has_float32_, &folded_[k])) {
      return bad(core::kScalarsOutOfRange);
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

void Stepper::measure(Queue& queue, const core::Selection& selection) {
  const auto blocks = static_cast<std::int64_t>(plan_.blocks.size());
  bool any_sparse = false;
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    any_sparse |= selection.grad(i).rows != nullptr;
  }
  if (any_sparse) queue.fill(squares_, 0, plan_.blocks.size() * sizeof(double));
  queue.launch_for(Kernel::measure, blocks, 1,
                   MeasureArgs{grads_, blocks_.as<Chunk>(), blocks, squares_, control_});
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    measure_rows(queue, selection, i);
  }
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
  queue.launch_for(Kernel::row_sums, count, 1,
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
    queue.launch_for(Kernel::dense, count, 1,
                     DenseArgs{step_args(), chunks_.as<Chunk>() + range.first, count}, range.types);
  };
  if (selection.last - selection.first == entries_.size()) {
    std::for_each(ranges_.begin(), ranges_.end(), launch);
  } else if (kinds_[selection.first] != GradKind::sparse) {
    launch(range_of_[selection.first]);
  }
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
