// How the work of kernels is cut: for those who launch them and for the kernels themselves.  Chosen
// without a device to measure on; none of them changes a bit.
#pragma once

#include <cstdint>

namespace adamas::cuda {

inline constexpr int kItemThreads = 256;            // per block, where each takes items alone
inline constexpr int kSumGroups = 16;               // per block, of threads that sum a tile
inline constexpr int kWarpsPerBlock = 4;            // where each takes a piece of a row
inline constexpr std::int64_t kSliceLength = 4096;  // elements per block of threads
inline constexpr std::int64_t kListedPiece = 128;  // elements of a row that a warp takes: of listed
inline constexpr std::int64_t kTablePiece = 512;   // rows, of all rows

}  // namespace adamas::cuda
