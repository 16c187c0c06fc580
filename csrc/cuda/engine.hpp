// The engine of parameters on a CUDA device.
//
// Everything is queued on the caller's stream, and the host waits for nothing but the check of row
// indices.  Steps are decided by the host, as on the CPU, or on the device where that depends on
// the gradients' values or a graph replays them (cuda/step_control.hpp).
#pragma once

#include <list>
#include <memory>

#include "core/engine.hpp"
#include "core/rate_folder.hpp"
#include "cuda/step_control.hpp"
#include "cuda/stepper.hpp"
#include "cuda/timeline.hpp"

namespace adamas::cuda {

class Engine final : public core::Engine {
 public:
  // Takes the device into use.
  static Status open(std::int32_t device, std::unique_ptr<core::Engine>* engine);
  ~Engine() override;

  std::int32_t device() const override { return device_.ordinal; }
  char* allocate_state(std::size_t nbytes) override;
  void release_state(char* memory) noexcept override;
  std::size_t access_width() const override { return 16; }
  Status start(const core::Options& options, const std::vector<core::Tensor>& tensors,
               Span<void* const> after) override;
  Status extend(std::size_t first, Span<void* const> after) override;
  Status accumulate(const core::Selection& all, const core::Accumulation& sums,
                    const core::Ordering& ordering) noexcept override;
  Status take_options() noexcept override;
  Status allow_differing_steps(void* stream) noexcept override;
  Status step(const core::Selection& all, const core::StepInput& input,
              const core::Ordering& ordering, core::StepResult* result) noexcept override;
  Status begin(const core::StepInput& input) noexcept override;
  Status apply(const core::Selection& one, const core::Ordering& ordering) noexcept override;
  Status move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept override;
  Status copy_out(const ArrayCopy& copy) noexcept override;
  Status copy_in(const ArrayCopy& copy) noexcept override;
  Status decode(const core::Tensor& tensor, StateKind kind, float* values) noexcept override;
  void close() noexcept override;

  bool counts_steps() const override { return control_->decides(); }
  Status read_counters(Counters* counters) noexcept override;
  Status write_counters(const Counters& counters) noexcept override;
  Status read_steps(Span<std::int64_t> steps) noexcept override;
  Status write_steps(Span<const std::int64_t> steps) noexcept override;
  Status send_rates(Span<const Rates> rates, double loss_scale, void* stream) noexcept override;
  bool is_capturing(void* stream) const noexcept override;
  Status read(const void* device, void* host, std::size_t nbytes) noexcept override;

 private:
  template <class Work>
  Status queue_work(Stream stream, Work work) noexcept;
  Status finish(Queue& queue) noexcept;
  void note_clipping() noexcept;
  Status check_capture(const core::Selection& selection) const;
  Status queue_step(Queue& queue, const core::Selection& selection, const core::StepInput* input,
                    const core::Ordering& ordering);

  Device device_;
  const core::Options* options_ = nullptr;
  bool can_measure_ = false;   // has reserved what that takes
  bool clips_groups_ = false;  // how steps are queued, and graphs replay them
  bool clips_apart_ = false;
  const std::vector<core::Tensor>* tensors_ = nullptr;
  Status broken_;  // an error after which the state can't be relied on
  Timeline timeline_;
  std::list<Buffer> state_;
  core::RateFolder rates_;
  std::unique_ptr<StepControl> control_;
  std::unique_ptr<Stepper> stepper_;
};

}  // namespace adamas::cuda
