// The whole public C++ API.
#pragma once

#include "adamas/optimizer.hpp"
#include "adamas/status.hpp"
#include "adamas/system.hpp"
#include "adamas/types.hpp"
