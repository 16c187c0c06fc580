// The seam: core/ decides what a step is, and an engine makes it.
//
// An engine is whoever updates the parameters of one optimizer: the CPU (cpu/engine.hpp), a CUDA
// device (cuda/engine.hpp), or the CPU for parameters on a device (cuda/offload/engine.hpp);
// csrc/engines.cpp lists them.  What an engine is given has been checked (core/checks.hpp), its
// calls come one at a time, and the floating-point environment is pinned.  An error has changed
// nothing, unless the engine refuses all further steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "adamas/optimizer.hpp"
#include "core/accumulation.hpp"
#include "core/locks.hpp"
#include "core/options.hpp"
#include "core/storage.hpp"

namespace adamas::core {

// The parameters [first, last) and their gradients: all of them, or the one of Optimizer::apply.
struct Selection {
  std::size_t first;
  std::size_t last;
  const Gradient* grads;    // grads[0] is that of `first`
  bool has_sparse = false;  // whether any of them is sparse
  bool has_absent = false;  // whether any of them is absent

  const Gradient& grad(std::size_t parameter) const { return grads[parameter - first]; }
};

// What a step comes after: the work in its stream and in others, and that of whoever had the locks
// last, which its caller holds (use_locking).
struct Ordering {
  const Queueing& queueing;
  const std::vector<RangeLock*>& locks;

  // The calling thread waits for what goes on under the locks.
  void wait_for_last() const noexcept {
    for (RangeLock* lock : locks) {
      if (lock->last) lock->last->wait();
    }
  }
};

// What a step is made with besides gradients.
struct StepInput {
  std::int64_t number;        // from 1
  const std::int64_t* steps;  // by parameter, what it has made; null: all number - 1
  Span<const Rates> rates;
  double loss_scale;

  // The step that a parameter makes now.
  std::int64_t step_of(std::size_t parameter) const {
    return steps == nullptr ? number : steps[parameter] + 1;
  }
};

// What became of a step.
struct StepResult {
  bool skipped = false;             // gradients that are not finite changed nothing
  std::optional<double> grad_norm;  // if it was needed
};

class Engine {
 public:
  Engine() = default;
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Where the state is: on a device, or kCpu.
  virtual std::int32_t device() const { return kCpu; }

  // Memory of the state, zeroed, which goes with the engine; asked for before start() or extend().
  // Null: there is none.
  virtual char* allocate_state(std::size_t nbytes) = 0;
  // Gives it back before, after all that was queued.
  virtual void release_state(char* memory) noexcept = 0;

  // Elements of state should lie as far into so many bytes as those of their parameter do, for wide
  // accesses; 0: they begin cache lines.
  virtual std::size_t access_width() const { return 0; }

  // Takes parameters and state into use, after what is in the streams `after`; options and tensors
  // outlive the engine.  May be called again, for others; not after an error.  Throws
  // std::bad_alloc.
  virtual Status start(const Options& options, const std::vector<Tensor>& tensors,
                       Span<void* const> after) = 0;

  // Takes the parameters from `first` on into use as well, which have been added to the tensors;
  // the options have their groups.  An error has changed nothing.  Throws std::bad_alloc.
  virtual Status extend(std::size_t first, Span<void* const> after) = 0;

  // The options of groups have changed; an error if the steps can't follow.
  virtual Status take_options() noexcept { return {}; }

  // A whole step.
  virtual Status step(const Selection& all, const StepInput& input, const Ordering& ordering,
                      StepResult* result) noexcept = 0;

  // A step in parts, which needs no gradient to be decided: its scalars, then each parameter.
  virtual Status begin(const StepInput& input) noexcept = 0;
  virtual Status apply(const Selection& one, const Ordering& ordering) noexcept = 0;

  // Adds the gradients of all parameters to sums in memory that allocate_state() gave; a sum
  // without any becomes the gradient.
  virtual Status accumulate(const Selection& all, const Accumulation& sums,
                            const Ordering& ordering) noexcept = 0;

  // After the last step: the memory of this parameter is another now.  Only of parameters on the
  // CPU.
  virtual void rebind(std::size_t /*parameter*/) noexcept {}

  // After the last step: the optimizer has made `step` steps, and each parameter so many more than
  // before; what counts steps for their rows moves along.
  virtual Status move_steps(std::int64_t step, Span<const std::int64_t> moved) noexcept = 0;

  // Whether parameters may differ in their steps from here on; `stream`: of the step that begins
  // it.
  virtual Status allow_differing_steps(void* /*stream*/) noexcept { return {}; }

  // After the last step: copies one array as it is stored; a moment as real numbers.
  virtual Status copy_out(const ArrayCopy& copy) noexcept = 0;
  virtual Status copy_in(const ArrayCopy& copy) noexcept = 0;
  virtual Status decode(const Tensor& tensor, StateKind kind, float* values) noexcept = 0;

  // No more steps, after an error that left something half done.
  virtual void close() noexcept = 0;

  // What engines have that queue their steps.

  // Whether it decides by itself which steps are made, and so counts them.
  virtual bool counts_steps() const { return false; }
  // What it has counted, all but the loss scale; waits for the steps so far.
  virtual Status read_counters(Counters*) noexcept { return {}; }
  virtual Status write_counters(const Counters&) noexcept { return {}; }
  // The steps of each parameter, likewise; none to write: all are global_step.
  virtual Status read_steps(Span<std::int64_t>) noexcept { return {}; }
  virtual Status write_steps(Span<const std::int64_t>) noexcept { return {}; }

  // What steps in graphs use from here on, as far as `stream` goes.
  virtual Status send_rates(Span<const Rates>, double /*loss_scale*/, void* /*stream*/) noexcept {
    return {StatusCode::bad_state, "the optimizer is not capturable"};
  }
  virtual bool is_capturing(void* /*stream*/) const noexcept { return false; }

  // Copy between memory of a device and the host, after all steps so far; wait.
  virtual Status read(const void* /*device*/, void* /*host*/, std::size_t /*nbytes*/) noexcept {
    return {StatusCode::invalid_argument, "the parameters are not on a device"};
  }
  virtual Status write(void* device, const void* host, std::size_t nbytes) noexcept {
    return read(host, device, nbytes);
  }
};

// The engine for these parameters, all of one device (csrc/engines.cpp).  Throws std::bad_alloc.
Status open_engine(const AdamConfig& config, std::int32_t device, std::unique_ptr<Engine>* engine);

}  // namespace adamas::core
