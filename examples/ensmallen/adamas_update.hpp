// adamas as an update policy of ensmallen: ens::SGD<AdamasUpdate>, or any other of its optimizers
// that takes one.
//
//   AdamasUpdate adam;                // what ens::Adam computes
//   adam.config.use_nesterov = true;  // any option of adamas but those below
//   adam.weight_decay = 0.01;
//   ens::SGD<AdamasUpdate> optimizer(0.001, 32, 100000, 1e-5, true, adam);
//   optimizer.Optimize(function, coordinates);
//
// The moments are ensmallen's matrices, and begin as zeros with each optimization, or go on if its
// resetPolicy is false.  Matrices are dense, of float or double.  What adamas refuses (options with
// state of another kind: ema_decay, state_format, catch_up) is thrown as std::invalid_argument by
// the first step, which has changed nothing.
#pragma once

#include <adamas/adamas.hpp>
#include <cstdint>
#include <ensmallen.hpp>
#include <stdexcept>

class AdamasUpdate {
 public:
  adamas::AdamConfig config;
  double weight_decay = 0.0;

  AdamasUpdate() { config.epsilon_placement = adamas::EpsilonPlacement::inside; }

  template <class MatType, class GradType>
  class Policy {
   public:
    static_assert(arma::is_Mat<MatType>::value && arma::is_Mat<GradType>::value,
                  "AdamasUpdate needs dense matrices of Armadillo");

    Policy(AdamasUpdate& parent, std::size_t rows, std::size_t cols) : parent_(parent) {
      moment1_.zeros(rows, cols);
      moment2_.zeros(rows, cols);
      if (parent.config.use_amsgrad) vhat_.zeros(rows, cols);
    }

    void Update(MatType& iterate, double step_size, const GradType& gradient) {
      adamas::ParameterSpec spec = adamas::parameter_of(span_of(iterate));
      const auto give = [&](adamas::StateKind kind, GradType& state) {
        spec.states[static_cast<std::size_t>(kind)] = state.memptr();
      };
      give(adamas::StateKind::moment1, moment1_);
      give(adamas::StateKind::moment2, moment2_);
      if (parent_.config.use_amsgrad) give(adamas::StateKind::vhat, vhat_);
      const adamas::Gradient grad = adamas::gradient_of(span_of(gradient));
      const adamas::Rates rates{step_size, parent_.weight_decay};
      const adamas::Status status =
          update_.step(parent_.config, {&spec, 1}, {&grad, 1}, {&rates, 1}, {&steps_, 1});
      if (!status.ok()) throw std::invalid_argument("adamas: " + status.message());
    }

   private:
    template <class Number>
    static adamas::Span<Number> span_of(arma::Mat<Number>& matrix) {
      return {matrix.memptr(), matrix.n_elem};
    }
    template <class Number>
    static adamas::Span<const Number> span_of(const arma::Mat<Number>& matrix) {
      return {matrix.memptr(), matrix.n_elem};
    }

    AdamasUpdate& parent_;
    GradType moment1_, moment2_, vhat_;
    std::int64_t steps_ = 0;
    adamas::AdamUpdate update_;
  };
};
