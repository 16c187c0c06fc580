// libadamas_cuda.so: the device table over the CUDA runtime, and the kernels.
//
// Memory comes and goes in the order of a stream; only wait_for_device() waits for a device as a
// whole.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "cuda/kernels/list.hpp"

namespace adamas::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t native_event(Event event) { return static_cast<cudaEvent_t>(event); }

// Leaves no error behind for the caller's own use of the runtime.
Error result(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<Error>(error);
}

const char* error_text(Error error) {
  return error < 0 ? "no such kernel" : cudaGetErrorString(static_cast<cudaError_t>(error));
}

Error count(int* devices) { return result(cudaGetDeviceCount(devices)); }
Error current(int* device) { return result(cudaGetDevice(device)); }
Error select(int device) { return result(cudaSetDevice(device)); }

Error device_of(const void* data, int* device) {
  cudaPointerAttributes attributes{};
  if (Error error = result(cudaPointerGetAttributes(&attributes, data))) return error;
  const bool on_device =
      attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  *device = on_device ? attributes.device : kCpu;
  return 0;
}

Error is_capturing(Stream stream, bool* capturing) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (Error error = result(cudaStreamIsCapturing(native(stream), &status))) return error;
  *capturing = status != cudaStreamCaptureStatusNone;
  return 0;
}

Error allocate(void** data, std::size_t nbytes, Stream stream) {
  return result(cudaMallocAsync(data, nbytes, native(stream)));
}
Error release(void* data, Stream stream) { return result(cudaFreeAsync(data, native(stream))); }
Error copy(void* to, const void* from, std::size_t nbytes, Stream stream) {
  return result(cudaMemcpyAsync(to, from, nbytes, cudaMemcpyDefault, native(stream)));
}
Error fill(void* data, int byte, std::size_t nbytes, Stream stream) {
  return result(cudaMemsetAsync(data, byte, nbytes, native(stream)));
}

// How many blocks of threads shall fit a multiprocessor at once, if a kernel asks for it.
template <class Body, class = void>
struct BlocksAtOnce {
  static constexpr int value = 1;
};
template <class Body>
struct BlocksAtOnce<Body, std::void_t<decltype(Body::kBlocksAtOnce)>> {
  static constexpr int value = Body::kBlocksAtOnce;
};

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, BlocksAtOnce<Body>::value)
    entry(const __grid_constant__ typename Body::Args args) {
  __shared__ typename Body::Shared shared;
  Body::run(args, Cta(), shared);
}

struct Start {
  const Launch& launch;
  const void* args;

  template <class Body>
  Error run() const {
    static_assert(sizeof(typename Body::Args) <= 4096, "the limit of CUDA");
    void* arguments[] = {const_cast<void*>(args)};
    return result(cudaLaunchKernel(reinterpret_cast<const void*>(&entry<Body>),
                                   dim3(static_cast<unsigned>(launch.blocks)), dim3(Body::kThreads),
                                   arguments, 0, native(launch.stream)));
  }
};

Error launch(const Launch& launch, const void* args) {
  return start_kernel(launch.kernel, launch.types, Start{launch, args});
}

Error sort(const SortRequest& request, void* scratch, std::size_t* nbytes, Stream stream) {
  return result(cub::DeviceRadixSort::SortPairs(scratch, *nbytes, request.keys, request.sorted_keys,
                                                request.values, request.sorted_values,
                                                request.count, 0, request.bits, native(stream)));
}

Error scan(std::uint32_t* values, std::int64_t count, void* scratch, std::size_t* nbytes,
           Stream stream) {
  return result(
      cub::DeviceScan::InclusiveSum(scratch, *nbytes, values, values, count, native(stream)));
}

Error allocate_pinned(void** data, std::size_t nbytes) {
  return result(cudaHostAlloc(data, nbytes, cudaHostAllocPortable));
}
Error release_pinned(void* data) { return result(cudaFreeHost(data)); }

Error create_stream(Stream* stream) {
  cudaStream_t created = nullptr;
  const Error error = result(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking));
  *stream = created;
  return error;
}
Error destroy_stream(Stream stream) { return result(cudaStreamDestroy(native(stream))); }
Error wait_for_stream(Stream stream) { return result(cudaStreamSynchronize(native(stream))); }

Error wait_for_device() { return result(cudaDeviceSynchronize()); }

Error create_event(Event* event) {
  cudaEvent_t created = nullptr;
  const Error error = result(cudaEventCreateWithFlags(&created, cudaEventDisableTiming));
  *event = created;
  return error;
}
Error destroy_event(Event event) { return result(cudaEventDestroy(native_event(event))); }
Error record(Event event, Stream stream) {
  return result(cudaEventRecord(native_event(event), native(stream)));
}
Error wait_in_stream(Stream stream, Event event) {
  return result(cudaStreamWaitEvent(native(stream), native_event(event), 0));
}
Error wait_for_event(Event event) { return result(cudaEventSynchronize(native_event(event))); }
Error is_finished(Event event, bool* finished) {
  const cudaError_t error = cudaEventQuery(native_event(event));
  *finished = error != cudaErrorNotReady;
  return error == cudaErrorNotReady ? result(error), 0 : result(error);
}

// By name: functions of the same type could change places unseen.
constexpr DeviceApi make_api() {
  DeviceApi api{};
  api.abi = kAbi;
  api.name = "cuda";
  api.no_memory = static_cast<Error>(cudaErrorMemoryAllocation);
  api.error_text = error_text;
  api.count = count;
  api.current = current;
  api.select = select;
  api.device_of = device_of;
  api.is_capturing = is_capturing;
  api.allocate = allocate;
  api.release = release;
  api.copy = copy;
  api.fill = fill;
  api.launch = launch;
  api.sort = sort;
  api.scan = scan;
  api.allocate_pinned = allocate_pinned;
  api.release_pinned = release_pinned;
  api.create_stream = create_stream;
  api.destroy_stream = destroy_stream;
  api.wait_for_stream = wait_for_stream;
  api.wait_for_device = wait_for_device;
  api.create_event = create_event;
  api.destroy_event = destroy_event;
  api.record = record;
  api.wait_in_stream = wait_in_stream;
  api.wait_for_event = wait_for_event;
  api.is_finished = is_finished;
  return api;
}

constexpr DeviceApi kApi = make_api();

}  // namespace
}  // namespace adamas::cuda

extern "C" __attribute__((visibility("default"))) const adamas::cuda::DeviceApi*
adamas_cuda_backend(int abi) {
  return abi == adamas::cuda::kAbi ? &adamas::cuda::kApi : nullptr;
}
