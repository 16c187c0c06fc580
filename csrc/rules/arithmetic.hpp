// The few operations that rules are written in, for the host and for CUDA devices.
//
// A rule promises its bits, so every fused multiply-add is written out and the compilers are told
// to fuse nothing else (-ffp-contract=off, -fmad=false).  All functions are `static`: the objects
// compiled per instruction set must not share a copy of them (csrc/cpu/CMakeLists.txt says why).
#pragma once

#if defined(__CUDACC__)
#define ADAMAS_RULE static __host__ __device__ __forceinline__
#else
#define ADAMAS_RULE static inline __attribute__((always_inline))
#endif

namespace adamas::rules {

// a * b + c with one rounding.
ADAMAS_RULE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ADAMAS_RULE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

ADAMAS_RULE float square_root(float x) { return __builtin_sqrtf(x); }
ADAMAS_RULE double square_root(double x) { return __builtin_sqrt(x); }

// The larger value; a candidate that is NaN is not taken (as MindSpore does, and x86's max).
template <class Real>
ADAMAS_RULE Real larger(Real candidate, Real current) {
  return candidate > current ? candidate : current;
}

}  // namespace adamas::rules
