// The options and views that an optimizer is made from.  Plain data, no behaviour.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "adamas/cpp17.hpp"

namespace adamas {

// Element types of parameters and gradients.
enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };

constexpr std::size_t item_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// By DType; what NumPy and ml_dtypes call them.
inline constexpr const char* kDTypeNames[] = {"float32", "float64", "float16", "bfloat16"};
inline constexpr std::size_t kDTypes = std::size(kDTypeNames);

// The type of the arithmetic and of the moments: float32 for the 16-bit types.
constexpr DType real_type(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

// Whether a step reads gradients of this type for such a parameter: those with its arithmetic.
constexpr bool goes_with(DType gradient, DType parameter) {
  return real_type(gradient) == real_type(parameter);
}

// The range of AdamConfig::loss_scale.
inline constexpr double kMinLossScale = 0x1p-126;
inline constexpr double kMaxLossScale = 0x1p126;

// Where an array lies: in the host's memory, or on the CUDA device with this number (>= 0).
inline constexpr std::int32_t kCpu = -1;

// Of the enumerations below, the names of their values, by which Python knows them too.

// What a step does with the rows of a parameter that a sparse gradient does not list.
enum class RowPolicy : std::uint8_t {
  exact,     // they get the gradient zero: moments decay, and the row moves
  lazy,      // nothing: they are as if the step had not been
  catch_up,  // nothing now; their moments decay by all missed steps when they are listed next
};
inline constexpr const char* kRowPolicyNames[] = {"exact", "lazy", "catch_up"};

// Where the bias correction stands, and what else MindSpore does in its own way: docs/NUMERICS.md.
enum class Numerics : std::uint8_t {
  standard,   // Kingma and Ba, Algorithm 1: eps is added to the corrected root
  mindspore,  // the step size is corrected instead, as MindSpore's kernels do
};
inline constexpr const char* kNumericsNames[] = {"standard", "mindspore"};

// How the moments are stored; the arithmetic stays in float32 (rules/low_precision.hpp).
enum class StateFormat : std::uint8_t {
  real,      // as they are computed
  bfloat16,  // stochastically rounded
  int8,      // 8-bit floats with a scale for each block of elements, stochastically rounded
};
inline constexpr const char* kStateFormatNames[] = {"real", "bfloat16", "int8"};
inline constexpr std::size_t kStateFormats = std::size(kStateFormatNames);

// Where eps is added to the root of the second moment.
enum class EpsilonPlacement : std::uint8_t {
  outside,  // to the corrected root: Kingma and Ba, Algorithm 1
  inside,   // to the root as it is, inside the corrected step size: the form after Algorithm 1
};
inline constexpr const char* kEpsilonPlacementNames[] = {"outside", "inside"};

// The arrays of state kept for a parameter, laid out as Optimizer::layout() says.
enum class StateKind : std::uint8_t {
  moment1,
  moment2,
  vhat,      // use_amsgrad
  master,    // master_weights, of 16-bit parameters
  row_step,  // RowPolicy::catch_up: the last step that changed the row
  scale1,    // StateFormat::int8: one byte for each block of moment1
  scale2,    // and of moment2
  ema,       // ema_decay: the moving average of the parameter
};
inline constexpr const char* kStateKindNames[] = {"moment1",  "moment2", "vhat",   "master",
                                                  "row_step", "scale1",  "scale2", "ema"};
inline constexpr std::size_t kStateKinds = std::size(kStateKindNames);

// What a step makes of gradients that were accumulated.
enum class Reduction : std::uint8_t { mean, sum };
inline constexpr const char* kReductionNames[] = {"mean", "sum"};

// The options of one optimizer, or of a group of its parameters.
struct AdamConfig {
  double beta1 = 0.9;       // in (0, 1), or 0 with allow_zero
  double beta2 = 0.999;     // likewise
  double eps = 1e-8;        // > 0, also after rounding to the parameters' type; or likewise
  double loss_scale = 1.0;  // gradients are divided by it; in [kMinLossScale, kMaxLossScale]
  Numerics numerics = Numerics::standard;
  bool use_nesterov = false;            //
  bool use_amsgrad = false;             //
  bool decoupled_weight_decay = false;  // AdamW instead of L2
  bool bias_correction = true;          //
  RowPolicy row_policy = RowPolicy::exact;
  StateFormat state_format = StateFormat::real;  // others: not with float64 or catch_up
  std::uint64_t seed = 0;                        // of stochastic rounding
  bool master_weights = false;                   // keep float32 copies of 16-bit parameters
  bool use_locking = false;     // exclude optimizers that share memory and lock too
  bool skip_nonfinite = false;  // a NaN or infinity in a gradient cancels the step
  double max_grad_norm = 0.0;   // > 0: clip the norm over all gradients to it, or the group's
  int num_threads = 0;          // 0: what default_threads() says
  bool capturable = false;      // on a device: steps can be captured in a CUDA graph
  bool use_offload = false;     // on a device: the state and the update are on the host
  bool maximize = false;        // go along the gradient, not against it
  EpsilonPlacement epsilon_placement = EpsilonPlacement::outside;
  bool allow_zero = false;        // for betas and eps
  bool clip_per_array = false;    // max_grad_norm is for each gradient by itself
  bool clip_after_decay = false;  // the norms are those of the gradients with L2 decay added
  double ema_decay = 0.0;         // > 0: keep moving averages of the parameters; below 1
  bool writes_delta = false;      // write what a parameter changes by, and leave it as it is
  Reduction reduction = Reduction::mean;  // of accumulated gradients
};

// The options of a group that nothing else is said of.  Its max_grad_norm is for the gradients of
// the group: none, unless that of the optimizer is for each gradient.
inline AdamConfig default_group(const AdamConfig& config) {
  AdamConfig group = config;
  if (!config.clip_per_array) group.max_grad_norm = 0.0;
  return group;
}

// Its members, for those who treat all alike: OPTION(name, whether it decides the bits of later
// steps, whether groups may differ in it).  The C API and the bindings copy them, and a saved state
// is refused by an optimizer whose options differ in one that decides; the order is that of saved
// states.
#define ADAMAS_OPTIONS(OPTION)               \
  OPTION(numerics, true, false)              \
  OPTION(beta1, true, true)                  \
  OPTION(beta2, true, true)                  \
  OPTION(eps, true, true)                    \
  OPTION(use_nesterov, true, true)           \
  OPTION(use_amsgrad, true, true)            \
  OPTION(decoupled_weight_decay, true, true) \
  OPTION(bias_correction, true, false)       \
  OPTION(row_policy, true, false)            \
  OPTION(max_grad_norm, true, true)          \
  OPTION(skip_nonfinite, true, false)        \
  OPTION(state_format, true, false)          \
  OPTION(seed, true, false)                  \
  OPTION(master_weights, true, false)        \
  OPTION(loss_scale, false, false)           \
  OPTION(use_locking, false, false)          \
  OPTION(num_threads, false, false)          \
  OPTION(capturable, false, false)           \
  OPTION(use_offload, false, false)          \
  OPTION(maximize, true, true)               \
  OPTION(epsilon_placement, true, false)     \
  OPTION(allow_zero, false, false)           \
  OPTION(clip_per_array, true, true)         \
  OPTION(clip_after_decay, true, true)       \
  OPTION(ema_decay, true, false)             \
  OPTION(writes_delta, true, false)          \
  OPTION(reduction, true, false)

// A parameter: `count` elements at `data`, which the optimizer updates in place and never owns.
struct ParameterSpec {
  void* data = nullptr;
  std::int64_t count = 0;
  DType dtype = DType::float32;
  std::int32_t rates = 0;      // its group: which of the rates given to each step applies
  std::int64_t rows = 1;       // length of the first axis, for `centralize` and sparse gradients
  bool centralize = false;     // subtract from each gradient row its mean; then none is sparse
  std::int32_t device = kCpu;  // one for all parameters of an optimizer
  // The number of axes, and the length of the second: `centralize` then holds for the shapes that
  // the numerics choose (docs/NUMERICS.md).  0, not said: for this one.
  std::int32_t axes = 0;
  std::int64_t second_axis = 0;
  // State of the caller's, by StateKind, as Optimizer::layout() says; used in place, as it is, and
  // never owned.  Null: the optimizer reserves what it keeps, zeroed.
  void* states[kStateKinds] = {};
  // writes_delta: where the change of the parameter is written, in its type; `data` is only read.
  // Rows that are not listed get 0.  Without a gradient nothing is written, nor in a step that is
  // skipped.  May be the memory of a dense gradient on the CPU, of the parameter's type.
  void* delta = nullptr;
  // What the random bits of stochastic rounding depend on besides seed, step and element; >= 0.
  // -1: the position in the list of parameters.
  std::int64_t key = -1;
};

// What may change from step to step.
struct Rates {
  double learning_rate = 1e-3;
  double weight_decay = 0.0;
};

// The rows that a sparse gradient lists: may repeat, in any order.
struct RowIndices {
  const void* data = nullptr;
  std::int64_t count = 0;  // below 2^32 - 1
  bool is_int64 = true;    // else int32
};

// The gradient of one parameter, of a type that goes_with() it.
struct Gradient {
  const void* values = nullptr;      // as many as the parameter; or rows->count rows of it
  const RowIndices* rows = nullptr;  // null: dense
  DType dtype = DType::float32;
  std::int32_t device = kCpu;  // that of the parameter
  std::int64_t count = -1;     // of the elements at `values`, which is checked; -1: not said
  bool is_absent = false;      // there is none: the parameter is left alone and counts no step
};

}  // namespace adamas
