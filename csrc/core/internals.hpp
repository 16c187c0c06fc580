// What the bindings and the C API need of an optimizer beside its public functions.
//
// Visible, though not in the installed headers, since adamas._core is another library.
#pragma once

#include "adamas/optimizer.hpp"

namespace adamas::core {

struct ADAMAS_API Internals {
  // Whether the stream is being captured in a graph.
  static bool is_capturing(const Optimizer& optimizer, void* stream) noexcept;

  // Copy between memory of the optimizer's device and the host, after all steps so far; wait.
  static Status read_device(const Optimizer& optimizer, const void* device, void* host,
                            std::size_t nbytes) noexcept;
  static Status write_device(Optimizer& optimizer, void* device, const void* host,
                             std::size_t nbytes) noexcept;
};

}  // namespace adamas::core
