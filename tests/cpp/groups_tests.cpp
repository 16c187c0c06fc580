// Tests of options that groups of parameters have of their own and that change between steps, and
// of what is clipped, averaged and written: against optimizers of their own, or a formula in
// double.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"
#include "problem.hpp"

namespace adamas::tests {
namespace {

AdamConfig unusual(Numerics numerics) {
  AdamConfig config;
  config.beta1 = 0.8;
  config.beta2 = 0.97;
  config.eps = 1e-4;
  config.loss_scale = 3.0;
  config.numerics = numerics;
  config.num_threads = 2;
  return config;
}

// Options that differ from those of an optimizer in all that groups may differ in but clipping.
std::vector<AdamConfig> mixed_groups(const AdamConfig& config) {
  std::vector<AdamConfig> groups(5, default_group(config));
  groups[1].beta1 = 0.5;
  groups[1].use_nesterov = true;
  groups[2].beta2 = 0.75;
  groups[2].use_amsgrad = true;
  groups[3].eps = 0.01;
  groups[3].decoupled_weight_decay = true;
  groups[4].maximize = true;
  groups[4].use_amsgrad = true;
  groups[4].use_nesterov = true;
  return groups;
}

std::vector<Rates> mixed_rates() {
  return {{0.01, 0.1}, {0.02, 0.0}, {0.03, 0.2}, {0.04, 0.3}, {0.05, 0.05}};
}

// Groups are not neighbours in the list.
Model mixed_model(DType dtype) {
  return {{{3, 7, 4},
           {11, 16, 1},
           {1, 5, 0},
           {5, 16, 2, true},
           {1, 16411, 3},
           {2, 9, 4},
           {1, 33, 2},
           {4, 4, 1}},
          {dtype},
          5};
}

void copy_arrays(const Optimizer& from, std::size_t i, Optimizer& to, std::size_t k) {
  for (std::size_t kind = 0; kind < kStateKinds; ++kind) {
    const auto which = static_cast<StateKind>(kind);
    const std::size_t nbytes = from.layout(which, i).nbytes();
    if (nbytes > 0) std::memcpy(to.state(which, k), from.state(which, i), nbytes);
  }
}

void check_as_apart(const AdamConfig& config, DType dtype, int* compared) {
  const Model initial = mixed_model(dtype);
  const std::vector<AdamConfig> groups = mixed_groups(config);
  const std::vector<Rates> rates = mixed_rates();
  Model together_model = initial;
  const Optimizers together = make_optimizer(config, together_model.specs(), groups);
  Model apart_model = initial;
  std::vector<Optimizers> apart;
  for (std::size_t i = 0; i < initial.size(); ++i) {
    ParameterSpec spec = apart_model.spec(i);
    const auto k = static_cast<std::size_t>(spec.rates);
    spec.rates = 0;
    apart.push_back(make_optimizer(groups[k], {spec}));
  }
  std::mt19937_64 random(1);
  const std::vector<std::int64_t> indices = {3, 10, 3};
  const RowIndices rows{indices.data(), 3, true};
  for (int t = 0; t < 4; ++t) {
    const std::vector<Bytes> values = initial.random_grads(random);
    std::vector<Gradient> grads = initial.gradients(values);
    if (t % 2 == 1) grads[1].rows = &rows, grads[1].count = 48;
    CHECK(together->step(grads, rates).ok());
    for (std::size_t i = 0; i < initial.size(); ++i) {
      const auto k = static_cast<std::size_t>(initial.shape(i).rates);
      CHECK(apart[i]->step({&grads[i], 1}, {&rates[k], 1}).ok());
      CHECK(together_model.param(i) == apart_model.param(i));
      CHECK(same_state(*together, i, *apart[i], 0));
      ++*compared;
    }
  }
}

// Options of each step, some of which differ from those of the step before.
AdamConfig options_at(const AdamConfig& config, int t) {
  AdamConfig group = default_group(config);
  group.beta1 = 0.5 + 0.03 * t;
  if (t % 2 == 1) group.beta2 = 0.9 + 0.002 * t;
  group.use_nesterov = t % 3 == 1;
  group.maximize = t % 4 == 2;
  group.decoupled_weight_decay = t % 5 == 3;
  if (t > 6) group.eps = 0.01;
  if (t > 3) group.max_grad_norm = 0.25 + t;
  group.clip_per_array = t > 8;
  group.clip_after_decay = t > 5;
  return group;
}

void check_changing(AdamConfig config, DType dtype, bool measures, int* compared) {
  config.skip_nonfinite = measures;
  const Model initial({{3, 7}, {1, 1009}, {2, 5, 1}}, {dtype}, 2);
  const Rates rates[] = {{0.01, 0.1}, {0.02, 0.2}};
  Model model = initial;
  const Optimizers optimizer =
      make_optimizer(config, model.specs(), {default_group(config), default_group(config)});
  std::mt19937_64 random(1);
  for (int t = 0; t < 12; ++t) {
    const AdamConfig group = options_at(config, t);
    CHECK(optimizer->set_group(0, group).ok());
    // One that begins with the options, the arrays and the steps of the other.
    Model other_model = model;
    const Optimizers other =
        make_optimizer(config, other_model.specs(), {group, default_group(config)});
    CHECK(other->set_global_step(t).ok());
    for (std::size_t i = 0; i < model.size(); ++i) copy_arrays(*optimizer, i, *other, i);
    const std::vector<Bytes> values = model.random_grads(random);
    CHECK(optimizer->step(model.gradients(values), {rates, 2}).ok());
    CHECK(other->step(model.gradients(values), {rates, 2}).ok());
    CHECK(same_params(model, other_model));
    for (std::size_t i = 0; i < model.size(); ++i) CHECK(same_state(*optimizer, i, *other, i));
    ++*compared;
  }
}

// One element of DESIGN section 2, in double.
struct Formula {
  double param;
  double moment1 = 0.0;
  double moment2 = 0.0;
  double ema = 0.0;

