// Every combination of tests/combinations.py, in its order, for test_package.py, which compares the
// bits.
//
//   combinations INPUT OUTPUT
//
// INPUT: float32 values of the parameters, and of their gradients for each step.
// OUTPUT: for each combination the parameters, then all moment1, moment2 and vhat.
#include <array>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

#include "values.hpp"

namespace {

constexpr int kSteps = 3;
constexpr double kWeightDecay = 0.1;

struct Shape {
  std::int64_t count, rows, second_axis;
  std::int32_t axes;
};
constexpr std::array<Shape, 4> kShapes = {
    {{96, 3, 16, 3}, {60, 4, 3, 3}, {64, 4, 16, 2}, {5, 5, 0, 1}}};
constexpr std::int64_t kValues = 96 + 60 + 64 + 5;

enum class Decay { none, l2, decoupled };

struct Combination {
  adamas::AdamConfig config;
  bool centralize;
  double weight_decay;
};

std::vector<Combination> make_combinations() {
  std::vector<Combination> all;
  for (const auto numerics : {adamas::Numerics::standard, adamas::Numerics::mindspore}) {
    for (const int flags : {0, 1, 2, 3, 4, 5, 6, 7}) {
      for (const double loss_scale : {1.0, 12.0, 1024.0}) {
        for (const auto decay : {Decay::none, Decay::l2, Decay::decoupled}) {
          Combination one;
          one.config.beta1 = 0.8;
          one.config.beta2 = 0.95;
          one.config.eps = 1e-6;
          one.config.numerics = numerics;
          one.config.use_nesterov = (flags & 4) != 0;
          one.config.use_amsgrad = (flags & 2) != 0;
          one.config.loss_scale = loss_scale;
          one.config.decoupled_weight_decay = decay == Decay::decoupled;
          one.centralize = (flags & 1) != 0;
          one.weight_decay = decay == Decay::none ? 0.0 : kWeightDecay;
          all.push_back(one);
        }
      }
    }
  }
  return all;
}

void make_steps(const Combination& chosen, std::vector<float> values, std::ofstream& file) {
  std::vector<adamas::ParameterSpec> specs;
  float* data = values.data();
  for (const Shape& shape : kShapes) {
    adamas::ParameterSpec spec;
    spec.data = data;
    spec.count = shape.count;
    spec.rows = shape.rows;
    spec.centralize = chosen.centralize;
    spec.axes = shape.axes;
    spec.second_axis = shape.second_axis;
    specs.push_back(spec);
    data += shape.count;
  }
  std::unique_ptr<adamas::Optimizer> optimizer;
  require(adamas::Optimizer::create(chosen.config, specs, &optimizer));
  const adamas::Rates rates{0.01, chosen.weight_decay};
  for (int step = 0; step < kSteps; ++step) {
    std::vector<adamas::Gradient> grads;
    for (const Shape& shape : kShapes) {
      grads.push_back({data});
      data += shape.count;
    }
    require(optimizer->step(grads, {&rates, 1}));
  }
  write(file, values.data(), kValues * sizeof(float));
  for (const auto kind :
       {adamas::StateKind::moment1, adamas::StateKind::moment2, adamas::StateKind::vhat}) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      write(file, optimizer->state(kind, i), optimizer->layout(kind, i).nbytes());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::vector<float> values = read(argv[1], (kSteps + 1) * kValues);
  std::ofstream file(argv[2], std::ios::binary);
  const std::vector<Combination> all = make_combinations();
  for (const Combination& one : all) make_steps(one, values, file);
  std::printf("%zu combinations\n", all.size());
  return file ? 0 : 3;
}
