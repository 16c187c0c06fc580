// The loops over the rules.  Compiled once for each instruction set (cpu/CMakeLists.txt), with
// ADAMAS_ISA naming it; the compiler vectorises them.
//
// Everything here has internal linkage except the table itself: the linker merges equal symbols of
// different objects, and the baseline could then run an AVX-512 copy.  For the same reason nothing
// from the standard library that has a body is used.
#include "cpu/kernel_table.hpp"
#include "rules/low_precision.hpp"

#define ADAMAS_JOIN2(a, b) a##b
#define ADAMAS_JOIN(a, b) ADAMAS_JOIN2(a, b)

namespace adamas::cpu {
namespace {

template <class Real>
const rules::Scalars<Real>& scalars_of(const StepScalars& scalars) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    return scalars.float32;
  } else {
    return scalars.float64;
  }
}

template <unsigned variant, class Real>
ADAMAS_RULE void update(Real* __restrict param, const Real* __restrict grad,
                        Real* __restrict moment1, Real* __restrict moment2, Real* __restrict vhat,
                        std::int64_t count, Real mean, const rules::Scalars<Real>& scalars) {
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr ((variant & rules::kAmsgrad) != 0) {
      rules::adam<variant>(param[i], grad[i], moment1[i], moment2[i], vhat[i], mean, scalars);
    } else {
      Real unused = 0;
      rules::adam<variant>(param[i], grad[i], moment1[i], moment2[i], unused, mean, scalars);
    }
  }
}

// A vector's worth of elements, beside the arrays they are of.
template <class Real>
struct Vector {
  static constexpr std::int64_t kWidth = 64 / sizeof(Real);  // of the widest vectors
  Real values[kWidth];

  void load(const Real* from) { __builtin_memcpy(values, from, sizeof(values)); }
  void store(Real* to) const { __builtin_memcpy(to, values, sizeof(values)); }
};

// Elements at the end that fill no vector are updated together with those before them, from values
// taken before the loop came to these: for these it comes to the same twice.  One by one they would
// take as long as many vectors, and thousands of small tensors have thousands of ends.
template <class Real, unsigned variant>
void dense(const DenseSpan& span, const StepScalars& step_scalars, double row_mean) {
  constexpr std::int64_t kWidth = Vector<Real>::kWidth;
  constexpr bool kHasVhat = (variant & rules::kAmsgrad) != 0;
  const rules::Scalars<Real> scalars = scalars_of<Real>(step_scalars);
  const Real mean = static_cast<Real>(row_mean);
  Real* param = static_cast<Real*>(span.param);
  const Real* grad = static_cast<const Real*>(span.grad);
  Real* moment1 = static_cast<Real*>(span.moment1);
  Real* moment2 = static_cast<Real*>(span.moment2);
  Real* vhat = static_cast<Real*>(span.vhat);
  if (span.count < kWidth) {
    update<variant>(param, grad, moment1, moment2, vhat, span.count, mean, scalars);
    return;
  }
  const std::int64_t whole = span.count & -kWidth;
  if (whole == span.count) {
    update<variant>(param, grad, moment1, moment2, vhat, whole, mean, scalars);
    return;
  }
  const std::int64_t before = whole - kWidth;
  const std::int64_t last = span.count - kWidth;
  Vector<Real> last_param;
  Vector<Real> last_moment1;
  Vector<Real> last_moment2;
  Vector<Real> last_vhat;
  update<variant>(param, grad, moment1, moment2, vhat, before, mean, scalars);
  last_param.load(param + last);
  last_moment1.load(moment1 + last);
  last_moment2.load(moment2 + last);
  if constexpr (kHasVhat) last_vhat.load(vhat + last);
  update<variant>(param + before, grad + before, moment1 + before, moment2 + before,
                  kHasVhat ? vhat + before : nullptr, kWidth, mean, scalars);
  update<variant>(last_param.values, grad + last, last_moment1.values, last_moment2.values,
                  last_vhat.values, kWidth, mean, scalars);
  last_param.store(param + last);
  last_moment1.store(moment1 + last);
  last_moment2.store(moment2 + last);
  if constexpr (kHasVhat) last_vhat.store(vhat + last);
}

