// The update of parameters row by row and block by block: sparse gradients, RowPolicy::catch_up,
// and moments in 8 bits.  A warp takes a piece of a row, or a block that shares a scale.
#pragma once

#include "cuda/kernels/elements.hpp"

namespace adamas::cuda {

inline constexpr int kWarp = 32;

// Where the gradient of a piece comes from.
template <class Real>
struct PieceGrad {
  const void* values;          // null: zero
  DType dtype;                 //
  const std::uint32_t* entry;  // null: dense, from element `begin` on
  std::int64_t entries;        // else the sum of so many rows
  std::int64_t row_length;
  std::int64_t begin;  // of the piece, within the row or the parameter

  ADAMAS_DEVICE Real at(std::int64_t i) const {
    if (values == nullptr) return 0;
    if (entry == nullptr) return load_at<Real>(dtype, values, begin + i);
    Real sum = of_entry(0, i);
    // Loads of several entries at a time; their sum keeps its order.
    constexpr int kAhead = 8;
    std::int64_t e = 1;
    for (; e + kAhead <= entries; e += kAhead) {
      Real ahead[kAhead];
      for (int k = 0; k < kAhead; ++k) ahead[k] = of_entry(e + k, i);
      for (int k = 0; k < kAhead; ++k) sum += ahead[k];
    }
    for (; e < entries; ++e) sum += of_entry(e, i);
    return sum;
  }

