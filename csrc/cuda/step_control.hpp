// Steps that the device decides by itself, because that depends on the gradients' values or because
// graphs replay them: what it is told, what it has counted, and what it refused.
#pragma once

#include <vector>

#include "core/engine.hpp"
#include "cuda/device/device.hpp"
#include "cuda/timeline.hpp"

namespace adamas::cuda {

class StepControl {
 public:
  void prepare(Queue& queue, const AdamConfig& config, std::size_t rates_count, bool has_float32);
  void release(Stream stream) { memory_.release(stream); }

  // Whether the device decides; else the host does.
  bool decides() const { return decides_; }

  // In device memory: null if the host decides.
  Control* control() const { return decides_ ? control_ : nullptr; }
  // By rates; the host stores its own there if they are too many to be arguments.
  RateEntry* entries() const { return entries_; }

  // Sends what has changed of the rates and the loss scale.
  void send(Queue& queue, Span<const Rates> rates, double loss_scale);
  // Sends all again next time.
  void forget() { sent_rates_.clear(); }

  // Decides on the step at hand, by the sums of squares of the blocks if steps measure.
  void decide(Queue& queue, const double* squares, std::int64_t blocks);

  // After the step: brings what the host looks at later.
  void end(Queue& queue);

  // What an earlier step was refused for, as soon as that is known.
  Status report_refusal(Queue& queue, Timeline& timeline);

  void read(Queue& queue, Counters* counters);  // the host waits
  void write(Queue& queue, const Counters& counters);
  void set_step(Queue& queue, std::int64_t step);

 private:
  AdamConfig config_;
  bool decides_ = false;
  bool has_float32_ = false;
  std::vector<Rates> sent_rates_;
  double sent_loss_scale_ = 0.0;
  std::size_t rates_count_ = 0;

  Handle pinned_;  // a Control, as it was after a step
  Buffer memory_;  // and the places within
  Control* control_ = nullptr;
  double* loss_scale_ = nullptr;
  Rates* rates_ = nullptr;
  RateEntry* entries_ = nullptr;
};

}  // namespace adamas::cuda
