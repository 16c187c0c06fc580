// Fits a softmax regression to handwritten digits: what a C++ program does with adamas.
//
// What to look at: make_optimizer(), where the parameters and their groups are described, the
// schedules, and the one call adamas::step().
#include <adamas/adamas.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kPixels = 64;
constexpr std::size_t kClasses = 10;
constexpr std::size_t kBatch = 64;
constexpr int kEpochs = 10;
constexpr double kLearningRate = 0.01;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "fit_digits: %s\n", why.c_str());
  std::exit(1);
}

void require(const adamas::Status& status) {
  if (!status.ok()) give_up(status.message());
}

struct Digits {
  std::vector<float> pixels;  // in [0, 1], kPixels for each digit
  std::vector<std::size_t> labels;
};

// Each line is a label and 64 pixels in 0..16.
Digits read_digits(const char* path) {
  std::ifstream file(path);
  Digits digits;
  for (std::string line; std::getline(file, line);) {
    std::replace(line.begin(), line.end(), ',', ' ');
    std::istringstream numbers(line);
    std::size_t label = kClasses;
    numbers >> label;
    if (label >= kClasses) give_up("a line does not begin with a label");
    digits.labels.push_back(label);
    for (float pixel; numbers >> pixel;) digits.pixels.push_back(pixel / 16.0F);
  }
  if (digits.labels.empty()) give_up(std::string("no digits in ") + path);
  if (digits.pixels.size() != digits.labels.size() * kPixels) give_up("not 64 pixels in a line");
  return digits;
}

struct Model {
  std::vector<float> weight = std::vector<float>(kPixels * kClasses, 0.0F);
  std::vector<float> bias = std::vector<float>(kClasses, 0.0F);
};

// The optimizer updates the vectors of the model in place.
std::unique_ptr<adamas::Optimizer> make_optimizer(Model& model) {
  adamas::ParameterSpec weight;
  weight.data = model.weight.data();
  weight.count = static_cast<std::int64_t>(model.weight.size());
  adamas::ParameterSpec bias;
  bias.data = model.bias.data();
  bias.count = static_cast<std::int64_t>(model.bias.size());
  bias.rates = 1;  // the second of the schedules
  const std::vector<adamas::ParameterSpec> parameters = {weight, bias};

  adamas::AdamConfig config;
  config.decoupled_weight_decay = true;
  std::unique_ptr<adamas::Optimizer> optimizer;
  require(adamas::Optimizer::create(config, parameters, &optimizer));
  return optimizer;
}

// Half a cosine from kLearningRate down to 0; only the weight decays.
std::vector<adamas::RateSchedule> make_schedules(std::size_t steps) {
  const auto cosine = [steps](std::int64_t step) {
    const double progress = static_cast<double>(step) / static_cast<double>(steps);
    return kLearningRate * 0.5 * (1.0 + std::cos(3.14159265358979 * progress));
  };
  return {{cosine, adamas::constant(0.01)}, {cosine, adamas::constant(0.0)}};
}

// The probabilities of the classes for one digit.
std::vector<float> predict(const Model& model, const float* pixels) {
  std::vector<float> scores = model.bias;
  for (std::size_t p = 0; p < kPixels; ++p) {
    for (std::size_t c = 0; c < kClasses; ++c) {
      scores[c] += pixels[p] * model.weight[p * kClasses + c];
    }
  }
  const float highest = *std::max_element(scores.begin(), scores.end());
  for (float& score : scores) score = std::exp(score - highest);
  const float sum = std::accumulate(scores.begin(), scores.end(), 0.0F);
  for (float& score : scores) score /= sum;
  return scores;
}

// Adds the gradient of one digit's cross entropy, divided by the batch, to `grads`.
void add_gradient(const Model& model, const float* pixels, std::size_t label, Model* grads) {
  std::vector<float> error = predict(model, pixels);
  error[label] -= 1.0F;
  for (std::size_t c = 0; c < kClasses; ++c) {
    const float share = error[c] / static_cast<float>(kBatch);
    grads->bias[c] += share;
    for (std::size_t p = 0; p < kPixels; ++p) grads->weight[p * kClasses + c] += pixels[p] * share;
  }
}

void report(int epoch, const Model& model, const Digits& digits) {
  double loss = 0.0;
  std::size_t right = 0;
  for (std::size_t i = 0; i < digits.labels.size(); ++i) {
    const std::vector<float> likely = predict(model, &digits.pixels[i * kPixels]);
    const auto best = std::max_element(likely.begin(), likely.end()) - likely.begin();
    loss -= std::log(static_cast<double>(likely[digits.labels[i]]) + 1e-30);
    if (static_cast<std::size_t>(best) == digits.labels[i]) ++right;
  }
  const auto count = static_cast<double>(digits.labels.size());
  std::printf("epoch %2d: loss %.6f, %.1f %% right\n", epoch, loss / count,
              100.0 * static_cast<double>(right) / count);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) give_up("usage: fit_digits digits.csv");
  const Digits digits = read_digits(argv[1]);
  Model model;
  const std::unique_ptr<adamas::Optimizer> optimizer = make_optimizer(model);
  const std::size_t steps = digits.labels.size() / kBatch;
  const std::vector<adamas::RateSchedule> schedules = make_schedules(kEpochs * steps);

  std::vector<std::size_t> order(digits.labels.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(0);
  report(0, model, digits);
  for (int epoch = 1; epoch <= kEpochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t step = 0; step < steps; ++step) {
      Model grads;
      for (std::size_t k = step * kBatch; k < (step + 1) * kBatch; ++k) {
        const std::size_t digit = order[k];
        add_gradient(model, &digits.pixels[digit * kPixels], digits.labels[digit], &grads);
      }
      adamas::Gradient list[2];
      list[0].values = grads.weight.data();
      list[1].values = grads.bias.data();
      require(adamas::step(*optimizer, {list, 2}, schedules));
    }
    report(epoch, model, digits);
  }
  std::printf("%lld steps with adamas %s (%s)\n", static_cast<long long>(optimizer->global_step()),
              adamas::version(), adamas::isa_in_use());
}
