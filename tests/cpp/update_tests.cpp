// Tests of steps over state of the caller's: with an optimizer and without one, over the whole list
// or one parameter at a time, the bits are the same.
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"
#include "problem.hpp"

namespace adamas::tests {
namespace {

constexpr int kSteps = 2;
constexpr Rates kRates{0.0123, 0.045};
constexpr int kThreads[] = {1, 2, 3, 7};

// How parameters are stored.
struct Storage {
  DType dtype;
  bool has_master;
};
constexpr Storage kStorages[] = {{DType::float32, false},  {DType::float64, false},
                                 {DType::float16, false},  {DType::float16, true},
                                 {DType::bfloat16, false}, {DType::bfloat16, true}};

struct Case {
  AdamConfig config;
  bool is_centralized = false;
};

AdamConfig unusual() {
  AdamConfig config;
  config.beta1 = 0.8;
  config.beta2 = 0.95;
  config.eps = 1e-5;
  config.loss_scale = 3.0;
  config.seed = 5;
  return config;
}

// One more choice beside the moments and the decay.
std::vector<Case> choices(const AdamConfig& config) {
  std::vector<Case> cases;
  const auto add = [&](auto change) {
    cases.push_back({config});
    change(cases.back());
  };
  add([](Case&) {});
  add([](Case& c) { c.config.epsilon_placement = EpsilonPlacement::inside; });
  add([](Case& c) { c.config.maximize = true; });
  add([](Case& c) { c.config.ema_decay = 0.9; });
  add([](Case& c) { c.is_centralized = true; });
  add([](Case& c) { c.config.max_grad_norm = 0.5; });
  add([](Case& c) { c.config.max_grad_norm = 0.5, c.config.clip_per_array = true; });
  add([](Case& c) { c.config.max_grad_norm = 0.5, c.config.clip_after_decay = true; });
  add([](Case& c) { c.config.state_format = StateFormat::bfloat16; });
  add([](Case& c) { c.config.bias_correction = false; });
  add([](Case& c) {
    c.config.allow_zero = true;
    c.config.beta1 = 0.0;
  });
  add([](Case& c) {
    c.is_centralized = true;
    c.config.maximize = true;
    c.config.ema_decay = 0.75;
    c.config.max_grad_norm = 0.25;
    c.config.clip_per_array = true;
    c.config.clip_after_decay = true;
    c.config.state_format = StateFormat::bfloat16;
  });
  return cases;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const int moments : {0, 1, 2, 3}) {
      for (const bool decoupled : {false, true}) {
        AdamConfig config = unusual();
        config.numerics = numerics;
        config.use_nesterov = (moments & 1) != 0;
        config.use_amsgrad = (moments & 2) != 0;
        config.decoupled_weight_decay = decoupled;
        for (const Case& one : choices(config)) cases.push_back(one);
      }
    }
  }
  return cases;
}

Model make_model(const Case& one, DType dtype) {
  const bool centralize = one.is_centralized;
  return {{{0, 1}, {1, 1}, {3, 7}, {5, 13, 0, centralize}, {1, 260, 0, centralize}, {1, 16411}},
          {dtype},
          7};
}

// One call of one update, over some of the parameters.
void step_without(AdamUpdate& update, const AdamConfig& config,
                  const std::vector<ParameterSpec>& specs, const std::vector<Gradient>& grads,
                  Span<std::int64_t> steps) {
  CHECK(update.step(config, specs, grads, {&kRates, 1}, steps).ok());
}

struct Tally {
  std::int64_t combinations = 0;
  std::int64_t cases = 0;
};

