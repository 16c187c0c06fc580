// The work of a step on a CUDA device: what core/stepper.cpp is for the CPU.
//
// Everything is queued on the caller's stream, and the host waits for nothing but the check of row
// indices.  core/checks.cpp has checked all arguments.  Steps are decided either by the host, as
// on the CPU, or on the device (`decides`): where that depends on the gradients' values.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/locks.hpp"
#include "core/plan.hpp"
#include "core/storage.hpp"
#include "cpu/stepper.hpp"
#include "cuda/device/device.hpp"
#include "rules/fold.hpp"

namespace adamas::cuda {

// Where a step is queued, and the locks that its caller holds (use_locking): the step comes after
// the last one of whoever had them.
struct Place {
  const Queueing& queueing;
  const std::vector<core::RangeLock*>& locks;
};

class Stepper {
 public:
  // Takes the device into use.
  static Status open(std::int32_t device, std::unique_ptr<Stepper>* stepper);
  ~Stepper();

  // The memory of the state, zeroed; once, before prepare().  Null: see status().
  char* allocate_state(std::size_t nbytes);

  // Throws std::bad_alloc.
  Status prepare(const AdamConfig& config, const core::Storage& storage, std::size_t rates_count,
                 Span<void* const> after);

  // Steps decided by the host: folds the rates, then updates.
  Status fold(Span<const Rates> rates, const rules::Corrections& corrections, std::int64_t step,
              double factor) noexcept;
  Status update(const core::Selection& selection, const Place& place) noexcept;

  // Steps decided on the device.  An error of this call or of an earlier step that the device
  // refused; either has changed nothing.
  bool decides() const { return decides_; }
  Status decide_and_update(const core::Selection& selection, Span<const Rates> rates,
                           double loss_scale, const Place& place) noexcept;

  // What became of the steps so far; waits for them.
  Status outcome(Control* control) noexcept;

  // Moves the steps of rows and, if the device counts, the number of steps.
  Status set_global_step(std::int64_t step, std::int64_t moved) noexcept;

  // What the device counts; waits.
  Status set_counters(const Counters& counters) noexcept;

  // No more steps after an error that left something half done.
  void close() noexcept;

  // Sends what captured steps use.
  Status set_rates(Span<const Rates> rates, double loss_scale, Stream stream) noexcept;
  bool is_capturing(Stream stream) const noexcept;

  // Copies after the last step; waits.
  Status read(const void* device, void* host, std::size_t nbytes) noexcept;
  Status write(void* device, const void* host, std::size_t nbytes) noexcept;

 private:
  static constexpr std::int64_t kForEach = 256;   // items per block of threads
  static constexpr std::int64_t kSumGroups = 16;  // tiles or rows to sum, likewise

  // What the gradient of a parameter is like; kernels are chosen by it.
  enum class GradKind : std::uint8_t { none, float32, float64, float16, bfloat16, sparse };

  // Chunks that one launch of the dense kernel takes.
  struct ChunkRange {
    KernelTypes types;
    std::int64_t first;
    std::int64_t last;
  };

  // What a sparse gradient needs, kept from step to step.
  struct Sparse {
    Buffer memory;
    SortedRows sorted{};
    std::uint32_t* ranks = nullptr;
    std::uint32_t* first = nullptr;
    double* squares = nullptr;
    std::uint64_t* rows = nullptr;  // as they came
    std::uint32_t* entry = nullptr;
  };

  Stepper() = default;

  // stepper.cpp
  Status finish(Queue& queue) noexcept;
  void order_after_last(Queue& queue) noexcept;
  void order_after_all(Queue& queue) noexcept;  // replays of graphs too, for which the host waits
  Status report_refusal(Stream stream) noexcept;
  Status run(const core::Selection& selection, Span<const Rates> rates, double loss_scale,
             const Place& place);
  Status check_capture(const core::Selection& selection) const;
  void begin(Queue& queue, const Place& place);
  void end(Queue& queue, const Place& place);
  void queue_decision(Queue& queue, const core::Selection& selection, Span<const Rates> rates,
                      double loss_scale);
  void measure(Queue& queue, const core::Selection& selection);
  void queue_update(Queue& queue, const core::Selection& selection);
  void centralize(Queue& queue, const core::Selection& selection);
  void update_dense(Queue& queue, const core::Selection& selection);
  bool measures() const { return config_.max_grad_norm > 0.0 || config_.skip_nonfinite; }

  // step_tables.cpp
  void prepare_tensors(Queue& queue);
  void prepare_blocks(Queue& queue);
  void prepare_rows(Queue& queue);
  void load_masters(Queue& queue);
  void send_grads(Queue& queue, const core::Selection& selection);
  bool takes_table(std::size_t i, const Gradient& grad) const;
  GradKind kind_of(std::size_t i, const Gradient& grad) const;
  Status choose_kernels(Queue& queue, const core::Selection& selection);
  void list_chunks(std::vector<Chunk>* chunks);
  void send_inputs(Queue& queue, Span<const Rates> rates, double loss_scale);
  StepArgs step_args() const;

  // sparse_rows.cpp
  Status sort_rows(Queue& queue, const core::Selection& selection);
  void reserve_rows(Queue& queue, std::size_t i, const RowIndices& rows);
  Status check_rows(Queue& queue, const core::Selection& selection);
  void group_rows(Queue& queue, std::size_t i);
  void measure_rows(Queue& queue, const core::Selection& selection, std::size_t i);
  void update_table(Queue& queue, const core::Selection& selection, std::size_t i);

  Device device_;
  AdamConfig config_;
  const core::Storage* storage_ = nullptr;
  core::Plan plan_;
  bool decides_ = false;
  bool has_float32_ = false;
  Status broken_;  // an error after which the state can't be relied on

  Handle stream_;  // for work that no caller has a stream for
  // When the last step is done; shared with the locks of its memory.
  std::shared_ptr<Handle> last_event_ = std::make_shared<Handle>();
  Handle arrival_;          // when producers are
  Handle pinned_;           // a Control, then the flags
  bool capturing_ = false;  // the step at hand
  bool captured_ = false;   // some step was: graphs refer to the tables from then on
  bool has_last_ = false;

  Buffer state_;
  Buffer tables_;  // tensors, then gradients
  Buffer blocks_;  // of the plan, then their squares
  Buffer chunks_;
  Buffer rows_;   // works of row sums, segment sums, means
  Buffer rates_;  // Control, loss scale, rates, entries
  Buffer flags_;  // by parameter: whether an index is outside
  Buffer scratch_;
  std::vector<std::unique_ptr<Sparse>> sparse_;  // by parameter

  std::vector<TensorEntry> entries_;
  std::vector<GradEntry> sent_grads_;
  std::vector<GradKind> kinds_;
  bool listed_ = false;  // whether `ranges_` fit `kinds_`
  std::vector<ChunkRange> ranges_;
  std::vector<ChunkRange> range_of_;      // by parameter
  std::vector<std::int64_t> first_work_;  // of row sums, by parameter, and one past the last
  std::vector<RateEntry> folded_;
  std::vector<Rates> sent_rates_;
  double sent_loss_scale_ = 0.0;
  std::int64_t step_ = 0;

  // Places within the buffers.
  GradEntry* grads_ = nullptr;
  double* squares_ = nullptr;
  Control* control_ = nullptr;
  double* loss_scale_ = nullptr;
  Rates* device_rates_ = nullptr;
  RateEntry* rate_entries_ = nullptr;
};

}  // namespace adamas::cuda
