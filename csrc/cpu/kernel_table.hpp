// The kernels of one instruction set, as the dispatcher sees them.
//
// cpu/kernels.cpp fills one table per ISA; core/tiles.cpp picks a kernel by one look-up.
#pragma once

#include <cstdint>

#include "adamas/types.hpp"
#include "rules/adam.hpp"

namespace adamas::cpu {

// Indices of the tables: the types of arithmetic, and the types that are only stored.
inline constexpr std::size_t kReals = 2;   // float32, float64
inline constexpr std::size_t kHalves = 2;  // float16, bfloat16
inline constexpr std::size_t kStateFormats = 3;
constexpr std::size_t real_index(DType real) { return real == DType::float64 ? 1 : 0; }
constexpr std::size_t half_index(DType half) { return half == DType::bfloat16 ? 1 : 0; }

// A run of elements of one tensor, all of one real type: five arrays that do not overlap.  `vhat`
// is null unless the variant has kAmsgrad.
struct DenseSpan {
  void* param;
  const void* grad;
  void* moment1;
  void* moment2;
  void* vhat;
  std::int64_t count;
};

// The scalars of one step, for every real type.
struct StepScalars {
  rules::Scalars<float> float32;
  rules::Scalars<double> float64;
};

// Updates a run.  `mean` is subtracted from the gradient by variants with kCentralize.
using DenseKernel = void (*)(const DenseSpan& span, const StepScalars& scalars, double mean);

// The sum of the gradients (as the rule sees them) of a run, in a fixed order of additions.
using RowSumKernel = double (*)(const DenseSpan& span, const StepScalars& scalars);

// The sum of squares of a run, in a fixed order of additions, and whether all are finite.
struct Measure {
  double squares;
  bool finite;
};
using MeasureKernel = Measure (*)(const void* values, std::int64_t count);

// sum[i] += values[i]
using AddKernel = void (*)(void* sum, const void* values, std::int64_t count);

// values[i] *= factor
using ScaleKernel = void (*)(void* values, double factor, std::int64_t count);

// Between a 16-bit type and float32; storing rounds to nearest even.
using LoadKernel = void (*)(const void* halves, float* values, std::int64_t count);
using StoreKernel = void (*)(const float* values, void* halves, std::int64_t count);

// The moments of a run in a stored format and as float32.
struct StoredMoments {
  void* stored1;
  void* stored2;
  std::uint8_t* scales1;  // int8: of the blocks of the run, which it begins with; else null
  std::uint8_t* scales2;
  float* moment1;
  float* moment2;
  std::int64_t count;
  std::int64_t block;           // int8: elements per scale
  std::uint32_t random_key;     // for storing
  std::uint32_t first_element;  // of the run within the parameter, modulo 2^32
};
using MomentsKernel = void (*)(const StoredMoments& moments);

struct KernelTable {
  DenseKernel dense[kReals][rules::kVariants];
  RowSumKernel row_sum[kReals][2];  // without and with kL2
  MeasureKernel measure[kReals];
  AddKernel add[kReals];
  ScaleKernel scale[kReals];
  LoadKernel load[kHalves];
  StoreKernel store[kHalves];
  MomentsKernel load_moments[kStateFormats];  // none for StateFormat::real
  MomentsKernel store_moments[kStateFormats];
};

}  // namespace adamas::cpu
