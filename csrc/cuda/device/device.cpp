#include "cuda/device/device.hpp"

#include <algorithm>
#include <cstring>

#include "cuda/device/library.hpp"

namespace adamas::cuda {

Status open_device(std::int32_t ordinal, Device* device) {
  const DeviceApi* api = library();
  if (api == nullptr) return {StatusCode::unavailable, "CUDA can't be used"};
  *device = {api, ordinal};
  int devices = 0;
  const Error error = api->count(&devices);
  if (error == 0 && ordinal >= devices) {
    return {StatusCode::invalid_argument, "there is no such device"};
  }
  return device->status(error);
}

Status unusable() {
  return {StatusCode::device_error,
          "the device failed in an earlier step, so the parameters and the state can't be relied "
          "on: make a new optimizer"};
}

void Queue::store(void* target, const void* data, std::size_t nbytes) {
  StoreArgs args{};
  for (std::size_t begin = 0; begin < nbytes; begin += StoreArgs::kMaxBytes) {
    const std::size_t some = std::min(StoreArgs::kMaxBytes, nbytes - begin);
    args.target = static_cast<char*>(target) + begin;
    args.nbytes = static_cast<std::uint32_t>(some);
    std::memcpy(args.words, static_cast<const char*>(data) + begin, some);
    launch(Kernel::store, 1, args);
  }
}

Error Handle::create(const Device& device, Kind kind, std::size_t nbytes) {
  device_ = device;
  kind_ = kind;
  const DeviceScope scope(device);
  if (scope.error() != 0) return scope.error();
  switch (kind) {
    case Kind::stream:
      return device.api->create_stream(&handle_);
    case Kind::event:
      return device.api->create_event(&handle_);
    default:
      return device.api->allocate_pinned(&handle_, nbytes);
  }
}

Handle::~Handle() {
  if (handle_ == nullptr) return;
  const DeviceScope scope(device_);
  if (kind_ == Kind::stream) device_.api->destroy_stream(handle_);
  if (kind_ == Kind::event) device_.api->destroy_event(handle_);
  if (kind_ == Kind::pinned) device_.api->release_pinned(handle_);
}

}  // namespace adamas::cuda
