// Tests of the public C++ API: steps, steps in parts, and that refusals change nothing.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"

namespace adamas::tests {
namespace {

using Optimizers = std::unique_ptr<Optimizer>;

template <class T>
constexpr DType kType = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <class T>
ParameterSpec spec_of(std::vector<T>& data, std::int64_t rows = 1) {
  ParameterSpec spec;
  spec.data = data.data();
  spec.count = static_cast<std::int64_t>(data.size());
  spec.dtype = kType<T>;
  spec.rows = rows;
  return spec;
}

template <class T>
Gradient gradient_of(const std::vector<T>& values, const RowIndices* rows = nullptr) {
  return {values.data(), rows, kType<T>, kCpu, static_cast<std::int64_t>(values.size())};
}

RowIndices rows_of(const std::vector<std::int64_t>& indices) {
  return {indices.data(), static_cast<std::int64_t>(indices.size()), true};
}

template <class T>
std::vector<T> random_values(std::size_t count, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

Optimizers make(const AdamConfig& config, std::vector<ParameterSpec> specs) {
  Optimizers optimizer;
  const Status status = Optimizer::create(config, {specs.data(), specs.size()}, &optimizer);
  CHECK(status.ok());
  return optimizer;
}

Status step(Optimizer& optimizer, const std::vector<Gradient>& grads, Rates rates = {0.125, 0.0}) {
  return optimizer.step({grads.data(), grads.size()}, {&rates, 1});
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// A copy of everything that a step changes.
template <class T>
struct Snapshot {
  std::vector<T> values;
  std::int64_t global_step;

  Snapshot(const Optimizer& optimizer, const std::vector<std::vector<T>*>& params)
      : global_step(optimizer.global_step()) {
    for (std::size_t i = 0; i < params.size(); ++i) {
      const std::vector<T>& param = *params[i];
      values.insert(values.end(), param.begin(), param.end());
      for (std::size_t k = 0; k <= static_cast<std::size_t>(StateKind::vhat); ++k) {
        const auto* state = static_cast<const T*>(optimizer.state(static_cast<StateKind>(k), i));
        if (state != nullptr) values.insert(values.end(), state, state + param.size());
      }
    }
  }

  bool operator==(const Snapshot& other) const {
    return global_step == other.global_step && same_bits(values, other.values);
  }
};

// DESIGN section 2, numerics "standard", one element, in double.
struct Reference {
  double param;
  double moment1 = 0.0;
  double moment2 = 0.0;

  void step(const AdamConfig& config, Rates rates, double grad, std::int64_t t) {
    const double g = grad / config.loss_scale + rates.weight_decay * param;
    moment1 = config.beta1 * moment1 + (1.0 - config.beta1) * g;
    moment2 = config.beta2 * moment2 + (1.0 - config.beta2) * g * g;
    const double correction1 = 1.0 - std::pow(config.beta1, static_cast<double>(t));
    const double correction2 = 1.0 - std::pow(config.beta2, static_cast<double>(t));
    param -= rates.learning_rate / correction1 * moment1 /
             (std::sqrt(moment2 / correction2) + config.eps);
  }
};

template <class T>
void check_formula(std::size_t count, double tolerance) {
  std::mt19937_64 random(count);
  AdamConfig config;
  config.beta1 = 0.75;
  config.beta2 = 0.9;
  config.eps = 1e-4;
  config.loss_scale = 3.0;
  config.num_threads = 2;
  std::vector<T> param = random_values<T>(count, random);
  std::vector<Reference> wanted;
  for (const T value : param) wanted.push_back({static_cast<double>(value)});
  const Optimizers optimizer = make(config, {spec_of(param)});
  const Rates rates{0.01, 0.02};
  for (std::int64_t t = 1; t <= 5; ++t) {
    const std::vector<T> grad = random_values<T>(count, random);
    CHECK(step(*optimizer, {gradient_of(grad)}, rates).ok());
    CHECK(optimizer->global_step() == t);
    for (std::size_t i = 0; i < count; ++i) {
      wanted[i].step(config, rates, static_cast<double>(grad[i]), t);
      CHECK(std::abs(static_cast<double>(param[i]) - wanted[i].param) <= tolerance);
    }
  }
}

// Every combination of options that sparse rows meet.
std::vector<AdamConfig> row_configs() {
  std::vector<AdamConfig> configs;
  for (const bool nesterov : {false, true}) {
    for (const bool amsgrad : {false, true}) {
      for (const int threads : {1, 3}) {
        AdamConfig config;
        config.beta1 = 0.75;
        config.loss_scale = 2.0;
        config.use_nesterov = nesterov;
        config.use_amsgrad = amsgrad;
        config.num_threads = threads;
        configs.push_back(config);
      }
    }
  }
  return configs;
}

// The dense gradient that a sparse one stands for, summed in order of appearance.
std::vector<float> dense_of(const std::vector<std::int64_t>& indices,
                            const std::vector<float>& values, std::size_t rows,
                            std::size_t row_length) {
  std::vector<float> dense(rows * row_length, 0.0F);
  std::vector<bool> listed(rows, false);
  for (std::size_t entry = 0; entry < indices.size(); ++entry) {
    const auto row = static_cast<std::size_t>(indices[entry]);
    for (std::size_t j = 0; j < row_length; ++j) {
      const float value = values[entry * row_length + j];
      float& sum = dense[row * row_length + j];
      sum = listed[row] ? sum + value : value;
    }
    listed[row] = true;
  }
  return dense;
}

std::vector<std::int64_t> random_rows(std::size_t count, std::size_t rows,
                                      std::mt19937_64& random) {
  std::uniform_int_distribution<std::int64_t> row(0, static_cast<std::int64_t>(rows) - 1);
  std::vector<std::int64_t> indices(count);
  for (std::int64_t& index : indices) index = row(random);
  return indices;
}

void check_sparse_equals_dense(const AdamConfig& config, std::size_t entries) {
  constexpr std::size_t kRows = 1009;
  constexpr std::size_t kLength = 19;
  std::mt19937_64 random(entries);
  std::vector<float> sparse_param = random_values<float>(kRows * kLength, random);
  std::vector<float> dense_param = sparse_param;
  const Optimizers sparse = make(config, {spec_of(sparse_param, kRows)});
  const Optimizers dense = make(config, {spec_of(dense_param, kRows)});
  for (int t = 0; t < 3; ++t) {
    const std::vector<std::int64_t> indices = random_rows(entries, kRows, random);
    const std::vector<float> values = random_values<float>(entries * kLength, random);
    const std::vector<float> summed = dense_of(indices, values, kRows, kLength);
    const RowIndices rows = rows_of(indices);
    CHECK(step(*sparse, {gradient_of(values, &rows)}, {0.125, 0.25}).ok());
    CHECK(step(*dense, {gradient_of(summed)}, {0.125, 0.25}).ok());
    CHECK(Snapshot<float>(*sparse, {&sparse_param}) == Snapshot<float>(*dense, {&dense_param}));
  }
}

// Two parameters, the second sparse, and all that can be given to them.
struct Pair {
  std::vector<float> bias = std::vector<float>(7, 1.0F);
  std::vector<float> table = std::vector<float>(12, 2.0F);
  std::vector<float> bias_grad = std::vector<float>(7, 0.5F);
  std::vector<std::int64_t> indices = {3, 0, 3};
  std::vector<float> values = std::vector<float>(9, 0.25F);
  RowIndices rows = rows_of(indices);
  Optimizers optimizer;

  explicit Pair(AdamConfig config = {}) {
    config.num_threads = 2;
    optimizer = make(config, {spec_of(bias), spec_of(table, 4)});
  }

  std::vector<Gradient> grads() const {
    return {gradient_of(bias_grad), gradient_of(values, &rows)};
  }
  Snapshot<float> snapshot() { return {*optimizer, {&bias, &table}}; }
};

// Memory for all arrays of a Pair with the row policy catch_up.
struct SavedPair {
  std::vector<std::vector<char>> memory;
  std::vector<ArrayCopy> copies;
  Counters counters;

  SavedPair() {
    for (const std::size_t i : {0U, 1U}) {
      const std::size_t elements = i == 0 ? 7 * sizeof(float) : 12 * sizeof(float);
      add(i, std::nullopt, elements);
      add(i, StateKind::moment1, elements);
      add(i, StateKind::moment2, elements);
      add(i, StateKind::row_step, (i == 0 ? 1 : 4) * sizeof(std::int64_t));
    }
    for (std::size_t k = 0; k < copies.size(); ++k) copies[k].data = memory[k].data();
  }
  void add(std::size_t parameter, std::optional<StateKind> kind, std::size_t nbytes) {
    memory.emplace_back(nbytes);
    copies.push_back({parameter, kind, nullptr, nbytes});
  }
  Span<const ArrayCopy> span() const { return {copies.data(), copies.size()}; }
};

AdamConfig catching_up() {
  AdamConfig config;
  config.row_policy = RowPolicy::catch_up;
  config.use_locking = true;
  return config;
}

void check_load_refused(Pair& pair, const SavedPair& saved, StatusCode code, std::int64_t index) {
  const Snapshot<float> before = pair.snapshot();
  const Status status = pair.optimizer->load(saved.span(), saved.counters);
  CHECK(status.code() == code);
  CHECK(status.index() == index);
  CHECK(pair.snapshot() == before);
}

void check_create_refused(const AdamConfig& config, std::vector<ParameterSpec> specs,
                          StatusCode code, std::int64_t index) {
  Optimizers optimizer;
  const Status status = Optimizer::create(config, {specs.data(), specs.size()}, &optimizer);
  CHECK(status.code() == code);
  CHECK(status.index() == index);
  CHECK(optimizer == nullptr);
}

void check_step_refused(Pair& pair, const std::vector<Gradient>& grads, Rates rates,
                        StatusCode code, std::int64_t index = -1) {
  const Snapshot<float> before = pair.snapshot();
  const Status status = step(*pair.optimizer, grads, rates);
  CHECK(status.code() == code);
  CHECK(status.index() == index);
  CHECK(pair.snapshot() == before);
}

}  // namespace

void steps_follow_the_formula() {
  for (const std::size_t count : {0U, 1U, 15U, 1009U, 40009U}) {
    check_formula<float>(count, 2e-5);
    check_formula<double>(count, 1e-13);
  }
}

void sparse_steps_equal_dense_steps() {
  for (const AdamConfig& config : row_configs()) {
    for (const std::size_t entries : {0U, 1U, 50U, 3000U, 20011U}) {
      check_sparse_equals_dense(config, entries);
    }
  }
}

void lazy_steps_touch_listed_rows_only() {
  constexpr std::size_t kRows = 211;
  constexpr std::size_t kLength = 5;
  std::mt19937_64 random(1);
  for (AdamConfig config : row_configs()) {
    config.row_policy = RowPolicy::lazy;
    std::vector<float> table = random_values<float>(kRows * kLength, random);
    const std::vector<float> before = table;
    const Optimizers optimizer = make(config, {spec_of(table, kRows)});
    const std::vector<std::int64_t> indices = random_rows(2000, kRows / 2, random);
    const std::vector<float> values = random_values<float>(2000 * kLength, random);
    const RowIndices rows = rows_of(indices);
    CHECK(step(*optimizer, {gradient_of(values, &rows)}).ok());
    for (std::size_t i = 0; i < table.size(); ++i) {
      CHECK((table[i] != before[i]) == (i / kLength < kRows / 2));
    }
  }
}

void steps_in_parts_equal_whole_steps() {
  Pair whole;
  Pair parts;
  const Rates rates{0.125, 0.25};
  for (int t = 0; t < 3; ++t) {
    CHECK(step(*whole.optimizer, whole.grads(), rates).ok());
    CHECK(parts.optimizer->begin_step({&rates, 1}).ok());
    CHECK(parts.optimizer->apply(1, parts.grads()[1]).ok());
    CHECK(parts.optimizer->apply(0, parts.grads()[0]).ok());
    CHECK(parts.optimizer->end_step().ok());
    CHECK(whole.snapshot() == parts.snapshot());
  }
}

void refused_optimizers() {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<float> a(12);
  std::vector<float> b(12);
  const std::vector<ParameterSpec> good = {spec_of(b), spec_of(a, 3)};
  for (const double wrong : {0.0, 1.0, -0.5, 2.0, kNan, kInfinity}) {
    AdamConfig config;
    config.beta1 = wrong;
    check_create_refused(config, good, StatusCode::invalid_argument, -1);
    config = {};
    config.beta2 = wrong;
    check_create_refused(config, good, StatusCode::invalid_argument, -1);
  }
  for (const double wrong : {0.0, -1.0, kNan, kInfinity}) {
    AdamConfig config;
    config.eps = wrong;
    check_create_refused(config, good, StatusCode::invalid_argument, -1);
    config = {};
    config.loss_scale = wrong;
    check_create_refused(config, good, StatusCode::invalid_argument, -1);
  }
  const auto refused = [&](auto spoil, StatusCode code) {
    std::vector<ParameterSpec> specs = good;
    spoil(specs[1]);
    check_create_refused({}, specs, code, 1);
  };
  refused([](ParameterSpec& spec) { spec.count = -1; }, StatusCode::invalid_argument);
  refused([](ParameterSpec& spec) { spec.rates = -1; }, StatusCode::invalid_argument);
  refused([](ParameterSpec& spec) { spec.data = nullptr; }, StatusCode::invalid_argument);
  refused([](ParameterSpec& spec) { spec.rows = 0; }, StatusCode::invalid_argument);
  refused([](ParameterSpec& spec) { spec.rows = 5; }, StatusCode::invalid_argument);
  refused([&](ParameterSpec& spec) { spec.data = b.data(); }, StatusCode::overlap);
  refused([&](ParameterSpec& spec) { spec = {&b[11], 1, DType::float32, 0, 1, false}; },
          StatusCode::overlap);
}

void refused_steps_change_nothing() {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  Pair pair;
  CHECK(step(*pair.optimizer, pair.grads()).ok());
  const Rates good{0.125, 0.25};
  const std::vector<Gradient> grads = pair.grads();
  for (const double wrong : {-1.0, kNan, std::numeric_limits<double>::infinity()}) {
    check_step_refused(pair, grads, {wrong, 0.0}, StatusCode::invalid_argument);
    check_step_refused(pair, grads, {0.125, wrong}, StatusCode::invalid_argument);
  }
  check_step_refused(pair, grads, {1e300, 0.0}, StatusCode::invalid_argument);
  check_step_refused(pair, {grads[0]}, good, StatusCode::invalid_argument);
  check_step_refused(pair, {grads[0], {}}, good, StatusCode::invalid_argument, 1);
  check_step_refused(pair, {{pair.bias_grad.data(), nullptr, DType::float64}, grads[1]}, good,
                     StatusCode::invalid_argument, 0);
  check_step_refused(pair, {{pair.table.data()}, grads[1]}, good, StatusCode::overlap, 0);
  check_step_refused(pair, {{pair.optimizer->state(StateKind::moment2, 1)}, grads[1]}, good,
                     StatusCode::overlap, 0);
  for (const std::int64_t wrong : {-1L, 4L, INT64_MIN, INT64_MAX}) {
    for (std::size_t at = 0; at < pair.indices.size(); ++at) {
      const std::int64_t right = std::exchange(pair.indices[at], wrong);
      check_step_refused(pair, grads, good, StatusCode::bad_index, 1);
      pair.indices[at] = right;
    }
  }
  CHECK(step(*pair.optimizer, grads).ok());
}

// Also of memory that has been accepted: here each gradient was, with the right count and without.
void wrong_counts_are_refused() {
  Pair pair;
  const Rates rates{0.125, 0.25};
  std::vector<Gradient> grads = pair.grads();
  for (std::size_t i = 0; i < grads.size(); ++i) {
    const std::int64_t right = grads[i].count;
    for (const std::int64_t said : {std::int64_t{-1}, right}) {
      grads[i].count = said;
      CHECK(step(*pair.optimizer, grads, rates).ok());
    }
    for (const std::int64_t wrong :
         {right - 1, right + 1, std::int64_t{0}, std::int64_t{-2}, INT64_MIN, INT64_MAX}) {
      grads[i].count = wrong;
      check_step_refused(pair, grads, rates, StatusCode::invalid_argument,
                         static_cast<std::int64_t>(i));
      CHECK(pair.optimizer->begin_step({&rates, 1}).ok());
      CHECK(pair.optimizer->apply(i, grads[i]).index() == static_cast<std::int64_t>(i));
      CHECK(pair.optimizer->cancel_step().ok());
    }
    grads[i].count = right;
  }
}

void refused_parts() {
  Pair pair;
  Optimizer& optimizer = *pair.optimizer;
  const Rates rates{0.125, 0.0};
  const std::vector<Gradient> grads = pair.grads();
  CHECK(optimizer.apply(0, grads[0]).code() == StatusCode::bad_state);
  CHECK(optimizer.end_step().code() == StatusCode::bad_state);
  CHECK(optimizer.begin_step({&rates, 1}).ok());
  CHECK(optimizer.begin_step({&rates, 1}).code() == StatusCode::bad_state);
  CHECK(step(optimizer, grads).code() == StatusCode::bad_state);
  CHECK(optimizer.set_global_step(5).code() == StatusCode::bad_state);
  CHECK(optimizer.apply(2, grads[0]).code() == StatusCode::invalid_argument);
  CHECK(optimizer.apply(0, grads[0]).ok());
  CHECK(optimizer.apply(0, grads[0]).code() == StatusCode::bad_state);
  CHECK(optimizer.end_step().code() == StatusCode::bad_state);
  pair.indices[2] = 4;
  CHECK(optimizer.apply(1, grads[1]).code() == StatusCode::bad_index);
  pair.indices[2] = 3;
  CHECK(optimizer.apply(1, grads[1]).ok());
  CHECK(optimizer.end_step().ok());
  CHECK(optimizer.global_step() == 1);
  CHECK(optimizer.set_global_step(-1).code() == StatusCode::invalid_argument);
  CHECK(optimizer.set_global_step(41).ok());
  CHECK(optimizer.global_step() == 41);
}

void loaded_states_go_on_with_the_same_bits() {
  Pair pair(catching_up());
  SavedPair saved;
  for (int i = 0; i < 3; ++i) CHECK(step(*pair.optimizer, pair.grads()).ok());
  CHECK(pair.optimizer->set_loss_scale(4.0).ok());
  CHECK(pair.optimizer->save(saved.span(), &saved.counters).ok());
  CHECK(saved.counters.global_step == 3);
  CHECK(step(*pair.optimizer, pair.grads()).ok());

  Pair resumed(catching_up());
  resumed.table.assign(12, -1.0F);
  CHECK(resumed.optimizer->load(saved.span(), saved.counters).ok());
  CHECK(resumed.optimizer->loss_scale() == 4.0);
  CHECK(step(*resumed.optimizer, resumed.grads()).ok());
  CHECK(resumed.snapshot() == pair.snapshot());
}

void refused_copies_change_nothing() {
  Pair pair(catching_up());
  CHECK(step(*pair.optimizer, pair.grads()).ok());
  SavedPair saved;
  CHECK(pair.optimizer->save(saved.span(), &saved.counters).ok());
  CHECK(step(*pair.optimizer, pair.grads()).ok());
  const auto refused = [&](auto change, std::int64_t index, StatusCode code) {
    SavedPair wrong = saved;
    for (std::size_t k = 0; k < wrong.copies.size(); ++k) {
      wrong.copies[k].data = wrong.memory[k].data();
    }
    change(wrong);
    check_load_refused(pair, wrong, code, index);
  };
  const auto invalid = StatusCode::invalid_argument;
  refused([](SavedPair& s) { s.copies[7].nbytes -= 1; }, 1, invalid);
  refused([](SavedPair& s) { s.copies[7].data = nullptr; }, 1, invalid);
  refused([](SavedPair& s) { s.copies[7].parameter = 2; }, 2, invalid);
  refused([](SavedPair& s) { s.copies[6].kind = StateKind::vhat; }, 1, invalid);
  refused([&](SavedPair& s) { s.copies[4].data = pair.table.data(); }, 1, StatusCode::overlap);
  refused([](SavedPair& s) { s.memory[7][7] = 1; }, 1, invalid);  // a row of a later step
  refused([](SavedPair& s) { s.counters.global_step = -1; }, -1, invalid);
  refused([](SavedPair& s) { s.counters.skipped_steps = -1; }, -1, invalid);
  refused([](SavedPair& s) { s.counters.last_grad_norm = -1.0; }, -1, invalid);
  refused([](SavedPair& s) { s.counters.loss_scale = 0.0; }, -1, invalid);

  const Rates rates{0.125, 0.0};
  CHECK(pair.optimizer->begin_step({&rates, 1}).ok());
  check_load_refused(pair, saved, StatusCode::bad_state, -1);
  CHECK(pair.optimizer->save(saved.span(), &saved.counters).code() == StatusCode::bad_state);
  CHECK(pair.optimizer->cancel_step().ok());
  CHECK(pair.optimizer->load(saved.span(), saved.counters).ok());
}

void skipped_steps_change_nothing() {
  AdamConfig config;
  config.skip_nonfinite = true;
  Pair pair(config);
  CHECK(step(*pair.optimizer, pair.grads()).ok());
  CHECK(!pair.optimizer->last_step_skipped());
  const Snapshot<float> before = pair.snapshot();
  pair.values[4] = std::numeric_limits<float>::quiet_NaN();
  CHECK(step(*pair.optimizer, pair.grads()).ok());
  CHECK(pair.optimizer->last_step_skipped());
  CHECK(pair.optimizer->skipped_steps() == 1);
  CHECK(pair.snapshot() == before);
}

void rebound_parameters_go_on_with_the_same_bits() {
  std::mt19937_64 random(5);
  std::vector<float> theirs = random_values<float>(100, random);
  std::vector<float> ours = theirs;
  std::vector<float> other(7, 1.0F);
  const std::vector<float> grad = random_values<float>(100, random);
  const std::vector<float> other_grad(7, 0.0F);
  const Optimizers reference = make({}, {spec_of(theirs)});
  const Optimizers optimizer = make({}, {spec_of(ours), spec_of(other)});
  std::vector<std::vector<float>> places;
  for (int round = 0; round < 3; ++round) {
    CHECK(step(*reference, {gradient_of(grad)}).ok());
    CHECK(step(*optimizer, {gradient_of(grad), gradient_of(other_grad)}).ok());
    const std::vector<float> left = round == 0 ? ours : places.back();
    places.push_back(left);
    const NewMemory moved{0, places.back().data()};
    CHECK(optimizer->rebind({&moved, 1}).ok());
  }
  CHECK(same_bits(places.back(), theirs));
  const auto refused = [&](const NewMemory& memory, StatusCode code) {
    CHECK(optimizer->rebind({&memory, 1}).code() == code);
  };
  refused({2, other.data()}, StatusCode::invalid_argument);
  refused({0, nullptr}, StatusCode::invalid_argument);
  refused({1, places.back().data() + 1}, StatusCode::overlap);
  refused({0, static_cast<float*>(optimizer->state(StateKind::moment1, 1))}, StatusCode::overlap);
  const Rates rates;
  CHECK(optimizer->begin_step({&rates, 1}).ok());
  refused({0, ours.data()}, StatusCode::bad_state);
  CHECK(optimizer->cancel_step().ok());
  CHECK(step(*reference, {gradient_of(grad)}).ok());
  CHECK(step(*optimizer, {gradient_of(grad), gradient_of(other_grad)}).ok());
  CHECK(same_bits(places.back(), theirs));
}

}  // namespace adamas::tests
