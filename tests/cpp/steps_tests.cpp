// Tests of parameters that are left out of steps, and so count steps of their own: each has the
// bits of an optimizer of its own, which makes only the steps that have a gradient for it.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"
#include "problem.hpp"

namespace adamas::tests {
namespace {

constexpr std::int64_t kMaxStep = std::int64_t{1} << 62;
constexpr Rates kRates[] = {{0.011, 0.05}, {0.017, 0.0}};
constexpr std::size_t kTable = 1;  // the parameter that has sparse gradients

Model make_model(DType dtype) {
  return {{{3, 7}, {11, 17, 1}, {5, 16, 0, true}, {1, 16411, 1}, {0, 1}}, {dtype}, 9};
}

// Gradients of one step, some of them sparse or absent.
struct Grads {
  std::vector<Bytes> values;
  std::vector<std::int64_t> indices;
  RowIndices rows;
  std::vector<Gradient> list;

  Grads(const Model& model, std::mt19937_64& random, bool has_sparse)
      : values(model.random_grads(random)), list(model.gradients(values)) {
    const std::int64_t count = model.shape(kTable).rows;
    for (int k = 0; k < 5; ++k) {
      indices.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(count)));
    }
    rows = {indices.data(), 5, true};
    if (!has_sparse) return;
    list[kTable].rows = &rows;
    list[kTable].count = 5 * model.shape(kTable).row_length;
  }
  Grads(const Grads&) = delete;
  Grads& operator=(const Grads&) = delete;
};

// Step t leaves out one parameter, then all but one, then any.
bool is_left_out(std::size_t i, std::size_t parameters, int t, std::mt19937_64& random) {
  const auto position = static_cast<std::size_t>(t);
  if (position < parameters) return i == position;
  if (position < 2 * parameters) return i != position - parameters;
  return random() % 2 == 0;
}

struct Options {
  AdamConfig config;
  DType dtype = DType::float32;
};

std::vector<Options> all_options() {
  std::vector<Options> list;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const RowPolicy policy : {RowPolicy::exact, RowPolicy::lazy, RowPolicy::catch_up}) {
      for (const int moments : {0, 1, 2}) {
        AdamConfig config;
        config.beta1 = 0.8;
        config.beta2 = 0.97;
        config.loss_scale = 3.0;
        config.numerics = numerics;
        config.row_policy = policy;
        config.use_nesterov = moments == 1;
        config.use_amsgrad = moments == 2;
        list.push_back({config});
        list.push_back({config, DType::float64});
        config.master_weights = true;
        config.ema_decay = 0.8;
        list.push_back({config, DType::bfloat16});
        if (policy == RowPolicy::catch_up) continue;
        config.state_format = StateFormat::bfloat16;
        list.push_back({config, DType::float16});
        config.master_weights = false;
        config.state_format = StateFormat::int8;
        list.push_back({config, DType::float32});
      }
    }
  }
  return list;
}

// An optimizer for each parameter.
struct Solo {
  Model model;
  std::vector<Optimizers> optimizers;
  std::vector<std::int64_t> steps;

  Solo(const AdamConfig& config, const Model& initial) : model(initial), steps(initial.size(), 0) {
    for (std::size_t i = 0; i < model.size(); ++i) {
      optimizers.push_back(make_optimizer(config, {model.spec(i)}));
    }
  }
  void step(const std::vector<Gradient>& grads) {
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (grads[i].is_absent) continue;
      CHECK(optimizers[i]->step({&grads[i], 1}, {kRates, 2}).ok());
      ++steps[i];
    }
  }
  void check(const Optimizer& together, const Model& other) const {
    std::vector<std::int64_t> counted(steps.size());
    CHECK(together.steps(counted).ok());
    CHECK(counted == steps);
    CHECK(same_params(model, other));
    for (std::size_t i = 0; i < steps.size(); ++i) {
      CHECK(same_state(together, i, *optimizers[i], 0));
    }
  }
};

// The same step in parts, in another order; what is absent is left out.
void step_in_parts(Optimizer& optimizer, const std::vector<Gradient>& grads) {
  CHECK(optimizer.begin_step({kRates, 2}).ok());
  for (std::size_t i = grads.size(); i-- > 0;) {
    if (grads[i].is_absent) continue;
    CHECK(optimizer.apply(i, grads[i]).ok());
  }
  CHECK(optimizer.end_step(true).ok());
}