  ADAMAS_DEVICE Real of_entry(std::int64_t e, std::int64_t i) const {
    return load_at<Real>(dtype, values, std::int64_t{entry[e]} * row_length + begin + i);
  }
};

// A run of elements of one parameter, short enough for a warp.
template <class Real>
struct Piece {
  std::int64_t begin;
  std::int64_t count;  // 0: nothing to do
  PieceGrad<Real> grad;
  rules::Scalars<Real> scalars;
  unsigned variant;  // without kCentralize
  double decay1;     // of the moments, before the step; negative: none
  double decay2;
};

// Moments in 8 bits wait here until the largest of their block is known.
struct Moments {
  float moment1[rules::kLargestScaleBlock];
  float moment2[rules::kLargestScaleBlock];
  std::uint32_t largest1[kWarp];  // by lane
  std::uint32_t largest2[kWarp];
};

template <class Real>
ADAMAS_DEVICE void update_element(const TensorEntry& tensor, std::int64_t i,
                                  const Piece<Real>& piece, Real grad, Real* moment1,
                                  Real* moment2) {
  Real mean = 0;
  unsigned variant = piece.variant;
  if (tensor.means != nullptr) {
    variant |= rules::kCentralize;
    mean = static_cast<Real>(tensor.means[i / tensor.row_length]);
  }
  Real param = load_param<Real>(tensor, i);
  Real vhat = tensor.vhat == nullptr ? 0 : static_cast<const Real*>(tensor.vhat)[i];
  rules::adam(variant, param, grad, *moment1, *moment2, vhat, mean, piece.scalars);
  store_param<Real>(tensor, i, param);
  if (tensor.vhat != nullptr) static_cast<Real*>(tensor.vhat)[i] = vhat;
}

// The moments in one of these formats; false if they are not.
template <class... Formats>
ADAMAS_DEVICE bool update_rounded(rules::TypeList<Formats...>, const TensorEntry& tensor,
                                  std::int64_t i, const Piece<float>& piece, float grad,
                                  std::uint32_t key) {
  const auto update = [&](auto format) {
    using Format = decltype(format);
    auto* stored1 = static_cast<typename Format::Bits*>(tensor.moment1) + i;
    auto* stored2 = static_cast<typename Format::Bits*>(tensor.moment2) + i;
    float moment1 = Format::load(*stored1);
    float moment2 = Format::load(*stored2);
    update_element(tensor, i, piece, grad, &moment1, &moment2);
    const std::uint32_t random = random_of(key, i);
    *stored1 = Format::store_moment1(moment1, random);
    *stored2 = Format::store_moment2(moment2, random);
  };
  return ((tensor.format == Formats::kFormat && (update(Formats()), true)) || ...);
}

// The first half of a piece: everything but storing moments in 8 bits.
template <class Real>
ADAMAS_DEVICE void update_piece(const StepArgs& step, const TensorEntry& tensor,
                                const Piece<Real>& piece, int lane, Moments& buffer) {
  [[maybe_unused]] const std::uint32_t key =
      tensor.format == StateFormat::real ? 0U : random_key(step, tensor);
  [[maybe_unused]] float down1 = 0;
  [[maybe_unused]] float down2 = 0;
  [[maybe_unused]] std::uint32_t largest1 = 0;
  [[maybe_unused]] std::uint32_t largest2 = 0;
  if (tensor.format == StateFormat::int8) {
    const std::int64_t block = piece.begin / tensor.scale_block;
    down1 = rules::down_factor<rules::Moment1>(tensor.scale1[block]);
    down2 = rules::down_factor<rules::Moment2>(tensor.scale2[block]);
  }
  for (std::int64_t k = lane; k < piece.count; k += kWarp) {
    const std::int64_t i = piece.begin + k;
    const Real grad = piece.grad.at(k);
    if (tensor.format == StateFormat::real) {
      Real* moment1 = static_cast<Real*>(tensor.moment1) + i;
      Real* moment2 = static_cast<Real*>(tensor.moment2) + i;
      if (piece.decay1 >= 0) {
        *moment1 *= static_cast<Real>(piece.decay1);
        *moment2 *= static_cast<Real>(piece.decay2);
      }
      update_element(tensor, i, piece, grad, moment1, moment2);
      continue;
    }
    if constexpr (sizeof(Real) == sizeof(float)) {
      if (update_rounded(rules::ElementFormats(), tensor, i, piece, grad, key)) continue;
      Real moment1 =
          rules::decode_moment1(static_cast<const std::uint8_t*>(tensor.moment1)[i], down1);
      Real moment2 =
          rules::decode_moment2(static_cast<const std::uint8_t*>(tensor.moment2)[i], down2);
      update_element(tensor, i, piece, grad, &moment1, &moment2);
      buffer.moment1[k] = moment1;
      buffer.moment2[k] = moment2;
      const std::uint32_t magnitude1 = rules::magnitude_bits(moment1);
      const std::uint32_t magnitude2 = rules::magnitude_bits(moment2);
      largest1 = magnitude1 > largest1 ? magnitude1 : largest1;
      largest2 = magnitude2 > largest2 ? magnitude2 : largest2;
    }
  }
  if (tensor.format == StateFormat::int8) {
    buffer.largest1[lane] = largest1;
    buffer.largest2[lane] = largest2;
  }
}

// The second half: the scale of a block, then its codes.
template <class Real>
ADAMAS_DEVICE void store_piece(const StepArgs& step, const TensorEntry& tensor,
                               const Piece<Real>& piece, int lane, const Moments& buffer) {
  if (piece.count == 0) return;
  std::uint32_t largest1 = 0;
  std::uint32_t largest2 = 0;
  for (int k = 0; k < kWarp; ++k) {
    largest1 = buffer.largest1[k] > largest1 ? buffer.largest1[k] : largest1;
    largest2 = buffer.largest2[k] > largest2 ? buffer.largest2[k] : largest2;
  }
  const std::uint32_t scale1 = rules::scale_exponent(largest1);
  const std::uint32_t scale2 = rules::scale_exponent(largest2);
  if (lane == 0) {
    tensor.scale1[piece.begin / tensor.scale_block] = static_cast<std::uint8_t>(scale1);
    tensor.scale2[piece.begin / tensor.scale_block] = static_cast<std::uint8_t>(scale2);
  }
  const std::uint32_t key = random_key(step, tensor);
  const float up1 = rules::up_factor<rules::Moment1>(scale1);
  const float up2 = rules::up_factor<rules::Moment2>(scale2);
  auto* stored1 = static_cast<std::uint8_t*>(tensor.moment1) + piece.begin;
  auto* stored2 = static_cast<std::uint8_t*>(tensor.moment2) + piece.begin;
  for (std::int64_t k = lane; k < piece.count; k += kWarp) {
    const std::uint32_t random = random_of(key, piece.begin + k);
    const std::uint32_t code1 =
        rules::encode_moment1(buffer.moment1[k], up1, rules::random20_of_moment1(random));
    const std::uint32_t code2 =
        rules::encode_moment2(buffer.moment2[k], up2, rules::random20_of_moment2(random));
    // Without a scale 0: the bits of a NaN are not the same everywhere.
    stored1[k] = static_cast<std::uint8_t>(scale1 == rules::kNoScale ? 0U : code1);
    stored2[k] = static_cast<std::uint8_t>(scale2 == rules::kNoScale ? 0U : code2);
  }
}

// What the threads of a block share, a warp for each piece.
struct Warps {
  static constexpr int kThreads = kWarpsPerBlock * kWarp;
  Moments moments[kWarpsPerBlock];
};

// Updates as many pieces as there are warps; make_piece(warp) says which.
template <class MakePiece>
ADAMAS_DEVICE void run_pieces(const StepArgs& step, const TensorEntry& tensor, Cta cta,
                              Warps& shared, const MakePiece& make_piece) {
  cta.each([&](int thread) {
    const int warp = thread / kWarp;
    update_piece(step, tensor, make_piece(warp), thread % kWarp, shared.moments[warp]);
  });
  if (tensor.format != StateFormat::int8) return;
  cta.sync();
  cta.each([&](int thread) {
    const int warp = thread / kWarp;
    store_piece(step, tensor, make_piece(warp), thread % kWarp, shared.moments[warp]);
  });
  cta.sync();
}

// Rows of one parameter.
template <class Real>
struct Table {
  using Args = TableArgs;
  using Shared = Warps;
  static constexpr int kThreads = Warps::kThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    if (!goes(args.step.control)) return;
    const TensorEntry& tensor = args.step.tensors[args.tensor];
    const std::int64_t pieces = args.units * args.pieces_per_row;
    for (std::int64_t k = cta.block() * kWarpsPerBlock; k < pieces;
         k += cta.blocks() * kWarpsPerBlock) {
      run_pieces(args.step, tensor, cta, shared,
                 [&](int warp) { return make_piece(args, tensor, k + warp, pieces); });
    }
  }

