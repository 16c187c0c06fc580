// Decides on the device whether a step is made, and with which scalars: so that clipping, skipping
// and captured graphs need not wait for the host.  cpu/engine.cpp decides likewise.
#pragma once

#include "cuda/kernels/sums.hpp"
#include "rules/fold_rates.hpp"

namespace adamas::cuda {

// The sum of doubles in 16 lanes and a tree, by one block of threads.
struct OrderedSum {
  static constexpr int kStaged = 2048;
  double staged[kStaged];
  double lanes[kLanes];

  // All threads call it; `lanes[0]` is the sum.
  ADAMAS_DEVICE void run(Cta cta, int threads, const double* values, std::int64_t count) {
    run(cta, threads, count, [&](std::int64_t i) { return values[i]; });
  }

  template <class ValueAt>
  ADAMAS_DEVICE void run(Cta cta, int threads, std::int64_t count, ValueAt value_at) {
    cta.each([&](int thread) {
      if (thread < kLanes) lanes[thread] = 0.0;
    });
    cta.sync();
    for (std::int64_t begin = 0; begin < count; begin += kStaged) {
      const std::int64_t some = count - begin < kStaged ? count - begin : kStaged;
      cta.each([&](int thread) {
        for (std::int64_t k = thread; k < some; k += threads) staged[k] = value_at(begin + k);
      });
      cta.sync();
      cta.each([&](int thread) {
        if (thread >= kLanes) return;
        double sum = lanes[thread];  // in a register: a store for each value would be slow
        for (std::int64_t k = thread; k < some; k += kLanes) sum += staged[k];
        lanes[thread] = sum;
      });
      cta.sync();
    }
    cta.each([&](int thread) {
      if (thread == 0) rules::tree_sum(lanes);
    });
    cta.sync();
  }
};

// The sums of runs of values, a block of threads for each: the squares of the gradients of single
// parameters, and from these of groups.
struct RunSums {
  using Args = RunSumsArgs;
  using Shared = OrderedSum;
  static constexpr int kThreads = kItemThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    for (std::int64_t i = cta.block(); i < args.count; i += cta.blocks()) {
      const std::int64_t first = args.first[i];
      shared.run(cta, kThreads, args.first[i + 1] - first, [&](std::int64_t k) {
        return args.values[args.order == nullptr ? first + k : args.order[first + k]];
      });
      cta.each([&](int thread) {
        if (thread == 0) args.sums[i] = shared.lanes[0];
      });
      cta.sync();
    }
  }
};

