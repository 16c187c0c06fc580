// The rows that sparse gradients list, sorted on a device.  The host waits for one thing: whether
// their indices are inside the parameters.
#pragma once

#include <memory>
#include <vector>

#include "core/engine.hpp"
#include "cuda/device/device.hpp"

namespace adamas::cuda {

class SparseRows {
 public:
  // What a sparse gradient needs, kept from step to step, in device memory.
  struct Rows {
    SortedRows sorted{};
    std::uint32_t* ranks = nullptr;  // by place: how many rows begin up to here; if measured
    std::uint32_t* first = nullptr;  // by row of the parameter: its first place; RowPolicy::exact
    double* squares = nullptr;       // by listed row; if measured
  };

  // `tensors` outlive this object.  May be called again, for others.
  void prepare(Queue& queue, const core::Options& options,
               const std::vector<core::Tensor>& tensors);
  void release(Stream stream);

  // Finds the listed rows of the sparse gradients; refuses those outside.
  Status sort(Queue& queue, const core::Selection& selection);

  // Of a sparse gradient with any row, after sort().
  const Rows& of(std::size_t parameter) const { return kept_[parameter]->rows; }

 private:
  struct Kept {
    Buffer memory;
    Rows rows;
    std::uint64_t* given_rows = nullptr;  // as they came
    std::uint32_t* given_entry = nullptr;
  };

  void reserve(Queue& queue, std::size_t parameter, const RowIndices& rows);
  Status check(Queue& queue, const core::Selection& selection);
  void group(Queue& queue, std::size_t parameter);

  const std::vector<core::Tensor>* tensors_ = nullptr;
  bool measures_ = false;
  bool needs_first_ = false;
  Buffer outside_;  // by parameter: whether an index is
  Handle pinned_;   // the same on the host, made when a gradient is sparse
  std::size_t pinned_nbytes_ = 0;
  Buffer scratch_;
  std::vector<std::unique_ptr<Kept>> kept_;  // by parameter
};

}  // namespace adamas::cuda