  // How many entries the row that begins at a place has.
  ADAMAS_DEVICE static std::int64_t entries_from(const SortedRows& sorted, std::int64_t place) {
    const std::uint64_t row = sorted.rows[place];
    std::int64_t low = place + 1;
    if (low == sorted.count || sorted.rows[low] != row) return 1;
    std::int64_t high = sorted.count;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (sorted.rows[middle] == row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low - place;
  }

  // The row of a unit and its first place; false if there is nothing to do.
  ADAMAS_DEVICE static bool find_row(const Args& args, std::int64_t unit, std::int64_t* row,
                                     std::int64_t* place) {
    *row = unit;
    *place = -1;
    if (args.mode == TableRows::listed) {
      *row = static_cast<std::int64_t>(args.sorted.rows[unit]);
      *place = unit;
      return unit == 0 || args.sorted.rows[unit - 1] != args.sorted.rows[unit];
    }
    const bool looks = args.mode == TableRows::all && args.first != nullptr;
    if (looks && args.first[unit] != kNone) *place = args.first[unit];
    return true;
  }

  ADAMAS_DEVICE static Piece<Real> make_piece(const Args& args, const TensorEntry& tensor,
                                              std::int64_t number, std::int64_t pieces) {
    Piece<Real> piece{};
    std::int64_t row = 0;
    std::int64_t place = 0;
    if (number >= pieces || !find_row(args, number / args.pieces_per_row, &row, &place)) {
      return piece;
    }
    const std::int64_t in_row = number % args.pieces_per_row * args.piece;
    const std::int64_t left = tensor.row_length - in_row;
    piece.begin = row * tensor.row_length + in_row;
    piece.count = left < args.piece ? left : args.piece;
    const GradEntry& grad = args.grad;
    piece.grad = {grad.values, grad.dtype, nullptr, 1, tensor.row_length, piece.begin};
    const RateEntry& rates = rates_of(args.step, tensor);
    const bool has_grad = place >= 0 || args.mode == TableRows::gradient;
    const Folded& folded = has_grad ? rates.listed : rates.unlisted;
    piece.scalars = scalars_of<Real>(folded);
    piece.variant = folded.variant;
    if (!has_grad) piece.grad.values = nullptr;
    if (place >= 0) {
      const std::int64_t entries = entries_from(args.sorted, place);
      piece.grad = {grad.values, grad.dtype,        args.sorted.entry + place,
                    entries,     tensor.row_length, in_row};
      if (args.decays_entries && entries > 1 && rates.weight_decay != 0.0) {
        piece.scalars.decay = rules::decay_of_entries<Real>(rates.weight_decay, rates.factor,
                                                            static_cast<double>(entries));
      }
    }
    piece.decay1 = -1.0;
    if (args.catches_up) catch_up(args, tensor, row, &piece);
    return piece;
  }

  // Powers of the betas as the rule multiplies with them, for the steps that the row has missed.
  ADAMAS_DEVICE static void catch_up(const Args& args, const TensorEntry& tensor, std::int64_t row,
                                     Piece<Real>* piece) {
    const RateEntry& rates = rates_of(args.step, tensor);
    const std::int64_t missed = rates.step - 1 - tensor.row_steps[row];
    if (missed <= 0) return;
    constexpr bool kIsFloat32 = sizeof(Real) == sizeof(float);
    piece->decay1 = rules::power(kIsFloat32 ? rules::as_float32(rates.beta1) : rates.beta1, missed);
    piece->decay2 = rules::power(kIsFloat32 ? rules::as_float32(rates.beta2) : rates.beta2, missed);
  }
};

// Slices of parameters with dense gradients and moments in 8 bits.
struct DenseInt8 {
  using Args = DenseArgs;
  using Shared = Warps;
  static constexpr int kThreads = Warps::kThreads;

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared& shared) {
    if (!goes(args.step.control)) return;
    for (std::int64_t k = cta.block(); k < args.count; k += cta.blocks()) {
      const Slice slice = args.slices[k];
      const TensorEntry& tensor = args.step.tensors[slice.tensor];
      if (args.step.grads[slice.tensor].is_absent) continue;
      for (std::int64_t done = 0; done < slice.count; done += kWarpsPerBlock * tensor.scale_block) {
        run_pieces(args.step, tensor, cta, shared, [&](int warp) {
          return make_piece(args, slice, tensor, done + warp * tensor.scale_block);
        });
      }
    }
  }

  ADAMAS_DEVICE static Piece<float> make_piece(const Args& args, const Slice& slice,
                                               const TensorEntry& tensor, std::int64_t offset) {
    Piece<float> piece{};
    if (offset >= slice.count) return piece;
    const std::int64_t left = slice.count - offset;
    const GradEntry& grad = args.step.grads[slice.tensor];
    const Folded& folded = rates_of(args.step, tensor).listed;
    piece.begin = slice.begin + offset;
    piece.count = left < tensor.scale_block ? left : tensor.scale_block;
    piece.grad = {grad.values, grad.dtype, nullptr, 1, tensor.row_length, piece.begin};
    piece.scalars = folded.float32;
    piece.variant = folded.variant;
    piece.decay1 = -1.0;
    return piece;
  }
};

}  // namespace adamas::cuda
