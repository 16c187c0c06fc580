// Tests of clones: they go on with the bits of the original, over memory of their own, and neither
// sees the other any more.
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"
#include "problem.hpp"

namespace adamas::tests {
namespace {

using Steps = std::vector<std::int64_t>;

constexpr Rates kRates[] = {{0.0123, 0.045}, {0.031, 0.0}};

AdamConfig unusual() {
  AdamConfig config;
  config.beta1 = 0.8;
  config.beta2 = 0.95;
  config.eps = 1e-5;
  config.loss_scale = 3.0;
  config.seed = 5;
  config.num_threads = 2;
  return config;
}

struct Case {
  AdamConfig config = unusual();
  std::vector<DType> dtypes = {DType::float32};
  bool has_rows = false;  // the gradients of the first parameter are sparse
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const auto add = [&](auto change) {
    cases.emplace_back();
    change(cases.back());
  };
  add([](Case&) {});
  add([](Case& c) { c.config.use_amsgrad = c.config.use_nesterov = true; });
  add([](Case& c) { c.config.numerics = Numerics::mindspore; });
  add([](Case& c) { c.dtypes = {DType::float64, DType::float32}; });
  add([](Case& c) { c.dtypes = {DType::float16, DType::float32, DType::bfloat16}; });
  add([](Case& c) {
    c.dtypes = {DType::bfloat16, DType::float16};
    c.config.master_weights = true;
    c.config.ema_decay = 0.75;
  });
  add([](Case& c) { c.config.state_format = StateFormat::bfloat16; });
  add([](Case& c) { c.config.state_format = StateFormat::int8; });
  add([](Case& c) { c.config.row_policy = RowPolicy::catch_up, c.has_rows = true; });
  add([](Case& c) { c.config.row_policy = RowPolicy::lazy, c.has_rows = true; });
  add([](Case& c) { c.config.use_locking = true; });
  add([](Case& c) {
    c.config.max_grad_norm = 0.5;
    c.config.skip_nonfinite = true;
  });
  return cases;
}

Model make_model(const Case& one) {
  const bool is_int8 = one.config.state_format == StateFormat::int8;
  return {{{3, 7}, {0, 1}, {5, 128, 1, !is_int8}, {1, 4111, 1}, {13, 64}}, one.dtypes, 7};
}

// Of the second group, whose options are its own.
std::vector<AdamConfig> groups_of(const AdamConfig& config) {
  std::vector<AdamConfig> groups(2, default_group(config));
  groups[1].beta1 = 0.7;
  groups[1].maximize = true;
  return groups;
}

// Steps of several models at once, with gradients that come out of a seed alone.
class Going {
 public:
  Going(Optimizer& optimizer, Model& model, bool has_rows)
      : optimizer_(optimizer), model_(model), has_rows_(has_rows) {}

  void step(std::uint64_t seed, std::optional<std::size_t> absent = std::nullopt) {
    std::mt19937_64 random(seed);
    const std::vector<Bytes> values = model_.random_grads(random);
    std::vector<Gradient> grads = model_.gradients(values);
    const Steps indices = {2, 0, 2};
    const RowIndices rows = rows_of(indices);
    if (has_rows_) grads[0].rows = &rows;
    if (absent) grads[*absent].is_absent = true;
    CHECK(optimizer_.step(grads, kRates).ok());
  }

