#include "cuda/engine.hpp"

#include <algorithm>
#include <new>

#include "core/checks.hpp"
#include "core/layout.hpp"
#include "cpu/kernels/isa.hpp"
#include "cpu/tiles.hpp"

namespace adamas::cuda {

Status Engine::open(std::int32_t device, std::unique_ptr<core::Engine>* engine) {
  auto made = std::make_unique<Engine>();
  Status status = open_device(device, &made->device_);
  if (status.ok()) status = made->timeline_.open(made->device_);
  if (status.ok()) *engine = std::move(made);
  return status;
}

// Waits for the last step, which uses the memory.
Engine::~Engine() {
  if (device_.api == nullptr) return;
  const DeviceScope scope(device_);
  timeline_.wait();
  for (Buffer& state : state_) state.release(timeline_.stream());
  if (control_) control_->release(timeline_.stream());
  if (stepper_) stepper_->release(timeline_.stream());
}

// Queues `work`, which takes the queue and may return an error of its own.
template <class Work>
Status Engine::queue_work(Stream stream, Work work) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, stream);
  queue.note(scope.error());
  Status status;
  try {
    if (queue.error() == 0) status = work(queue);
  } catch (const std::bad_alloc&) {
    status = {StatusCode::out_of_memory, "no memory for the step"};
  }
  const Status failed = finish(queue);
  return failed.ok() ? status : failed;
}

// An error of the device may have left an update half done: then nothing more is done.
Status Engine::finish(Queue& queue) noexcept {
  if (queue.error() == 0) return {};
  if (stepper_) stepper_->forget();
  if (control_) control_->forget();
  if (queue.has_touched()) close();
  return queue.status();
}

void Engine::close() noexcept { broken_ = unusable(); }

char* Engine::allocate_state(std::size_t nbytes) {
  Buffer& state = state_.emplace_back();
  const Status status = queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    state.reserve(queue, std::max<std::size_t>(nbytes, 1));
    queue.fill(state.data(), 0, nbytes);
    queue.finish();
    return {};
  });
  if (status.ok()) return state.as<char>();
  state.release(timeline_.stream());
  state_.pop_back();
  return nullptr;
}

void Engine::release_state(char* memory) noexcept {
  const auto wait = [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    return {};
  };
  static_cast<void>(queue_work(timeline_.stream(), wait));  // the next call meets an error again
  const DeviceScope scope(device_);
  state_.remove_if([&](Buffer& state) {
    if (state.data() != memory) return false;
    state.release(timeline_.stream());
    return true;
  });
}

Status Engine::start(const core::Options& options, const std::vector<core::Tensor>& tensors,
                     Span<void* const> after) {
  options_ = &options;
  tensors_ = &tensors;
  note_clipping();
  rates_.prepare(options, tensors);
  if (!control_) control_ = std::make_unique<StepControl>();
  if (!stepper_) stepper_ = std::make_unique<Stepper>();
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_streams(queue, after);
    timeline_.follow_all(queue);
    control_->prepare(queue, options, tensors, rates_.reals(), false);
    stepper_->prepare(queue, options, tensors, *control_, 0);
    queue.finish();
    return {};
  });
}

// With tables and counters made anew; what was counted is taken along.
Status Engine::extend(std::size_t first, Span<void* const> after) {
  if (!broken_.ok()) return broken_;
  if (timeline_.has_captured()) {
    return {StatusCode::bad_state,
            "parameters can't be added any more once a step was captured in a graph"};
  }
  auto control = std::make_unique<StepControl>();
  auto stepper = std::make_unique<Stepper>();
  std::vector<std::int64_t> steps(tensors_->size());
  core::RateFolder rates;
  rates.prepare(*options_, *tensors_);
  Status status = queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_streams(queue, after);
    timeline_.follow_all(queue);
    control->prepare(queue, *options_, *tensors_, rates.reals(), control_->decides());
    if (control_->decides()) {
      control_->read_steps(queue, {steps.data(), first});
      control->take_over(queue, *control_);
      control->write_steps(queue, steps);
    }
    if (control_->has_differing()) control->differ(queue);
    stepper->prepare(queue, *options_, *tensors_, *control, first);
    queue.finish();
    return {};
  });
  if (!status.ok()) {
    control->release(timeline_.stream());
    stepper->release(timeline_.stream());
    return status;
  }
  control_->release(timeline_.stream());
  stepper_->release(timeline_.stream());
  rates_ = std::move(rates);
  control_ = std::move(control);
  stepper_ = std::move(stepper);
  note_clipping();
  return {};
}