void check_as_alone(const Options& options, int threads, int* compared) {
  AdamConfig config = options.config;
  config.num_threads = threads;
  const Model initial = make_model(options.dtype);
  Model model = initial;
  Model parts_model = initial;
  const Optimizers whole = make_optimizer(config, model.specs());
  const Optimizers parts = make_optimizer(config, parts_model.specs());
  Solo solo(config, initial);
  std::mt19937_64 random(6);
  for (int t = 0; t < 20; ++t) {
    Grads grads(model, random, t % 3 != 0);
    for (std::size_t i = 0; i < model.size(); ++i) {
      grads.list[i].is_absent = is_left_out(i, model.size(), t, random);
    }
    CHECK(whole->step(grads.list, {kRates, 2}).ok());
    step_in_parts(*parts, grads.list);
    solo.step(grads.list);
    CHECK(whole->global_step() == t + 1);
    solo.check(*whole, model);
    solo.check(*parts, parts_model);
    ++*compared;
  }
}

void copy_arrays(const Optimizer& from, const Model& from_model, Optimizer& to, Model& to_model) {
  for (std::size_t i = 0; i < from_model.size(); ++i) {
    std::memcpy(to_model.param(i).data(), from_model.param(i).data(), from_model.param(i).size());
    for (std::size_t kind = 0; kind < kStateKinds; ++kind) {
      const auto which = static_cast<StateKind>(kind);
      const std::size_t nbytes = from.layout(which, i).nbytes();
      if (nbytes > 0) std::memcpy(to.state(which, i), from.state(which, i), nbytes);
    }
  }
}

// Gradients that are absent are zero for the norm: the others have the bits of a step with zeros.
void check_clipped(const Options& options, int* compared) {
  AdamConfig config = options.config;
  config.max_grad_norm = 2.5;
  config.skip_nonfinite = true;
  config.num_threads = 3;
  const Model initial = make_model(options.dtype);
  Model model = initial;
  const Optimizers optimizer = make_optimizer(config, model.specs());
  const Bytes zeros(16411 * sizeof(double), 0);
  std::mt19937_64 random(7);
  for (int t = 0; t < 20; ++t) {
    Grads grads(model, random, t % 3 != 0);
    Model other_model = initial;
    const Optimizers other = make_optimizer(config, other_model.specs());
    std::vector<std::int64_t> steps(model.size());
    CHECK(optimizer->steps(steps).ok());
    CHECK(other->set_global_step(t).ok());
    CHECK(other->set_steps(steps).ok());
    copy_arrays(*optimizer, model, *other, other_model);
    std::vector<Gradient> with_zeros = grads.list;
    for (std::size_t i = 0; i < model.size(); ++i) {
      grads.list[i].is_absent = is_left_out(i, model.size(), t, random);
      if (grads.list[i].is_absent) with_zeros[i] = model.gradient(i, zeros);
    }
    const Model before = copy_of(model);
    CHECK(optimizer->step(grads.list, {kRates, 2}).ok());
    CHECK(other->step(with_zeros, {kRates, 2}).ok());
    CHECK(optimizer->last_grad_norm() == other->last_grad_norm());
    for (std::size_t i = 0; i < model.size(); ++i) {
      const bool is_absent = grads.list[i].is_absent;
      CHECK(model.param(i) == (is_absent ? before : other_model).param(i));
      if (!is_absent) CHECK(same_state(*optimizer, i, *other, i));
    }
    ++*compared;
  }
}

// One optimizer over two dense parameters and a table.
struct Trio {
  Model model = {{{1, 5}, {11, 3, 1}, {1, 40}}, {DType::float32}, 3};
  Optimizers optimizer;
  std::mt19937_64 random{4};

  explicit Trio(RowPolicy policy = RowPolicy::catch_up) {
    AdamConfig config;
    config.beta1 = 0.8;
    config.row_policy = policy;
    optimizer = make_optimizer(config, model.specs());
  }
  // The same steps in all of them.
  static void step_all(const std::vector<Trio*>& trios, bool has_sparse, std::size_t absent = 9) {
    Grads grads(trios[0]->model, trios[0]->random, has_sparse);
    if (absent < 3) grads.list[absent].is_absent = true;
    for (Trio* trio : trios) CHECK(trio->optimizer->step(grads.list, {kRates, 2}).ok());
  }
  std::vector<std::int64_t> steps() const {
    std::vector<std::int64_t> steps(3);
    CHECK(optimizer->steps(steps).ok());
    return steps;
  }
  bool operator==(const Trio& other) const {
    for (std::size_t i = 0; i < 3; ++i) {
      if (!same_state(*optimizer, i, *other.optimizer, i)) return false;
    }
    return same_params(model, other.model);
  }
};

using Steps = std::vector<std::int64_t>;

}  // namespace

void absent_parameters_are_as_alone() {
  int compared = 0;
  for (const Options& options : all_options()) {
    for (const int threads : {1, 3}) check_as_alone(options, threads, &compared);
  }
  std::printf("%d steps compared\n", compared);
}

