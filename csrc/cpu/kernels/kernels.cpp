// The loops over the rules.  Compiled once for each instruction set (cpu/CMakeLists.txt), with
// ADAMAS_ISA naming it; the compiler vectorises them.
//
// Everything here has internal linkage except the table itself: the linker merges equal symbols of
// different objects, and the baseline could then run an AVX-512 copy.  For the same reason nothing
// from the standard library that has a body is used.
#include "cpu/kernels/kernel_table.hpp"
#include "rules/low_precision.hpp"
#include "rules/ordered_sum.hpp"

#define ADAMAS_JOIN2(a, b) a##b
#define ADAMAS_JOIN(a, b) ADAMAS_JOIN2(a, b)

namespace adamas::cpu {
namespace {

template <class Real>
constexpr DType dtype_of() {
  return sizeof(Real) == sizeof(double) ? DType::float64 : DType::float32;
}

template <class Real>
const rules::Scalars<Real>& scalars_of(const Folded& scalars) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    return scalars.float32;
  } else {
    return scalars.float64;
  }
}

// `vhat` is not read unless the variant has kAmsgrad.
template <unsigned variant, class Real>
ADAMAS_RULE void update_element(Real& param, Real grad, Real& moment1, Real& moment2, Real* vhat,
                                Real mean, const rules::Scalars<Real>& scalars) {
  if constexpr ((variant & rules::kAmsgrad) != 0) {
    rules::adam(variant, param, grad, moment1, moment2, *vhat, mean, scalars);
  } else {
    Real unused = 0;
    rules::adam(variant, param, grad, moment1, moment2, unused, mean, scalars);
  }
}

