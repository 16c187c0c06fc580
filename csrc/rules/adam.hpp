// The Adam rule: one element of one step.  Everything that updates parameters runs this code.
//
// With p the parameter, g the gradient, m and v the moments, w = vhat (AMSGrad), rounding after
// every line (one fused multiply-add is one rounding):
//
//   g = grad * grad_scale                      exact: grad_scale is a power of two
//   g = fma(decay, p, g)                       kL2
//   g = g - mean                               kCentralize
//   m = fma(one_minus_beta1, g, beta1 * m)
//   v = fma(one_minus_beta2 * g, g, beta2 * v)
//   w = v if v > w else w                      kAmsgrad; else w = v
//   n = fma(one_minus_beta1, g, beta1 * m)     kNesterov; else n = m
//   p = fma(negative_step, n / (sqrt(w) + eps), keep * p)
//
// (Kingma and Ba 2015, Algorithm 1; Dozat 2016; Reddi et al. 2018; Loshchilov and Hutter 2019.)
// The scalars are folded once per step in double (fold.hpp), which is also where bias correction,
// both numerics and AdamWeightDecay live.  The order of operations is a promise: docs/NUMERICS.md.
#pragma once

#include "rules/arithmetic.hpp"

namespace adamas::rules {

// The choices of the formula, combined by or.  A kernel is compiled for each combination.
enum Variant : unsigned {
  kL2 = 1,          // weight decay is added to the gradient
  kNesterov = 2,    // the numerator looks one step ahead
  kAmsgrad = 4,     // the denominator never shrinks
  kCentralize = 8,  // the row mean is subtracted from the gradient
  kVariants = 16,
};

// What one step needs besides the arrays.  The gradient that the rule sees is that of the unscaled
// loss divided by `fraction` (fold.hpp); the constants that multiply it carry the factor.
template <class Real>
struct Scalars {
  Real grad_scale;       // the power of two at or above clip / loss_scale; negative to maximize
  Real decay;            // weight_decay / fraction, times clip with clip_after_decay
  Real beta1;            //
  Real one_minus_beta1;  // (1 - beta1) * fraction
  Real beta2;            //
  Real one_minus_beta2;  // (1 - beta2) * fraction^2
  Real keep;             // 1 - lr * weight_decay if decoupled, else 1
  Real negative_step;    // -lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  Real eps;              // times sqrt(1 - beta2^t) in numerics "standard"
};

// The scalars of one step for parameters of either real type, and the choices that go with them.
struct Folded {
  Scalars<float> float32;
  Scalars<double> float64;
  unsigned variant;  // without kCentralize
};

// The gradient before centralization, as the rule and the row sums see it.
template <class Real>
ADAMAS_RULE Real decayed_gradient(unsigned variant, Real grad, Real param, const Scalars<Real>& s) {
  const Real g = grad * s.grad_scale;
  return (variant & kL2) != 0 ? multiply_add(s.decay, param, g) : g;
}

// One element.  `variant` is a constant where a kernel is compiled for each, and known at run time
// only where the arithmetic costs nothing (CUDA).  `vhat` is used with kAmsgrad alone.
template <class Real>
ADAMAS_RULE void adam(unsigned variant, Real& param, Real grad, Real& moment1, Real& moment2,
                      Real& vhat, Real mean, const Scalars<Real>& s) {
  Real g = decayed_gradient(variant, grad, param, s);
  if ((variant & kCentralize) != 0) g = g - mean;

  const Real m = multiply_add(s.one_minus_beta1, g, s.beta1 * moment1);
  const Real v = multiply_add(s.one_minus_beta2 * g, g, s.beta2 * moment2);
  moment1 = m;
  moment2 = v;

  Real second = v;
  if ((variant & kAmsgrad) != 0) second = vhat = larger(v, vhat);
  Real numerator = m;
  if ((variant & kNesterov) != 0) numerator = multiply_add(s.one_minus_beta1, g, s.beta1 * m);
  const Real denominator = square_root(second) + s.eps;
  param = multiply_add(s.negative_step, divide(numerator, denominator), s.keep * param);
}

// One element of the moving average of a parameter, with rate = 1 - ema_decay:
//
//   average = fma(rate, p - average, average)
template <class Real>
ADAMAS_RULE Real averaged(Real average, Real param, Real rate) {
  return multiply_add(rate, param - average, average);
}

}  // namespace adamas::rules
