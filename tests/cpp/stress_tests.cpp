// Many threads, many optimizers, one memory: 8 threads make 2,000 mixed operations each on
// optimizers with use_locking over overlapping views of one array, and then independent optimizers
// step side by side.  For ThreadSanitizer, and the results are checked as well.
//
// Whatever the order of the steps, the shared array has one right result: its values are integers
// near 2^24, where float32 holds integers only, and gradients are constant, so that each step
// subtracts the learning rate, 1 or 2, exactly.  A lost or doubled update shows.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "core_tests.hpp"

namespace adamas::tests {
namespace {

constexpr int kThreads = 8;
constexpr float kStart = 0x1p24F - 1.0F;
constexpr float kGrad = 0.5F;
constexpr std::size_t kRows = 1009;
constexpr std::size_t kLength = 19;
constexpr std::size_t kTable = kRows * kLength;  // two chunks
constexpr std::size_t kBias = 257;               // stands behind the table

// The shared array, and what was subtracted from it.
class Memory {
 public:
  float* at(std::size_t begin) { return &values_[begin]; }

  void expect(std::size_t begin, std::size_t count, std::int64_t less) {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (std::size_t i = begin; i < begin + count; ++i) subtracted_[i] += less;
  }

  void check() const {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      CHECK(subtracted_[i] < std::int64_t{1} << 23);  // else it left the range of integers
      CHECK(values_[i] == kStart - static_cast<float>(subtracted_[i]));
    }
  }

 private:
  std::vector<float> values_ = std::vector<float>(kTable + kBias, kStart);
  std::vector<std::int64_t> subtracted_ = std::vector<std::int64_t>(kTable + kBias, 0);
  std::mutex mutex_;
};

// A parameter in the shared array; `listed` are the rows of its gradient, all if it is empty.
struct View {
  std::size_t begin;
  std::size_t rows;
  std::size_t row_length;
  std::vector<std::int64_t> listed;
};

View table_rows(std::size_t first, std::size_t last, std::vector<std::int64_t> listed = {}) {
  return {first * kLength, last - first, kLength, std::move(listed)};
}

View bias_part(std::size_t first, std::size_t last) {
  return {kTable + first, 1, last - first, {}};
}

std::vector<std::int64_t> every_third_of(std::int64_t rows) {
  std::vector<std::int64_t> listed;
  for (std::int64_t row = 0; row < rows; row += 3) listed.push_back(row);
  return listed;
}

// An optimizer over views of the shared array, its gradients, and its steps counted.
class Actor {
 public:
  Actor(Memory& memory, std::vector<View> views, double learning_rate, int threads,
        RowPolicy policy = RowPolicy::exact)
      : memory_(memory), views_(std::move(views)), rates_{learning_rate, 0.0} {
    AdamConfig config;
    config.use_locking = true;
    config.num_threads = threads;
    config.row_policy = policy;
    std::vector<ParameterSpec> specs;
    for (const View& view : views_) specs.push_back(spec_of(view));
    CHECK(Optimizer::create(config, {specs.data(), specs.size()}, &optimizer_).ok());
    prepare_grads();
  }

  // By now no thread uses it.
  ~Actor() {
    CHECK(optimizer_->global_step() == steps_.load());
    for (const View& view : views_) expect(view);
  }

  void step() {
    CHECK(optimizer_->step({grads_.data(), grads_.size()}, {&rates_, 1}).ok());
    steps_.fetch_add(1);
  }

  // Nothing, if another thread has a step in parts open.
  void step_in_parts() {
    const Status begun = optimizer_->begin_step({&rates_, 1});
    if (begun.code() == StatusCode::bad_state) return;
    CHECK(begun.ok());
    for (std::size_t i = grads_.size(); i-- > 0;) CHECK(optimizer_->apply(i, grads_[i]).ok());
    CHECK(optimizer_->end_step().ok());
    steps_.fetch_add(1);
  }

  // The last row of the last view is too large.
  void refused_step() {
    std::vector<std::int64_t> indices = indices_.back();
    indices.back() = static_cast<std::int64_t>(views_.back().rows);
    RowIndices rows = rows_.back();
    rows.data = indices.data();
    std::vector<Gradient> grads = grads_;
    grads.back().rows = &rows;
    const Status status = optimizer_->step({grads.data(), grads.size()}, {&rates_, 1});
    CHECK(status.code() == StatusCode::bad_index);
  }