// Sums go in double over kLanes interleaved lanes, then as a tree: the order of additions depends
// on the position in the run alone, and is the one that the CUDA backend uses.
constexpr int kLanes = 16;

struct Lanes {
  double sum[kLanes] = {};

  double total() {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) sum[j] += sum[j + width];
    }
    return sum[0];
  }
};

template <class Real, unsigned variant>
double row_sum(const DenseSpan& span, const StepScalars& step_scalars) {
  const rules::Scalars<Real> scalars = scalars_of<Real>(step_scalars);
  const Real* __restrict param = static_cast<const Real*>(span.param);
  const Real* __restrict grad = static_cast<const Real*>(span.grad);
  const std::int64_t whole = span.count - span.count % kLanes;
  Lanes lanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lanes.sum[j] +=
          static_cast<double>(rules::decayed_gradient<variant>(grad[i + j], param[i + j], scalars));
    }
  }
  for (std::int64_t i = whole; i < span.count; ++i) {
    lanes.sum[i - whole] +=
        static_cast<double>(rules::decayed_gradient<variant>(grad[i], param[i], scalars));
  }
  return lanes.total();
}

// A difference of a value with itself is 0, or NaN if the value is not finite; so is their sum.
template <class Real>
Measure measure(const void* source, std::int64_t count) {
  const Real* __restrict values = static_cast<const Real*>(source);
  const std::int64_t whole = count - count % kLanes;
  Lanes squares;
  Real residue[kLanes] = {};
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const double value = static_cast<double>(values[i + j]);
      squares.sum[j] = rules::multiply_add(value, value, squares.sum[j]);
      residue[j] += values[i + j] - values[i + j];
    }
  }
  for (std::int64_t i = whole; i < count; ++i) {
    const double value = static_cast<double>(values[i]);
    squares.sum[i - whole] = rules::multiply_add(value, value, squares.sum[i - whole]);
    residue[i - whole] += values[i] - values[i];
  }
  bool finite = true;
  for (const Real one : residue) finite = finite && one == 0;
  return {squares.total(), finite};
}

template <class Real>
void add(void* target, const void* source, std::int64_t count) {
  Real* __restrict sum = static_cast<Real*>(target);
  const Real* __restrict values = static_cast<const Real*>(source);
  for (std::int64_t i = 0; i < count; ++i) sum[i] += values[i];
}

template <class Real>
void scale(void* target, double factor, std::int64_t count) {
  Real* __restrict values = static_cast<Real*>(target);
  const Real real_factor = static_cast<Real>(factor);
  for (std::int64_t i = 0; i < count; ++i) values[i] *= real_factor;
}

template <class Half>
void load(const void* source, float* __restrict values, std::int64_t count) {
  const std::uint16_t* __restrict halves = static_cast<const std::uint16_t*>(source);
  for (std::int64_t i = 0; i < count; ++i) values[i] = Half::load(halves[i]);
}

template <class Half>
void store(const float* __restrict values, void* target, std::int64_t count) {
  std::uint16_t* __restrict halves = static_cast<std::uint16_t*>(target);
  for (std::int64_t i = 0; i < count; ++i) halves[i] = Half::store(values[i]);
}

void load_bfloat16_moments(const StoredMoments& moments) {
  load<rules::BFloat16>(moments.stored1, moments.moment1, moments.count);
  load<rules::BFloat16>(moments.stored2, moments.moment2, moments.count);
}

void store_bfloat16_moments(const StoredMoments& moments) {
  auto* __restrict stored1 = static_cast<std::uint16_t*>(moments.stored1);
  auto* __restrict stored2 = static_cast<std::uint16_t*>(moments.stored2);
  const float* __restrict moment1 = moments.moment1;
  const float* __restrict moment2 = moments.moment2;
  const std::uint32_t key = moments.random_key;
  const std::uint32_t first = moments.first_element;
  const auto count = static_cast<std::uint32_t>(moments.count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t random = rules::random_bits(key, first + i);
    stored1[i] = rules::round_to_bfloat16(moment1[i], random >> 16);
    stored2[i] = rules::round_to_bfloat16(moment2[i], random & 0xffffU);
  }
}

