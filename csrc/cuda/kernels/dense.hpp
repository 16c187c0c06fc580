// The element-wise update of parameters with dense gradients, one slice for each block of threads.
#pragma once

#include "cuda/kernels/elements.hpp"

namespace adamas::cuda {

// Moments in the type of the arithmetic, as one of rules::ElementFormats.
template <class Real>
struct RealMoments {
  using Bits = Real;
  ADAMAS_DEVICE static Real load(Real stored) { return stored; }
  ADAMAS_DEVICE static Real store_moment1(Real value, std::uint32_t) { return value; }
  ADAMAS_DEVICE static Real store_moment2(Real value, std::uint32_t) { return value; }
};

// Parameters of type P, gradients of type G, moments in the format M.
template <class P, class G, class M>
struct Dense {
  using Args = DenseArgs;
  struct Shared {};
  static constexpr int kThreads = kItemThreads;
  // Enough bytes in flight to hide the latency of memory, few enough registers for it.
  static constexpr int kBlocksAtOnce = sizeof(typename StoredAs<P>::Real) == sizeof(float) ? 3 : 2;

  using Real = typename StoredAs<P>::Real;
  static constexpr int kWidth = static_cast<int>(16 / sizeof(Real));  // elements at a time
  // Beside the bits of the rule: the parameter has an average, or a place for its change.  Which
  // one is then read again, for an address would take registers that the others need.
  static constexpr unsigned kApart = rules::kVariants;
  static constexpr bool kRounds = sizeof(typename M::Bits) != sizeof(Real);
  template <class T>
  using Bits = typename StoredAs<T>::Bits;

  // What a thread needs to know of its slice.  Copies, which stay in registers: after each store
  // the tables would have to be read again.
  struct Work {
    Bits<P>* param;
    const Bits<G>* grad;
    typename M::Bits* moment1;
    typename M::Bits* moment2;
    Real* vhat;           // null: no kAmsgrad
    Real* master;         // null: none
    const double* means;  // null: no kCentralize
    std::int64_t row_length;
    rules::Scalars<Real> scalars;
    unsigned variant;  // with kApart
    std::uint32_t key;
    // Whether the arrays are aligned where the parameter is.
    bool aligned_grad;
    bool aligned_moment1;
    bool aligned_moment2;
    bool aligned_vhat;
    bool aligned_master;
  };

  ADAMAS_DEVICE static void run(const Args& args, Cta cta, Shared&) {
    if (!goes(args.step.control)) return;
    for (std::int64_t k = cta.block(); k < args.count; k += cta.blocks()) {
      cta.each([&](int thread) { update_slice(args.step, args.slices + k, thread); });
    }
  }

  template <class T>
  ADAMAS_DEVICE static bool is_aligned(const T* data, std::int64_t i) {
    return reinterpret_cast<std::uintptr_t>(data + i) % (kWidth * sizeof(T)) == 0;
  }

  ADAMAS_DEVICE static Work prepare(const StepArgs& step, const Slice& slice) {
    const TensorEntry& tensor = step.tensors[slice.tensor];
    const Folded& folded = rates_of(step, tensor).listed;
    Work work{};
    work.param = bits_at<P>(tensor.param, 0);
    work.grad = bits_at<G>(step.grads[slice.tensor].values, 0);
    work.moment1 = static_cast<typename M::Bits*>(tensor.moment1);
    work.moment2 = static_cast<typename M::Bits*>(tensor.moment2);
    work.variant = folded.variant | (tensor.means == nullptr ? 0U : rules::kCentralize);
    if ((work.variant & rules::kAmsgrad) != 0) work.vhat = static_cast<Real*>(tensor.vhat);
    if constexpr (sizeof(Bits<P>) != sizeof(Real)) work.master = tensor.master;
    work.means = tensor.means;
    work.row_length = tensor.row_length;
    if (tensor.ema != nullptr || tensor.delta != nullptr) work.variant |= kApart;
    work.scalars = scalars_of<Real>(folded);
    if constexpr (kRounds) work.key = random_key(step, tensor);
    return work;
  }

