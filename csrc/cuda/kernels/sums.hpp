// Sums in the order that docs/NUMERICS.md promises: row means, and the norm of the gradients.
//
// A group of kLanes threads takes one tile of kTile elements, each thread one lane; tiles are added
// from first to last.
#pragma once

#include "cuda/kernels/elements.hpp"
#include "rules/ordered_sum.hpp"

namespace adamas::cuda {

using rules::kBlock;
using rules::kLanes;
using rules::kTile;

inline constexpr int kSumThreads = kSumGroups * kLanes;

struct GroupSums {
  double lanes[kSumGroups][kLanes];
};

// The gradient's element `i` as the row sums see it.
template <class Real>
ADAMAS_DEVICE double decayed(const TensorEntry& tensor, const GradEntry& grad, const Folded& folded,
                             std::int64_t i) {
  const Real param = load_param<Real>(tensor, i);
  return static_cast<double>(rules::decayed_gradient(
      folded.variant, load_at<Real>(grad.dtype, grad.values, i), param, scalars_of<Real>(folded)));
}

// Segments of rows of centralized parameters: of kBlock elements, or whole rows.
struct RowSums {
  using Args = RowSumsArgs;
  using Shared = GroupSums;
  static constexpr int kThreads = kSumThreads;
  // With all the registers that the compiler would take, one would fit.
  static constexpr int kBlocksAtOnce = 4;

  // How many segments a block of threads sums at a time, for so many tiles in each.
  ADAMAS_DEVICE static std::int64_t tiles_of(const TensorEntry& tensor) {
    const std::int64_t longest = tensor.row_length < kBlock ? tensor.row_length : kBlock;
    return (longest + kTile - 1) / kTile;
  }

  struct Segment {
    std::int64_t begin;
    std::int64_t count;
  };

  ADAMAS_DEVICE static Segment segment_of(const TensorEntry& tensor, std::int64_t segment) {
    const std::int64_t in_row = segment % tensor.segments_per_row * kBlock;
    const std::int64_t left = tensor.row_length - in_row;
    return {segment / tensor.segments_per_row * tensor.row_length + in_row,
            left < kBlock ? left : kBlock};
  }

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    for (std::int64_t k = cta.block(); k < args.count; k += cta.blocks()) {
      const Slice work = args.segments[k];
      const TensorEntry& tensor = args.step.tensors[work.tensor];
      const GradEntry& grad = args.step.grads[work.tensor];
      if (grad.values == nullptr) continue;
      const std::int64_t tiles = tiles_of(tensor);
      const std::int64_t at_once = kSumGroups / tiles;
      for (std::int64_t done = 0; done < work.count; done += at_once) {
        cta.each([&](int thread) {
          const std::int64_t group = thread / kLanes;
          const std::int64_t segment = done + group / tiles;
          double sum = 0.0;
          if (segment < work.count && group < at_once * tiles) {
            const Segment run = segment_of(tensor, work.begin + segment);
            sum = sum_lane(args.step, tensor, grad, run, group % tiles, thread % kLanes);
          }
          shared.lanes[group][thread % kLanes] = sum;
        });
        cta.sync();
        cta.each([&](int thread) {
          const std::int64_t segment = done + thread;
          if (thread >= at_once || segment >= work.count) return;
          const std::int64_t count = segment_of(tensor, work.begin + segment).count;
          double sum = 0.0;
          for (std::int64_t tile = 0; tile * kTile < count; ++tile) {
            sum += rules::tree_sum(shared.lanes[thread * tiles + tile]);
          }
          tensor.segment_sums[work.begin + segment] = sum;
        });
        cta.sync();
      }
    }
  }

  ADAMAS_DEVICE static double sum_lane(const StepArgs& step, const TensorEntry& tensor,
                                       const GradEntry& grad, const Segment& run, std::int64_t tile,
                                       int lane) {
    const Folded& folded = rates_of(step, tensor).listed;
    const std::int64_t end = tile * kTile + kTile < run.count ? tile * kTile + kTile : run.count;
    double sum = 0.0;
    for (std::int64_t i = tile * kTile + lane; i < end; i += kLanes) {
      sum += tensor.dtype == DType::float64 ? decayed<double>(tensor, grad, folded, run.begin + i)
                                            : decayed<float>(tensor, grad, folded, run.begin + i);
    }
    return sum;
  }
};

struct RowMeans {
  using Args = RowMeansArgs;
  struct Shared {};
  static constexpr int kThreads = kItemThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared&) {
    const TensorEntry& tensor = args.tensors[args.tensor];
    cta.each([&](int thread) {
      for (std::int64_t row = cta.block() * kThreads + thread; row < args.rows;
           row += cta.blocks() * kThreads) {
        double sum = 0.0;
        for (std::int64_t k = 0; k < tensor.segments_per_row; ++k) {
          sum += tensor.segment_sums[row * tensor.segments_per_row + k];
        }
        tensor.means[row] = rules::divide(sum, static_cast<double>(tensor.row_length));
      }
    });
  }
};

