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
    cta.each([&](int thread) {
      if (thread < kLanes) lanes[thread] = 0.0;
    });
    cta.sync();
    for (std::int64_t begin = 0; begin < count; begin += kStaged) {
      const std::int64_t some = count - begin < kStaged ? count - begin : kStaged;
      cta.each([&](int thread) {
        for (std::int64_t k = thread; k < some; k += threads) staged[k] = values[begin + k];
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

struct Decide {
  using Args = DecideArgs;
  static constexpr int kThreads = kItemThreads;
  struct Shared {
    OrderedSum sum;
    rules::Corrections corrections;
    rules::Decision decision;
    bool fits;  // whether all scalars are finite
    bool ends;  // whether the step is not made
  };

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    cta.each([&](int thread) {
      if (thread == 0) begin(args, shared);
    });
    if (args.measured) shared.sum.run(cta, kThreads, args.squares, args.blocks);
    cta.sync();
    fold_all(args, cta, shared);
    cta.each([&](int thread) {
      if (thread == 0) decide(args, shared);
    });
    cta.sync();
    if (shared.decision.clips && !shared.ends) fold_all(args, cta, shared);
    cta.each([&](int thread) {
      if (thread == 0) commit(args, shared);
    });
  }

  ADAMAS_DEVICE static void begin(const Args& args, Shared& shared) {
    Control& control = *args.control;
    const AdamConfig& config = args.config;
    const std::int64_t step = control.step + 1;
    shared.decision = {Refusal::none, false, false, control.last_grad_norm,
                       rules::unclipped_factor(*args.loss_scale)};
    shared.fits = true;
    shared.ends = false;
    shared.corrections =
        rules::used_corrections(config, config.beta1, config.beta2, step, &control.powers);
  }

  ADAMAS_DEVICE static void fold_all(const Args& args, Cta cta, Shared& shared) {
    cta.each([&](int thread) {
      for (int k = thread; k < args.rates_count; k += kThreads) {
        if (!rules::fold_rates(args.config, args.rates[k], shared.corrections,
                               shared.decision.factor, args.has_float32, &args.entries[k])) {
          shared.fits = false;
        }
      }
    });
    cta.sync();
  }

  ADAMAS_DEVICE static void refuse(const Args& args, Shared& shared, Refusal refusal) {
    if (args.control->refusal == Refusal::none) args.control->refusal = refusal;
    shared.ends = true;
  }

  ADAMAS_DEVICE static void decide(const Args& args, Shared& shared) {
    if (!shared.fits) return refuse(args, shared, Refusal::scalars);
    if (!args.measured) return;
    Control& control = *args.control;
    shared.decision =
        rules::decide(args.config, *args.loss_scale, shared.sum.lanes[0], control.not_finite == 0);
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
    if (!shared.ends && !shared.fits) refuse(args, shared, Refusal::scalars);
    control.goes = shared.ends ? 0 : 1;
    if (shared.ends) return;
    control.last_grad_norm = shared.decision.norm;
    control.last_step_skipped = 0;
    ++control.step;
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
