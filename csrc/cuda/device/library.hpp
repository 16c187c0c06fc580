// The device library of the process: loaded on first use, from beside the module that asks.
#pragma once

#include "cuda/device/api.hpp"

namespace adamas::cuda {

// Null if no device can be used; adamas::cuda_unavailable_reason() says why.
const DeviceApi* library() noexcept;

}  // namespace adamas::cuda