  void read_global_step() {
    const std::int64_t before = steps_.load();
    CHECK(optimizer_->global_step() >= before);
  }

 private:
  ParameterSpec spec_of(const View& view) {
    ParameterSpec spec;
    spec.data = memory_.at(view.begin);
    spec.count = static_cast<std::int64_t>(view.rows * view.row_length);
    spec.rows = static_cast<std::int64_t>(view.rows);
    return spec;
  }

  // Each listed row comes twice, with half of the gradient: first all ascending, then descending.
  void prepare_grads() {
    indices_.resize(views_.size());
    rows_.resize(views_.size());
    values_.resize(views_.size());
    for (std::size_t i = 0; i < views_.size(); ++i) {
      const View& view = views_[i];
      if (view.listed.empty()) {
        values_[i].assign(view.rows * view.row_length, kGrad);
        grads_.push_back({values_[i].data(), nullptr, DType::float32});
        continue;
      }
      indices_[i] = view.listed;
      indices_[i].insert(indices_[i].end(), view.listed.rbegin(), view.listed.rend());
      rows_[i] = {indices_[i].data(), static_cast<std::int64_t>(indices_[i].size()), true};
      values_[i].assign(indices_[i].size() * view.row_length, kGrad / 2);
      grads_.push_back({values_[i].data(), &rows_[i], DType::float32});
    }
  }

  void expect(const View& view) {
    const auto less = static_cast<std::int64_t>(rates_.learning_rate) * steps_.load();
    if (view.listed.empty()) memory_.expect(view.begin, view.rows * view.row_length, less);
    for (const std::int64_t row : view.listed) {
      const std::size_t begin = view.begin + static_cast<std::size_t>(row) * view.row_length;
      memory_.expect(begin, view.row_length, less);
    }
  }

  Memory& memory_;
  std::vector<View> views_;
  Rates rates_;
  std::vector<std::vector<std::int64_t>> indices_;
  std::vector<RowIndices> rows_;
  std::vector<std::vector<float>> values_;
  std::vector<Gradient> grads_;
  std::unique_ptr<Optimizer> optimizer_;
  std::atomic<std::int64_t> steps_{0};
};

// An optimizer over memory of its own, without any nice numbers, but with constant gradients: so
// many steps give the same bits, whoever makes them.
class Loner {
 public:
  Loner(std::size_t rows, bool sparse, int threads) : rows_(rows), sparse_(sparse) {
    for (std::size_t i = 0; i < param_.size(); ++i) {
      param_[i] = 0.01F * static_cast<float>(i % 97);
      grad_[i] = 0.02F * static_cast<float>(i % 53) - 0.5F;
    }
    for (std::size_t k = 0; k < rows; ++k) {
      indices_[k] = static_cast<std::int32_t>(k * k % rows);  // some rows often, some never
    }
    AdamConfig config;
    config.beta2 = 0.99;
    config.use_locking = true;
    config.num_threads = threads;
    config.use_amsgrad = true;
    ParameterSpec spec;
    spec.data = param_.data();
    spec.count = static_cast<std::int64_t>(param_.size());
    spec.rows = static_cast<std::int64_t>(rows);
    CHECK(Optimizer::create(config, {&spec, 1}, &optimizer_).ok());
  }

  void step() {
    const Gradient grad{grad_.data(), sparse_ ? &listed_ : nullptr, DType::float32};
    const Rates rates{0.003, 0.01};
    CHECK(optimizer_->step({&grad, 1}, {&rates, 1}).ok());
  }

  void move_global_step(std::int64_t step) { CHECK(optimizer_->set_global_step(step).ok()); }

  void check_finite() const {
    CHECK(std::all_of(param_.begin(), param_.end(), [](float x) { return std::isfinite(x); }));
  }

  // Compares with as many steps of one thread.
  void check() const {
    Loner serial(rows_, sparse_, 1);
    for (std::int64_t t = optimizer_->global_step(); t > 0; --t) serial.step();
    CHECK(std::memcmp(param_.data(), serial.param_.data(), nbytes()) == 0);
    for (const StateKind kind : {StateKind::moment1, StateKind::moment2, StateKind::vhat}) {
      const void* wanted = serial.optimizer_->state(kind, 0);
      CHECK(std::memcmp(optimizer_->state(kind, 0), wanted, nbytes()) == 0);
    }
  }

