// All that adamas asks of a device: a table of functions.
//
// libadamas_cuda.so fills it with the CUDA runtime and kernels (runtime.cu); the tests fill it with
// host memory and loops (emulated.cpp), so that everything above it runs without a GPU.  Both are
// loaded at run time (library.cpp) and know nothing of the optimizer but this file and
// kernels/args.hpp: change kAbi with either.  No function throws, prints or exits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "adamas/types.hpp"

namespace adamas::cuda {

inline constexpr int kAbi = 5;

// Error codes of the device; 0: none.
using Error = int;

// Owned by the device: cudaStream_t and cudaEvent_t.  The null stream is the default one.
using Stream = void*;
using Event = void*;

enum class Kernel : std::int32_t {
  store,          // StoreArgs: bytes that come as arguments
  load_master,    // LoadMasterArgs: float32 copies of 16-bit parameters
  dense,          // DenseArgs: slices of parameters with dense gradients; by `types`
  table,          // TableArgs: rows of one parameter; by the real type of types.param
  row_sums,       // RowSumsArgs: of centralized parameters
  row_means,      // RowMeansArgs
  block_squares,  // BlockSquaresArgs: sums of squares by block
  run_sums,       // RunSumsArgs: of these by parameter, and of those by group
  decide,         // DecideArgs: whether and with which scalars a step is made
  index_rows,     // IndexRowsArgs: checks the rows of a sparse gradient
  mark_heads,     // MarkHeadsArgs: where each listed row begins among the sorted entries
  row_squares,    // RowSquaresArgs: sums of squares by listed row
  total_squares,  // TotalSquaresArgs: the sum of these
  set_row_steps,  // SetRowStepsArgs
  add_row_steps,  // AddRowStepsArgs
  accumulate,     // AccumulateArgs: gradients are added to sums
};

// What a kernel is compiled for, where it matters.
struct KernelTypes {
  DType param = DType::float32;
  DType grad = DType::float32;
  StateFormat format = StateFormat::real;
};

struct Launch {
  Kernel kernel;
  KernelTypes types;
  std::int64_t blocks;  // at least 1
  Stream stream;
};

// Sorts pairs by the lower `bits` of their keys, keeping the order of equal ones.
struct SortRequest {
  const std::uint64_t* keys;
  std::uint64_t* sorted_keys;
  const std::uint32_t* values;
  std::uint32_t* sorted_values;
  std::int64_t count;
  int bits;
};

struct DeviceApi {
  int abi;
  const char* name;
  Error no_memory;                         // what allocate() returns when there is none
  const char* (*error_text)(Error error);  // a string that stays

  Error (*count)(int* devices);
  Error (*current)(int* device);  // of the calling thread
  Error (*select)(int device);
  Error (*device_of)(const void* data, int* device);  // kCpu for memory of the host
  Error (*is_capturing)(Stream stream, bool* capturing);

  // In the order of a stream.
  Error (*allocate)(void** data, std::size_t nbytes, Stream stream);
  Error (*release)(void* data, Stream stream);
  Error (*copy)(void* to, const void* from, std::size_t nbytes, Stream stream);
  Error (*fill)(void* data, int byte, std::size_t nbytes, Stream stream);
  Error (*launch)(const Launch& launch, const void* args);
  // With null `scratch`: says how much is needed.
  Error (*sort)(const SortRequest& request, void* scratch, std::size_t* nbytes, Stream stream);
  Error (*scan)(std::uint32_t* values, std::int64_t count, void* scratch, std::size_t* nbytes,
                Stream stream);  // running sums, in place

  // Memory of the host that copies need not wait for.
  Error (*allocate_pinned)(void** data, std::size_t nbytes);
  Error (*release_pinned)(void* data);

  Error (*create_stream)(Stream* stream);
  Error (*destroy_stream)(Stream stream);
  Error (*wait_for_stream)(Stream stream);  // the calling thread waits
  Error (*wait_for_device)();               // for all streams
  Error (*create_event)(Event* event);
  Error (*destroy_event)(Event event);
  Error (*record)(Event event, Stream stream);
  Error (*wait_in_stream)(Stream stream, Event event);
  Error (*wait_for_event)(Event event);  // the calling thread waits
  Error (*is_finished)(Event event, bool* finished);
};

// The one function that a device library exports: null if it is of another version.
using Entry = const DeviceApi* (*)(int abi);
inline constexpr const char* kEntry = "adamas_cuda_backend";

}  // namespace adamas::cuda
