// What the host hands to the kernels: tables in device memory and arguments by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "adamas/types.hpp"
#include "cuda/kernels/sizes.hpp"
#include "rules/decision.hpp"
#include "rules/fold_rates.hpp"

namespace adamas::cuda {

inline constexpr std::uint32_t kNone = ~std::uint32_t{0};

// One parameter.
struct TensorEntry {
  void* param;
  void* moment1;
  void* moment2;
  void* vhat;               // null: none, as with the following
  float* master;            //
  std::uint8_t* scale1;     //
  std::uint8_t* scale2;     //
  std::int64_t* row_steps;  //
  double* means;            // of its rows, if it is centralized
  double* segment_sums;     //
  void* ema;                // its moving average
  void* delta;              // where its change is written, instead of the parameter
  double ema_rate;          // 1 - ema_decay
  std::int64_t count;
  std::int64_t row_length;
  std::int64_t segments_per_row;
  std::int64_t scale_block;
  std::int64_t key;       // of its random bits
  std::int32_t position;  // among the parameters
  std::int32_t rates;
  DType dtype;
  StateFormat format;
};

// The gradient of one parameter; null values: it has none here (another kernel reads it, or it is
// absent).
struct GradEntry {
  const void* values;
  DType dtype;
  bool is_absent;
};

// Neighbours in one parameter that one block of threads works on: elements, or segments of rows.
struct Slice {
  std::int64_t begin;
  std::int32_t count;
  std::int32_t tensor;
};

// One element of the rates.
using rules::Folded;
using RateEntry = rules::FoldedRates;

using rules::Refusal;

// The state of an optimizer whose steps are decided on the device.
struct Control {
  std::int64_t step;  // made
  std::int64_t skipped_steps;
  double last_grad_norm;
  std::int32_t goes;  // whether the step at hand is made
  std::int32_t last_step_skipped;
  std::int32_t not_finite;  // set by `block_squares` or `row_squares`, cleared by `decide`
  Refusal refusal;          // the first that was not reported yet
};

// The step at hand, for all kernels that update.
struct StepArgs {
  static constexpr int kInlineRates = 4;

  const TensorEntry* tensors;
  const GradEntry* grads;
  const RateEntry* rates;       // null: inline_rates
  const std::uint32_t* places;  // by parameter: its element of the rates; null: what its group has
  const Control* control;       // null: the step goes
  std::uint64_t seed;
  RateEntry inline_rates[kInlineRates];
};

struct StoreArgs {
  static constexpr std::size_t kMaxBytes = 3840;  // of the 4096 that all arguments may have

  void* target;
  std::uint32_t nbytes;  // a multiple of 4
  std::uint32_t words[kMaxBytes / 4];
};

struct LoadMasterArgs {
  const void* param;
  float* master;
  std::int64_t count;
  DType dtype;
};

struct DenseArgs {
  StepArgs step;
  const Slice* slices;
  std::int64_t count;
};

// The entries of a sparse gradient, sorted by row.
struct SortedRows {
  const std::uint64_t* rows;   // by place
  const std::uint32_t* entry;  // by place
  std::int64_t count;
};

enum class TableRows : std::int32_t {
  listed,    // a unit is a place among the sorted entries, and works if a row begins there
  all,       // a unit is a row; `first` says where its entries are
  gradient,  // a unit is a row, and the gradient is dense
};

struct TableArgs {
  StepArgs step;
  std::int32_t tensor;
  GradEntry grad;
  TableRows mode;
  bool catches_up;
  bool decays_entries;  // weight decay once for each entry
  SortedRows sorted;
  const std::uint32_t* first;  // by row: its first place, or kNone; null: no row is listed
  std::int64_t units;
  std::int64_t piece;  // elements of a row that one warp takes
  std::int64_t pieces_per_row;
};

struct RowSumsArgs {
  StepArgs step;
  const Slice* segments;
  std::int64_t count;
};

struct RowMeansArgs {
  const TensorEntry* tensors;
  std::int32_t tensor;
  std::int64_t rows;
};

struct BlockSquaresArgs {
  const GradEntry* grads;
  const Slice* blocks;
  std::int64_t count;
  double* squares;  // by block
  Control* control;
  const TensorEntry* tensors;  // with the following, for L2 decay that is measured; null: none is
  const AdamConfig* groups;
  const Rates* rates;
  const double* loss_scale;
};

// The sums of `count` runs of values; run i is [first[i], first[i + 1]).
struct RunSumsArgs {
  const double* values;
  const std::uint32_t* order;  // the values of the runs; null: as they lie
  const std::int64_t* first;
  std::int64_t count;
  double* sums;
};

struct DecideArgs {
  AdamConfig config;
  Control* control;
  const double* loss_scale;
  const AdamConfig* groups;  // by rates, as the following
  const Rates* rates;
  const double* group_squares;
  std::int32_t rates_count;
  bool measured;
  rules::Reals reals;
  bool clips_groups;  // or single gradients
  const double* squares;
  std::int64_t blocks;
  RateEntry* entries;  // by rates, or by parameter
  rules::RunningPowers* powers;
  // Null: entries are by rates.
  const TensorEntry* tensors;
  const GradEntry* grads;
  std::int64_t* behind;  // by parameter: the steps that it was left out of
  const double* array_squares;
  std::int64_t tensors_count;
};

struct IndexRowsArgs {
  const void* indices;
  bool is_int64;
  std::int64_t count;
  std::int64_t table_rows;
  std::uint64_t* rows;
  std::uint32_t* entry;
  std::int32_t* outside;  // set if an index is
};

struct MarkHeadsArgs {
  SortedRows sorted;
  std::uint32_t* heads;  // by place: 1 where a row begins; may be null
  std::uint32_t* first;  // by row; may be null
};

struct RowSquaresArgs {
  SortedRows sorted;
  const std::uint32_t* ranks;  // by place: how many rows begin up to here
  GradEntry grad;
  DType real;
  std::int64_t row_length;
  double* squares;  // by listed row
  Control* control;
};

struct TotalSquaresArgs {
  const double* values;
  const std::uint32_t* count;  // null: none
  double* sum;
};

struct SetRowStepsArgs {
  std::int64_t* row_steps;
  const std::uint64_t* rows;  // null: all
  std::int64_t count;
  std::int32_t tensor;
  StepArgs step;
};

// Gradients that are added to sums, or become them.
struct Sum {
  void* values;
  std::int32_t has_any;
};
struct AccumulateArgs {
  const TensorEntry* tensors;
  const GradEntry* grads;
  const Slice* blocks;
  std::int64_t count;
  const Sum* sums;  // by parameter
};

struct AddRowStepsArgs {
  std::int64_t* row_steps;
  std::int64_t count;
  std::int64_t moved;
};

}  // namespace adamas::cuda