 private:
  std::size_t nbytes() const { return param_.size() * sizeof(float); }

  std::size_t rows_;
  bool sparse_;
  std::vector<float> param_ = std::vector<float>(rows_ * kLength);
  std::vector<float> grad_ = std::vector<float>(rows_ * kLength);
  std::vector<std::int32_t> indices_ = std::vector<std::int32_t>(rows_);
  RowIndices listed_{indices_.data(), static_cast<std::int64_t>(rows_), false};
  std::unique_ptr<Optimizer> optimizer_;
};

// Everything that the threads of the first part share.
class Stage {
 public:
  // The memory must hold all that happened before it is checked, so the actors go first.
  void check() {
    dense_.reset();
    sparse_.reset();
    lazy_.reset();
    catch_up_.reset();
    parts_.reset();
    memory_.check();
    constant_.check();
    constant_sparse_.check();
    moved_.check_finite();
  }

  void operate(std::mt19937_64& random) {
    switch (random() % 16) {
      case 0:
        return dense_->step();
      case 1:
        return sparse_->step();
      case 2:
        return sparse_->refused_step();
      case 3:
      case 4:
        return lazy_->step();
      case 5:
      case 6:
        return catch_up_->step();
      case 7:
      case 8:
        return parts_->step_in_parts();
      case 9:
        return make_and_destroy(random() % (kRows - 10));
      case 10:
        return constant_.step();
      case 11:
        return constant_sparse_.step();
      case 12:
        return moved_.step();
      case 13:
        return moved_.move_global_step(static_cast<std::int64_t>(random() % 1000));
      case 14:
        return dense_->read_global_step();
      default:
        return parts_->read_global_step();
    }
  }

 private:
  // Lists the bias before the table, unlike `dense_`: the order of the locks is another one.
  static std::vector<View> bias_and_table() {
    return {bias_part(0, kBias), table_rows(0, kRows, every_third_of(kRows))};
  }

  void make_and_destroy(std::size_t first_row) {
    Actor actor(memory_, {table_rows(first_row, first_row + 10), bias_part(5, 50)}, 1.0, 1);
    actor.step();
    actor.step();
  }

  template <class... Arguments>
  std::unique_ptr<Actor> act(std::vector<View> views, Arguments... arguments) {
    return std::make_unique<Actor>(memory_, std::move(views), arguments...);
  }

  Memory memory_;
  std::unique_ptr<Actor> dense_ = act({table_rows(0, kRows), bias_part(0, kBias)}, 1.0, 2);
  std::unique_ptr<Actor> sparse_ = act(bias_and_table(), 2.0, 3);
  std::unique_ptr<Actor> lazy_ =
      act({table_rows(100, 900, every_third_of(800))}, 1.0, 3, RowPolicy::lazy);
  std::unique_ptr<Actor> catch_up_ = act(
      {bias_part(100, 200), table_rows(500, kRows, {500, 0, 77, 4})}, 2.0, 2, RowPolicy::catch_up);
  std::unique_ptr<Actor> parts_ = act({table_rows(0, 300), bias_part(0, 150)}, 1.0, 2);
  Loner constant_{1009, false, 2};
  Loner constant_sparse_{307, true, 3};
  Loner moved_{23, false, 1};
};

template <class Body>
void in_threads(int count, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void shared_memory_loses_no_step() {
  Stage stage;
  in_threads(kThreads, [&](int thread) {
    std::mt19937_64 random(static_cast<std::uint64_t>(thread));
    for (std::int64_t k = operations(); k > 0; --k) stage.operate(random);
  });
  stage.check();
}

// Optimizers that have nothing in common but the list of idle thread pools.
void independent_optimizers_do_not_meet() {
  std::vector<std::unique_ptr<Loner>> loners;
  for (int i = 0; i < 4; ++i) {
    loners.push_back(std::make_unique<Loner>(i < 2 ? 2003 : 4001, i % 2 == 1, 2 + i / 2));
  }
  in_threads(static_cast<int>(loners.size()), [&](int thread) {
    Loner& loner = *loners[static_cast<std::size_t>(thread)];
    for (std::int64_t k = operations() / 10; k >= 0; --k) loner.step();
  });
  for (const auto& loner : loners) loner->check();
}

}  // namespace adamas::tests
