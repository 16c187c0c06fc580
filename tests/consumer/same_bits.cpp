// Five steps of one variant over a table and a bias, for test_package.py, which makes the same
// steps from Python and compares the bits.
//
//   same_bits VARIANT INPUT OUTPUT
//
// INPUT: float32 values of the table, the bias, and the gradients of both for each step.
// OUTPUT: the table, the bias, and for both of them the stored moments.
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "values.hpp"

namespace {

constexpr std::int64_t kRows = 50;
constexpr std::int64_t kLength = 64;
constexpr std::int64_t kTable = kRows * kLength;
constexpr std::int64_t kBias = 33;
constexpr std::int64_t kEntries = 20;
constexpr int kSteps = 5;

adamas::AdamConfig config_of(const std::string& variant) {
  adamas::AdamConfig config;
  config.beta1 = 0.8;
  config.beta2 = 0.95;
  config.eps = 1e-6;
  if (variant == "amsgrad") {
    config.use_amsgrad = config.use_nesterov = config.decoupled_weight_decay = true;
  }
  if (variant == "lazy") {
    config.row_policy = adamas::RowPolicy::lazy;
    config.max_grad_norm = 0.5;
    config.loss_scale = 12.0;
    config.use_locking = true;
  }
  if (variant == "int8") {
    config.state_format = adamas::StateFormat::int8;
    config.seed = 7;
    config.num_threads = 3;
  }
  return config;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string variant = argv[1];
  std::vector<float> values = read(argv[2], (kSteps + 1) * (kTable + kBias));
  const adamas::AdamConfig config = config_of(variant);

  std::vector<adamas::ParameterSpec> specs(2);
  specs[0].data = values.data();
  specs[0].count = kTable;
  specs[0].rows = kRows;
  specs[1].data = values.data() + kTable;
  specs[1].count = kBias;
  specs[1].rows = kBias;
  specs[1].rates = 1;
  std::unique_ptr<adamas::Optimizer> optimizer;
  require(adamas::Optimizer::create(config, specs, &optimizer));

  std::vector<adamas::RateSchedule> schedules(2);
  schedules[0].learning_rate = [](std::int64_t step) {
    return 0.01 / static_cast<double>(1 + step);
  };
  schedules[0].weight_decay = adamas::constant(0.1);
  schedules[1].learning_rate = adamas::constant(0.02);

  std::vector<std::int64_t> listed;
  for (std::int64_t i = 0; i < kEntries; ++i) listed.push_back(i * i % kRows);  // with repetitions
  const adamas::RowIndices rows{listed.data(), kEntries};
  for (int step = 1; step <= kSteps; ++step) {
    const float* grads_of_step = &values[static_cast<std::size_t>(step * (kTable + kBias))];
    std::vector<adamas::Gradient> grads(2);
    grads[0].values = grads_of_step;
    if (variant == "lazy") grads[0].rows = &rows;
    grads[1].values = grads_of_step + kTable;
    if (variant == "int8") {  // in parts, the last first
      require(optimizer->begin_step(adamas::rates_at(schedules, optimizer->global_step())));
      require(optimizer->apply(1, grads[1]));
      require(optimizer->apply(0, grads[0]));
      require(optimizer->end_step());
    } else {
      require(adamas::step(*optimizer, grads, schedules));
    }
  }

  std::ofstream file(argv[3], std::ios::binary);
  const std::size_t item = variant == "int8" ? 1 : sizeof(float);
  for (const adamas::ParameterSpec& spec : specs) {
    write(file, spec.data, static_cast<std::size_t>(spec.count) * sizeof(float));
  }
  for (std::size_t i = 0; i < specs.size(); ++i) {
    for (const auto kind : {adamas::StateKind::moment1, adamas::StateKind::moment2}) {
      write(file, optimizer->state(kind, i), static_cast<std::size_t>(specs[i].count) * item);
    }
  }
  return file ? 0 : 3;
}
