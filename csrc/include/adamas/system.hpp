// What was built and what this machine offers: instruction sets and threads.
#pragma once

#include <cstdint>

#include "adamas/api.h"
#include "adamas/status.hpp"

namespace adamas {

// One instruction set that kernels were compiled for.
struct IsaInfo {
  const char* name;
  bool supported;  // by this machine
};

// Names and support of the ISAs built, slowest first; `count` receives their number.
ADAMAS_API const IsaInfo* isas(int* count) noexcept;

// The ISA in use: the best supported one, unless one of the functions below chose another.
ADAMAS_API const char* isa_in_use() noexcept;

// Makes all following steps of all optimizers use the named ISA.
ADAMAS_API Status select_isa(const char* name) noexcept;

// Applies the environment variable ADAMAS_ISA, as the Python module does; a name that is unknown or
// unsupported is an error.
ADAMAS_API Status select_isa_from_environment() noexcept;

// Why no CUDA device can be used, or null if one can; and how many there are.
ADAMAS_API const char* cuda_unavailable_reason() noexcept;
ADAMAS_API int cuda_devices() noexcept;

// The device that memory belongs to, or kCpu.
ADAMAS_API std::int32_t device_of(const void* data) noexcept;

// Uses the device library of this path for all optimizers made from now on, instead of the
// libadamas_cuda.so beside libadamas.so (or beside the program that a static library is part of).
ADAMAS_API Status load_cuda_library(const char* path) noexcept;

// How many threads an optimizer uses whose `num_threads` is 0, and what has decided it.
struct DefaultThreads {
  int threads = 1;
  int cores = 1;                   // that this process may run on
  int processes = 1;               // that share them
  const char* variable = nullptr;  // of the environment, if one has decided
};

// The environment variable ADAMAS_NUM_THREADS decides; one that is no number from 1 to 4096 is an
// error, here and in Optimizer::create.  Without it there is a thread for each core; or for each of
// this process's part of the cores if a launcher says how many processes it has started on this
// machine (LOCAL_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_SIZE, MPI_LOCALNRANKS, SLURM_NTASKS_PER_NODE)
// and has not bound each to cores of its own.
ADAMAS_API Status default_threads(DefaultThreads* result) noexcept;

// The same number; that of the cores if ADAMAS_NUM_THREADS is wrong.
ADAMAS_API int available_threads() noexcept;

// The compiler that built the library, and its version.
ADAMAS_API const char* compiler() noexcept;

// The version of the library: "0.1.0".
ADAMAS_API const char* version() noexcept;

}  // namespace adamas