void load_int8_moments(const StoredMoments& moments) {
  const auto* __restrict stored1 = static_cast<const std::uint8_t*>(moments.stored1);
  const auto* __restrict stored2 = static_cast<const std::uint8_t*>(moments.stored2);
  float* __restrict moment1 = moments.moment1;
  float* __restrict moment2 = moments.moment2;
  for (std::int64_t begin = 0, b = 0; begin < moments.count; begin += moments.block, ++b) {
    const std::uint32_t scale1 = moments.scales1[b];
    const std::uint32_t scale2 = moments.scales2[b];
    const std::int64_t left = moments.count - begin;
    const std::int64_t end = begin + (left < moments.block ? left : moments.block);
    for (std::int64_t i = begin; i < end; ++i) {
      moment1[i] = rules::load_moment1(stored1[i], scale1);
      moment2[i] = rules::load_moment2(stored2[i], scale2);
    }
  }
}

std::uint32_t largest_magnitude(const float* __restrict values, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = rules::bits_of(values[i]) & 0x7fffffffU;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void store_int8_moments(const StoredMoments& moments) {
  auto* __restrict stored1 = static_cast<std::uint8_t*>(moments.stored1);
  auto* __restrict stored2 = static_cast<std::uint8_t*>(moments.stored2);
  const float* __restrict moment1 = moments.moment1;
  const float* __restrict moment2 = moments.moment2;
  const std::uint32_t key = moments.random_key;
  for (std::int64_t begin = 0, b = 0; begin < moments.count; begin += moments.block, ++b) {
    const std::int64_t left = moments.count - begin;
    const std::int64_t count = left < moments.block ? left : moments.block;
    const std::uint32_t scale1 = rules::scale_exponent(largest_magnitude(moment1 + begin, count));
    const std::uint32_t scale2 = rules::scale_exponent(largest_magnitude(moment2 + begin, count));
    moments.scales1[b] = static_cast<std::uint8_t>(scale1);
    moments.scales2[b] = static_cast<std::uint8_t>(scale2);
    const std::uint32_t first = moments.first_element + static_cast<std::uint32_t>(begin);
    for (std::int64_t i = begin; i < begin + count; ++i) {
      const std::uint32_t random =
          rules::random_bits(key, first + static_cast<std::uint32_t>(i - begin));
      stored1[i] = rules::store_moment1(moment1[i], scale1, random >> 16 << 4);
      stored2[i] = rules::store_moment2(moment2[i], scale2, (random & 0xffffU) << 4);
    }
  }
}

// Fills the row of one real type, variant by variant.
template <class Real, unsigned variant = 0>
constexpr void fill_dense(DenseKernel* kernels) {
  if constexpr (variant < rules::kVariants) {
    kernels[variant] = dense<Real, variant>;
    fill_dense<Real, variant + 1>(kernels);
  }
}

template <class Real>
constexpr void fill_real(KernelTable& table, DType real) {
  const std::size_t i = real_index(real);
  fill_dense<Real>(table.dense[i]);
  table.row_sum[i][0] = row_sum<Real, 0>;
  table.row_sum[i][1] = row_sum<Real, rules::kL2>;
  table.measure[i] = measure<Real>;
  table.add[i] = add<Real>;
  table.scale[i] = scale<Real>;
}

template <class Half>
constexpr void fill_half(KernelTable& table, DType half) {
  const std::size_t i = half_index(half);
  table.load[i] = load<Half>;
  table.store[i] = store<Half>;
}

constexpr KernelTable make_table() {
  KernelTable table{};
  fill_real<float>(table, DType::float32);
  fill_real<double>(table, DType::float64);
  fill_half<rules::Float16>(table, DType::float16);
  fill_half<rules::BFloat16>(table, DType::bfloat16);
  table.load_moments[static_cast<int>(StateFormat::bfloat16)] = load_bfloat16_moments;
  table.store_moments[static_cast<int>(StateFormat::bfloat16)] = store_bfloat16_moments;
  table.load_moments[static_cast<int>(StateFormat::int8)] = load_int8_moments;
  table.store_moments[static_cast<int>(StateFormat::int8)] = store_int8_moments;
  return table;
}

}  // namespace

extern const KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA);
constexpr KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA) = make_table();

}  // namespace adamas::cpu
