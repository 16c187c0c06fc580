// The few operations that rules are written in, for the host and for CUDA devices.
//
// A rule promises its bits, so every fused multiply-add is written out and the compilers are told
// to fuse nothing else (-ffp-contract=off, -fmad=false).  All functions are `static`: the objects
// compiled per instruction set must not share a copy of them (csrc/cpu/CMakeLists.txt says why).
#pragma once

#if defined(__CUDACC__)
#define ADAMAS_RULE static __host__ __device__ __forceinline__
#define ADAMAS_RULE_MEMBER __host__ __device__ __forceinline__
#else
#define ADAMAS_RULE static inline __attribute__((always_inline))
#define ADAMAS_RULE_MEMBER inline __attribute__((always_inline))
#endif

namespace adamas::rules {

// a * b + c with one rounding.
ADAMAS_RULE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
ADAMAS_RULE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

ADAMAS_RULE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
ADAMAS_RULE double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

ADAMAS_RULE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
ADAMAS_RULE double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}

// The float32 that a number rounds to.  Volatile, because g++ 12 at -O2 makes vectors of two such
// roundings and then leaves them out.
ADAMAS_RULE double as_float32(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<double>(static_cast<float>(value));
#else
  const volatile float rounded = static_cast<float>(value);
  return static_cast<double>(rounded);
#endif
}

// The larger value; a candidate that is NaN is not taken (as MindSpore does, and x86's max).
template <class Real>
ADAMAS_RULE Real larger(Real candidate, Real current) {
  return candidate > current ? candidate : current;
}

}  // namespace adamas::rules
