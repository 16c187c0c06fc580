#include "cuda/device/library.hpp"

#include <dlfcn.h>

#include <mutex>
#include <string>

#include "adamas/system.hpp"

namespace adamas {
namespace cuda {
namespace {

constexpr const char* kName = "libadamas_cuda.so";

struct Loaded {
  const DeviceApi* api = nullptr;  // null: `reason` says why
  std::string reason;
};

Loaded open(const std::string& path) {
  // Never unloaded: optimizers and the strings of errors may live as long as the process.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return {nullptr, dlerror()};
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, kEntry));
  if (entry == nullptr) return {nullptr, path + " is not a device library of adamas"};
  const DeviceApi* api = entry(kAbi);
  if (api == nullptr) return {nullptr, path + " belongs to another version of adamas"};
  int devices = 0;
  if (Error error = api->count(&devices)) {
    return {nullptr, std::string("CUDA says: ") + api->error_text(error)};
  }
  if (devices == 0) return {nullptr, "this machine has no CUDA device"};
  return {api, ""};
}

Loaded open_own() {
  const std::string built = ADAMAS_NO_CUDA_REASON;
  if (!built.empty()) return {nullptr, built};
  Dl_info here{};
  std::string path = kName;
  if (dladdr(reinterpret_cast<const void*>(&open_own), &here) != 0 && here.dli_fname != nullptr) {
    const std::string module = here.dli_fname;
    path = module.substr(0, module.rfind('/') + 1) + kName;
  }
  return open(path);
}

struct State {
  std::mutex mutex;
  bool tried = false;
  Loaded loaded;
};

// Never destroyed, as optimizers may outlive static objects.
State& state() {
  static State* instance = new State;
  return *instance;
}

const Loaded& loaded() {
  State& own = state();
  const std::lock_guard<std::mutex> lock(own.mutex);
  if (!own.tried) own.loaded = open_own();
  own.tried = true;
  return own.loaded;
}

}  // namespace

const DeviceApi* library() noexcept {
  try {
    return loaded().api;
  } catch (...) {  // no memory for a text
    return nullptr;
  }
}

}  // namespace cuda

const char* cuda_unavailable_reason() noexcept {
  if (cuda::library() != nullptr) return nullptr;
  const std::string& reason = cuda::state().loaded.reason;
  return reason.empty() ? "there was no memory to load it" : reason.c_str();
}

int cuda_devices() noexcept {
  int devices = 0;
  const cuda::DeviceApi* api = cuda::library();
  return api == nullptr || api->count(&devices) != 0 ? 0 : devices;
}

std::int32_t device_of(const void* data) noexcept {
  int device = kCpu;
  const cuda::DeviceApi* api = cuda::library();
  return api == nullptr || api->device_of(data, &device) != 0 ? kCpu : device;
}

Status load_cuda_library(const char* path) noexcept {
  try {
    cuda::Loaded fresh = cuda::open(path);
    cuda::State& own = cuda::state();
    const std::lock_guard<std::mutex> lock(own.mutex);
    own.tried = true;
    own.loaded = std::move(fresh);
    if (own.loaded.api != nullptr) return {};
    return {StatusCode::unavailable, "the device library can't be used"};
  } catch (...) {
    return {StatusCode::out_of_memory, "no memory to load the device library"};
  }
}

}  // namespace adamas
