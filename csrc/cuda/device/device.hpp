// One device, its memory and what is queued on its streams, for the host code of the backend.
#pragma once

#include <memory>
#include <utility>

#include "adamas/optimizer.hpp"
#include "adamas/status.hpp"
#include "cuda/device/api.hpp"
#include "cuda/kernels/args.hpp"

namespace adamas::cuda {

struct Device {
  const DeviceApi* api = nullptr;
  int ordinal = 0;

  Status status(Error error) const {
    if (error == 0) return {};
    if (error == api->no_memory) return {StatusCode::out_of_memory, "no memory on the device"};
    return {StatusCode::device_error, api->error_text(error)};
  }
};

// Takes a device into use; refuses one that is not there.
Status open_device(std::int32_t ordinal, Device* device);

// What further steps are refused with after an error that left something half done.
Status unusable();

// Makes a device the current one of the calling thread, and restores what was.
class DeviceScope {
 public:
  explicit DeviceScope(const Device& device) : api_(device.api) {
    api_->current(&before_);
    error_ = before_ == device.ordinal ? 0 : api_->select(device.ordinal);
    changed_ = before_ != device.ordinal;
  }
  ~DeviceScope() {
    if (changed_) api_->select(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  Error error() const { return error_; }

 private:
  const DeviceApi* api_;
  int before_ = 0;
  bool changed_ = false;
  Error error_ = 0;
};

// Operations in the order of one stream.  The first error stays, and drops what follows.
class Queue {
 public:
  Queue(const Device& device, Stream stream) : device_(device), stream_(stream) {}

  template <class Args>
  void launch(Kernel kernel, std::int64_t blocks, const Args& args, KernelTypes types = {}) {
    if (error_ == 0 && blocks > 0) {
      note(device_.api->launch({kernel, types, blocks, stream_}, &args));
    }
  }

  // One block of threads for so many of `items`, within what a grid may be.
  template <class Args>
  void launch_for(Kernel kernel, std::int64_t items, std::int64_t per_block, const Args& args,
                  KernelTypes types = {}) {
    const std::int64_t blocks = (items + per_block - 1) / per_block;
    launch(kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, args, types);
  }

  // Stores a few bytes, which go along with the launch: the memory at `data` is free at once, and
  // a captured graph keeps them.
  void store(void* target, const void* data, std::size_t nbytes);

  // What runs may have changed a parameter or the state from here on.
  void touch() { touched_ = true; }
  bool has_touched() const { return touched_; }

  void note(Error error) {
    if (error_ == 0) error_ = error;
  }
  void copy(void* to, const void* from, std::size_t nbytes) {
    if (error_ == 0 && nbytes > 0) note(device_.api->copy(to, from, nbytes, stream_));
  }
  void fill(void* data, int byte, std::size_t nbytes) {
    if (error_ == 0 && nbytes > 0) note(device_.api->fill(data, byte, nbytes, stream_));
  }
  void record(Event event) {
    if (error_ == 0) note(device_.api->record(event, stream_));
  }
  void wait_for(Event event) {
    if (error_ == 0) note(device_.api->wait_in_stream(stream_, event));
  }
  // Waits for what is in other streams now.
  void wait_for_streams(Span<void* const> streams, Event event) {
    for (Stream other : streams) {
      if (error_ != 0 || other == stream_) continue;
      note(device_.api->record(event, other));
      wait_for(event);
    }
  }
  // The host waits.
  void finish() {
    if (error_ == 0) note(device_.api->wait_for_stream(stream_));
  }

  const Device& device() const { return device_; }
  Stream stream() const { return stream_; }
  Error error() const { return error_; }
  Status status() const { return device_.status(error_); }

 private:
  static constexpr std::int64_t kMaxBlocks = 0x7fffffff;

  Device device_;
  Stream stream_;
  Error error_ = 0;
  bool touched_ = false;
};

// Device memory that grows; what it held is lost then.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { release(nullptr); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Memory is freed and reserved in the order of the queue.
  void reserve(Queue& queue, std::size_t nbytes) {
    if (nbytes <= size_ || queue.error() != 0) return;
    release(queue.stream());
    device_ = queue.device();
    queue.note(device_.api->allocate(&data_, nbytes, queue.stream()));
    if (queue.error() == 0) size_ = nbytes;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void* data() const { return data_; }
  std::size_t size() const { return size_; }

  void release(Stream stream) {
    if (size_ > 0) {
      const DeviceScope scope(device_);
      device_.api->release(data_, stream);
    }
    data_ = nullptr;
    size_ = 0;
  }

 private:
  Device device_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// A stream, an event, a block of pinned memory: made by create(), gone with the object.
class Handle {
 public:
  enum class Kind : std::uint8_t { stream, event, pinned };

  Handle() = default;
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  Error create(const Device& device, Kind kind, std::size_t nbytes = 0);
  void swap(Handle& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(kind_, other.kind_);
    std::swap(handle_, other.handle_);
  }
  void* get() const { return handle_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(handle_);
  }

 private:
  Device device_;
  Kind kind_ = Kind::stream;
  void* handle_ = nullptr;
};

}  // namespace adamas::cuda
