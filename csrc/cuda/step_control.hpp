// Steps that the device decides by itself, because that depends on the gradients' values or because
// graphs replay them: what it is told, what it has counted, and what it refused.
#pragma once

#include <vector>

#include "core/engine.hpp"
#include "cuda/device/device.hpp"
#include "cuda/step_tables.hpp"
#include "cuda/timeline.hpp"

namespace adamas::cuda {

class StepControl {
 public:
  // Options and tensors outlive this object.  The device decides where steps measure gradients or
  // are replayed, and if `decides`.  May be called again, for others.
  void prepare(Queue& queue, const core::Options& options, const std::vector<core::Tensor>& tensors,
               const rules::Reals& reals, bool decides);
  void release(Stream stream);

  // Whether the device decides; else the host does.
  bool decides() const { return decides_; }

  // In device memory: null if the host decides.
  Control* control() const { return decides_ ? control_ : nullptr; }
  // By rates, or after differ() by parameter; the host stores its own there if they are too many to
  // be arguments.
  RateEntry* entries() const { return has_differing() ? apart_.entries : entries_; }
  // By parameter, its place among the entries; null: that of its rates.
  const std::uint32_t* places() const { return decides_ ? apart_.places : nullptr; }

  // From here on parameters may differ in their steps, or in how they are clipped.  The host waits.
  // After an error nothing has changed.  Throws std::bad_alloc.
  void differ(Queue& queue);
  bool has_differing() const { return apart_.places != nullptr; }

  // What is known by rates, in device memory.
  const AdamConfig* groups() const { return groups_; }
  const Rates* rates() const { return rates_; }
  const double* loss_scale() const { return loss_scale_; }

  // Where the host says where the scalars of each parameter stand; after differ().
  const std::uint32_t* send_places(Queue& queue, const std::uint32_t* places);

  // Sends what has changed of the rates, the loss scale and the options of groups.
  void send(Queue& queue, Span<const Rates> rates, double loss_scale);
  // Sends all again next time.
  void forget();
  void forget_groups() { sent_groups_ = false; }

  // Decides on the step at hand, by the sums of squares of the blocks if steps measure.
  void decide(Queue& queue, const StepTables& tables);

  // After the step: brings what the host looks at later.
  void end(Queue& queue);

  // What an earlier step was refused for, as soon as that is known.
  Status report_refusal(Queue& queue, Timeline& timeline);

  // What another has counted, and has not reported yet.
  void take_over(Queue& queue, const StepControl& other);
  void read(Queue& queue, Counters* counters);  // the host waits
  void write(Queue& queue, const Counters& counters);
  void move_steps(Queue& queue, std::int64_t step, Span<const std::int64_t> moved);
  void read_steps(Queue& queue, Span<std::int64_t> steps);  // the host waits
  void write_steps(Queue& queue, Span<const std::int64_t> steps);

 private:
  void sum_groups(Queue& queue, const StepTables& tables);

  // What parameters have that may differ, by parameter.
  struct Apart {
    RateEntry* entries = nullptr;
    rules::RunningPowers* powers = nullptr;
    std::uint32_t* places = nullptr;
    std::int64_t* behind = nullptr;  // steps
    double* squares = nullptr;
    std::uint32_t* by_group = nullptr;       // the parameters of each group, in their order
    std::int64_t* first_of_group = nullptr;  // by rates, among these; and one past the last
  };

  const core::Options* options_ = nullptr;
  const std::vector<core::Tensor>* tensors_ = nullptr;
  std::size_t tensors_count_ = 0;  // that are in use; others may have been added
  bool decides_ = false;
  rules::Reals reals_{};
  std::vector<Rates> sent_rates_;
  double sent_loss_scale_ = 0.0;
  bool sent_groups_ = false;
  std::vector<std::uint32_t> sent_places_;

  Handle pinned_;  // a Control, as it was after a step
  Buffer memory_;  // and the places within
  Control* control_ = nullptr;
  double* loss_scale_ = nullptr;
  AdamConfig* groups_ = nullptr;
  Rates* rates_ = nullptr;
  double* group_squares_ = nullptr;
  RateEntry* entries_ = nullptr;
  rules::RunningPowers* powers_ = nullptr;

  Buffer apart_memory_;
  Apart apart_;  // after differ()
};

}  // namespace adamas::cuda
