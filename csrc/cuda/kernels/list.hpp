// The list of all kernels, and the choice of one for a launch.
#pragma once

#include "cuda/device/api.hpp"
#include "cuda/kernels/decide.hpp"
#include "cuda/kernels/dense.hpp"
#include "cuda/kernels/rows.hpp"
#include "cuda/kernels/table.hpp"

namespace adamas::cuda {

// Calls start.run<KernelStruct>() for the kernel that `launch` names.
template <class P, class G, class Start>
Error start_dense(StateFormat format, Start start) {
  using Real = typename StoredAs<P>::Real;
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (format == StateFormat::bfloat16) return start.template run<Dense<P, G, rules::BFloat16>>();
  }
  return start.template run<Dense<P, G, Real>>();
}

template <class P, class Start>
Error start_dense(const KernelTypes& types, Start start) {
  switch (types.grad) {
    case DType::float16:
      return start_dense<P, rules::Float16>(types.format, start);
    case DType::bfloat16:
      return start_dense<P, rules::BFloat16>(types.format, start);
    default:
      return start_dense<P, float>(types.format, start);
  }
}

template <class Start>
Error start_dense(const KernelTypes& types, Start start) {
  if (types.format == StateFormat::int8) return start.template run<DenseInt8>();
  switch (types.param) {
    case DType::float64:
      return start_dense<double, double>(types.format, start);
    case DType::float16:
      return start_dense<rules::Float16>(types, start);
    case DType::bfloat16:
      return start_dense<rules::BFloat16>(types, start);
    default:
      return start_dense<float>(types, start);
  }
}

template <class Start>
Error start_kernel(Kernel kernel, const KernelTypes& types, Start start) {
  switch (kernel) {
    case Kernel::store:
      return start.template run<Store>();
    case Kernel::load_master:
      return start.template run<LoadMaster>();
    case Kernel::dense:
      return start_dense(types, start);
    case Kernel::table:
      return types.param == DType::float64 ? start.template run<Table<double>>()
                                           : start.template run<Table<float>>();
    case Kernel::row_sums:
      return start.template run<RowSums>();
    case Kernel::row_means:
      return start.template run<RowMeans>();
    case Kernel::block_squares:
      return start.template run<BlockSquares>();
    case Kernel::decide:
      return start.template run<Decide>();
    case Kernel::index_rows:
      return start.template run<IndexRows>();
    case Kernel::mark_heads:
      return start.template run<MarkHeads>();
    case Kernel::row_squares:
      return start.template run<RowSquares>();
    case Kernel::total_squares:
      return start.template run<TotalSquares>();
    case Kernel::set_row_steps:
      return start.template run<SetRowSteps>();
    case Kernel::add_row_steps:
      return start.template run<AddRowSteps>();
  }
  return -1;
}

}  // namespace adamas::cuda
