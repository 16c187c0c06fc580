// What kernels are written in, for nvcc and for the host compiler.
//
// A kernel is a struct with Args, Shared, kThreads and
//     run(const Args&, Cta, Shared&)
// which is executed once for each block of threads.  Work of the threads stands in
// cta.each([&](int thread) {...}), and cta.sync() where they must have met: what lives from one
// `each` to the next lives in Shared.  On the device `each` runs the thread's own share; on the
// host it loops over the threads, and a launch loops over the blocks.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ADAMAS_DEVICE __device__ __forceinline__
#else
#include <cstring>
#define ADAMAS_DEVICE inline
#endif

namespace adamas::cuda {

#if defined(__CUDACC__)

class Cta {
 public:
  ADAMAS_DEVICE std::int64_t block() const { return blockIdx.x; }
  ADAMAS_DEVICE std::int64_t blocks() const { return gridDim.x; }
  template <class Work>
  ADAMAS_DEVICE void each(Work work) const {
    work(static_cast<int>(threadIdx.x));
  }
  ADAMAS_DEVICE void sync() const { __syncthreads(); }
};

#else

// Accesses of the kernel that is running that the device would refuse.
inline thread_local int emulated_faults = 0;

class Cta {
 public:
  Cta(std::int64_t block, std::int64_t blocks, int threads, bool backwards)
      : block_(block), blocks_(blocks), threads_(threads), backwards_(backwards) {}
  std::int64_t block() const { return block_; }
  std::int64_t blocks() const { return blocks_; }
  template <class Work>
  void each(Work work) const {
    for (int t = 0; t < threads_; ++t) work(backwards_ ? threads_ - 1 - t : t);
  }
  void sync() const {}

 private:
  std::int64_t block_;
  std::int64_t blocks_;
  int threads_;
  bool backwards_;  // threads run in no order that a kernel may rely on
};

#endif

// `n` neighbours in memory: one access if they are aligned to their size, which `aligned` promises.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T values[n];
};

template <int n, class T>
ADAMAS_DEVICE Pack<T, n> load_pack(const T* data, bool aligned) {
  Pack<T, n> pack;
#if defined(__CUDACC__)
  if (aligned) {
    pack = *reinterpret_cast<const Pack<T, n>*>(data);
    return pack;
  }
#else
  if (aligned && reinterpret_cast<std::uintptr_t>(data) % sizeof(pack) != 0) ++emulated_faults;
#endif
  for (int k = 0; k < n; ++k) pack.values[k] = data[k];
  return pack;
}

template <int n, class T>
ADAMAS_DEVICE void store_pack(T* data, const Pack<T, n>& pack, bool aligned) {
#if defined(__CUDACC__)
  if (aligned) {
    *reinterpret_cast<Pack<T, n>*>(data) = pack;
    return;
  }
#else
  if (aligned && reinterpret_cast<std::uintptr_t>(data) % sizeof(pack) != 0) ++emulated_faults;
#endif
  for (int k = 0; k < n; ++k) data[k] = pack.values[k];
}

}  // namespace adamas::cuda