// All ways to make the same steps, beside an optimizer with state of its own.
void check_all_ways(const Case& one, const Storage& storage, Tally* tally) {
  AdamConfig config = one.config;
  config.master_weights = storage.has_master;
  config.num_threads = 1;
  CHECK(select_isa("scalar").ok());
  const Model initial = make_model(one, storage.dtype);
  Model wanted = initial;
  const Optimizers optimizer = make_optimizer(config, wanted.specs());
  const States fresh(*optimizer, wanted);
  std::mt19937_64 random(3);
  std::vector<std::vector<Bytes>> values;
  for (int t = 0; t < kSteps; ++t) {
    values.push_back(initial.random_grads(random));
    CHECK(optimizer->step(initial.gradients(values.back()), {&kRates, 1}).ok());
  }
  CHECK(!same_params(wanted, initial));

  const bool is_for_all = config.max_grad_norm > 0.0 && !config.clip_per_array;
  int count = 0;
  const IsaInfo* isa = isas(&count);
  ++tally->cases;
  for (int k = 0; k < count; ++k) {
    if (!isa[k].supported) continue;
    CHECK(select_isa(isa[k].name).ok());
    for (const int threads : kThreads) {
      config.num_threads = threads;
      for (const bool by_parameter : {false, true}) {
        if (by_parameter && is_for_all) continue;
        Model model = initial;
        States states = fresh;
        std::vector<ParameterSpec> specs = model.specs();
        states.give_all(&specs);
        std::vector<std::int64_t> steps(specs.size(), 0);
        AdamUpdate update;
        for (const std::vector<Bytes>& grads : values) {
          if (!by_parameter) {
            step_without(update, config, specs, model.gradients(grads), steps);
            continue;
          }
          for (std::size_t i = 0; i < specs.size(); ++i) {
            step_without(update, config, {specs[i]}, {model.gradient(i, grads[i])}, {&steps[i], 1});
          }
        }
        CHECK(steps == std::vector<std::int64_t>(specs.size(), kSteps));
        CHECK(same_params(model, wanted));
        CHECK(states.is_of(*optimizer));
        ++tally->combinations;
      }
      Model model = initial;
      States states = fresh;
      std::vector<ParameterSpec> specs = model.specs();
      states.give_all(&specs);
      const Optimizers adopting = make_optimizer(config, specs);
      for (const std::vector<Bytes>& grads : values) {
        CHECK(adopting->step(model.gradients(grads), {&kRates, 1}).ok());
      }
      CHECK(same_params(model, wanted));
      CHECK(states.is_of(*optimizer));
      for (std::size_t i = 0; i < specs.size(); ++i) {
        CHECK(adopting->state(StateKind::moment1, i) == specs[i].states[0]);
      }
      ++tally->combinations;
    }
  }
}

// Two parameters with all state that an option can ask for, of the caller's.
struct Adopted {
  Model model;
  AdamConfig config;
  Optimizers like;  // whose state is laid out the same
  States states;
  std::vector<ParameterSpec> specs;
  std::vector<Bytes> values;
  std::vector<Gradient> grads;
  std::vector<std::int64_t> steps = {3, 3};

  explicit Adopted(const AdamConfig& options, DType dtype = DType::float32)
      : model({{3, 4}, {1, 7}}, {dtype}, 1),
        config(options),
        like(make_optimizer(options, model.specs())),
        states(*like, model),
        specs(model.specs()) {
    states.give_all(&specs);
    std::mt19937_64 random(2);
    values = model.random_grads(random);
    grads = model.gradients(values);
  }

  Status step(Rates rates = kRates) {
    return update.step(config, specs, grads, {&rates, 1}, steps);
  }

  AdamUpdate update;
};

AdamConfig with_all_state() {
  AdamConfig config = unusual();
  config.use_amsgrad = true;
  config.master_weights = true;
  config.ema_decay = 0.5;
  return config;
}

