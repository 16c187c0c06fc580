// The list of options: every member of AdamConfig, for those who treat all alike.
//
// The C API copies them, the bindings show them, and a state is refused by an optimizer whose
// options differ in what decides the bits of later steps.
#pragma once

// OPTION(name, whether it decides bits and stays as it is); the order is that of saved states.
#define ADAMAS_OPTIONS(OPTION)         \
  OPTION(numerics, true)               \
  OPTION(beta1, true)                  \
  OPTION(beta2, true)                  \
  OPTION(eps, true)                    \
  OPTION(use_nesterov, true)           \
  OPTION(use_amsgrad, true)            \
  OPTION(decoupled_weight_decay, true) \
  OPTION(bias_correction, true)        \
  OPTION(row_policy, true)             \
  OPTION(max_grad_norm, true)          \
  OPTION(skip_nonfinite, true)         \
  OPTION(state_format, true)           \
  OPTION(seed, true)                   \
  OPTION(master_weights, true)         \
  OPTION(loss_scale, false)            \
  OPTION(use_locking, false)           \
  OPTION(num_threads, false)           \
  OPTION(capturable, false)            \
  OPTION(use_offload, false)
