// Two spirals, told apart by a small network: dlib::adam beside AdamasSolver, from the same
// weights, on the same batches.
//
//   cmake -S examples/dlib -B build/dlib -Dadamas_DIR="$(python -m adamas --cmake-dir)"
//   cmake --build build/dlib
//   build/dlib/compare
//
// Needs dlib (Debian: libdlib-dev).  Leaves with 1 if the two differ.
#include <dlib/dnn.h>
#include <dlib/revision.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <vector>

#include "adamas_solver.hpp"

namespace {

using Point = dlib::matrix<float, 2, 1>;
// No bias before bn_fc, which would take it away again: Adam makes large steps of its noise.
using Net = dlib::loss_multiclass_log<dlib::fc<
    2,
    dlib::relu<dlib::fc<16, dlib::relu<dlib::bn_fc<dlib::fc_no_bias<16, dlib::input<Point>>>>>>>>;

constexpr std::size_t kBatch = 64;
constexpr int kSteps = 300;
constexpr int kPartOfSteps = 50;

struct Spirals {
  std::vector<Point> points;
  std::vector<unsigned long> labels;
};

Spirals make_batch(dlib::rand& random) {
  Spirals batch;
  for (std::size_t i = 0; i < kBatch; ++i) {
    const unsigned long label = i % 2;
    const double angle = 6.0 * random.get_random_double();
    const double turned = angle + static_cast<double>(label) * dlib::pi;
    Point point;
    point = static_cast<float>(angle * std::cos(turned)),
    static_cast<float>(angle * std::sin(turned));
    batch.points.push_back(point);
    batch.labels.push_back(label);
  }
  return batch;
}

// All parameters of a network, one after the other.
std::vector<float> parameters_of(Net& net) {
  std::vector<float> all;
  dlib::visit_layer_parameters(net, [&](std::size_t, const dlib::tensor& params) {
    all.insert(all.end(), params.begin(), params.end());
  });
  return all;
}

template <class Solver>
void train(Net& net, const Solver& solver, std::vector<std::vector<float>>* path) {
  dlib::dnn_trainer<Net, Solver> trainer(net, solver);
  trainer.set_learning_rate(0.01);
  trainer.set_learning_rate_shrink_factor(1.0);  // or the clock may decide when it shrinks
  dlib::rand random(7);
  for (int step = 1; step <= kSteps; ++step) {
    const Spirals batch = make_batch(random);
    trainer.train_one_step(batch.points, batch.labels);
    if (step % kPartOfSteps != 0) continue;
    trainer.get_net();  // waits for the step
    path->push_back(parameters_of(net));
  }
}

std::size_t count_right(Net& net) {
  dlib::rand random(8);
  std::size_t right = 0;
  for (int i = 0; i < 16; ++i) {
    const Spirals batch = make_batch(random);
    const std::vector<unsigned long> said = net(batch.points);
    for (std::size_t k = 0; k < kBatch; ++k) right += said[k] == batch.labels[k] ? 1 : 0;
  }
  return right;
}

// In units of the largest parameter.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, static_cast<double>(std::abs(a[i] - b[i])));
    largest = std::max(largest, static_cast<double>(std::abs(b[i])));
  }
  return worst / largest;
}

// A layer of dlib, as far as a solver looks.
struct Layer {
  dlib::resizable_tensor params;
  const dlib::tensor& get_layer_params() const { return params; }
};

// A solver that was written and read goes on with the same step; one that is cancelled is zero.
bool goes_on() {
  Layer layer;
  dlib::resizable_tensor grad;
  for (auto* tensor : {&layer.params, &grad}) {
    tensor->set_size(8, 3);
    dlib::tt::tensor_rand(tensor == &grad ? 1 : 2).fill_gaussian(*tensor);
  }
  AdamasSolver solver(0.1, 0.8, 0.95);
  solver.config.skip_nonfinite = true;
  solver(0.01F, layer, grad);
  std::stringstream file;
  serialize(solver, file);
  AdamasSolver read;
  deserialize(read, file);
  const dlib::matrix<float> step = dlib::mat(solver(0.01F, layer, grad));
  const bool is_same = dlib::mat(read(0.01F, layer, grad)) == step;
  grad.host()[5] = std::numeric_limits<float>::infinity();
  return is_same && dlib::max(dlib::abs(dlib::mat(solver(0.01F, layer, grad)))) == 0.0F;
}

}  // namespace

int main() {
  std::printf("dlib %d.%d and adamas %s\n", DLIB_MAJOR_VERSION, DLIB_MINOR_VERSION,
              adamas::version());
  Net theirs;
  dlib::rand random(9);
  theirs(make_batch(random).points);  // reserves its parameters
  auto& biases = dlib::layer<3>(theirs).layer_details();
  biases.set_bias_learning_rate_multiplier(2.0);
  biases.set_bias_weight_decay_multiplier(0.0);
  Net ours = theirs;
  std::vector<std::vector<float>> their_path, our_path;
  train(theirs, dlib::adam(0.001F, 0.9F, 0.99F), &their_path);
  train(ours, AdamasSolver(0.001F, 0.9F, 0.99F), &our_path);
  bool same = true;
  for (std::size_t i = 0; i < our_path.size(); ++i) {
    const double apart = difference(our_path[i], their_path[i]);
    std::printf("step %3d, difference %.1e\n", kPartOfSteps * static_cast<int>(i + 1), apart);
    same = same && apart < 1e-5;
  }
  const std::size_t right = count_right(ours);
  std::printf("of 1024 points right: %zu with dlib::adam, %zu with AdamasSolver\n",
              count_right(theirs), right);
  return same && right > 900 && goes_on() ? 0 : 1;
}
