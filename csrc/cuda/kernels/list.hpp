// The list of all kernels, and the choice of one for a launch.
#pragma once

#include "cuda/device/api.hpp"
#include "cuda/kernels/decide.hpp"
#include "cuda/kernels/dense.hpp"
#include "cuda/kernels/rows.hpp"
#include "cuda/kernels/table.hpp"

namespace adamas::cuda {

inline constexpr Error kNoKernel = -1;

// Call start.run<KernelStruct>() for the kernel that a launch names.

// Parameters of type P, gradients of type G, moments in one of these formats or in the real type.
template <class P, class G, class Start, class... Formats>
Error start_dense(rules::TypeList<Formats...>, StateFormat format, Start start) {
  using Real = typename StoredAs<P>::Real;
  Error error = kNoKernel;
  if (format == StateFormat::real) error = start.template run<Dense<P, G, RealMoments<Real>>>();
  if constexpr (sizeof(Real) == sizeof(float)) {
    ((format == Formats::kFormat ? void(error = start.template run<Dense<P, G, Formats>>())
                                 : void()),
     ...);
  }
  return error;
}

// Gradients of one of the types G.
template <class P, class Start, class... G>
Error start_dense(rules::TypeList<G...>, const KernelTypes& types, Start start) {
  Error error = kNoKernel;
  ((types.grad == StoredAs<G>::kDType
        ? void(error = start_dense<P, G>(rules::ElementFormats(), types.format, start))
        : void()),
   ...);
  return error;
}

// Parameters of one of the types P, and gradients of any of them.
template <class Start, class... P>
Error start_dense(rules::TypeList<P...> all, const KernelTypes& types, Start start) {
  Error error = kNoKernel;
  ((types.param == StoredAs<P>::kDType ? void(error = start_dense<P>(all, types, start)) : void()),
   ...);
  return error;
}

template <class... Halves>
constexpr rules::TypeList<float, Halves...> with_float(rules::TypeList<Halves...>) {
  return {};
}

template <class Start>
Error start_dense(const KernelTypes& types, Start start) {
  if (types.format == StateFormat::int8) return start.template run<DenseInt8>();
  if (types.param == DType::float64) {
    return start_dense(rules::TypeList<double>(), types, start);
  }
  return start_dense(with_float(rules::Halves()), types, start);
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
    case Kernel::run_sums:
      return start.template run<RunSums>();
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
    case Kernel::accumulate:
      return start.template run<Accumulate>();
  }
  return kNoKernel;
}

}  // namespace adamas::cuda