  // Returns the change, which it makes unless `stays`.
  double step(const AdamConfig& config, Rates rates, double grad, double clip, std::int64_t t,
              bool stays = false) {
    double g = grad / config.loss_scale;
    if (config.maximize) g = -g;
    if (!config.clip_after_decay) g *= clip;
    if (!config.decoupled_weight_decay) g += rates.weight_decay * param;
    if (config.clip_after_decay) g *= clip;
    moment1 = config.beta1 * moment1 + (1.0 - config.beta1) * g;
    moment2 = config.beta2 * moment2 + (1.0 - config.beta2) * g * g;
    const double correction1 = 1.0 - std::pow(config.beta1, static_cast<double>(t));
    const double correction2 = 1.0 - std::pow(config.beta2, static_cast<double>(t));
    const bool inside = config.epsilon_placement == EpsilonPlacement::inside;
    const double ratio = inside
                             ? std::sqrt(correction2) * moment1 / (std::sqrt(moment2) + config.eps)
                             : moment1 / (std::sqrt(moment2 / correction2) + config.eps);
    double change = -rates.learning_rate / correction1 * ratio;
    if (config.decoupled_weight_decay) change -= rates.learning_rate * rates.weight_decay * param;
    if (!stays) param += change;
    ema = config.ema_decay * ema + (1.0 - config.ema_decay) * param;
    return change;
  }
};

struct Formulas {
  std::vector<std::vector<Formula>> of;

  explicit Formulas(const Model& model) {
    for (std::size_t i = 0; i < model.size(); ++i) {
      of.emplace_back();
      for (std::size_t k = 0; k < static_cast<std::size_t>(model.shape(i).count()); ++k) {
        const double value = model.at(i, k);
        of.back().push_back({value, 0.0, 0.0, value});
      }
    }
  }
};

bool is_near(double found, double wanted, double tolerance = 1e-12) {
  return std::abs(found - wanted) <= tolerance * std::max(1.0, std::abs(wanted));
}

// The norms that a step clips by, as the words of AdamConfig say.
struct Norms {
  double all = 0.0;
  std::vector<double> groups;
  std::vector<double> arrays;