// After `spoil`, steps without and with an optimizer are refused and change nothing.
template <class Spoil>
void check_refused(const AdamConfig& config, DType dtype, StatusCode code, std::int64_t index,
                   Spoil spoil, int* count) {
  Adopted wrong(config, dtype);
  CHECK(wrong.step().ok());
  const Model params = wrong.model;
  const States states = wrong.states;
  const std::vector<std::int64_t> steps = wrong.steps;
  const std::vector<ParameterSpec> right = wrong.specs;
  spoil(wrong);
  const Status status = wrong.step();
  CHECK(status.code() == code);
  CHECK(status.index() == index);
  CHECK(same_params(wrong.model, params));
  CHECK(wrong.states == states);
  ++*count;
  // The update is as good as before.
  if (wrong.steps.size() == 2 && wrong.steps == steps) {
    wrong.specs = right;
    wrong.config = config;
    wrong.grads = wrong.model.gradients(wrong.values);
    CHECK(wrong.step().ok());
    CHECK(!same_params(wrong.model, params));
  }
}

// Likewise of what an optimizer refuses when it is made.
template <class Spoil>
void check_not_made(const AdamConfig& config, DType dtype, StatusCode code, std::int64_t index,
                    Spoil spoil, int* count) {
  Adopted wrong(config, dtype);
  const States states = wrong.states;
  spoil(wrong);
  Optimizers optimizer;
  const Status status = Optimizer::create(wrong.config, wrong.specs, &optimizer);
  CHECK(status.code() == code);
  CHECK(status.index() == index);
  CHECK(optimizer == nullptr);
  CHECK(wrong.states == states);
  check_refused(config, dtype, code, index, spoil, count);
}

void*& state_of(ParameterSpec& spec, StateKind kind) {
  return spec.states[static_cast<std::size_t>(kind)];
}

}  // namespace

void steps_over_callers_state_have_the_same_bits() {
  const std::string chosen = isa_in_use();
  Tally tally;
  for (const Case& one : all_cases()) {
    for (const Storage& storage : kStorages) {
      if (one.config.state_format != StateFormat::real && storage.dtype == DType::float64) continue;
      check_all_ways(one, storage, &tally);
    }
  }
  CHECK(select_isa(chosen.c_str()).ok());
  std::printf("%lld combinations of %lld rules and types\n",
              static_cast<long long>(tally.combinations), static_cast<long long>(tally.cases));
}

// Absent gradients, steps that differ, sparse ones and groups, with and without an optimizer.
void updates_follow_optimizers() {
  int compared = 0;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const double max_grad_norm : {0.0, 0.5}) {
      for (const RowPolicy policy : {RowPolicy::exact, RowPolicy::lazy}) {
        AdamConfig config = unusual();
        config.numerics = numerics;
        config.max_grad_norm = max_grad_norm;
        config.row_policy = policy;
        config.num_threads = 2;
        AdamConfig other = config;
        other.beta1 = 0.5;
        other.use_amsgrad = true;
        other.max_grad_norm = max_grad_norm / 2;
        const std::vector<AdamConfig> groups = {default_group(config), other};
        const Rates rates[] = {{0.01, 0.1}, {0.02, 0.3}};
        const Model initial({{11, 3}, {1, 50, 1}, {7, 5, 1}}, {DType::float32}, 4);
        Model wanted = initial;
        Model model = initial;
        const Optimizers optimizer = make_optimizer(config, wanted.specs(), groups);
        States states(*optimizer, model);
        std::vector<ParameterSpec> specs = model.specs();
        states.give_all(&specs);
        AdamUpdate update;
        std::vector<std::int64_t> steps(3, 0);
        std::mt19937_64 random(8);
        const std::vector<std::int64_t> indices = {2, 0, 2, 10};
        const RowIndices rows{indices.data(), 4, true};
        for (int t = 0; t < 12; ++t) {
          const std::vector<Bytes> values = initial.random_grads(random);
          std::vector<Gradient> grads = initial.gradients(values);
          if (t % 2 == 0) grads[0].rows = &rows, grads[0].count = 12;
          for (Gradient& grad : grads) grad.is_absent = random() % 3 == 0;
          CHECK(optimizer->step(grads, {rates, 2}).ok());
          UpdateResult result;
          CHECK(update.step(config, specs, grads, {rates, 2}, steps, &result, groups).ok());
          std::vector<std::int64_t> counted(3);
          CHECK(optimizer->steps(counted).ok());
          CHECK(counted == steps);
          CHECK(!result.skipped);
          CHECK(std::isnan(result.grad_norm) == (max_grad_norm == 0.0));
          if (max_grad_norm > 0.0) CHECK(result.grad_norm == optimizer->last_grad_norm());
          CHECK(same_params(model, wanted));
          CHECK(states.is_of(*optimizer));
          ++compared;
        }
      }
    }
  }
  CHECK(compared == 96);
}

