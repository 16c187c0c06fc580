// The engine of parameters on a device whose state is, and whose update runs, on the host
// (use_offload): the CPU's engine, on copies.
#pragma once

#include "cpu/engine.hpp"
#include "cuda/offload/copies.hpp"

namespace adamas::cuda {

class OffloadEngine final : public core::Engine {
 public:
  // Takes the device into use.
  static Status open(const AdamConfig& config, std::int32_t device,
                     std::unique_ptr<core::Engine>* engine);

  char* allocate_state(std::size_t nbytes) override { return host_.allocate_state(nbytes); }
  void release_state(char* memory) noexcept override { host_.release_state(memory); }
  Status start(const core::Options& options, const std::vector<core::Tensor>& tensors,
               Span<void* const> after) override;
  Status extend(std::size_t first, Span<void* const> after) override;
  Status accumulate(const core::Selection& all, const core::Accumulation& sums,
                    const core::Ordering& ordering) noexcept override;
  Status step(const core::Selection& all, const core::StepInput& input,
              const core::Ordering& ordering, core::StepResult* result) noexcept override;
  Status begin(const core::StepInput& input) noexcept override { return host_.begin(input); }
  Status apply(const core::Selection& one, const core::Ordering& ordering) noexcept override;
  Status move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept override {
    return host_.move_steps(step, moved);
  }
  Status copy_out(const ArrayCopy& copy) noexcept override;
  Status copy_in(const ArrayCopy& copy) noexcept override;
  Status decode(const core::Tensor& tensor, StateKind kind, float* values) noexcept override {
    return host_.decode(tensor, kind, values);
  }
  void close() noexcept override { broken_ = unusable(); }

 private:
  Status fetch(const core::Selection& selection, const core::Ordering& ordering,
               bool with_parameters, core::Selection* staged) noexcept;
  Status stream(const core::Selection& staged, const core::StepInput& input,
                const core::Ordering& ordering) noexcept;
  Status step_at_once(const core::Selection& staged, const core::StepInput& input,
                      const core::Ordering& ordering, core::StepResult* result) noexcept;
  Status finish(Status sent, const core::Ordering& ordering) noexcept;

  const core::Options* options_ = nullptr;
  const std::vector<core::Tensor>* tensors_ = nullptr;
  Status broken_;  // an error after which the state can't be relied on
  OffloadCopies copies_;
  cpu::Engine host_;
};

}  // namespace adamas::cuda
