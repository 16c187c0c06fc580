// Parameters whose arrays a kernel takes as they lie: of a type of the arithmetic, with moments of
// the same, not centralized, without steps of their own for rows.
//
// A step over thousands of small parameters mostly waits for memory.  What it needs to know of one
// stands here in less than a cache line, where a Tensor takes three.  (Asking for the arrays of the
// next ones ahead made such steps slower.)
#pragma once

#include <cstdint>
#include <vector>

#include "core/plan.hpp"
#include "core/storage.hpp"
#include "cpu/kernels/kernel_table.hpp"

namespace adamas::cpu {

using core::Block;
using core::Tensor;

class DirectTensor {
 public:
  explicit DirectTensor(const Tensor& tensor);

  // Whether update() may be called: for such a parameter with a dense gradient of its own type.
  bool takes(const Gradient& grad) const {
    return is_direct_ && grad.rows == nullptr && grad.dtype == dtype_ && !grad.is_absent;
  }

  std::int32_t rates() const { return rates_; }

  // Updates a block, as update_run() does.
  void update(const KernelTable& kernels, const Block& block, const Gradient& grad,
              const Folded& folded) const;

 private:
  char* param_;
  char* moment1_;
  char* moment2_;
  char* vhat_;  // or null
  std::int32_t rates_;
  DType dtype_;
  bool is_direct_;
};

}  // namespace adamas::cpu