void skipped_updates_change_nothing() {
  AdamConfig config = unusual();
  config.skip_nonfinite = true;
  Adopted one(config);
  const Model params = one.model;
  const States states = one.states;
  set_number(one.values[1], DType::float32, 3, std::numeric_limits<double>::infinity());
  UpdateResult result;
  CHECK(one.update.step(config, one.specs, one.grads, {&kRates, 1}, one.steps, &result).ok());
  CHECK(result.skipped);
  CHECK(same_params(one.model, params));
  CHECK(one.states == states);
  CHECK(one.steps == std::vector<std::int64_t>({3, 3}));
}

void refused_state_changes_nothing() {
  const auto invalid = StatusCode::invalid_argument;
  const auto overlap = StatusCode::overlap;
  const auto half = DType::bfloat16;
  const AdamConfig config = with_all_state();
  int count = 0;
  for (const StateKind kind : {StateKind::moment1, StateKind::moment2, StateKind::vhat,
                               StateKind::master, StateKind::ema}) {
    // Given twice, to two parameters and to one.
    check_not_made(
        config, half, overlap, 1,
        [&](Adopted& a) { state_of(a.specs[1], kind) = state_of(a.specs[0], kind); }, &count);
    const StateKind next = kind == StateKind::ema ? StateKind::moment1 : StateKind::ema;
    check_not_made(
        config, half, overlap, 0,
        [&](Adopted& a) {
          state_of(a.specs[0], kind) = static_cast<char*>(state_of(a.specs[0], next)) + 8;
        },
        &count);
    // Memory of a parameter, and of its end.
    check_not_made(
        config, half, overlap, 1, [&](Adopted& a) { state_of(a.specs[1], kind) = a.specs[0].data; },
        &count);
    check_not_made(
        config, half, overlap, 1,
        [&](Adopted& a) { a.specs[0].data = static_cast<char*>(state_of(a.specs[1], kind)) + 26; },
        &count);
    check_not_made(
        config, half, invalid, 1,
        [&](Adopted& a) {
          state_of(a.specs[1], kind) = static_cast<char*>(state_of(a.specs[1], kind)) + 2;
        },
        &count);
    check_refused(
        config, half, invalid, 1, [&](Adopted& a) { state_of(a.specs[1], kind) = nullptr; },
        &count);
  }
  // That these options do not keep.
  std::vector<char> spare(256);
  const auto spares = [&](StateKind kind) {
    return [&, kind](Adopted& a) {
      state_of(a.specs[1], kind) =
          spare.data() + (64 - reinterpret_cast<std::uintptr_t>(spare.data()) % 64);
    };
  };
  for (const StateKind kind : {StateKind::vhat, StateKind::master, StateKind::ema,
                               StateKind::row_step, StateKind::scale1, StateKind::scale2}) {
    check_not_made(unusual(), DType::float32, invalid, 1, spares(kind), &count);
  }
  // That has scales or steps of its own.
  AdamConfig small = unusual();
  small.state_format = StateFormat::int8;
  AdamConfig rows = unusual();
  rows.row_policy = RowPolicy::catch_up;
  const auto refused = [&](const AdamConfig& options, StateKind kind) {
    Model model({{1, 7}, {3, 4}}, {DType::float32}, 1);
    std::vector<ParameterSpec> specs = model.specs();
    state_of(specs[1], kind) =
        spare.data() + (64 - reinterpret_cast<std::uintptr_t>(spare.data()) % 64);
    Optimizers optimizer;
    const Status status = Optimizer::create(options, specs, &optimizer);
    CHECK(status.code() == invalid && status.index() == 1 && optimizer == nullptr);
    ++count;
  };
  for (const StateKind kind :
       {StateKind::moment1, StateKind::moment2, StateKind::scale1, StateKind::scale2}) {
    refused(small, kind);
  }
  refused(rows, StateKind::row_step);
  std::printf("%d refusals\n", count);
}