  Norms(const Model& model, const Formulas& formulas, const std::vector<Bytes>& grads,
        const std::vector<AdamConfig>& options, const std::vector<Rates>& rates)
      : groups(options.size()), arrays(model.size()) {
    for (std::size_t i = 0; i < model.size(); ++i) {
      const auto group = static_cast<std::size_t>(model.shape(i).rates);
      const AdamConfig& config = options[group];
      const bool decays = config.clip_after_decay && !config.decoupled_weight_decay;
      for (std::size_t k = 0; k < formulas.of[i].size(); ++k) {
        double g = number_at(grads[i], model.dtype(i), k) / config.loss_scale;
        if (config.maximize) g = -g;
        if (decays) g += rates[group].weight_decay * formulas.of[i][k].param;
        arrays[i] += g * g;
      }
      groups[group] += arrays[i];
      all += arrays[i];
    }
    const auto root = [](double square) { return std::sqrt(square); };
    std::transform(arrays.begin(), arrays.end(), arrays.begin(), root);
    std::transform(groups.begin(), groups.end(), groups.begin(), root);
    all = std::sqrt(all);
  }

  double clip(const AdamConfig& config, const AdamConfig& group, std::size_t of_group,
              std::size_t i) const {
    const auto bound = [](double largest, double norm) {
      return largest > 0.0 && norm > largest ? largest / norm : 1.0;
    };
    const double own = group.clip_per_array ? arrays[i] : groups[of_group];
    const double whole = config.clip_per_array ? 1.0 : bound(config.max_grad_norm, all);
    return std::min(whole, bound(group.max_grad_norm, own));
  }
};

// How many gradients of the run were clipped, and how many were not.
struct ClipCounts {
  int clipped = 0;
  int whole = 0;
};

void check_clipping(const AdamConfig& config, const std::vector<AdamConfig>& groups,
                    ClipCounts* counts) {
  Model model({{3, 7, 0}, {1, 16411, 1}, {2, 9, 1}, {1, 40, 0}, {1, 300, 2}}, {DType::float64}, 3);
  const std::vector<Rates> rates = {{0.01, 0.6}, {0.02, 0.4}, {0.03, 0.2}};
  Formulas formulas(model);
  const Optimizers optimizer = make_optimizer(config, model.specs(), groups);
  std::vector<AdamConfig> used;
  for (std::size_t k = 0; k < rates.size(); ++k) used.push_back(optimizer->group(k));
  std::mt19937_64 random(1);
  for (std::int64_t t = 1; t <= 4; ++t) {
    const std::vector<Bytes> grads = model.random_grads(random);
    const Norms norms(model, formulas, grads, used, rates);
    CHECK(optimizer->step(model.gradients(grads), rates).ok());
    CHECK(is_near(optimizer->last_grad_norm(), norms.all));
    for (std::size_t i = 0; i < model.size(); ++i) {
      const auto k = static_cast<std::size_t>(model.shape(i).rates);
      const double clip = norms.clip(config, used[k], k, i);
      ++(clip < 1.0 ? counts->clipped : counts->whole);
      for (std::size_t e = 0; e < formulas.of[i].size(); ++e) {
        formulas.of[i][e].step(used[k], rates[k], number_at(grads[i], DType::float64, e), clip, t);
        CHECK(is_near(model.at(i, e), formulas.of[i][e].param));
      }
    }
  }
}

bool same_options(const AdamConfig& a, const AdamConfig& b) {
#define ADAMAS_EQUAL(name, decides, of_group) \
  if (!(a.name == b.name)) return false;
  ADAMAS_OPTIONS(ADAMAS_EQUAL)
#undef ADAMAS_EQUAL
  return true;
}

// All that is refused of the options of a group.
struct Refused {
  Model model{{{3, 4, 0}, {1, 7, 1}}, {DType::float32}, 1};
  AdamConfig config = unusual(Numerics::standard);
  Optimizers optimizer = make_optimizer(config, model.specs());
  std::vector<Bytes> values;
  std::mt19937_64 random{1};
  int count = 0;

  Refused() : values(model.random_grads(random)) { step(); }
  void step() const {
    const Rates rates[] = {{0.01, 0.1}, {0.02, 0.2}};
    CHECK(optimizer->step(model.gradients(values), {rates, 2}).ok());
  }