// One lane of a sum of squares, and whether all is finite.
template <class Value>
ADAMAS_DEVICE double square_lane(Value value_at, std::int64_t begin, std::int64_t end, int lane,
                                 bool* finite) {
  double sum = 0.0;
  for (std::int64_t i = begin + lane; i < end; i += kLanes) {
    const double value = value_at(i);
    sum = rules::multiply_add(value, value, sum);
    if (value - value != 0) *finite = false;
  }
  return sum;
}

// The sum of squares of each block of dense gradients.
struct BlockSquares {
  using Args = BlockSquaresArgs;
  using Shared = GroupSums;
  static constexpr int kThreads = kSumThreads;
  static constexpr int kBlocksAtOnce = 4;  // as RowSums

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    for (std::int64_t b = cta.block(); b < args.count; b += cta.blocks()) {
      const Slice block = args.blocks[b];
      const GradEntry& grad = args.grads[block.tensor];
      if (grad.values == nullptr) continue;
      cta.each([&](int thread) {
        const int group = thread / kLanes;
        const std::int64_t begin = group * kTile;
        const std::int64_t end = begin + kTile < block.count ? begin + kTile : block.count;
        bool finite = true;
        shared.lanes[group][thread % kLanes] =
            lane_of(args, block, grad, begin, end, thread % kLanes, &finite);
        if (!finite) args.control->not_finite = 1;  // whoever comes first: all write the same
      });
      cta.sync();
      cta.each([&](int thread) {
        if (thread * kTile < block.count && thread < kSumGroups)
          rules::tree_sum(shared.lanes[thread]);
      });
      cta.sync();
      cta.each([&](int thread) {
        if (thread != 0) return;
        double sum = 0.0;
        for (int tile = 0; tile * kTile < block.count; ++tile) sum += shared.lanes[tile][0];
        args.squares[b] = sum;
      });
      cta.sync();
    }
  }

  // L2 decay that is measured with the gradients.
  ADAMAS_DEVICE static double decay_of(const Args& args, const Slice& block) {
    if (args.tensors == nullptr) return 0.0;
    const std::int32_t rates = args.tensors[block.tensor].rates;
    return rules::measured_decay(args.groups[rates], args.rates[rates], *args.loss_scale);
  }

  ADAMAS_DEVICE static double lane_of(const Args& args, const Slice& block, const GradEntry& grad,
                                      std::int64_t begin, std::int64_t end, int lane,
                                      bool* finite) {
    const double decay = decay_of(args, block);
    double sum = 0.0;
    const auto add = [&](auto type) {
      using Real = typename decltype(type)::Real;
      const auto* stored =
          static_cast<const typename decltype(type)::Bits*>(grad.values) + block.begin;
      const auto as_stored = [&](std::int64_t i) -> double { return type.load(stored[i]); };
      const auto decayed = [&](std::int64_t i) -> double {
        const Real param = load_param<Real>(args.tensors[block.tensor], block.begin + i);
        return rules::multiply_add(static_cast<Real>(decay), param, type.load(stored[i]));
      };
      sum = decay == 0.0 ? square_lane(as_stored, begin, end, lane, finite)
                         : square_lane(decayed, begin, end, lane, finite);
    };
    if (grad.dtype == DType::float64) {
      visit_type<double>(grad.dtype, add);
    } else {
      visit_type<float>(grad.dtype, add);
    }
    return sum;
  }
};

// Adds dense gradients to the sums of micro-batches, in the type of the arithmetic.
struct Accumulate {
  using Args = AccumulateArgs;
  struct Shared {};
  static constexpr int kThreads = kItemThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared&) {
    for (std::int64_t b = cta.block(); b < args.count; b += cta.blocks()) {
      const Slice block = args.blocks[b];
      const GradEntry grad = args.grads[block.tensor];
      if (grad.values == nullptr) continue;
      const Sum sum = args.sums[block.tensor];
      const auto add = [&](auto type) {
        using Real = typename decltype(type)::Real;
        const auto* values = static_cast<const typename decltype(type)::Bits*>(grad.values);
        auto* sums = static_cast<Real*>(sum.values);
        cta.each([&](int thread) {
          for (std::int64_t k = thread; k < block.count; k += kThreads) {
            const std::int64_t i = block.begin + k;
            const Real value = type.load(values[i]);
            sums[i] = sum.has_any != 0 ? sums[i] + value : value;
          }
        });
      };
      if (grad.dtype == DType::float64) {
        visit_type<double>(grad.dtype, add);
      } else {
        visit_type<float>(grad.dtype, add);
      }
    }
  }
};

}  // namespace adamas::cuda