// How all that has been prepared can clip, and graphs replay it.
void Engine::note_clipping() noexcept {
  can_measure_ = options_->measures();
  clips_groups_ = options_->clips_groups();
  clips_apart_ = options_->clips_apart();
}

Status Engine::take_options() noexcept {
  if (!broken_.ok()) return broken_;
  const bool clips_groups = options_->clips_groups();
  const bool clips_apart = options_->clips_apart();
  if (options_->measures() && !can_measure_) {
    return {StatusCode::bad_state,
            "on a device, clipping can't be turned on once an optimizer is made without"};
  }
  if (timeline_.has_captured() && (clips_groups != clips_groups_ || clips_apart != clips_apart_)) {
    return {StatusCode::bad_state,
            "how groups are clipped can't be changed any more once a step was captured in a graph"};
  }
  if (control_->decides() && clips_apart) {
    if (Status status = allow_differing_steps(nullptr); !status.ok()) return status;
  }
  clips_groups_ = clips_groups;
  clips_apart_ = clips_apart;
  control_->forget_groups();
  return {};
}

Status Engine::allow_differing_steps(void* stream) noexcept {
  if (!broken_.ok()) return broken_;
  if (control_->has_differing()) return {};
  if (timeline_.has_captured()) {
    return {StatusCode::bad_state,
            "parameters can't begin to differ in their steps once one was captured in a graph"};
  }
  if (is_capturing(stream)) {
    return {StatusCode::bad_state,
            "make a step that leaves out a parameter before one is captured in a graph"};
  }
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    control_->differ(queue);
    queue.finish();
    return {};
  });
}

// What can't be part of a graph.
Status Engine::check_capture(const core::Selection& selection) const {
  if (!options_->all.capturable) {
    return {StatusCode::bad_state, "a step can be captured in a graph with capturable=True only"};
  }
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (selection.grad(i).rows == nullptr || selection.grad(i).is_absent) continue;
    return {StatusCode::bad_state, "a step with a sparse gradient can't be captured in a graph",
            static_cast<std::int64_t>(i)};
  }
  if (stepper_->is_ready(selection)) return {};
  return {StatusCode::bad_state,
          "make a step with gradients of the same types before one is captured in a graph"};
}

// One step, or a part of one that was begun: then there is no `input`.
Status Engine::queue_step(Queue& queue, const core::Selection& selection,
                          const core::StepInput* input, const core::Ordering& ordering) {
  timeline_.look(queue);
  if (queue.error() != 0) return {};
  if (timeline_.is_capturing()) {
    if (Status status = check_capture(selection); !status.ok()) return status;
  } else if (control_->decides()) {
    Status status = control_->report_refusal(queue, timeline_);
    if (!status.ok() || queue.error() != 0) return status;
  }
  timeline_.begin(queue, ordering);
  Status status = stepper_->begin(queue, selection, timeline_.has_captured());
  if (!status.ok()) return status;
  if (control_->decides()) {
    if (!timeline_.is_capturing()) control_->send(queue, input->rates, input->loss_scale);
    if (options_->measures()) stepper_->measure(queue, selection);
    queue.touch();
    control_->decide(queue, stepper_->tables());
  }
  stepper_->update(queue, selection, rates_);
  control_->end(queue);
  timeline_.end(queue, ordering);
  return {};
}

Status Engine::step(const core::Selection& all, const core::StepInput& input,
                    const core::Ordering& ordering, core::StepResult*) noexcept {
  if (!broken_.ok()) return broken_;
  if (!control_->decides()) {
    Status status = rates_.fold(input, {rules::factor_of(options_->all, 1.0, input.loss_scale)});
    if (!status.ok()) return status;
  }
  return queue_work(ordering.queueing.stream,
                    [&](Queue& queue) { return queue_step(queue, all, &input, ordering); });
}

