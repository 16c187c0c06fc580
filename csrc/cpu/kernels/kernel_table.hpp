// The kernels of one instruction set, as the dispatcher sees them.
//
// kernels.cpp beside this fills one table per ISA; cpu/tiles.cpp picks a kernel by one look-up.
#pragma once

#include <cstdint>

#include "adamas/types.hpp"
#include "rules/adam.hpp"

namespace adamas::cpu {

// Indices of the tables: the types of arithmetic, and the types that are only stored.
inline constexpr std::size_t kReals = 2;  // float32, float64
inline constexpr std::size_t kHalves = kDTypes - kReals;
inline constexpr std::size_t kDenseTypes = kStateFormats + 1;  // float32 in each format, float64
constexpr std::size_t real_index(DType real) { return real == DType::float64 ? 1 : 0; }
constexpr std::size_t dense_index(DType real, StateFormat format) {
  return real == DType::float64 ? kStateFormats : static_cast<std::size_t>(format);
}
constexpr std::size_t half_index(DType half) { return static_cast<std::size_t>(half) - kReals; }

// How the moments of a run are stored if not in its real type.
struct StoredMoments {
  std::uint8_t* scales1 = nullptr;  // int8: of the blocks of the run, which it begins with
  std::uint8_t* scales2 = nullptr;
  std::int64_t block = 1;           // int8: elements per scale
  std::uint32_t random_key = 0;     // of stochastic rounding
  std::uint32_t first_element = 0;  // of the run within the parameter, modulo 2^32
};

// A run of elements of one tensor: five arrays that do not overlap, param, grad and vhat of one
// real type.  `vhat` is null unless the variant has kAmsgrad.
struct DenseSpan {
  void* param;
  const void* grad;
  void* moment1;
  void* moment2;
  void* vhat;
  std::int64_t count;
  StoredMoments stored = {};
};

using rules::Folded;

// Updates a run.  `mean` is subtracted from the gradient by variants with kCentralize.
using DenseKernel = void (*)(const DenseSpan& span, const Folded& scalars, double mean);

// The sum of the gradients (as the rule sees them) of a run, in a fixed order of additions.
using RowSumKernel = double (*)(const DenseSpan& span, const Folded& scalars);

// The sum of squares of a run, in a fixed order of additions, and whether all are finite.
struct SquareSum {
  double squares;
  bool finite;
};
using SquareSumKernel = SquareSum (*)(const void* values, std::int64_t count);

// The same of grad[i] + decay * param[i].
using DecayedSquareSumKernel = SquareSum (*)(const void* grad, const void* param, double decay,
                                             std::int64_t count);

// sum[i] += values[i]
using AddKernel = void (*)(void* sum, const void* values, std::int64_t count);

// values[i] *= factor
using ScaleKernel = void (*)(void* values, double factor, std::int64_t count);

// average[i] += rate * (values[i] - average[i])
using AverageKernel = void (*)(void* average, const void* values, double rate, std::int64_t count);

// Between a 16-bit type and float32; storing rounds to nearest even.
using LoadKernel = void (*)(const void* halves, float* values, std::int64_t count);
using StoreKernel = void (*)(const float* values, void* halves, std::int64_t count);

// Decodes the moments of a run to float32.
using DecodeKernel = void (*)(const DenseSpan& span, float* moment1, float* moment2);

struct KernelTable {
  DenseKernel dense[kDenseTypes][rules::kVariants];
  RowSumKernel row_sum[kReals][2];  // without and with kL2
  SquareSumKernel square_sum[kReals];
  DecayedSquareSumKernel decayed_square_sum[kReals];
  AddKernel add[kReals];
  ScaleKernel scale[kReals];
  AverageKernel average[kReals];
  LoadKernel load[kHalves];
  StoreKernel store[kHalves];
  DecodeKernel decode[kStateFormats];  // none for StateFormat::real
};

}  // namespace adamas::cpu
