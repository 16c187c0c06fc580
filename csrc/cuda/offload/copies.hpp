// Parameters on a device whose moments live, and whose update runs, on the host (use_offload).
//
// Each parameter and its gradient have a copy in pinned memory, on which the CPU's stepper works.
// Copies down, the update and copies up of different parameters overlap: the host waits for one
// parameter at a time.
#pragma once

#include <memory>
#include <vector>

#include "adamas/optimizer.hpp"
#include "cpu/stepper.hpp"
#include "cuda/device/device.hpp"

namespace adamas::cuda {

class Offload {
 public:
  // Reserves the copies; throws std::bad_alloc.  `specs` receives the parameters as they are on the
  // host.
  static Status open(Span<const ParameterSpec> parameters, std::unique_ptr<Offload>* offload,
                     std::vector<ParameterSpec>* specs);
  ~Offload();

  // The gradients as they will be on the host, with memory for them.
  Status place(std::size_t first, Span<const Gradient> grads) noexcept;
  const Gradient* grads() const { return grads_.data(); }

  // Queues the copies down of what place() has seen, after all that is in the caller's stream;
  // waits for those of parameter i; queues its copy up.
  Status fetch(const Queueing& queueing) noexcept;
  Status wait(std::size_t i) noexcept;
  Status send(std::size_t i) noexcept;

  // The caller's stream goes on when all copies up are done; if `now`, so does the host.
  Status finish(Stream stream, bool now) noexcept;

  // Copies parameter i from or to the device; waits.
  Status read(std::size_t i) noexcept;
  Status write(std::size_t i) noexcept;

  // No more steps after an error that left one half done.
  void close() { broken_ = true; }
  Status check_usable() const;

 private:
  struct Copy {
    ParameterSpec device;
    Handle param;
    Handle grad;
    Handle indices;
    std::size_t grad_nbytes = 0;  // reserved
    std::size_t indices_nbytes = 0;
    RowIndices rows;  // on the host
    Gradient from;    // on the device, with from_rows
    RowIndices from_rows;
    Handle arrived;  // an event
  };

  Offload() = default;
  Status sort_ranges(Span<const ParameterSpec> parameters);
  bool overlaps(const void* data, std::size_t nbytes) const noexcept;
  Status reserve(Handle& memory, std::size_t* size, std::size_t nbytes) noexcept;
  static std::size_t grad_nbytes(const ParameterSpec& spec, const Gradient& grad);

  Device device_;
  Handle down_;
  Handle up_;
  Handle before_;  // events: when the caller's stream has come here, and
  Handle after_;   // when the copies up have
  bool has_sent_ = false;
  bool broken_ = false;
  std::vector<core::Range> ranges_;  // of the parameters on the device, sorted
  std::vector<std::unique_ptr<Copy>> copies_;
  std::size_t first_ = 0;  // of the parameters of grads_
  std::vector<Gradient> grads_;
};

}  // namespace adamas::cuda