Status Engine::accumulate(const core::Selection& all, const core::Accumulation& sums,
                          const core::Ordering& ordering) noexcept {
  if (!broken_.ok()) return broken_;
  return queue_work(ordering.queueing.stream, [&](Queue& queue) -> Status {
    timeline_.look(queue);
    if (timeline_.is_capturing()) {
      return {StatusCode::bad_state, "gradients can't be accumulated in a graph"};
    }
    timeline_.begin(queue, ordering);
    stepper_->accumulate(queue, all, sums);
    timeline_.end(queue, ordering);
    return {};
  });
}

Status Engine::begin(const core::StepInput& input) noexcept {
  if (control_->decides()) {
    return {StatusCode::bad_state, "a capturable optimizer makes whole steps"};
  }
  if (!broken_.ok()) return broken_;
  return rates_.fold(input, {rules::factor_of(options_->all, 1.0, input.loss_scale)});
}

Status Engine::apply(const core::Selection& one, const core::Ordering& ordering) noexcept {
  if (!broken_.ok()) return broken_;
  return queue_work(ordering.queueing.stream,
                    [&](Queue& queue) { return queue_step(queue, one, nullptr, ordering); });
}

Status Engine::move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept {
  if (!broken_.ok()) return broken_;
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    queue.touch();
    control_->move_steps(queue, step, moved);
    stepper_->add_row_steps(queue, moved);
    queue.finish();
    return {};
  });
}

Status Engine::read_counters(Counters* counters) noexcept {
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    control_->read(queue, counters);
    return {};
  });
}

Status Engine::write_counters(const Counters& counters) noexcept {
  if (!control_->decides()) return {};
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    control_->write(queue, counters);
    queue.finish();
    return {};
  });
}

Status Engine::read_steps(Span<std::int64_t> steps) noexcept {
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    control_->read_steps(queue, steps);
    return {};
  });
}

// Without any, all are as many as the optimizer's.
Status Engine::write_steps(Span<const std::int64_t> steps) noexcept {
  if (!control_->decides()) return {};
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    control_->write_steps(queue, steps);
    return {};
  });
}

Status Engine::send_rates(Span<const Rates> rates, double loss_scale, void* stream) noexcept {
  if (!control_->decides()) return core::Engine::send_rates(rates, loss_scale, stream);
  if (!broken_.ok()) return broken_;
  return queue_work(stream, [&](Queue& queue) -> Status {
    timeline_.follow_last(queue);
    control_->send(queue, rates, loss_scale);
    timeline_.extend_last(queue);
    return {};
  });
}

bool Engine::is_capturing(void* stream) const noexcept {
  bool capturing = false;
  return device_.api->is_capturing(stream, &capturing) == 0 && capturing;
}

Status Engine::read(const void* device, void* host, std::size_t nbytes) noexcept {
  return queue_work(timeline_.stream(), [&](Queue& queue) -> Status {
    timeline_.follow_all(queue);
    queue.copy(host, device, nbytes);
    queue.finish();
    return {};
  });
}

Status Engine::copy_out(const ArrayCopy& copy) noexcept {
  return read((*tensors_)[copy.parameter].array(copy.kind), copy.data, copy.nbytes);
}

Status Engine::copy_in(const ArrayCopy& copy) noexcept {
  return write((*tensors_)[copy.parameter].array(copy.kind), copy.data, copy.nbytes);
}

// On the host, from copies of what is stored.
Status Engine::decode(const core::Tensor& tensor, StateKind kind, float* values) noexcept {
  constexpr StateKind kStored[] = {StateKind::moment1, StateKind::moment2, StateKind::scale1,
                                   StateKind::scale2};
  try {
    core::Tensor copy = tensor;
    std::vector<char> copies[std::size(kStored)];
    for (std::size_t k = 0; k < std::size(kStored); ++k) {
      const char* stored = tensor.state(kStored[k]);
      if (stored == nullptr) continue;
      copies[k].resize(core::layout_of(kStored[k], tensor, options_->all).nbytes());
      Status status = read(stored, copies[k].data(), copies[k].size());
      if (!status.ok()) return status;
      copy.states[static_cast<std::size_t>(kStored[k])] = copies[k].data();
    }
    cpu::decode_moment(cpu::kernels(), copy, kind, values);
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory to decode a moment"};
  }
}

}  // namespace adamas::cuda