  // When it is set, and when an optimizer is made with it.
  template <class Spoil>
  void check(Spoil spoil, bool also_made = true, std::int64_t index = -1) {
    AdamConfig group = optimizer->group(1);
    spoil(group);
    const Model before = model;
    const AdamConfig options = optimizer->group(1);
    const Status status = optimizer->set_group(1, group);
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.index() == index);
    CHECK(same_params(model, before));
    CHECK(same_options(optimizer->group(1), options));
    ++count;
    if (!also_made) return;
    Model other = model;
    Optimizers made;
    const std::vector<AdamConfig> groups = {optimizer->group(0), group};
    CHECK(Optimizer::create(config, other.specs(), &made, {}, groups).code() ==
          StatusCode::invalid_argument);
    CHECK(made == nullptr);
    ++count;
  }
};

}  // namespace

void mixed_groups_are_as_apart() {
  int compared = 0;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const RowPolicy policy : {RowPolicy::exact, RowPolicy::lazy, RowPolicy::catch_up}) {
      for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
        AdamConfig config = unusual(numerics);
        config.row_policy = policy;
        config.master_weights = true;
        config.ema_decay = 0.9;
        check_as_apart(config, dtype, &compared);
        if (policy == RowPolicy::catch_up || dtype == DType::float64) continue;
        config.state_format = StateFormat::bfloat16;
        check_as_apart(config, dtype, &compared);
      }
    }
  }
  std::printf("%d parameters compared\n", compared);
}

void options_set_between_steps_are_as_from_the_beginning() {
  int compared = 0;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16}) {
      for (const bool measures : {false, true}) {
        check_changing(unusual(numerics), dtype, measures, &compared);
      }
    }
  }
  std::printf("%d steps compared\n", compared);
}

// Betas that change in every step, without an optimizer: the options of the call are what counts.
void updates_take_the_options_of_each_call() {
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    const AdamConfig config = unusual(numerics);
    const Rates rates{0.01, 0.1};
    Model model({{3, 7}, {1, 1009}}, {DType::float32}, 2);
    Model other = model;
    const Optimizers optimizer = make_optimizer(config, model.specs(), {default_group(config)});
    States states(*optimizer, other);
    std::vector<ParameterSpec> specs = other.specs();
    states.give_all(&specs);
    std::vector<std::int64_t> steps = {0, 0};
    AdamUpdate update;
    std::mt19937_64 random(1);
    for (int t = 0; t < 8; ++t) {
      AdamConfig changed = config;
      changed.beta1 = 0.9 - 0.01 * t;
      changed.beta2 = 0.9 + 0.01 * t;
      changed.eps = t % 2 == 0 ? 1e-4 : 1e-3;
      const std::vector<Bytes> values = model.random_grads(random);
      CHECK(optimizer->set_group(0, changed).ok());
      CHECK(optimizer->step(model.gradients(values), {&rates, 1}).ok());
      CHECK(update.step(changed, specs, model.gradients(values), {&rates, 1}, steps).ok());
      CHECK(same_params(model, other));
      CHECK(states.is_of(*optimizer));
    }
  }
}

void clipping_follows_the_formula() {
  int configurations = 0;
  ClipCounts counts;
  for (const bool after_decay : {false, true}) {
    for (const bool maximize : {false, true}) {
      for (const bool decoupled : {false, true}) {
        for (const double bound : {0.0, 3.0, 60.0}) {
          AdamConfig config = unusual(Numerics::standard);
          config.clip_after_decay = after_decay;
          config.maximize = maximize;
          config.decoupled_weight_decay = decoupled;
          config.skip_nonfinite = true;
          config.max_grad_norm = bound;
          const auto check = [&](const std::vector<AdamConfig>& groups) {
            check_clipping(config, groups, &counts);
            ++configurations;
          };
          check({});
          std::vector<AdamConfig> groups(3, default_group(config));
          groups[0].max_grad_norm = 2.0;  // of a group
          groups[1].max_grad_norm = 4.0;  // of each of its arrays
          groups[1].clip_per_array = true;
          groups[2].clip_after_decay = !after_decay;
          check(groups);
          config.clip_per_array = true;
          check({});
        }
      }
    }
  }
  CHECK(configurations == 72);
  CHECK(counts.clipped > 200 && counts.whole > 200);
  std::printf("%d configurations, %d gradients clipped, %d not\n", configurations, counts.clipped,
              counts.whole);
}

