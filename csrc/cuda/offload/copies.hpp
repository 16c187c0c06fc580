// Copies of parameters and gradients of a device in pinned memory of the host, and their ways down
// and up, which overlap: the host waits for one parameter at a time.
#pragma once

#include <memory>
#include <vector>

#include "core/engine.hpp"
#include "cuda/device/device.hpp"

namespace adamas::cuda {

class OffloadCopies {
 public:
  Status open(std::int32_t device);
  ~OffloadCopies();

  // Reserves copies of the parameters that have none yet and brings them down, after what is in the
  // streams `after`; waits.  Throws std::bad_alloc.
  Status extend(const std::vector<core::Tensor>& tensors, Span<void* const> after);
  // Gives up the copies of the parameters from `first` on.
  void drop(std::size_t first) noexcept;

  // The same parameters with their copies on the host.
  const std::vector<core::Tensor>& tensors() const { return tensors_; }

  // The same gradients as they will be on the host, with memory for them.
  Status stage(const core::Selection& selection, core::Selection* staged) noexcept;

  // Queues the copies down of what stage() has seen, the gradients alone or parameters too, after
  // all that the step comes after; waits for those of parameter i; queues its copy up.
  Status fetch(const core::Ordering& ordering, bool with_parameters) noexcept;
  Status wait(std::size_t i) noexcept;
  Status send(std::size_t i) noexcept;

  // The caller's stream goes on when all copies up are done; if `now`, so does the host.
  Status finish(Stream stream, bool now) noexcept;

  // Copies parameter i from or to the device; waits.
  Status read(std::size_t i) noexcept;
  Status write(std::size_t i) noexcept;

 private:
  struct Copy {
    void* device_param = nullptr;
    std::size_t nbytes = 0;  // of the parameter
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

  Status stage(const core::Tensor& tensor, Copy& copy, Gradient* grad) noexcept;
  Status reserve(Handle& memory, std::size_t* size, std::size_t nbytes) noexcept;
  template <class Work>
  Status queue_down(Span<void* const> after, Work work) noexcept;

  Device device_;
  Handle down_;
  Handle up_;
  Handle before_;  // events: when the caller's stream has come here, and
  Handle after_;   // when the copies up have
  bool has_sent_ = false;
  std::vector<std::unique_ptr<Copy>> copies_;  // by parameter
  std::vector<core::Tensor> tensors_;
  std::size_t first_ = 0;  // of the parameters of grads_
  std::vector<Gradient> grads_;
};

}  // namespace adamas::cuda
