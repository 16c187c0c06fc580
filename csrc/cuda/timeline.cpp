#include "cuda/timeline.hpp"

namespace adamas::cuda {

void Timeline::LastStep::wait() noexcept {
  const DeviceScope scope(device);
  device.api->wait_for_event(event.get());
}

Status Timeline::open(const Device& device) {
  device_ = device;
  last_->device = device;
  Error error = stream_.create(device, Handle::Kind::stream);
  if (error == 0) error = last_->event.create(device, Handle::Kind::event);
  if (error == 0) error = arrival_.create(device, Handle::Kind::event);
  return device.status(error);
}

void Timeline::look(Queue& queue) {
  queue.note(device_.api->is_capturing(queue.stream(), &is_capturing_));
}

// After producers, our last step, and the last of whoever shares memory and locks.  A graph that is
// being captured comes after what its stream comes after.
void Timeline::begin(Queue& queue, const core::Ordering& ordering) {
  if (is_capturing_) {
    has_captured_ = true;
    return;
  }
  queue.wait_for_streams(ordering.queueing.after, arrival_.get());
  follow_last(queue);
  for (const core::RangeLock* lock : ordering.locks) {
    if (!lock->last || lock->last == last_) continue;
    if (const auto* other = dynamic_cast<const LastStep*>(lock->last.get())) {
      queue.wait_for(other->event.get());
    } else {
      lock->last->wait();
    }
  }
}

void Timeline::end(Queue& queue, const core::Ordering& ordering) {
  if (is_capturing_) return;
  extend_last(queue);
  for (core::RangeLock* lock : ordering.locks) lock->last = last_;
}

void Timeline::follow_streams(Queue& queue, Span<void* const> streams) {
  void* const default_stream = nullptr;
  queue.wait_for_streams({&default_stream, 1}, arrival_.get());
  queue.wait_for_streams(streams, arrival_.get());
}

// On the same stream too: that costs the device nothing, and one handle may name several streams
// (those of threads, and a new one that got the address of one that is gone).
void Timeline::follow_last(Queue& queue) {
  if (has_last_) queue.wait_for(last_->event.get());
}

// Graphs that hold a step may be replayed on any stream.
void Timeline::follow_all(Queue& queue) {
  if (has_captured_ && queue.error() == 0) queue.note(device_.api->wait_for_device());
  follow_last(queue);
}

void Timeline::extend_last(Queue& queue) {
  queue.record(last_->event.get());
  has_last_ = true;
}

bool Timeline::is_last_done(Queue& queue) {
  bool is_done = false;
  if (has_last_) queue.note(device_.api->is_finished(last_->event.get(), &is_done));
  return is_done && queue.error() == 0;
}

void Timeline::wait() {
  if (has_last_) device_.api->wait_for_event(last_->event.get());
  if (has_captured_) device_.api->wait_for_device();
}

}  // namespace adamas::cuda
