// The loops over the rules.  Compiled once for each instruction set (cpu/CMakeLists.txt), with
// ADAMAS_ISA naming it; the compiler vectorises them.
//
// Everything here has internal linkage except the table itself: the linker merges equal symbols of
// different objects, and the baseline could then run an AVX-512 copy.  For the same reason nothing
// from the standard library that has a body is used.
#include "cpu/kernel_table.hpp"

#define ADAMAS_JOIN2(a, b) a##b
#define ADAMAS_JOIN(a, b) ADAMAS_JOIN2(a, b)

namespace adamas::cpu {
namespace {

template <class Real>
const rules::Scalars<Real>& scalars_of(const StepScalars& scalars) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    return scalars.float32;
  } else {
    return scalars.float64;
  }
}

template <class Real, unsigned variant>
void dense(const DenseSpan& span, const StepScalars& step_scalars, double row_mean) {
  const rules::Scalars<Real> scalars = scalars_of<Real>(step_scalars);
  const Real mean = static_cast<Real>(row_mean);
  Real* __restrict param = static_cast<Real*>(span.param);
  const Real* __restrict grad = static_cast<const Real*>(span.grad);
  Real* __restrict moment1 = static_cast<Real*>(span.moment1);
  Real* __restrict moment2 = static_cast<Real*>(span.moment2);
  Real* __restrict vhat = static_cast<Real*>(span.vhat);
  const std::int64_t count = span.count;
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr ((variant & rules::kAmsgrad) != 0) {
      rules::adam<variant>(param[i], grad[i], moment1[i], moment2[i], vhat[i], mean, scalars);
    } else {
      Real unused = 0;
      rules::adam<variant>(param[i], grad[i], moment1[i], moment2[i], unused, mean, scalars);
    }
  }
}

// Sums in double over kLanes interleaved lanes, then as a tree: the order of additions depends on
// the position in the row alone, and is the one that the CUDA backend uses.
constexpr int kLanes = 16;

template <class Real, unsigned variant>
double row_sum(const DenseSpan& span, const StepScalars& step_scalars) {
  const rules::Scalars<Real> scalars = scalars_of<Real>(step_scalars);
  const Real* __restrict param = static_cast<const Real*>(span.param);
  const Real* __restrict grad = static_cast<const Real*>(span.grad);
  const std::int64_t whole = span.count - span.count % kLanes;
  double lanes[kLanes] = {};
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lanes[j] +=
          static_cast<double>(rules::decayed_gradient<variant>(grad[i + j], param[i + j], scalars));
    }
  }
  for (std::int64_t i = whole; i < span.count; ++i) {
    lanes[i - whole] +=
        static_cast<double>(rules::decayed_gradient<variant>(grad[i], param[i], scalars));
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

// Fills the row of one element type, variant by variant.
template <class Real, unsigned variant = 0>
constexpr void fill(DenseKernel* kernels) {
  if constexpr (variant < rules::kVariants) {
    kernels[variant] = dense<Real, variant>;
    fill<Real, variant + 1>(kernels);
  }
}

constexpr KernelTable make_table() {
  KernelTable table{};
  fill<float>(table.dense[static_cast<int>(DType::float32)]);
  fill<double>(table.dense[static_cast<int>(DType::float64)]);
  table.row_sum[static_cast<int>(DType::float32)][0] = row_sum<float, 0>;
  table.row_sum[static_cast<int>(DType::float32)][1] = row_sum<float, rules::kL2>;
  table.row_sum[static_cast<int>(DType::float64)][0] = row_sum<double, 0>;
  table.row_sum[static_cast<int>(DType::float64)][1] = row_sum<double, rules::kL2>;
  return table;
}

}  // namespace

extern const KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA);
constexpr KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA) = make_table();

}  // namespace adamas::cpu