// eps in both places, averages, zeros of betas and eps, and both directions.
void rules_follow_the_formula() {
  const Rates rates{0.013, 0.07};
  int configurations = 0;
  for (const EpsilonPlacement placement : {EpsilonPlacement::outside, EpsilonPlacement::inside}) {
    for (const bool maximize : {false, true}) {
      for (const bool decoupled : {false, true}) {
        for (const double ema_decay : {0.0, 0.75}) {
          for (const bool zero : {false, true}) {
            AdamConfig config = unusual(Numerics::standard);
            config.eps = 0.05;  // large enough to tell the places apart
            config.epsilon_placement = placement;
            config.maximize = maximize;
            config.decoupled_weight_decay = decoupled;
            config.ema_decay = ema_decay;
            config.allow_zero = zero;
            if (zero) config.beta1 = config.eps = 0.0;
            Model model({{3, 7}, {1, 1009}}, {DType::float64}, 3);
            Formulas formulas(model);
            const Optimizers optimizer = make_optimizer(config, model.specs());
            std::mt19937_64 random(1);
            for (std::int64_t t = 1; t <= 4; ++t) {
              const std::vector<Bytes> grads = model.random_grads(random);
              CHECK(optimizer->step(model.gradients(grads), {&rates, 1}).ok());
              for (std::size_t i = 0; i < model.size(); ++i) {
                const auto* average =
                    static_cast<const double*>(optimizer->state(StateKind::ema, i));
                CHECK((average != nullptr) == (ema_decay > 0.0));
                for (std::size_t e = 0; e < formulas.of[i].size(); ++e) {
                  Formula& one = formulas.of[i][e];
                  one.step(config, rates, number_at(grads[i], DType::float64, e), 1.0, t);
                  CHECK(is_near(model.at(i, e), one.param));
                  if (average != nullptr) CHECK(is_near(average[e], one.ema));
                }
              }
            }
            ++configurations;
          }
        }
      }
    }
  }
  CHECK(configurations == 32);
}

// To maximize is to minimize with the gradients negated, to the bit; the norms are the same.
void maximizing_negates_gradients() {
  int compared = 0;
  for (const Numerics numerics : {Numerics::standard, Numerics::mindspore}) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
      for (const int choice : {0, 1, 2, 3}) {
        AdamConfig config = unusual(numerics);
        config.max_grad_norm = choice == 0 ? 0.0 : 0.75;
        config.clip_per_array = choice == 2;
        config.clip_after_decay = choice == 3;
        config.use_nesterov = choice % 2 == 1;
        const Rates rates{0.01, 0.1};
        Model up({{3, 7}, {6, 16, 0, true}, {1, 1009}}, {dtype}, 2);
        Model down = up;
        AdamConfig maximizing = config;
        maximizing.maximize = true;
        const Optimizers climber = make_optimizer(maximizing, up.specs());
        const Optimizers descender = make_optimizer(config, down.specs());
        std::mt19937_64 random(1);
        for (int t = 0; t < 3; ++t) {
          const std::vector<Bytes> values = up.random_grads(random);
          std::vector<Bytes> negated = values;
          for (std::size_t i = 0; i < values.size(); ++i) {
            for (std::size_t k = 0; k < values[i].size() / item_size(dtype); ++k) {
              set_number(negated[i], dtype, k, -number_at(values[i], dtype, k));
            }
          }
          CHECK(climber->step(up.gradients(values), {&rates, 1}).ok());
          CHECK(descender->step(down.gradients(negated), {&rates, 1}).ok());
          CHECK(same_params(up, down));
          for (std::size_t i = 0; i < up.size(); ++i) {
            CHECK(same_state(*climber, i, *descender, i));
          }
          if (choice > 0) CHECK(climber->last_grad_norm() == descender->last_grad_norm());
          ++compared;
        }
      }
    }
  }
  CHECK(compared == 96);
}

