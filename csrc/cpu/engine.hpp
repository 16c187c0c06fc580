// The engine of parameters in the host's memory; cuda/offload/engine.hpp has one for its copies.
#pragma once

#include <list>
#include <memory>

#include "core/engine.hpp"
#include "core/memory.hpp"
#include "core/rate_folder.hpp"
#include "cpu/stepper.hpp"

namespace adamas::cpu {

class Engine final : public core::Engine {
 public:
  // Refuses an option that only devices have.
  static Status open(const AdamConfig& config, std::unique_ptr<core::Engine>* engine);

  char* allocate_state(std::size_t nbytes) override;
  void release_state(char* memory) noexcept override;
  Status start(const core::Options& options, const std::vector<Tensor>& tensors,
               Span<void* const> after) override;
  Status step(const Selection& all, const core::StepInput& input, const core::Ordering& ordering,
              core::StepResult* result) noexcept override;
  Status begin(const core::StepInput& input) noexcept override;
  Status apply(const Selection& one, const core::Ordering& ordering) noexcept override;
  Status extend(std::size_t first, Span<void* const> after) override;
  Status accumulate(const Selection& all, const core::Accumulation& sums,
                    const core::Ordering& ordering) noexcept override;
  void rebind(std::size_t parameter) noexcept override { stepper_->rebind(parameter); }
  Status move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept override;
  Status copy_out(const ArrayCopy& copy) noexcept override;
  Status copy_in(const ArrayCopy& copy) noexcept override;
  Status decode(const Tensor& tensor, StateKind kind, float* values) noexcept override;
  void close() noexcept override {}  // copies in memory don't fail halfway

 private:
  void sort_by_group();
  Status clip_groups(const core::StepInput& input, double clip) noexcept;
  Status decide(const core::StepInput& input, core::StepResult* result) noexcept;

  const core::Options* options_ = nullptr;
  std::list<core::ZeroedBlock> state_;
  const std::vector<Tensor>* tensors_ = nullptr;
  core::RateFolder rates_;
  std::unique_ptr<Stepper> stepper_;

  // Of steps that clip groups or single gradients.
  std::vector<std::size_t> by_group_;   // the parameters of each group, in their order
  std::vector<double> squares_;         // of their gradients, in that order
  std::vector<rules::Factor> factors_;  // by parameter
};

}  // namespace adamas::cpu
