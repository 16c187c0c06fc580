// Arrays that share one buffer of device memory.
#pragma once

#include <cstddef>

#include "cuda/device/device.hpp"

namespace adamas::cuda {

// Lays out arrays one after the other; twice: first without memory, for the size.
class Layout {
 public:
  static constexpr std::size_t kAlignment = 256;  // of each array

  explicit Layout(char* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    char* array = memory_ == nullptr ? nullptr : memory_ + size_;
    size_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(array);
  }
  std::size_t size() const { return size_; }

 private:
  char* memory_;
  std::size_t size_ = 0;
};

// Reserves what `take_arrays` takes, and hands it out.
template <class LayOut>
void lay_out(Queue& queue, Buffer& buffer, LayOut take_arrays) {
  Layout sizes(nullptr);
  take_arrays(sizes);
  buffer.reserve(queue, sizes.size());
  if (queue.error() != 0) return;
  Layout places(buffer.as<char>());
  take_arrays(places);
}

}  // namespace adamas::cuda