// The change is written in the parameter's type, and the parameter only read.
void deltas_are_the_change() {
  const Rates rates{0.013, 0.07};
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    for (const int choice : {0, 1, 2, 3}) {
      AdamConfig config = unusual(Numerics::standard);
      config.writes_delta = true;
      config.decoupled_weight_decay = choice % 2 == 1;
      config.maximize = choice > 1;
      config.row_policy = choice > 1 ? RowPolicy::lazy : RowPolicy::exact;
      Model model({{3, 7}, {1, 16411}, {9, 4}}, {dtype}, 3);
      const Model before = model;
      Formulas formulas(model);
      std::vector<Bytes> deltas;
      for (std::size_t i = 0; i < model.size(); ++i) {
        deltas.emplace_back(model.param(i).size(), 3 * item_size(dtype));
        std::memset(deltas[i].data(), 0x55, deltas[i].size());
      }
      std::vector<ParameterSpec> specs = model.specs();
      for (std::size_t i = 0; i < model.size(); ++i) specs[i].delta = deltas[i].data();
      const Optimizers optimizer = make_optimizer(config, specs);
      std::mt19937_64 random(1);
      const double tolerance = dtype == DType::float64   ? 1e-13
                               : dtype == DType::float32 ? 5e-6
                               : dtype == DType::float16 ? 1e-4
                                                         : 5e-4;
      for (std::int64_t t = 1; t <= 3; ++t) {
        const std::vector<Bytes> values = model.random_grads(random);
        std::vector<Gradient> grads = model.gradients(values);
        grads[2].is_absent = t == 2;  // whose place is not written
        const Bytes untouched = copy_of(deltas[2]);
        CHECK(optimizer->step(grads, {&rates, 1}).ok());
        CHECK(same_params(model, before));
        if (t == 2) CHECK(deltas[2] == untouched);
        for (std::size_t i = 0; i < model.size(); ++i) {
          if (grads[i].is_absent) continue;
          const std::int64_t step = i == 2 && t == 3 ? 2 : t;
          for (std::size_t e = 0; e < formulas.of[i].size(); ++e) {
            const double wanted = formulas.of[i][e].step(
                config, rates, number_at(values[i], dtype, e), 1.0, step, true);
            CHECK(is_near(number_at(deltas[i], dtype, e), wanted, tolerance));
          }
        }
      }
    }
  }
}

// Averages are of what the arithmetic sees: float32 masters, or the rounded parameter.
void averages_follow_masters() {
  for (const bool has_master : {false, true}) {
    AdamConfig config = unusual(Numerics::standard);
    config.ema_decay = 0.5;
    config.master_weights = has_master;
    Model model({{1, 300}}, {DType::bfloat16}, 3);
    const Optimizers optimizer = make_optimizer(config, model.specs());
    const auto* average = static_cast<const float*>(optimizer->state(StateKind::ema, 0));
    const auto* master = static_cast<const float*>(optimizer->state(StateKind::master, 0));
    std::vector<float> wanted(300);
    for (std::size_t k = 0; k < 300; ++k) {
      wanted[k] = static_cast<float>(model.at(0, k));
      CHECK(average[k] == wanted[k]);
    }
    std::mt19937_64 random(1);
    for (int t = 0; t < 3; ++t) {
      const std::vector<Bytes> values = model.random_grads(random);
      const Rates rates{0.01, 0.0};
      CHECK(optimizer->step(model.gradients(values), {&rates, 1}).ok());
      for (std::size_t k = 0; k < 300; ++k) {
        if (has_master) {
          wanted[k] = std::fma(0.5F, master[k] - wanted[k], wanted[k]);
          CHECK(average[k] == wanted[k]);
        } else {
          // Of the parameter before it is rounded, which nobody keeps.
          const double rounded = model.at(0, k);
          const double next = wanted[k] + 0.5 * (rounded - wanted[k]);
          CHECK(std::abs(average[k] - next) <= 0x1p-8 * std::abs(rounded));
          wanted[k] = average[k];
        }
      }
    }
  }
}

