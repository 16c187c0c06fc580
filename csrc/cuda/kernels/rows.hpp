// Kernels that prepare: storing arguments, master weights, the rows of sparse gradients.
#pragma once

#include "cuda/kernels/sums.hpp"
#include "cuda/kernels/table.hpp"

namespace adamas::cuda {

// A kernel whose threads each take some of [0, count(args)), alone.
template <class Derived, class Arguments>
struct ForEach {
  using Args = Arguments;
  struct Shared {};
  static constexpr int kThreads = kItemThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared&) {
    cta.each([&](int thread) {
      for (std::int64_t i = cta.block() * kThreads + thread; i < Derived::count(args);
           i += cta.blocks() * kThreads) {
        Derived::work(args, i);
      }
    });
  }
};

struct Store : ForEach<Store, StoreArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) { return args.nbytes / 4; }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    static_cast<std::uint32_t*>(args.target)[i] = args.words[i];
  }
};

struct LoadMaster : ForEach<LoadMaster, LoadMasterArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) { return args.count; }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    args.master[i] = load_at<float>(args.dtype, args.param, i);
  }
};

struct IndexRows : ForEach<IndexRows, IndexRowsArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) { return args.count; }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    const std::int64_t row = args.is_int64 ? static_cast<const std::int64_t*>(args.indices)[i]
                                           : static_cast<const std::int32_t*>(args.indices)[i];
    if (row < 0 || row >= args.table_rows) *args.outside = 1;
    args.rows[i] = static_cast<std::uint64_t>(row);
    args.entry[i] = static_cast<std::uint32_t>(i);
  }
};

struct MarkHeads : ForEach<MarkHeads, MarkHeadsArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) { return args.sorted.count; }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    const std::uint64_t* rows = args.sorted.rows;
    const bool begins = i == 0 || rows[i - 1] != rows[i];
    if (args.heads != nullptr) args.heads[i] = begins ? 1U : 0U;
    if (args.first != nullptr && begins) args.first[rows[i]] = static_cast<std::uint32_t>(i);
  }
};

struct SetRowSteps : ForEach<SetRowSteps, SetRowStepsArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) {
    return goes(args.step.control) ? args.count : 0;
  }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    const std::int64_t step = rates_of(args.step, args.step.tensors[args.tensor]).step;
    args.row_steps[args.rows == nullptr ? i : static_cast<std::int64_t>(args.rows[i])] = step;
  }
};

struct AddRowSteps : ForEach<AddRowSteps, AddRowStepsArgs> {
  ADAMAS_DEVICE static std::int64_t count(const Args& args) { return args.count; }
  ADAMAS_DEVICE static void work(const Args& args, std::int64_t i) {
    args.row_steps[i] += args.moved;
  }
};

// The squares of each listed row, a group of threads for each place where a row begins.
struct RowSquares {
  using Args = RowSquaresArgs;
  using Shared = GroupSums;
  static constexpr int kThreads = kSumThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    const std::int64_t places = args.sorted.count;
    for (std::int64_t k = cta.block() * kSumGroups; k < places; k += cta.blocks() * kSumGroups) {
      for (std::int64_t begin = 0; begin < args.row_length || begin == 0; begin += kTile) {
        cta.each([&](int thread) {
          const std::int64_t place = k + thread / kLanes;
          bool finite = true;
          double sum = 0.0;
          if (place < places && begins(args.sorted, place)) {
            sum = args.real == DType::float64
                      ? lane_of<double>(args, place, begin, thread % kLanes, &finite)
                      : lane_of<float>(args, place, begin, thread % kLanes, &finite);
          }
          shared.lanes[thread / kLanes][thread % kLanes] = sum;
          if (!finite) args.control->not_finite = 1;
        });
        cta.sync();
        cta.each([&](int thread) {
          const std::int64_t place = k + thread;
          if (thread >= kSumGroups || place >= places || !begins(args.sorted, place)) return;
          double* sum = &args.squares[args.ranks[place] - 1];
          const double tile = rules::tree_sum(shared.lanes[thread]);
          *sum = begin == 0 ? 0.0 + tile : *sum + tile;
        });
        cta.sync();
      }
    }
  }

  ADAMAS_DEVICE static bool begins(const SortedRows& sorted, std::int64_t place) {
    return place == 0 || sorted.rows[place - 1] != sorted.rows[place];
  }

  template <class Real>
  ADAMAS_DEVICE static double lane_of(const Args& args, std::int64_t place, std::int64_t begin,
                                      int lane, bool* finite) {
    const PieceGrad<Real> grad{
        args.grad.values,          args.grad.dtype,
        args.sorted.entry + place, Table<Real>::entries_from(args.sorted, place),
        args.row_length,           0};
    const std::int64_t end = begin + kTile < args.row_length ? begin + kTile : args.row_length;
    return square_lane([&](std::int64_t i) { return static_cast<double>(grad.at(i)); }, begin, end,
                       lane, finite);
  }
};

}  // namespace adamas::cuda
