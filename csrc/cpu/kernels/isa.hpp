// The instruction sets that were built, and the one in use.
#pragma once

#include "cpu/kernels/kernel_table.hpp"

namespace adamas::cpu {

// The kernels of the ISA in use, for core/.
const KernelTable& kernels() noexcept;

}  // namespace adamas::cpu
