// What was built and what this machine offers: instruction sets and threads.
#pragma once

#include <cstdint>

#include "adamas/status.hpp"

namespace adamas {

// One instruction set that kernels were compiled for.
struct IsaInfo {
  const char* name;
  bool supported;  // by this machine
};

// Names and support of the ISAs built, slowest first; `count` receives their number.
const IsaInfo* isas(int* count) noexcept;

// The ISA in use: the best supported one, unless one of the functions below chose another.
const char* isa_in_use() noexcept;

// Makes all following steps of all optimizers use the named ISA.
Status select_isa(const char* name) noexcept;

// Applies the environment variable ADAMAS_ISA, as the Python module does; a name that is unknown or
// unsupported is an error.
Status select_isa_from_environment() noexcept;

// Why no CUDA device can be used, or null if one can; and how many there are.
const char* cuda_unavailable_reason() noexcept;
int cuda_devices() noexcept;

// The device that memory belongs to, or kCpu.
std::int32_t device_of(const void* data) noexcept;

// Uses the device library of this path for all optimizers made from now on, instead of the
// libadamas_cuda.so that stands beside the module.
Status load_cuda_library(const char* path) noexcept;

// The number of cores that this process may run on.
int available_threads() noexcept;

// The compiler that built the library, and its version.
const char* compiler() noexcept;

}  // namespace adamas
