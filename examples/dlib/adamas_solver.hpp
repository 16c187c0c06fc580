// adamas as a solver of dlib: dlib::dnn_trainer<net_type, AdamasSolver>.
//
//   AdamasSolver solver(0.0005, 0.9, 0.999);  // as dlib::adam has them
//   solver.config.use_amsgrad = true;         // any option of adamas but those below
//   dlib::dnn_trainer<net_type, AdamasSolver> trainer(net, solver);
//
// Its steps are those of dlib::adam: weight decay is L2, and layers' multipliers of learning rate
// and weight decay, of their biases too, are heeded.  dlib adds the step itself, so adamas writes
// it beside the parameters (writes_delta).  A step that skip_nonfinite cancels is zero.  What
// adamas refuses (options with state of another kind: ema_decay, state_format, catch_up,
// master_weights) is thrown as dlib::error.  On a GPU tensors pass through the host.  Needs
// dlib 19.24.
#pragma once

#include <dlib/dnn.h>
#include <adamas/adamas.hpp>
#include <cstdint>
#include <ostream>
#include <string>

class AdamasSolver {
 public:
  adamas::AdamConfig config;

  explicit AdamasSolver(double weight_decay = 0.0005, double beta1 = 0.9, double beta2 = 0.999)
      : weight_decay_(weight_decay) {
    config.beta1 = beta1;
    config.beta2 = beta2;
    config.epsilon_placement = adamas::EpsilonPlacement::inside;
    config.writes_delta = true;
  }

  template <class Layer>
  const dlib::tensor& operator()(float learning_rate, const Layer& layer,
                                 const dlib::tensor& params_grad) {
    const std::size_t size = params_grad.size();
    reserve(params_grad);
    const adamas::Rates weights{learning_rate * dlib::get_learning_rate_multiplier(layer),
                                weight_decay_ * dlib::get_weight_decay_multiplier(layer)};
    const Part parts[] = {{0, bias_begin(layer, size), weights},
                          {bias_begin(layer, size),
                           size,
                           {weights.learning_rate * dlib::get_bias_learning_rate_multiplier(layer),
                            weights.weight_decay * dlib::get_bias_weight_decay_multiplier(layer)}}};
    step(layer.get_layer_params().host(), params_grad.host(), parts);
    return delta_;
  }

  friend void serialize(const AdamasSolver& item, std::ostream& out) {
    dlib::serialize("adamas_solver_1", out);
    for (const auto* tensor : {&item.moment1_, &item.moment2_, &item.vhat_, &item.delta_}) {
      dlib::serialize(*tensor, out);
    }
    for (const std::int64_t steps : item.steps_) dlib::serialize(steps, out);
    dlib::serialize(item.weight_decay_, out);
    dlib::serialize(item.config.beta1, out);
    dlib::serialize(item.config.beta2, out);
  }

  // The other options are those of this solver.
  friend void deserialize(AdamasSolver& item, std::istream& in) {
    std::string version;
    dlib::deserialize(version, in);
    if (version != "adamas_solver_1") {
      throw dlib::serialization_error("Unexpected version of AdamasSolver: " + version);
    }
    for (auto* tensor : {&item.moment1_, &item.moment2_, &item.vhat_, &item.delta_}) {
      dlib::deserialize(*tensor, in);
    }
    for (std::int64_t& steps : item.steps_) dlib::deserialize(steps, in);
    dlib::deserialize(item.weight_decay_, in);
    dlib::deserialize(item.config.beta1, in);
    dlib::deserialize(item.config.beta2, in);
  }

  friend std::ostream& operator<<(std::ostream& out, const AdamasSolver& item) {
    return out << "adamas: weight_decay=" << item.weight_decay_ << ", beta1=" << item.config.beta1
               << ", beta2=" << item.config.beta2;
  }

 private:
  // The elements [begin, end) of a layer: its weights, or its biases.
  struct Part {
    std::size_t begin, end;
    adamas::Rates rates;
  };

  // Scratch memory, which a copy of the solver has its own of.
  struct Scratch {
    adamas::AdamUpdate update;
    Scratch() = default;
    Scratch(const Scratch&) {}
    Scratch& operator=(const Scratch&) { return *this; }
  };

  // Where the biases of a layer begin, which have multipliers of their own; none: at the end.
  template <class Layer>
  static std::size_t bias_begin(const Layer&, std::size_t size) {
    return size;
  }
  template <unsigned long outputs>
  static std::size_t bias_begin(const dlib::fc_<outputs, dlib::FC_HAS_BIAS>& layer,
                                std::size_t size) {
    return layer.bias_is_disabled() ? size : size - layer.get_num_outputs();
  }
  template <long filters, long rows, long columns, int stride_y, int stride_x, int pad_y, int pad_x>
  static std::size_t bias_begin(
      const dlib::con_<filters, rows, columns, stride_y, stride_x, pad_y, pad_x>& layer,
      std::size_t size) {
    return layer.bias_is_disabled() ? size : size - static_cast<std::size_t>(layer.num_filters());
  }
  template <long filters, long rows, long columns, int stride_y, int stride_x, int pad_y, int pad_x>
  static std::size_t bias_begin(
      const dlib::cont_<filters, rows, columns, stride_y, stride_x, pad_y, pad_x>& layer,
      std::size_t size) {
    return layer.bias_is_disabled() ? size : size - static_cast<std::size_t>(layer.num_filters());
  }
  template <dlib::layer_mode mode>
  static std::size_t bias_begin(const dlib::bn_<mode>&, std::size_t size) {
    return size / 2;
  }

  // Zeros, once.
  void reserve(const dlib::tensor& like) {
    const auto zero = [&](dlib::resizable_tensor& tensor) {
      if (tensor.size() == like.size()) return;
      tensor.copy_size(like);
      tensor = 0;
    };
    zero(moment1_);
    zero(moment2_);
    zero(delta_);
    if (config.use_amsgrad) zero(vhat_);
  }

  void step(const float* params, const float* grads, const Part (&parts)[2]) {
    adamas::ParameterSpec specs[2];
    adamas::Gradient gradients[2];
    adamas::Rates rates[2];
    for (int i = 0; i < 2; ++i) {
      const Part& part = parts[i];
      const auto count = static_cast<std::int64_t>(part.end - part.begin);
      specs[i].data = const_cast<float*>(params + part.begin);  // only read, with writes_delta
      specs[i].count = count;
      specs[i].rates = i;
      specs[i].delta = delta_.host() + part.begin;
      give(specs[i], adamas::StateKind::moment1, moment1_, part.begin);
      give(specs[i], adamas::StateKind::moment2, moment2_, part.begin);
      if (config.use_amsgrad) give(specs[i], adamas::StateKind::vhat, vhat_, part.begin);
      gradients[i].values = grads + part.begin;
      gradients[i].count = count;
      rates[i] = part.rates;
    }
    adamas::UpdateResult result;
    const adamas::Status status =
        scratch_.update.step(config, specs, gradients, rates, steps_, &result);
    if (!status.ok()) throw dlib::error("adamas: " + status.message());
    if (result.skipped) delta_ = 0;  // or dlib would add the last one again
  }

  static void give(adamas::ParameterSpec& spec, adamas::StateKind kind,
                   dlib::resizable_tensor& state, std::size_t begin) {
    spec.states[static_cast<std::size_t>(kind)] = state.host() + begin;
  }

  double weight_decay_;
  dlib::resizable_tensor moment1_, moment2_, vhat_, delta_;
  std::int64_t steps_[2] = {0, 0};  // of weights and biases
  Scratch scratch_;
};
