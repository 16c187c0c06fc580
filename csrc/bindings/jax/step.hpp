// A step of Adam as a foreign function of XLA, for arrays on the CPU.
//
// Operands: the number of steps made (int32 or int64); the numbers that kNumbers lists, each
// float32 or float64, or three uint32, the bits of a double and a word that is ignored; a result of
// the call before this one, by which XLA knows their order, and which is ignored too; all
// parameters; all gradients; and of each kind of state that the options keep the arrays of the
// parameters that have it. Results: the number of steps, the parameters (with writes_delta, their
// changes), the state; each in the memory of its operand, a change in that of its gradient.
//
// Attributes: the options, by the names in ADAMAS_OPTIONS, but for those that are operands; and
// `grad_centralization`, `decays`, for each parameter 1, or 0 if its weight does not decay, and
// `first`, the position of the first parameter in the list that the calls share.
#pragma once

#include <xla/ffi/api/c_api.h>

namespace adamas::bindings::jax {

// Also the version of what is said above: a program compiled elsewhere and kept must not find a
// handler that understands something else.
inline constexpr const char* kTarget = "adamas_step_v1";

// After the number of steps.
inline constexpr const char* kNumbers[] = {"learning_rate", "weight_decay", "loss_scale",
                                           "beta1",         "beta2",        "eps"};

XLA_FFI_Handler* step_handler() noexcept;

}  // namespace adamas::bindings::jax
