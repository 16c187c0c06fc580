// The kernels of one instruction set, as the dispatcher sees them.
//
// cpu/kernels.cpp fills one table per ISA; core/optimizer.cpp picks a kernel by one look-up.
#pragma once

#include <cstdint>

#include "adamas/types.hpp"
#include "rules/adam.hpp"

namespace adamas::cpu {

// A run of elements of one tensor: five arrays that do not overlap.  `vhat` is null unless the
// variant has kAmsgrad.
struct DenseSpan {
  void* param;
  const void* grad;
  void* moment1;
  void* moment2;
  void* vhat;
  std::int64_t count;
};

// The scalars of one step, for every element type.
struct StepScalars {
  rules::Scalars<float> float32;
  rules::Scalars<double> float64;
};

// Updates a run.  `mean` is subtracted from the gradient by variants with kCentralize.
using DenseKernel = void (*)(const DenseSpan& span, const StepScalars& scalars, double mean);

// The sum of the gradients (as the rule sees them) of a run, in a fixed order of additions.
using RowSumKernel = double (*)(const DenseSpan& span, const StepScalars& scalars);

struct KernelTable {
  DenseKernel dense[kDTypes][rules::kVariants];
  RowSumKernel row_sum[kDTypes][2];  // without and with kL2
};

}  // namespace adamas::cpu
