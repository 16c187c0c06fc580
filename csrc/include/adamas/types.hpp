// The options and views that an optimizer is made from.  Plain data, no behaviour.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adamas {

// Element types of parameters, their gradients and their moments.
enum class DType : std::uint8_t { float32, float64 };
inline constexpr std::size_t kDTypes = 2;

constexpr std::size_t item_size(DType dtype) { return dtype == DType::float32 ? 4 : 8; }

// Where the bias correction stands (docs/NUMERICS.md).
enum class Numerics : std::uint8_t {
  standard,   // Kingma and Ba, Algorithm 1: eps is added to the corrected root
  mindspore,  // the step size is corrected instead, as MindSpore's kernels do
};

// The options of one optimizer, the same for all its parameters.
struct AdamConfig {
  double beta1 = 0.9;       // in (0, 1)
  double beta2 = 0.999;     // in (0, 1)
  double eps = 1e-8;        // > 0, also after rounding to the parameters' type
  double loss_scale = 1.0;  // gradients are divided by it; in [2^-126, 2^126]
  Numerics numerics = Numerics::standard;
  bool use_nesterov = false;            //
  bool use_amsgrad = false;             //
  bool decoupled_weight_decay = false;  // AdamW instead of L2
  bool bias_correction = true;          //
  int num_threads = 0;                  // 0: one for each core of the process
};

// A parameter: `count` elements at `data`, which the optimizer updates in place and never owns.
struct ParameterSpec {
  void* data = nullptr;
  std::int64_t count = 0;
  DType dtype = DType::float32;
  std::int32_t rates = 0;   // which element of the rates given to each step applies
  std::int64_t rows = 1;    // length of the first axis; matters for `centralize` only
  bool centralize = false;  // subtract from each gradient row its mean
};

// What may change from step to step.
struct Rates {
  double learning_rate = 1e-3;
  double weight_decay = 0.0;
};

}  // namespace adamas
