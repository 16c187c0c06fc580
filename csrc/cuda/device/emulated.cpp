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
#include <functional>
#include <initializer_list>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "core/float_environment.hpp"
#include "cuda/kernels/list.hpp"

namespace adamas::cuda {
namespace {

constexpr int kDevices = 2;
constexpr std::size_t kGuard = 64;  // bytes after each allocation that must stay as they are
constexpr int kGuardByte = 0xa5;

enum Failure : Error {
  kPlanned = 1,
  kMisaligned,
  kOverrun,
  kUnknown,
  kNoMemory,
  kNoKernel,
  kCapturing,
};

// Operations that were captured, and can be done again.
using Graph = std::vector<std::function<Error()>>;

struct World {
  std::mutex mutex;
  std::map<char*, std::size_t> memory;
  std::set<void*> handles;  // streams and events
  std::vector<Graph> graphs;
  Stream captured = nullptr;  // the stream, while the last graph is being captured
  bool capturing = false;
  std::string trace;
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

// Notes an operation for the tests: its name and numbers.
void note(const char* what, std::initializer_list<const void*> values) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().trace += what;
  for (const void* value : values) {
    world().trace += ' ' + std::to_string(reinterpret_cast<std::uintptr_t>(value));
  }
  world().trace += '\n';
}

bool is_captured(Stream stream) { return world().capturing && world().captured == stream; }

// Does something now, or when the graph that is being captured is replayed.
template <class Operation>
Error perform(Stream stream, Operation operation) {
  if (Error error = enter()) return error;
  if (!is_captured(stream)) return operation();
  world().graphs.back().push_back(operation);
  return 0;
}

// What the host must not do while a stream is captured.
Error refuse_capture(Stream stream) { return is_captured(stream) ? kCapturing : 0; }

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
    case kCapturing:
      return "operation not permitted when stream is capturing";
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

Error is_capturing(Stream stream, bool* capturing) {
  *capturing = is_captured(stream);
  return 0;
}

Error allocate(void** data, std::size_t nbytes, Stream stream) {
  if (Error error = enter()) return error;
  if (Error error = refuse_capture(stream)) return error;
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

Error copy(void* to, const void* from, std::size_t nbytes, Stream stream) {
  return perform(stream, [=] {
    std::memcpy(to, from, nbytes);
    return 0;
  });
}

Error fill(void* data, int byte, std::size_t nbytes, Stream stream) {
  return perform(stream, [=] {
    std::memset(data, byte, nbytes);
    return 0;
  });
}

// Runs a kernel: blocks from last to first, threads forwards and backwards in turn.
template <class Body>
Error run_kernel(const typename Body::Args& args, std::int64_t blocks) {
  static_assert(sizeof(typename Body::Args) <= 4096, "the limit of CUDA");
  static_assert(sizeof(typename Body::Shared) <= std::size_t{48} * 1024, "the limit of CUDA");
  const core::FloatEnvironment pinned;
  std::vector<char> shared(sizeof(typename Body::Shared) + 64);
  auto* memory =
      reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(shared.data()) + 63) / 64 * 64);
  emulated_faults = 0;
  for (std::int64_t block = blocks - 1; block >= 0; --block) {
    std::memset(shared.data(), 0xcd, shared.size());
    Body::run(args, Cta(block, blocks, Body::kThreads, block % 2 == 0),
              *reinterpret_cast<typename Body::Shared*>(memory));
  }
  launches.fetch_add(1);
  return emulated_faults == 0 ? check_memory() : kMisaligned;
}

struct Start {
  const Launch& launch;
  const void* args;

  template <class Body>
  Error run() const {
    const auto copy = *static_cast<const typename Body::Args*>(args);
    return perform(launch.stream,
                   [copy, blocks = launch.blocks] { return run_kernel<Body>(copy, blocks); });
  }
};

Error launch(const Launch& launch, const void* args) {
  note("launch", {reinterpret_cast<void*>(launch.kernel), launch.stream});
  if (launch.blocks < 1 || launch.blocks > 0x7fffffff) return kNoKernel;
  return start_kernel(launch.kernel, launch.types, Start{launch, args});
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

Error wait_for_stream(Stream stream) {
  if (Error error = enter()) return error;
  return refuse_capture(stream);
}

Error wait_for_device() {
  if (Error error = enter()) return error;
  note("wait_for_device", {});
  return world().capturing ? kCapturing : 0;
}

Error record(Event event, Stream stream) {
  if (Error error = enter()) return error;
  if (Error error = refuse_capture(stream)) return error;
  note("record", {event, stream});
  return check_handle(event);
}

Error wait_in_stream(Stream stream, Event event) {
  if (Error error = enter()) return error;
  if (Error error = refuse_capture(stream)) return error;
  note("wait", {event, stream});
  return check_handle(event);
}

Error wait_for_event(Event event) {
  if (Error error = enter()) return error;
  note("wait_for_event", {event});
  return check_handle(event);
}

Error is_finished(Event event, bool* finished) {
  *finished = true;
  if (Error error = enter()) return error;
  return check_handle(event);
}

// By name: functions of the same type could change places unseen.
constexpr DeviceApi make_api() {
  DeviceApi api{};
  api.abi = kAbi;
  api.name = "emulated";
  api.no_memory = kNoMemory;
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
  api.create_stream = create_handle;
  api.destroy_stream = destroy_handle;
  api.wait_for_stream = wait_for_stream;
  api.wait_for_device = wait_for_device;
  api.create_event = create_handle;
  api.destroy_event = destroy_handle;
  api.record = record;
  api.wait_in_stream = wait_in_stream;
  api.wait_for_event = wait_for_event;
  api.is_finished = is_finished;
  return api;
}

constexpr DeviceApi kApi = make_api();

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

// Captures what is queued on a stream; returns the number of the graph.
ADAMAS_EXPORT std::int64_t adamas_emulated_begin_capture(void* stream) {
  adamas::cuda::World& world = adamas::cuda::world();
  world.captured = stream;
  world.capturing = true;
  world.graphs.emplace_back();
  return static_cast<std::int64_t>(world.graphs.size()) - 1;
}
ADAMAS_EXPORT void adamas_emulated_end_capture() { adamas::cuda::world().capturing = false; }
ADAMAS_EXPORT std::int64_t adamas_emulated_replay(std::int64_t graph) {
  for (const auto& operation : adamas::cuda::world().graphs[static_cast<std::size_t>(graph)]) {
    if (adamas::cuda::Error error = operation()) return error;
  }
  return 0;
}

// The operations on streams and events since the last call, a line each.
ADAMAS_EXPORT const char* adamas_emulated_trace() {
  static thread_local std::string last;
  const std::lock_guard<std::mutex> lock(adamas::cuda::world().mutex);
  last = std::move(adamas::cuda::world().trace);
  adamas::cuda::world().trace.clear();
  return last.c_str();
}
