// Calls into the core without Python's global lock.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include "adamas/status.hpp"

namespace adamas::bindings {

// While the interpreter shuts down, taking the lock again ends a daemon thread, before Python 3.14
// by unwinding its stack.  A stack with noexcept functions can't be unwound, so the thread is
// parked instead, as 3.14 does.
template <class Function>
Status without_gil(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  const Status status = function();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) ::pause();
  }
  return status;
}

}  // namespace adamas::bindings