template <unsigned variant, class Real>
ADAMAS_RULE void update(Real* __restrict param, const Real* __restrict grad,
                        Real* __restrict moment1, Real* __restrict moment2, Real* __restrict vhat,
                        std::int64_t count, Real mean, const rules::Scalars<Real>& scalars) {
  for (std::int64_t i = 0; i < count; ++i) {
    update_element<variant>(param[i], grad[i], moment1[i], moment2[i], vhat + i, mean, scalars);
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
void dense(const DenseSpan& span, const Folded& step_scalars, double row_mean) {
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

// The moments in a format that rounds each element by itself.
template <class Format, unsigned variant>
void dense_elements(const DenseSpan& span, const Folded& step_scalars, double row_mean) {
  const rules::Scalars<float> scalars = step_scalars.float32;
  const auto mean = static_cast<float>(row_mean);
  float* __restrict param = static_cast<float*>(span.param);
  const float* __restrict grad = static_cast<const float*>(span.grad);
  auto* __restrict moment1 = static_cast<typename Format::Bits*>(span.moment1);
  auto* __restrict moment2 = static_cast<typename Format::Bits*>(span.moment2);
  float* __restrict vhat = static_cast<float*>(span.vhat);
  std::uint32_t state = rules::random_state(span.stored.random_key, span.stored.first_element);
  const std::int64_t count = span.count;
  for (std::int64_t i = 0; i < count; ++i, state += rules::kRandomStride) {
    float m = Format::load(moment1[i]);
    float v = Format::load(moment2[i]);
    update_element<variant>(param[i], grad[i], m, v, vhat + i, mean, scalars);
    const std::uint32_t random = rules::random_bits(state);
    moment1[i] = Format::store_moment1(m, random);
    moment2[i] = Format::store_moment2(v, random);
  }
}

// The moments of a block of 8-bit floats, decoded.
struct BlockMoments {
  alignas(64) float moment1[rules::kLargestScaleBlock];
  alignas(64) float moment2[rules::kLargestScaleBlock];
};

// The biased exponents of the scales of a block.
struct Scales {
  std::uint32_t moment1;
  std::uint32_t moment2;
};

// Updates a block but leaves its moments decoded; returns the scales that they ask for.
template <unsigned variant>
Scales update_block(const DenseSpan& block, const Folded& step_scalars, double row_mean,
                    const Scales& scales, BlockMoments& moments) {
  const rules::Scalars<float> scalars = step_scalars.float32;
  const auto mean = static_cast<float>(row_mean);
  const float down1 = rules::down_factor<rules::Moment1>(scales.moment1);
  const float down2 = rules::down_factor<rules::Moment2>(scales.moment2);
  float* __restrict param = static_cast<float*>(block.param);
  const float* __restrict grad = static_cast<const float*>(block.grad);
  const auto* __restrict codes1 = static_cast<const std::uint8_t*>(block.moment1);
  const auto* __restrict codes2 = static_cast<const std::uint8_t*>(block.moment2);
  float* __restrict vhat = static_cast<float*>(block.vhat);
  float* __restrict moment1 = moments.moment1;
  float* __restrict moment2 = moments.moment2;
  const std::int64_t count = block.count;
  std::uint32_t largest1 = 0;
  std::uint32_t largest2 = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    float m = rules::decode_moment1(codes1[i], down1);
    float v = rules::decode_moment2(codes2[i], down2);
    update_element<variant>(param[i], grad[i], m, v, vhat + i, mean, scalars);
    moment1[i] = m;
    moment2[i] = v;
    const std::uint32_t magnitude1 = rules::magnitude_bits(m);
    const std::uint32_t magnitude2 = rules::magnitude_bits(v);
    largest1 = magnitude1 > largest1 ? magnitude1 : largest1;
    largest2 = magnitude2 > largest2 ? magnitude2 : largest2;
  }
  return {rules::scale_exponent(largest1), rules::scale_exponent(largest2)};
}

void encode_block(const BlockMoments& moments, const Scales& scales, std::uint32_t first_state,
                  const DenseSpan& block) {
  const float up1 = rules::up_factor<rules::Moment1>(scales.moment1);
  const float up2 = rules::up_factor<rules::Moment2>(scales.moment2);
  const float* __restrict moment1 = moments.moment1;
  const float* __restrict moment2 = moments.moment2;
  auto* __restrict codes1 = static_cast<std::uint8_t*>(block.moment1);
  auto* __restrict codes2 = static_cast<std::uint8_t*>(block.moment2);
  const std::int64_t count = block.count;
  std::uint32_t state = first_state;
  for (std::int64_t i = 0; i < count; ++i, state += rules::kRandomStride) {
    const std::uint32_t random = rules::random_bits(state);
    const std::uint32_t random1 = rules::random20_of_moment1(random);
    const std::uint32_t random2 = rules::random20_of_moment2(random);
    codes1[i] = static_cast<std::uint8_t>(rules::encode_moment1(moment1[i], up1, random1));
    codes2[i] = static_cast<std::uint8_t>(rules::encode_moment2(moment2[i], up2, random2));
  }
  // Without a scale: the bits of a NaN are not the same everywhere.
  const auto bytes = static_cast<std::size_t>(count);
  if (scales.moment1 == rules::kNoScale) __builtin_memset(codes1, 0, bytes);
  if (scales.moment2 == rules::kNoScale) __builtin_memset(codes2, 0, bytes);
}

// The part of a run, from `begin` on, that shares a scale.
DenseSpan block_of(const DenseSpan& span, std::int64_t begin) {
  const auto floats = [&](void* first) {
    return first == nullptr ? nullptr : static_cast<float*>(first) + begin;
  };
  const auto bytes = [&](void* first) { return static_cast<std::uint8_t*>(first) + begin; };
  const std::int64_t left = span.count - begin;
  return {floats(span.param),  static_cast<const float*>(span.grad) + begin,
          bytes(span.moment1), bytes(span.moment2),
          floats(span.vhat),   left < span.stored.block ? left : span.stored.block};
}

// The moments as 8-bit floats: block by block, since the scale to encode with is that of all new
// moments of the block.
template <unsigned variant>
void dense_int8(const DenseSpan& span, const Folded& scalars, double mean) {
  const StoredMoments& stored = span.stored;
  BlockMoments moments;
  for (std::int64_t begin = 0, b = 0; begin < span.count; begin += stored.block, ++b) {
    const DenseSpan block = block_of(span, begin);
    const Scales scales = update_block<variant>(block, scalars, mean,
                                                {stored.scales1[b], stored.scales2[b]}, moments);
    const std::uint32_t element = stored.first_element + static_cast<std::uint32_t>(begin);
    encode_block(moments, scales, rules::random_state(stored.random_key, element), block);
    stored.scales1[b] = static_cast<std::uint8_t>(scales.moment1);
    stored.scales2[b] = static_cast<std::uint8_t>(scales.moment2);
  }
}

using rules::kLanes;
using rules::Lanes;

template <class Real, unsigned variant>
double row_sum(const DenseSpan& span, const Folded& step_scalars) {
  const rules::Scalars<Real> scalars = scalars_of<Real>(step_scalars);
  const Real* __restrict param = static_cast<const Real*>(span.param);
  const Real* __restrict grad = static_cast<const Real*>(span.grad);
  const std::int64_t whole = span.count - span.count % kLanes;
  Lanes lanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lanes.sum[j] +=
          static_cast<double>(rules::decayed_gradient(variant, grad[i + j], param[i + j], scalars));
    }
  }
  for (std::int64_t i = whole; i < span.count; ++i) {
    lanes.sum[i - whole] +=
        static_cast<double>(rules::decayed_gradient(variant, grad[i], param[i], scalars));
  }
  return lanes.total();
}