void refused_updates_change_nothing() {
  const auto invalid = StatusCode::invalid_argument;
  const auto single = DType::float32;
  const AdamConfig config = unusual();
  int count = 0;
  for (const std::int64_t wrong :
       {std::int64_t{-1}, (std::int64_t{1} << 62) + 1, INT64_MIN, INT64_MAX}) {
    check_refused(config, single, invalid, 1, [&](Adopted& a) { a.steps[1] = wrong; }, &count);
  }
  check_refused(config, single, invalid, -1, [](Adopted& a) { a.steps.pop_back(); }, &count);
  check_refused(config, single, invalid, -1, [](Adopted& a) { a.grads.pop_back(); }, &count);
  const auto changed = [&](auto change) {
    check_refused(config, single, invalid, -1, [&](Adopted& a) { change(a.config); }, &count);
  };
  changed([](AdamConfig& c) { c.use_locking = true; });
  changed([](AdamConfig& c) { c.capturable = true; });
  changed([](AdamConfig& c) { c.use_offload = true; });
  changed([](AdamConfig& c) { c.beta1 = 0.0; });
  changed([](AdamConfig& c) { c.beta2 = 0.0; });
  changed([](AdamConfig& c) { c.eps = 0.0; });
  changed([](AdamConfig& c) { c.allow_zero = true, c.beta1 = -0.5; });
  changed([](AdamConfig& c) { c.allow_zero = true, c.beta2 = 1.0; });
  changed([](AdamConfig& c) { c.allow_zero = true, c.eps = -1.0; });
  for (const double wrong : {-0.5, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    changed([&](AdamConfig& c) { c.ema_decay = wrong; });
    changed([&](AdamConfig& c) { c.max_grad_norm = wrong - 1.0 - (wrong == 1.0 ? 1.0 : 0.0); });
  }
  changed([](AdamConfig& c) { c.writes_delta = true, c.master_weights = true; });
  changed([](AdamConfig& c) { c.writes_delta = true, c.ema_decay = 0.5; });
  // Missing, or with nobody to write to it.
  const auto missing = [&](auto change) {
    check_refused(config, single, invalid, 0, [&](Adopted& a) { change(a.config); }, &count);
  };
  missing([](AdamConfig& c) { c.use_amsgrad = true; });
  missing([](AdamConfig& c) { c.ema_decay = 0.5; });
  missing([](AdamConfig& c) { c.row_policy = RowPolicy::catch_up; });
  missing([](AdamConfig& c) { c.writes_delta = true; });
  std::vector<float> delta(12);
  check_refused(
      config, single, invalid, 0, [&](Adopted& a) { a.specs[0].delta = delta.data(); }, &count);
  check_refused(config, single, invalid, 1, [](Adopted& a) { a.specs[1].key = -2; }, &count);
  check_refused(
      config, single, StatusCode::overlap, 0,
      [](Adopted& a) { a.grads[0].values = a.specs[1].states[1]; }, &count);
  AdamConfig writing = config;
  writing.writes_delta = true;
  Adopted one(config);
  one.config = writing;
  one.specs[0].delta = delta.data();
  for (void* wrong :
       {one.specs[1].data, one.specs[1].states[0], static_cast<void*>(delta.data())}) {
    one.specs[1].delta = wrong;
    const Model params = one.model;
    const States states = one.states;
    CHECK(one.step().code() == StatusCode::overlap);
    CHECK(same_params(one.model, params));
    CHECK(one.states == states);
    ++count;
  }
  std::printf("%d refusals\n", count);
}

}  // namespace adamas::tests
