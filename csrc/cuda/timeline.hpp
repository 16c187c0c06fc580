// When the steps of one optimizer come on its device: after whose work, and whether as part of a
// graph.
#pragma once

#include <memory>

#include "core/engine.hpp"
#include "cuda/device/device.hpp"

namespace adamas::cuda {

class Timeline {
 public:
  Status open(const Device& device);

  // For work that no caller has a stream for.
  Stream stream() const { return stream_.get(); }

  // Finds out whether the step at hand is to be part of a graph.
  void look(Queue& queue);
  bool is_capturing() const { return is_capturing_; }
  // Whether some step was: graphs refer to device memory from then on.
  bool has_captured() const { return has_captured_; }

  // The step at hand comes after the work that it depends on; the next one after it.
  void begin(Queue& queue, const core::Ordering& ordering);
  void end(Queue& queue, const core::Ordering& ordering);

  // What is queued next comes after what is in these streams, and the default one, now.
  void follow_streams(Queue& queue, Span<void* const> streams);
  // After the last step.
  void follow_last(Queue& queue);
  // After replays of graphs too, for which the host waits.
  void follow_all(Queue& queue);

  // What was queued counts as part of the last step.
  void extend_last(Queue& queue);
  // Whether the last step is done; false if there was none.
  bool is_last_done(Queue& queue);

  // The host waits for everything.
  void wait();

 private:
  // When the last step is done.
  struct LastStep : core::Completion {
    Device device;
    Handle event;

    void wait() noexcept override;
  };

  Device device_;
  Handle stream_;
  Handle arrival_;  // an event: when producers are done
  // Shared with the locks of its memory.
  std::shared_ptr<LastStep> last_ = std::make_shared<LastStep>();
  bool has_last_ = false;
  bool is_capturing_ = false;
  bool has_captured_ = false;
};

}  // namespace adamas::cuda