void absent_gradients_are_zero_for_the_norm() {
  int compared = 0;
  for (const Options& options : all_options()) check_clipped(options, &compared);
  std::printf("%d steps compared\n", compared);
}

// With what else a gradient says, which is not looked at.
void absent_gradients_are_not_looked_at() {
  for (const RowPolicy policy : {RowPolicy::exact, RowPolicy::catch_up}) {
    Trio plain(policy);
    Trio odd(policy);
    const std::int64_t outside = 1 << 20;
    const RowIndices wrong{&outside, -1, true};
    for (int t = 0; t < 3; ++t) {
      Grads grads(plain.model, plain.random, true);
      for (const std::size_t left_out : {0U, 2U}) grads.list[left_out].is_absent = true;
      CHECK(plain.optimizer->step(grads.list, {kRates, 2}).ok());
      for (const std::size_t left_out : {0U, 2U}) {
        grads.list[left_out] = {&outside, &wrong, DType::float64, 3, 77, true};
      }
      CHECK(odd.optimizer->step(grads.list, {kRates, 2}).ok());
      CHECK(plain == odd);
    }
  }
}

// With numbers of steps of its own, a parameter goes on as one that has made so many.
void steps_that_are_set_decide_the_bias_correction() {
  for (const Steps& wanted : {Steps{7, 0, 123456}, Steps{5, 5, 5}, Steps{0, kMaxStep, 1}}) {
    Trio trio;
    Trio::step_all({&trio}, true);
    CHECK(trio.optimizer->set_steps(wanted).ok());
    CHECK(trio.steps() == wanted);
    CHECK(trio.optimizer->global_step() == 1);
    for (std::size_t i = 0; i < 3; ++i) {
      if (wanted[i] == kMaxStep) continue;  // no optimizer goes on from there
      Trio going;
      CHECK(going.optimizer->set_steps(wanted).ok());
      Trio alone;
      CHECK(alone.optimizer->set_global_step(wanted[i]).ok());
      for (Trio* other : {&going, &alone}) {
        copy_arrays(*trio.optimizer, trio.model, *other->optimizer, other->model);
      }
      Trio::step_all({&going, &alone}, true);
      CHECK(alone.model.param(i) == going.model.param(i));
      CHECK(same_state(*alone.optimizer, i, *going.optimizer, i));
    }
  }
}

// Rows that wait to be caught up with keep the number of steps that they have missed.
void rows_move_with_the_steps_of_their_parameter() {
  Trio still;
  Trio moved;
  Trio set;
  const std::vector<Trio*> all = {&still, &moved, &set};
  for (int t = 0; t < 3; ++t) Trio::step_all(all, true);
  for (int t = 0; t < 4; ++t) Trio::step_all(all, false, kTable);
  CHECK(still.steps() == Steps({7, 3, 7}));
  const auto missed = [](const Trio& trio) {
    const auto* rows =
        static_cast<const std::int64_t*>(trio.optimizer->state(StateKind::row_step, kTable));
    std::vector<std::int64_t> distances(rows, rows + 11);
    for (std::int64_t& row : distances) row = trio.steps()[kTable] - row;
    return distances;
  };
  const std::vector<std::int64_t> wanted = missed(still);
  CHECK(*std::max_element(wanted.begin(), wanted.end()) == 3);
  CHECK(*std::min_element(wanted.begin(), wanted.end()) == 0);
  const std::int64_t numbers[] = {100, 2, 0, kMaxStep, 5};
  for (const std::int64_t step : numbers) {
    CHECK(moved.optimizer->set_global_step(step).ok());
    CHECK(set.optimizer->set_steps(Steps{1, step, 3}).ok());
    CHECK(missed(moved) == wanted);
    CHECK(missed(set) == wanted);
  }
  CHECK(set.steps() == Steps({1, 5, 3}));
}

void the_optimizers_step_moves_those_of_parameters() {
  Trio trio(RowPolicy::exact);
  Optimizer& optimizer = *trio.optimizer;
  for (int t = 0; t < 4; ++t) Trio::step_all({&trio}, false, t < 3 ? 2 : 9);
  CHECK(trio.steps() == Steps({4, 4, 1}));
  CHECK(optimizer.set_global_step(10).ok());
  CHECK(trio.steps() == Steps({10, 10, 7}));
  CHECK(optimizer.set_global_step(1).ok());
  CHECK(trio.steps() == Steps({1, 1, 0}));  // none below zero
  CHECK(optimizer.set_global_step(0).ok());
  CHECK(trio.steps() == Steps({0, 0, 0}));
  CHECK(optimizer.set_steps(Steps{kMaxStep, 5, 0}).ok());
  CHECK(optimizer.set_global_step(kMaxStep).ok());
  CHECK(trio.steps() == Steps({kMaxStep, kMaxStep, kMaxStep}));
}