struct Decide {
  using Args = DecideArgs;
  static constexpr int kThreads = kItemThreads;
  struct Shared {
    OrderedSum sum;
    rules::Decision decision;
    bool fits;       // whether all scalars are finite
    bool overflows;  // whether the norm of a group does
    bool ends;       // whether the step is not made
  };

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    cta.each([&](int thread) {
      if (thread == 0) begin(args, shared);
    });
    if (args.measured) shared.sum.run(cta, kThreads, args.squares, args.blocks);
    cta.sync();
    fold_all(args, cta, shared, false);
    cta.each([&](int thread) {
      if (thread == 0) decide(args, shared);
    });
    cta.sync();
    if (!shared.ends && (shared.decision.clip != 1.0 || args.clips_groups)) {
      fold_all(args, cta, shared, true);
    }
    cta.each([&](int thread) {
      if (thread == 0) commit(args, shared);
    });
    cta.sync();
    if (!shared.ends && args.behind != nullptr) count_absent(args, cta);
  }

  ADAMAS_DEVICE static void begin(const Args& args, Shared& shared) {
    shared.decision = {Refusal::none, false, args.control->last_grad_norm, 1.0};
    shared.fits = true;
    shared.overflows = false;
    shared.ends = false;
  }

  // The clip of the gradients of entry k, in the second pass.
  ADAMAS_DEVICE static double clip_of(const Args& args, Shared& shared, std::int64_t k,
                                      std::int32_t rates) {
    const AdamConfig& group = args.groups[rates];
    const double clip = shared.decision.clip;
    if (!args.clips_groups) return clip;
    const double squares = group.clip_per_array ? args.array_squares[k] : args.group_squares[rates];
    const double norm = rules::norm_of(squares, *args.loss_scale);
    if (rules::overflows(group.max_grad_norm, norm)) shared.overflows = true;
    const double own = rules::clip_to(group.max_grad_norm, norm);
    return own < clip ? own : clip;
  }

  ADAMAS_DEVICE static void fold_all(const Args& args, Cta cta, Shared& shared, bool clips) {
    const std::int64_t count = args.tensors == nullptr ? args.rates_count : args.tensors_count;
    cta.each([&](int thread) {
      for (std::int64_t k = thread; k < count; k += kThreads) fold_one(args, shared, clips, k);
    });
    cta.sync();
  }

  ADAMAS_DEVICE static void fold_one(const Args& args, Shared& shared, bool clips, std::int64_t k) {
    const bool by_rates = args.tensors == nullptr;
    const std::int32_t rates = by_rates ? static_cast<std::int32_t>(k) : args.tensors[k].rates;
    const std::int64_t behind = by_rates ? 0 : args.behind[k];
    const std::int64_t step = args.control->step - behind + 1;
    const AdamConfig& group = args.groups[rates];
    const rules::Corrections corrections =
        rules::used_corrections(group, group.beta1, group.beta2, step, &args.powers[k]);
    const rules::Factor factor =
        rules::factor_of(group, clips ? clip_of(args, shared, k, rates) : 1.0, *args.loss_scale);
    if (!rules::fold_rates(group, args.rates[rates], corrections, step, factor, args.reals,
                           &args.entries[k])) {
      shared.fits = false;
    }
  }

  ADAMAS_DEVICE static void refuse(const Args& args, Shared& shared, Refusal refusal) {
    if (args.control->refusal == Refusal::none) args.control->refusal = refusal;
    shared.ends = true;
  }

  ADAMAS_DEVICE static void decide(const Args& args, Shared& shared) {
    if (!shared.fits) return refuse(args, shared, Refusal::scalars);
    if (!args.measured) return;
    Control& control = *args.control;
    shared.decision = rules::decide(args.config, *args.loss_scale, shared.sum.lanes[0],
                                    control.not_finite == 0, args.clips_groups);
    if (shared.decision.refusal != Refusal::none) {
      return refuse(args, shared, shared.decision.refusal);
    }
    if (!shared.decision.skips) return;
    control.last_grad_norm = shared.decision.norm;
    control.last_step_skipped = 1;
    ++control.skipped_steps;
    shared.ends = true;
  }

  ADAMAS_DEVICE static void commit(const Args& args, Shared& shared) {
    Control& control = *args.control;
    control.not_finite = 0;
    if (!shared.ends && shared.overflows) refuse(args, shared, Refusal::norm);
    if (!shared.ends && !shared.fits) refuse(args, shared, Refusal::scalars);
    control.goes = shared.ends ? 0 : 1;
    if (shared.ends) return;
    control.last_grad_norm = shared.decision.norm;
    control.last_step_skipped = 0;
    ++control.step;
  }

  // What was left out of a step that is made.
  ADAMAS_DEVICE static void count_absent(const Args& args, Cta cta) {
    cta.each([&](int thread) {
      for (std::int64_t i = thread; i < args.tensors_count; i += kThreads) {
        if (args.grads[i].is_absent) ++args.behind[i];
      }
    });
  }
};

// The sum of the squares of the rows of one sparse gradient.
struct TotalSquares {
  using Args = TotalSquaresArgs;
  using Shared = OrderedSum;
  static constexpr int kThreads = kItemThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    const std::int64_t count = args.count == nullptr ? 0 : *args.count;
    shared.run(cta, kThreads, args.values, count);
    cta.each([&](int thread) {
      if (thread == 0) *args.sum = shared.lanes[0];
    });
  }
};

}  // namespace adamas::cuda
