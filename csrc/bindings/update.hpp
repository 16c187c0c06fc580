// Steps without an optimizer, as Python calls them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace adamas::bindings {

// The arguments of update(), in their order.
enum Argument : std::uint8_t {
  kConfig,
  kParams,
  kGrads,
  kStates,  // a tuple of moment1, moment2, vhat, master, ema, delta: each a sequence or None
  kSteps,
  kLearningRate,
  kWeightDecay,
  kCentralize,
  kKeys,  // of stochastic rounding: a sequence of int, or None: the positions
  kArguments,
};

// Makes the step, and returns whether it was made, or NotImplemented, or null with an exception
// set.  `states`: what the tuple holds.
PyObject* update(PyObject* const* args, PyObject* const* states);

// The AdamConfig of the last step of the thread that was asked for by the module's own function; a
// borrowed reference, to be looked at at once.
PyObject*& last_config();

}  // namespace adamas::bindings
