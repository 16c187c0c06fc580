// A device library without a device: host memory and loops over blocks and threads.  For tests
// only.
//
// Everything happens at once, in the calling thread.  What a real device would refuse (misaligned
// wide accesses, bytes after an allocation, a stream or event that does not exist) is an error
// here.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <vector>

#include "cpu/float_environment.hpp"
#include "cuda/kernel_list.hpp"

namespace adamas::cuda {
namespace {

constexpr int kDevices = 2;
constexpr std::size_t kGuard = 64;  // bytes after each allocation that must stay as they are
constexpr int kGuardByte = 0xa5;

enum Failure : Error { kPlanned = 1, kMisaligned, kOverrun, kUnknown, kNoMemory, kNoKernel };

struct World {
  std::mutex mutex;
  std::map<char*, std::size_t> memory;
  std::set<void*> handles;  // streams and events
};

World& world() {
  static World* instance = new World;
  return *instance;
}

std::atomic<std::int64_t> planned_failure{0};  // the n-th call from now fails
std::atomic<std::int64_t> calls{0};
std::atomic<std::int64_t> launches{0};
thread_local int current_device = 0;

// Counts a call; an error if it is the one that shall fail.
Error enter() {
  calls.fetch_add(1);
  return planned_failure.load() > 0 && planned_failure.fetch_sub(1) == 1 ? kPlanned : 0;
}

const char* error_text(Error error) {
  switch (error) {
    case kPlanned:
      return "a failure that was planned";
    case kMisaligned:
      return "misaligned address";
    case kOverrun:
      return "memory after an allocation was overwritten";
    case kUnknown:
      return "an invalid handle or pointer";
    case kNoMemory:
      return "out of memory";
    default:
      return "no such kernel";
  }
}

Error count(int* devices) {
  *devices = kDevices;
  return 0;
}

Error current(int* device) {
  *device = current_device;
  return 0;
}

Error select(int device) {
  current_device = device;
  return 0;
}

Error device_of(const void*, int* device) {
  *device = 0;
  return 0;
}

Error is_capturing(Stream, bool* capturing) {
  *capturing = false;
  return 0;
}

Error allocate(void** data, std::size_t nbytes, Stream) {
  if (Error error = enter()) return error;
  auto* block = static_cast<char*>(std::aligned_alloc(256, (nbytes + kGuard + 255) / 256 * 256));
  if (block == nullptr) return kNoMemory;
  std::memset(block, 0xcd, nbytes);  // as useless as fresh memory of a device
  std::memset(block + nbytes, kGuardByte, kGuard);
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().memory[block] = nbytes;
  *data = block;
  return 0;
}

bool is_intact(const char* block, std::size_t nbytes) {
  return std::all_of(block + nbytes, block + nbytes + kGuard,
                     [](char c) { return c == static_cast<char>(kGuardByte); });
}

Error release(void* data, Stream) {
  auto* block = static_cast<char*>(data);
  const std::lock_guard<std::mutex> lock(world().mutex);
  const auto found = world().memory.find(block);
  if (found == world().memory.end()) return kUnknown;
  const bool intact = is_intact(block, found->second);
  world().memory.erase(found);
  std::free(block);
  return intact ? 0 : kOverrun;
}

Error allocate_pinned(void** data, std::size_t nbytes) { return allocate(data, nbytes, nullptr); }
Error release_pinned(void* data) { return release(data, nullptr); }

Error check_memory() {
  const std::lock_guard<std::mutex> lock(world().mutex);
  for (const auto& [block, nbytes] : world().memory) {
    if (!is_intact(block, nbytes)) return kOverrun;
  }
  return 0;
}

Error copy(void* to, const void* from, std::size_t nbytes, Stream) {
  if (Error error = enter()) return error;
  std::memcpy(to, from, nbytes);
  return 0;
}

Error fill(void* data, int byte, std::size_t nbytes, Stream) {
  if (Error error = enter()) return error;
  std::memset(data, byte, nbytes);
  return 0;
}

// Runs a kernel: blocks from last to first, threads forwards and backwards in turn.
struct Start {
  const Launch& launch;
  const void* args;