// Of value_at(i).  A difference of a value with itself is 0, or NaN if the value is not finite; so
// is their sum.  Squares of float32 numbers do not overflow a double: there the sum of squares
// tells.
template <class Real, class ValueAt>
ADAMAS_RULE SquareSum sum_squares(std::int64_t count, const ValueAt& value_at) {
  constexpr bool kIsDouble = sizeof(Real) == sizeof(double);
  const std::int64_t whole = count - count % kLanes;
  Lanes squares;
  Lanes residue;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const double value = static_cast<double>(value_at(i + j));
      squares.sum[j] = rules::multiply_add(value, value, squares.sum[j]);
      if constexpr (kIsDouble) residue.sum[j] += value - value;
    }
  }
  for (std::int64_t i = whole; i < count; ++i) {
    const double value = static_cast<double>(value_at(i));
    squares.sum[i - whole] = rules::multiply_add(value, value, squares.sum[i - whole]);
    if constexpr (kIsDouble) residue.sum[i - whole] += value - value;
  }
  const double total = squares.total();
  return {total, kIsDouble ? residue.total() == 0 : total - total == 0};
}

template <class Real>
SquareSum square_sum(const void* source, std::int64_t count) {
  const Real* __restrict values = static_cast<const Real*>(source);
  return sum_squares<Real>(count, [&](std::int64_t i) { return values[i]; });
}