void refused_groups_change_nothing() {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Refused refused;
  for (const double wrong : {0.0, 1.0, -0.5, kNan, kInfinity}) {
    refused.check([&](AdamConfig& c) { c.beta1 = wrong; });
    refused.check([&](AdamConfig& c) { c.beta2 = wrong; });
    if (wrong != 1.0) refused.check([&](AdamConfig& c) { c.eps = wrong; });
    if (wrong != 1.0 && wrong != 0.0) {
      refused.check([&](AdamConfig& c) { c.max_grad_norm = wrong; });
    }
  }
  refused.check([](AdamConfig& c) { c.eps = 1e-60; }, true, 1);  // zero in float32
  refused.check([](AdamConfig& c) { c.use_amsgrad = true; }, false);
  // What belongs to the whole optimizer.
  refused.check([](AdamConfig& c) { c.numerics = Numerics::mindspore; });
  refused.check([](AdamConfig& c) { c.bias_correction = false; });
  refused.check([](AdamConfig& c) { c.row_policy = RowPolicy::lazy; });
  refused.check([](AdamConfig& c) { c.state_format = StateFormat::bfloat16; });
  refused.check([](AdamConfig& c) { c.seed = 1; });
  refused.check([](AdamConfig& c) { c.master_weights = true; });
  refused.check([](AdamConfig& c) { c.use_locking = true; });
  refused.check([](AdamConfig& c) { c.skip_nonfinite = true; });
  refused.check([](AdamConfig& c) { c.capturable = true; });
  refused.check([](AdamConfig& c) { c.use_offload = true; });
  refused.check([](AdamConfig& c) { c.epsilon_placement = EpsilonPlacement::inside; });
  refused.check([](AdamConfig& c) { c.allow_zero = true; });
  refused.check([](AdamConfig& c) { c.ema_decay = 0.5; });
  refused.check([](AdamConfig& c) { c.writes_delta = true; });
  const AdamConfig right = refused.optimizer->group(1);
  CHECK(refused.optimizer->set_group(2, right).code() == StatusCode::invalid_argument);
  const Rates rates[] = {{0.01, 0.0}, {0.01, 0.0}};
  CHECK(refused.optimizer->begin_step({rates, 2}).ok());
  CHECK(refused.optimizer->set_group(1, right).code() == StatusCode::bad_state);
  CHECK(refused.optimizer->cancel_step().ok());
  CHECK(refused.optimizer->set_group(1, right).ok());
  refused.step();
  // More groups than rates, and clipping after decay with a sparse gradient.
  CHECK(refused.optimizer->step(refused.model.gradients(refused.values), {rates, 1}).code() ==
        StatusCode::invalid_argument);
  AdamConfig clipping = right;
  clipping.max_grad_norm = 1.0;
  clipping.clip_after_decay = true;
  AdamConfig first = refused.optimizer->group(0);
  first.max_grad_norm = clipping.max_grad_norm;
  first.clip_after_decay = true;
  CHECK(refused.optimizer->set_group(0, first).ok());
  std::vector<Gradient> grads = refused.model.gradients(refused.values);
  const std::vector<std::int64_t> indices = {1};
  const RowIndices rows{indices.data(), 1, true};
  grads[0].rows = &rows;
  grads[0].count = 4;
  const Model before = refused.model;
  const Status status = refused.optimizer->step(grads, {rates, 2});
  CHECK(status.code() == StatusCode::invalid_argument && status.index() == 0);
  CHECK(same_params(refused.model, before));
  // A norm that can't be clipped.
  for (const double wrong : {kNan, 1e38}) {
    set_number(refused.values[0], DType::float32, 5, wrong);
    grads = refused.model.gradients(refused.values);
    CHECK(refused.optimizer->step(grads, {rates, 2}).ok() == (wrong == 1e38));
    CHECK(same_params(refused.model, before) == (wrong != 1e38));
  }
  std::printf("%d refusals\n", refused.count);
}

}  // namespace adamas::tests