  template <class Body>
  Error run() const {
    static_assert(sizeof(typename Body::Args) <= 4096, "the limit of CUDA");
    static_assert(sizeof(typename Body::Shared) <= 48 * 1024, "the limit of CUDA");
    const auto& arguments = *static_cast<const typename Body::Args*>(args);
    std::vector<char> shared(sizeof(typename Body::Shared) + 64);
    emulated_faults = 0;
    for (std::int64_t block = launch.blocks - 1; block >= 0; --block) {
      std::memset(shared.data(), 0xcd, shared.size());
      auto* memory =
          reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(shared.data()) + 63) / 64 * 64);
      Body::run(arguments, Cta(block, launch.blocks, Body::kThreads, block % 2 == 0),
                *reinterpret_cast<typename Body::Shared*>(memory));
    }
    return emulated_faults == 0 ? 0 : kMisaligned;
  }
};

Error launch(const Launch& launch, const void* args) {
  if (Error error = enter()) return error;
  launches.fetch_add(1);
  if (launch.blocks < 1 || launch.blocks > 0x7fffffff) return kNoKernel;
  const cpu::FloatEnvironment pinned;
  if (Error error = start_kernel(launch.kernel, launch.types, Start{launch, args})) return error;
  return check_memory();
}

Error sort(const SortRequest& request, void* scratch, std::size_t* nbytes, Stream) {
  if (scratch == nullptr) {
    *nbytes = 1;
    return 0;
  }
  if (Error error = enter()) return error;
  const std::uint64_t mask =
      request.bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << request.bits) - 1;
  std::vector<std::int64_t> order(static_cast<std::size_t>(request.count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return (request.keys[a] & mask) < (request.keys[b] & mask);
  });
  for (std::size_t k = 0; k < order.size(); ++k) {
    request.sorted_keys[k] = request.keys[order[k]];
    request.sorted_values[k] = request.values[order[k]];
  }
  return 0;
}

Error scan(std::uint32_t* values, std::int64_t count, void* scratch, std::size_t* nbytes, Stream) {
  if (scratch == nullptr) {
    *nbytes = 1;
    return 0;
  }
  if (Error error = enter()) return error;
  std::partial_sum(values, values + count, values);
  return 0;
}

Error create_handle(void** handle) {
  if (Error error = enter()) return error;
  *handle = new char;
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().handles.insert(*handle);
  return 0;
}

Error destroy_handle(void* handle) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  if (world().handles.erase(handle) == 0) return kUnknown;
  delete static_cast<char*>(handle);
  return 0;
}

Error check_handle(void* handle) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  return world().handles.count(handle) != 0 ? 0 : kUnknown;
}

Error wait_for_stream(Stream) { return enter(); }

Error record(Event event, Stream) {
  if (Error error = enter()) return error;
  return check_handle(event);
}

Error wait_in_stream(Stream, Event event) {
  if (Error error = enter()) return error;
  return check_handle(event);
}

Error wait_for_event(Event event) { return wait_in_stream(nullptr, event); }

Error is_finished(Event event, bool* finished) {
  *finished = true;
  return wait_for_event(event);
}

constexpr DeviceApi kApi = {
    kAbi,           "emulated",      kNoMemory,
    error_text,     count,           current,
    select,         device_of,       is_capturing,
    allocate,       release,         copy,
    fill,           launch,          sort,
    scan,           allocate_pinned, release_pinned,
    create_handle,  destroy_handle,  wait_for_stream,
    create_handle,  destroy_handle,  record,
    wait_in_stream, wait_for_event,  is_finished,
};

}  // namespace
}  // namespace adamas::cuda

#define ADAMAS_EXPORT extern "C" __attribute__((visibility("default")))

ADAMAS_EXPORT const adamas::cuda::DeviceApi* adamas_cuda_backend(int abi) {
  return abi == adamas::cuda::kAbi ? &adamas::cuda::kApi : nullptr;
}

// For tests: the n-th call of the device from now on fails; 0: none.
ADAMAS_EXPORT void adamas_emulated_fail_at(std::int64_t n) {
  adamas::cuda::planned_failure.store(n);
}
ADAMAS_EXPORT std::int64_t adamas_emulated_calls() { return adamas::cuda::calls.load(); }
ADAMAS_EXPORT std::int64_t adamas_emulated_launches() { return adamas::cuda::launches.load(); }
// How many allocations live.
ADAMAS_EXPORT std::int64_t adamas_emulated_allocations() {
  const std::lock_guard<std::mutex> lock(adamas::cuda::world().mutex);
  return static_cast<std::int64_t>(adamas::cuda::world().memory.size() +
                                   adamas::cuda::world().handles.size());
}