  ADAMAS_DEVICE static void update_slice(const StepArgs& step, const Slice* place, int thread) {
    const Slice slice = *place;
    if (step.grads[slice.tensor].is_absent) return;
    Work work = prepare(step, slice);
    // Elements before the first that a wide access of the parameter may begin with.
    const auto address = reinterpret_cast<std::uintptr_t>(work.param + slice.begin);
    const int past = static_cast<int>(address / sizeof(Bits<P>) % kWidth);
    const int before = past == 0 ? 0 : kWidth - past;
    const int head = before < slice.count ? before : slice.count;
    const int packs = (slice.count - head) / kWidth;
    const int rest = slice.count - packs * kWidth;
    const std::int64_t first = slice.begin + head;
    work.aligned_grad = is_aligned(work.grad, first);
    work.aligned_moment1 = is_aligned(work.moment1, first);
    work.aligned_moment2 = is_aligned(work.moment2, first);
    work.aligned_vhat = is_aligned(work.vhat, first);
    work.aligned_master = is_aligned(work.master, first);
    for (int k = thread; k < packs; k += kThreads) {
      update<kWidth>(step, place, work, first + std::int64_t{k} * kWidth);
    }
    for (int k = thread; k < rest; k += kThreads) {
      update<1>(step, place, work,
                k < head ? slice.begin + k : slice.begin + std::int64_t{packs} * kWidth + k);
    }
  }

  // Updates `n` neighbours.
  template <int n>
  ADAMAS_DEVICE static void update(const StepArgs& step, const Slice* place, const Work& work,
                                   std::int64_t i) {
    const auto grads = load_pack<n>(work.grad + i, work.aligned_grad);
    auto params = load_pack<n>(work.param + i, true);
    auto moments1 = load_pack<n>(work.moment1 + i, work.aligned_moment1);
    auto moments2 = load_pack<n>(work.moment2 + i, work.aligned_moment2);
    Pack<Real, n> vhats{};
    if (work.vhat != nullptr) vhats = load_pack<n>(work.vhat + i, work.aligned_vhat);
    Pack<Real, n> reals;
    for (int k = 0; k < n; ++k) reals.values[k] = StoredAs<P>::load(params.values[k]);
    if (work.master != nullptr) reals = load_pack<n>(work.master + i, work.aligned_master);

    Real mean = 0;
    std::int64_t row = 0;
    std::int64_t left = 0;  // elements of the row from here on
    if (work.means != nullptr) {
      row = i / work.row_length;
      left = (row + 1) * work.row_length - i;
      mean = static_cast<Real>(work.means[row]);
    }
    for (int k = 0; k < n; ++k) {
      if (work.means != nullptr && left-- == 0) {
        mean = static_cast<Real>(work.means[++row]);
        left = work.row_length - 1;
      }
      Real moment1 = M::load(moments1.values[k]);
      Real moment2 = M::load(moments2.values[k]);
      rules::adam(work.variant, reals.values[k],
                  static_cast<Real>(StoredAs<G>::load(grads.values[k])), moment1, moment2,
                  vhats.values[k], mean, work.scalars);
      const std::uint32_t random = kRounds ? random_of(work.key, i + k) : 0U;
      moments1.values[k] = M::store_moment1(moment1, random);
      moments2.values[k] = M::store_moment2(moment2, random);
      params.values[k] = StoredAs<P>::store(reals.values[k]);
    }
    if ((work.variant & kApart) == 0) {
      store_pack<n>(work.param + i, params, true);
    } else {
      store_apart<n>(step.tensors[place->tensor], i, params, reals);
    }
    store_pack<n>(work.moment1 + i, moments1, work.aligned_moment1);
    store_pack<n>(work.moment2 + i, moments2, work.aligned_moment2);
    if (work.vhat != nullptr) store_pack<n>(work.vhat + i, vhats, work.aligned_vhat);
    if (work.master != nullptr) store_pack<n>(work.master + i, reals, work.aligned_master);
  }

  template <int n>
  ADAMAS_DEVICE static void store_apart(const TensorEntry& tensor, std::int64_t i,
                                        const Pack<Bits<P>, n>& params,
                                        const Pack<Real, n>& reals) {
    Bits<P>* target = bits_at<P>(tensor.delta == nullptr ? tensor.param : tensor.delta, i);
    for (int k = 0; k < n; ++k) {
      target[k] = params.values[k];
      move_average(tensor, i + k, reals.values[k]);
    }
  }
};

}  // namespace adamas::cuda