void steps_are_saved_and_loaded() {
  for (const bool is_loaded : {false, true}) {
    Trio trio;
    for (int t = 0; t < 6; ++t)
      Trio::step_all({&trio}, t % 2 == 0, static_cast<std::size_t>(t % 3));
    CHECK(trio.optimizer->set_steps(Steps{3, 900, 4}).ok());
    Trio::step_all({&trio}, true);  // a row of a later step than the optimizer's
    std::vector<std::vector<char>> memory;
    std::vector<ArrayCopy> copies;
    const auto add = [&](std::size_t i, std::optional<StateKind> kind, std::size_t nbytes) {
      copies.push_back({i, kind, nullptr, nbytes});
      memory.emplace_back(nbytes);
    };
    for (std::size_t i = 0; i < 3; ++i) {
      add(i, std::nullopt, trio.model.param(i).size());
      for (const StateKind kind : {StateKind::moment1, StateKind::moment2, StateKind::row_step}) {
        add(i, kind, trio.optimizer->layout(kind, i).nbytes());
      }
    }
    for (std::size_t k = 0; k < copies.size(); ++k) copies[k].data = memory[k].data();
    Counters counters;
    Steps steps(3);
    CHECK(trio.optimizer->save(copies, &counters, steps).ok());
    CHECK(steps == Steps({4, 901, 5}));
    CHECK(counters.global_step == 7);
    Trio resumed;
    if (is_loaded) Trio::step_all({&resumed}, false, 1);  // it had steps of its own
    const Steps before = resumed.steps();
    for (const Steps& wrong : {Steps{4, 901}, Steps{4, -1, 5}, Steps{4, kMaxStep + 1, 5},
                               Steps{4, 900, 5}, Steps{}}) {  // rows of later steps
      CHECK(resumed.optimizer->load(copies, counters, wrong).code() ==
            StatusCode::invalid_argument);
      CHECK(resumed.steps() == before);
    }
    CHECK(resumed.optimizer->load(copies, counters, steps).ok());
    CHECK(resumed.steps() == steps);
    CHECK(resumed == trio);
    resumed.random = trio.random;
    Trio::step_all({&resumed, &trio}, true, 2);
    CHECK(resumed == trio);
    CHECK(resumed.steps() == trio.steps());
  }
}

void refused_steps_of_parameters_change_nothing() {
  Trio trio;
  Trio like;
  Trio::step_all({&trio, &like}, true, 2);
  Optimizer& optimizer = *trio.optimizer;
  const auto invalid = StatusCode::invalid_argument;
  int count = 0;
  const auto refused = [&](const Status& status, StatusCode code, std::int64_t index = -1) {
    CHECK(status.code() == code);
    CHECK(status.index() == index);
    CHECK(trio == like);
    CHECK(trio.steps() == Steps({1, 1, 0}));
    CHECK(optimizer.global_step() == 1);
    ++count;
  };
  refused(optimizer.set_steps(Steps{1, 1}), invalid);
  refused(optimizer.set_steps(Steps{1, 1, 1, 1}), invalid);
  for (const std::int64_t wrong : {std::int64_t{-1}, INT64_MIN, kMaxStep + 1, INT64_MAX}) {
    refused(optimizer.set_steps(Steps{5, wrong, 1}), invalid, 1);
    refused(optimizer.set_global_step(wrong), invalid);
  }
  Steps short_of(2);
  refused(optimizer.steps(short_of), invalid);
  Counters counters;
  refused(optimizer.save({}, &counters, short_of), invalid);
  refused(optimizer.load({}, {1, 0, 1.0, 0.0, false}, short_of), invalid);
  CHECK(optimizer.begin_step({kRates, 2}).ok());
  Gradient absent;
  absent.is_absent = true;
  refused(optimizer.apply(0, absent), invalid, 0);
  refused(optimizer.end_step(), StatusCode::bad_state, 0);
  refused(optimizer.set_steps(Steps{1, 1, 1}), StatusCode::bad_state);
  refused(optimizer.set_global_step(3), StatusCode::bad_state);
  CHECK(optimizer.cancel_step().ok());
  refused(optimizer.end_step(true), StatusCode::bad_state);
  // A step with nothing: it counts, and no parameter does.
  std::vector<Gradient> none(3, absent);
  CHECK(optimizer.step(none, {kRates, 2}).ok());
  CHECK(optimizer.begin_step({kRates, 2}).ok());
  CHECK(optimizer.end_step(true).ok());
  CHECK(optimizer.global_step() == 3);
  CHECK(trio.steps() == Steps({1, 1, 0}));
  CHECK(trio == like);
  std::printf("%d refusals\n", count);
}

}  // namespace adamas::tests