 private:
  Optimizer& optimizer_;
  Model& model_;
  bool has_rows_;
};

Steps steps_of(const Optimizer& optimizer, const Model& model) {
  Steps steps(model.size());
  CHECK(optimizer.steps(steps).ok());
  return steps;
}

bool same_number(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

bool same_counters(const Optimizer& a, const Optimizer& b) {
  return a.global_step() == b.global_step() && a.skipped_steps() == b.skipped_steps() &&
         a.last_step_skipped() == b.last_step_skipped() &&
         same_number(a.last_grad_norm(), b.last_grad_norm()) && a.loss_scale() == b.loss_scale();
}

void check_same(const Optimizer& a, Model& model_a, const Optimizer& b, Model& model_b) {
  CHECK(same_params(model_a, model_b));
  for (std::size_t i = 0; i < model_a.size(); ++i) CHECK(same_state(a, i, b, i));
  CHECK(steps_of(a, model_a) == steps_of(b, model_b));
  CHECK(same_counters(a, b));
}

Optimizers clone_of(const Optimizer& optimizer, const std::vector<ParameterSpec>& specs) {
  Optimizers clone;
  CHECK(optimizer.clone(specs, &clone).ok());
  return clone;
}

// One whose counters have all moved: a step with a parameter left out, one that is skipped.
Optimizers make_experienced(const Case& one, Model& model) {
  Optimizers optimizer = make_optimizer(one.config, model.specs(), groups_of(one.config));
  Going going(*optimizer, model, one.has_rows);
  going.step(1);
  going.step(2, 3);
  CHECK(optimizer->set_loss_scale(5.0).ok());
  if (one.config.skip_nonfinite) {
    std::mt19937_64 random(3);
    std::vector<Bytes> values = model.random_grads(random);
    set_number(values[2], model.dtype(2), 1, std::numeric_limits<double>::infinity());
    CHECK(optimizer->step(model.gradients(values), kRates).ok());
    CHECK(optimizer->skipped_steps() == 1);
  }
  return optimizer;
}

void check_goes_on(const Case& one) {
  Model model = make_model(one);
  Optimizers optimizer = make_experienced(one, model);
  Model copy = copy_of(model);
  const Optimizers clone = clone_of(*optimizer, copy.specs());
  check_same(*optimizer, model, *clone, copy);
  Going original(*optimizer, model, one.has_rows);
  Going cloned(*clone, copy, one.has_rows);
  original.step(4);
  CHECK(!same_params(model, copy));  // the clone has not moved
  CHECK(clone->global_step() + 1 == optimizer->global_step());
  cloned.step(4);
  check_same(*optimizer, model, *clone, copy);
  original.step(5, 0);
  cloned.step(5, 0);
  check_same(*optimizer, model, *clone, copy);
  // Options that are set later are one's own.
  AdamConfig group = clone->group(1);
  CHECK(group.beta1 == optimizer->group(1).beta1);
  group.beta1 = 0.5;
  CHECK(clone->set_group(1, group).ok());
  CHECK(optimizer->group(1).beta1 != 0.5);
  optimizer.reset();
  cloned.step(6);
}

// A refused clone: a code, the position that is meant, and nothing new.
class Refusals {
 public:
  Refusals(const Optimizer& optimizer, Model& copy) : optimizer_(optimizer), good_(copy.specs()) {}

  void check(StatusCode code, std::int64_t index,
             const std::function<void(std::vector<ParameterSpec>&)>& spoil) const {
    std::vector<ParameterSpec> specs = good_;
    spoil(specs);
    Optimizers clone;
    const Status status = optimizer_.clone(specs, &clone);
    CHECK(status.code() == code);
    CHECK(status.index() == index);
    CHECK(clone == nullptr);
  }
  void check_of_second(StatusCode code, const std::function<void(ParameterSpec&)>& spoil) const {
    check(code, 1, [&](std::vector<ParameterSpec>& specs) { spoil(specs[1]); });
  }

 private:
  const Optimizer& optimizer_;
  std::vector<ParameterSpec> good_;
};

}  // namespace

void clones_go_on_with_the_same_bits() {
  for (const Case& one : all_cases()) check_goes_on(one);
}

// State of the caller's, of the original or of the clone, is copied like other state.
void clones_may_have_state_of_the_callers() {
  for (const bool original_has : {false, true}) {
    for (const bool clone_has : {false, true}) {
      Case one;
      one.config.use_amsgrad = true;
      Model model = make_model(one);
      Model like = copy_of(model);
      const Optimizers kept = make_experienced(one, like);
      States given(*make_optimizer(one.config, make_model(one).specs(), groups_of(one.config)),
                   model);
      std::vector<ParameterSpec> specs = model.specs();
      if (original_has) given.give_all(&specs);
      const Optimizers optimizer = make_optimizer(one.config, specs, groups_of(one.config));
      Going(*optimizer, model, false).step(1);
      Going(*optimizer, model, false).step(2, 3);
      Model copy = copy_of(model);
      States others(*kept, model);  // values that the clone writes over
      std::vector<ParameterSpec> clones = copy.specs();
      if (clone_has) others.give_all(&clones);
      const Optimizers clone = clone_of(*optimizer, clones);
      Going(*optimizer, model, false).step(9);
      Going(*clone, copy, false).step(9);
      check_same(*optimizer, model, *clone, copy);
      CHECK(!original_has || given.is_of(*clone));
      CHECK(!clone_has || others.is_of(*optimizer));
    }
  }
}

// Both write their deltas, and read the same parameters.
void clones_may_share_the_parameters() {
  Case one;
  one.config.writes_delta = true;
  one.config.use_locking = true;
  Model model = make_model(one);
  const Model before = copy_of(model);
  Model delta = copy_of(model);
  Model other_delta = copy_of(model);
  const auto specs_with = [&](Model& deltas) {
    std::vector<ParameterSpec> specs = model.specs();
    for (std::size_t i = 0; i < specs.size(); ++i) specs[i].delta = deltas.param(i).data();
    return specs;
  };
  const Optimizers optimizer = make_optimizer(one.config, specs_with(delta), groups_of(one.config));
  Going(*optimizer, model, false).step(1);
  const Optimizers clone = clone_of(*optimizer, specs_with(other_delta));
  Going(*optimizer, model, false).step(2);
  Going(*clone, model, false).step(2);
  CHECK(same_params(delta, other_delta));
  CHECK(same_params(model, before));
}

void refused_clones_change_nothing() {
  Case one;
  one.config.row_policy = RowPolicy::lazy;
  Model model{{{3, 7}, {4, 8, 1}}, {DType::float32}, 7};
  const Optimizers optimizer = make_optimizer(one.config, model.specs());
  Going(*optimizer, model, false).step(1);
  Model copy = copy_of(model);
  const Model before = copy_of(model);
  const Optimizers alike = clone_of(*optimizer, copy.specs());
  const Refusals refused(*optimizer, copy);
  constexpr auto kInvalid = StatusCode::invalid_argument;
  refused.check(kInvalid, -1, [](std::vector<ParameterSpec>& specs) { specs.pop_back(); });
  refused.check(kInvalid, -1, [](auto& specs) { specs.push_back(specs[0]); });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.count = 24; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.dtype = DType::bfloat16; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.rows = 8; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.rates = 0; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.centralize = true; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.axes = 2; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.second_axis = 8; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.key = 7; });
  refused.check_of_second(kInvalid, [](ParameterSpec& spec) { spec.data = nullptr; });
  const auto state_of = [&](ParameterSpec& spec) -> void*& {
    return spec.states[static_cast<std::size_t>(StateKind::moment2)];
  };
  constexpr auto kOverlap = StatusCode::overlap;
  void* moment = optimizer->state(StateKind::moment1, 0);
  refused.check_of_second(kOverlap, [&](ParameterSpec& spec) { spec.data = moment; });
  refused.check_of_second(kOverlap,
                          [&](ParameterSpec& spec) { spec.data = model.param(1).data() + 4; });
  refused.check_of_second(kOverlap, [&](ParameterSpec& spec) { state_of(spec) = moment; });
  refused.check_of_second(kOverlap, [&](ParameterSpec& spec) { spec.delta = moment; });
  refused.check_of_second(kOverlap,
                          [&](ParameterSpec& spec) { state_of(spec) = copy.param(0).data(); });

  CHECK(optimizer->begin_step(kRates).ok());
  refused.check(StatusCode::bad_state, -1, [](auto&) {});
  CHECK(optimizer->cancel_step().ok());
  std::mt19937_64 random(1);
  const std::vector<Bytes> values = model.random_grads(random);
  CHECK(optimizer->accumulate(model.gradients(values)).ok());
  refused.check(StatusCode::bad_state, -1, [](auto&) {});
  optimizer->discard_accumulated();
  check_same(*optimizer, model, *alike, copy);
  CHECK(same_params(model, before));
}

}  // namespace adamas::tests