template <class Real>
SquareSum decayed_square_sum(const void* source, const void* param, double decay,
                             std::int64_t count) {
  const Real* __restrict grad = static_cast<const Real*>(source);
  const Real* __restrict values = static_cast<const Real*>(param);
  const Real factor = static_cast<Real>(decay);
  return sum_squares<Real>(
      count, [&](std::int64_t i) { return rules::multiply_add(factor, values[i], grad[i]); });
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

template <class Real>
void average(void* target, const void* source, double rate, std::int64_t count) {
  Real* __restrict averages = static_cast<Real*>(target);
  const Real* __restrict values = static_cast<const Real*>(source);
  const Real weight = static_cast<Real>(rate);
  for (std::int64_t i = 0; i < count; ++i) {
    averages[i] = rules::averaged(averages[i], values[i], weight);
  }
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

template <class Format>
void decode_elements(const DenseSpan& span, float* moment1, float* moment2) {
  const auto* stored1 = static_cast<const typename Format::Bits*>(span.moment1);
  const auto* stored2 = static_cast<const typename Format::Bits*>(span.moment2);
  for (std::int64_t i = 0; i < span.count; ++i) {
    moment1[i] = Format::load(stored1[i]);
    moment2[i] = Format::load(stored2[i]);
  }
}

void decode_int8(const DenseSpan& span, float* moment1, float* moment2) {
  const auto* codes1 = static_cast<const std::uint8_t*>(span.moment1);
  const auto* codes2 = static_cast<const std::uint8_t*>(span.moment2);
  for (std::int64_t begin = 0, b = 0; begin < span.count; begin += span.stored.block, ++b) {
    const std::int64_t after = begin + span.stored.block;
    const std::int64_t end = after < span.count ? after : span.count;
    const float down1 = rules::down_factor<rules::Moment1>(span.stored.scales1[b]);
    const float down2 = rules::down_factor<rules::Moment2>(span.stored.scales2[b]);
    for (std::int64_t i = begin; i < end; ++i) {
      moment1[i] = rules::decode_moment1(codes1[i], down1);
      moment2[i] = rules::decode_moment2(codes2[i], down2);
    }
  }
}

template <class Real, unsigned variant = 0>
constexpr void fill_dense(KernelTable& table) {
  if constexpr (variant < rules::kVariants) {
    table.dense[dense_index(dtype_of<Real>(), StateFormat::real)][variant] = dense<Real, variant>;
    fill_dense<Real, variant + 1>(table);
  }
}

template <unsigned variant = 0>
constexpr void fill_int8(KernelTable& table) {
  if constexpr (variant < rules::kVariants) {
    table.dense[dense_index(DType::float32, StateFormat::int8)][variant] = dense_int8<variant>;
    fill_int8<variant + 1>(table);
  }
}

template <class Format, unsigned variant = 0>
constexpr void fill_format(KernelTable& table) {
  if constexpr (variant < rules::kVariants) {
    table.dense[dense_index(DType::float32, Format::kFormat)][variant] =
        dense_elements<Format, variant>;
    fill_format<Format, variant + 1>(table);
  } else {
    table.decode[static_cast<std::size_t>(Format::kFormat)] = decode_elements<Format>;
  }
}

template <class... Formats>
constexpr void fill_formats(KernelTable& table, rules::TypeList<Formats...>) {
  static_assert(sizeof...(Formats) + 2 == kStateFormats);  // and real, int8
  (fill_format<Formats>(table), ...);
}

template <class Real>
constexpr void fill_real(KernelTable& table) {
  const std::size_t i = real_index(dtype_of<Real>());
  table.row_sum[i][0] = row_sum<Real, 0>;
  table.row_sum[i][1] = row_sum<Real, rules::kL2>;
  table.square_sum[i] = square_sum<Real>;
  table.add[i] = add<Real>;
  table.scale[i] = scale<Real>;
  table.average[i] = average<Real>;
  table.decayed_square_sum[i] = decayed_square_sum<Real>;
}

template <class... Halves>
constexpr void fill_halves(KernelTable& table, rules::TypeList<Halves...>) {
  static_assert(sizeof...(Halves) == kHalves);
  ((table.load[half_index(Halves::kDType)] = load<Halves>), ...);
  ((table.store[half_index(Halves::kDType)] = store<Halves>), ...);
}

constexpr KernelTable make_table() {
  KernelTable table{};
  fill_real<float>(table);
  fill_real<double>(table);
  fill_halves(table, rules::Halves{});
  fill_dense<float>(table);
  fill_dense<double>(table);
  fill_formats(table, rules::ElementFormats{});
  fill_int8(table);
  table.decode[static_cast<std::size_t>(StateFormat::int8)] = decode_int8;
  return table;
}

}  // namespace

extern const KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA);
constexpr KernelTable ADAMAS_JOIN(kernels_, ADAMAS_ISA) = make_table();

}  // namespace adamas::cpu
