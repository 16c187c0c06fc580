// Logistic regression by ensmallen: its own Adam and AMSGrad beside ens::SGD<AdamasUpdate>, step by
// step.
//
//   cmake -S examples/ensmallen -B build/ensmallen -Dadamas_DIR="$(python -m adamas --cmake-dir)"
//   cmake --build build/ensmallen
//   build/ensmallen/compare
//
// Needs ensmallen (Debian: libensmallen-dev) and Armadillo.  Leaves with 1 if the two differ.
#include <algorithm>
#include <cstdio>
#include <ensmallen.hpp>
#include <limits>
#include <vector>

#include "adamas_update.hpp"

namespace {

constexpr std::size_t kFeatures = 40;
constexpr std::size_t kPoints = 1000;
constexpr std::size_t kEpochs = 20;
constexpr std::size_t kBatch = 50;
// From version 3 on ens::SGD divides it by the size of the batch.
constexpr double kStepSize = ENS_VERSION_MAJOR < 3 ? 0.01 : 0.01 * kBatch;

// The log loss of points whose classes a hidden plane tells apart.
template <class MatType>
class LogLoss {
 public:
  using Number = typename MatType::elem_type;

  LogLoss() {
    arma::arma_rng::set_seed(7);
    const arma::mat points(kFeatures, kPoints, arma::fill::randn);
    const arma::rowvec plane(kFeatures, arma::fill::randn);
    points_ = arma::conv_to<MatType>::from(points);
    classes_ = arma::conv_to<MatType>::from(arma::sign(plane * points));
  }

  std::size_t NumFunctions() const { return kPoints; }
  void Shuffle() {}  // the order stays, so that runs can be compared

  Number Evaluate(const MatType& coordinates, std::size_t begin, std::size_t count) const {
    return arma::accu(arma::log1p(arma::exp(-margins(coordinates, begin, count))));
  }
  void Gradient(const MatType& coordinates, std::size_t begin, MatType& gradient,
                std::size_t count) const {
    const auto last = begin + count - 1;
    const MatType weights =
        -classes_.cols(begin, last) / (1 + arma::exp(margins(coordinates, begin, count)));
    gradient = points_.cols(begin, last) * weights.t();
  }

 private:
  MatType margins(const MatType& coordinates, std::size_t begin, std::size_t count) const {
    const auto last = begin + count - 1;
    return (coordinates.t() * points_.cols(begin, last)) % classes_.cols(begin, last);
  }

  MatType points_, classes_;
};

// A callback of ensmallen that keeps the coordinates after each step.
template <class MatType>
struct Path {
  std::vector<MatType> steps;

  template <class Optimizer, class Function, class Matrix>
  bool StepTaken(Optimizer&, Function&, Matrix& coordinates) {
    steps.push_back(coordinates);
    return false;
  }
};

template <class MatType, class Update>
double minimize(const Update& update, Path<MatType>* path) {
  LogLoss<MatType> function;
  MatType coordinates(kFeatures, 1, arma::fill::zeros);
  ens::SGD<Update> optimizer(kStepSize, kBatch, kEpochs * kPoints, -1.0, false, update);
  optimizer.Optimize(function, coordinates, *path);
  return function.Evaluate(coordinates, 0, kPoints) / kPoints;
}

// Prints how far the paths are apart, in units of the largest coordinate of the last step.
template <class MatType, class Theirs>
bool compare(const char* name, const Theirs& theirs, const AdamasUpdate& ours) {
  Path<MatType> their_path, our_path;
  const double their_loss = minimize<MatType>(theirs, &their_path);
  const double our_loss = minimize<MatType>(ours, &our_path);
  double worst = 0.0;
  for (std::size_t i = 0; i < our_path.steps.size(); ++i) {
    const MatType difference = arma::abs(our_path.steps[i] - their_path.steps[i]);
    worst = std::max(worst, static_cast<double>(difference.max()));
  }
  worst /= static_cast<double>(arma::abs(their_path.steps.back()).max());
  std::printf("%-15s %zu steps, loss %.6f and %.6f, worst difference %.1e\n", name,
              our_path.steps.size(), their_loss, our_loss, worst);
  const double epsilon = std::numeric_limits<typename MatType::elem_type>::epsilon();
  return our_path.steps.size() == their_path.steps.size() && worst < 100 * epsilon;
}

}  // namespace

int main() {
  std::printf("ensmallen %d.%d.%d and adamas %s\n", ENS_VERSION_MAJOR, ENS_VERSION_MINOR,
              ENS_VERSION_PATCH, adamas::version());
  AdamasUpdate adam;
  AdamasUpdate amsgrad;
  amsgrad.config.use_amsgrad = true;
  bool same = compare<arma::mat>("Adam, double", ens::AdamUpdate(), adam);
  same = compare<arma::fmat>("Adam, float", ens::AdamUpdate(), adam) && same;
  same = compare<arma::mat>("AMSGrad, double", ens::AMSGradUpdate(), amsgrad) && same;
  return same ? 0 : 1;
}
