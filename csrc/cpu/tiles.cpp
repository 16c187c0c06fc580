#include "cpu/tiles.hpp"

#include <algorithm>

#include "cpu/prefetch.hpp"
#include "rules/low_precision.hpp"

namespace adamas::cpu {
namespace {

struct alignas(core::kLine) Buffer {
  unsigned char bytes[kTile * sizeof(double)];  // of either real type
};

const Buffer kZeros{};

constexpr int kEntriesAhead = 8;  // entries of a row between prefetch and use

const char* at(const void* data, std::int64_t element, DType dtype) {
  return static_cast<const char*>(data) + static_cast<std::size_t>(element) * item_size(dtype);
}

char* at(void* data, std::int64_t element, DType dtype) {
  return static_cast<char*>(data) + static_cast<std::size_t>(element) * item_size(dtype);
}

char* state_at(const Tensor& tensor, StateKind kind, std::int64_t element) {
  char* state = tensor.state(kind);
  return state == nullptr ? nullptr : at(state, element, tensor.real);
}

// The parameter's elements in its real type: where they lie, or loaded into `buffer`.
void* real_param(const KernelTable& kernels, const Tensor& tensor, std::int64_t begin,
                 std::int64_t count, Buffer* buffer) {
  if (!tensor.is_half()) return at(tensor.spec.data, begin, tensor.real);
  if (char* master = state_at(tensor, StateKind::master, begin)) return master;
  auto* values = reinterpret_cast<float*>(buffer->bytes);
  kernels.load[half_index(tensor.spec.dtype)](at(tensor.spec.data, begin, tensor.spec.dtype),
                                              values, count);
  return values;
}

// Calls visit(run of one tile) from first to last.
template <class Visit>
void for_tiles(const Run& run, std::int64_t length, Visit visit) {
  for (std::int64_t done = 0; done < run.count; done += length) {
    Run tile = run;
    tile.begin += done;
    tile.source_begin += done;
    tile.count = std::min(length, run.count - done);
    visit(tile);
  }
}

// The arrays of a run; its moments in their stored format.
DenseSpan span_of(const Tensor& tensor, std::int64_t begin, std::int64_t count, void* param,
                  const void* grad) {
  const auto moment = [&](StateKind kind) {
    return tensor.state(kind) + begin * tensor.moment_nbytes();
  };
  return {param,
          grad,
          moment(StateKind::moment1),
          moment(StateKind::moment2),
          state_at(tensor, StateKind::vhat, begin),
          count};
}

// Of a run that begins with a block of its scales, if it has any.
StoredMoments stored_moments(const Tensor& tensor, std::int64_t begin) {
  const auto scales = [&](StateKind kind) {
    auto* first = reinterpret_cast<std::uint8_t*>(tensor.state(kind));
    return first == nullptr ? nullptr : first + begin / tensor.scale_block;
  };
  return {scales(StateKind::scale1), scales(StateKind::scale2), tensor.scale_block, 0,
          static_cast<std::uint32_t>(begin)};
}

}  // namespace

bool GradSource::is_direct(DType real) const {
  const bool summed = merge_ != nullptr && merge_->next(place_) != RowMerge::kEnd;
  return values_ != nullptr && dtype_ == real && !summed;
}

const void* GradSource::fetch(const KernelTable& kernels, DType real, std::int64_t begin,
                              std::int64_t count, void* buffer) const {
  if (values_ == nullptr) return &kZeros;
  const auto values_of = [&](std::uint32_t place) {
    const std::int64_t entry = merge_ == nullptr ? 0 : merge_->index(place);
    return at(values_, entry * row_length_ + begin, dtype_);
  };
  const auto one = [&](std::uint32_t place, void* target) -> const void* {
    const char* values = values_of(place);
    if (dtype_ == real) return values;
    kernels.load[half_index(dtype_)](values, static_cast<float*>(target), count);
    return target;
  };
  const void* first = one(place_, buffer);
  if (merge_ == nullptr || merge_->next(place_) == RowMerge::kEnd) return first;

  Buffer converted;
  if (first != buffer) {
    std::copy_n(static_cast<const char*>(first), static_cast<std::size_t>(count) * item_size(real),
                static_cast<char*>(buffer));
  }
  // Entries of a row lie anywhere: ask for those a few places ahead.
  const auto nbytes = count * static_cast<std::int64_t>(item_size(dtype_));
  std::uint32_t ahead = place_;
  const auto look_ahead = [&] {
    if (ahead == RowMerge::kEnd) return;
    ahead = merge_->next(ahead);
    if (ahead == RowMerge::kEnd) return;
    prefetch_run(values_of(ahead), nbytes);
  };
  for (int i = 0; i < kEntriesAhead; ++i) look_ahead();
  for (std::uint32_t place = merge_->next(place_); place != RowMerge::kEnd;
       place = merge_->next(place)) {
    look_ahead();
    kernels.add[real_index(real)](buffer, one(place, &converted), count);
  }
  return buffer;
}

void update_run(const KernelTable& kernels, const Run& run, const Scaling& scaling,
                const double* mean) {
  const Tensor& tensor = *run.tensor;
  const unsigned variant = scaling.folded->variant | (mean == nullptr ? 0U : rules::kCentralize);
  const bool writes_delta = tensor.spec.delta != nullptr;
  const auto kernel = kernels.dense[dense_index(tensor.real, tensor.format)][variant];
  const double mean_value = mean == nullptr ? 0.0 : *mean;
  const auto update = [&](std::int64_t begin, std::int64_t count, void* param, const void* grad) {
    DenseSpan span = span_of(tensor, begin, count, param, grad);
    if (tensor.format != StateFormat::real) {
      span.stored = stored_moments(tensor, begin);
      span.stored.random_key = rules::random_key(scaling.seed, scaling.step, tensor.key);
    }
    kernel(span, *scaling.folded, mean_value);
    if (void* average = state_at(tensor, StateKind::ema, begin)) {
      kernels.average[real_index(tensor.real)](average, param, scaling.ema_rate, count);
    }
  };
  if (!tensor.is_half() && !writes_delta && run.source->is_direct(tensor.real)) {
    update(run.begin, run.count, at(tensor.spec.data, run.begin, tensor.real),
           run.source->fetch(kernels, tensor.real, run.source_begin, run.count, nullptr));
    return;
  }
  const std::int64_t length = kTile / tensor.scale_block * tensor.scale_block;
  for_tiles(run, length, [&](const Run& tile) {
    Buffer param_buffer;
    Buffer grad_buffer;
    void* param = real_param(kernels, tensor, tile.begin, tile.count, &param_buffer);
    if (writes_delta && !tensor.is_half()) {
      std::copy_n(static_cast<const char*>(param),
                  static_cast<std::size_t>(tile.count) * item_size(tensor.real),
                  reinterpret_cast<char*>(param_buffer.bytes));
      param = param_buffer.bytes;
    }
    update(tile.begin, tile.count, param,
           run.source->fetch(kernels, tensor.real, tile.source_begin, tile.count, &grad_buffer));
    void* target = writes_delta ? tensor.spec.delta : tensor.spec.data;
    char* stored = at(target, tile.begin, tensor.spec.dtype);
    if (tensor.is_half()) {
      kernels.store[half_index(tensor.spec.dtype)](static_cast<const float*>(param), stored,
                                                   tile.count);
    } else if (writes_delta) {
      std::copy_n(static_cast<const char*>(param),
                  static_cast<std::size_t>(tile.count) * item_size(tensor.real), stored);
    }
  });
}

void decode_moment(const KernelTable& kernels, const Tensor& tensor, StateKind kind,
                   float* values) {
  const std::int64_t length = kTile / tensor.scale_block * tensor.scale_block;
  for (std::int64_t begin = 0; begin < tensor.spec.count; begin += length) {
    const std::int64_t count = std::min(length, tensor.spec.count - begin);
    float moments[2][kTile];
    DenseSpan span = span_of(tensor, begin, count, nullptr, nullptr);
    span.stored = stored_moments(tensor, begin);
    kernels.decode[static_cast<std::size_t>(tensor.format)](span, moments[0], moments[1]);
    std::copy_n(moments[static_cast<std::size_t>(kind)], count, values + begin);
  }
}

double sum_run(const KernelTable& kernels, const Run& run, const Scaling& scaling) {
  const Tensor& tensor = *run.tensor;
  const bool l2 = (scaling.folded->variant & rules::kL2) != 0;
  const auto kernel = kernels.row_sum[real_index(tensor.real)][l2 ? 1 : 0];
  double sum = 0.0;
  for_tiles(run, kTile, [&](const Run& tile) {
    Buffer param_buffer;
    Buffer grad_buffer;
    void* param = real_param(kernels, tensor, tile.begin, tile.count, &param_buffer);
    const void* grad =
        run.source->fetch(kernels, tensor.real, tile.source_begin, tile.count, &grad_buffer);
    sum += kernel({param, grad, nullptr, nullptr, nullptr, tile.count}, *scaling.folded);
  });
  return sum;
}

void add_run(const KernelTable& kernels, const Run& run, char* sums, bool has_any) {
  const DType real = run.tensor->real;
  for_tiles(run, kTile, [&](const Run& tile) {
    Buffer buffer;
    const void* grad = run.source->fetch(kernels, real, tile.source_begin, tile.count, &buffer);
    char* sum = at(sums, tile.begin, real);
    if (has_any) {
      kernels.add[real_index(real)](sum, grad, tile.count);
    } else {
      std::copy_n(static_cast<const char*>(grad),
                  static_cast<std::size_t>(tile.count) * item_size(real), sum);
    }
  });
}

SquareSum square_sum_run(const KernelTable& kernels, const Run& run, double decay) {
  const Tensor& tensor = *run.tensor;
  const DType real = tensor.real;
  SquareSum sum{0.0, true};
  for_tiles(run, kTile, [&](const Run& tile) {
    Buffer buffer;
    const void* grad = run.source->fetch(kernels, real, tile.source_begin, tile.count, &buffer);
    SquareSum one{};
    if (decay == 0.0) {
      one = kernels.square_sum[real_index(real)](grad, tile.count);
    } else {
      Buffer param_buffer;
      const void* param = real_param(kernels, tensor, tile.begin, tile.count, &param_buffer);
      one = kernels.decayed_square_sum[real_index(real)](grad, param, decay, tile.count);
    }
    sum = {sum.squares + one.squares, sum.finite && one.finite};
  });
  return sum;
}

void decay_moments(const KernelTable& kernels, const Run& run, double factor1, double factor2) {
  const auto scale = kernels.scale[real_index(run.tensor->real)];
  scale(state_at(*run.tensor, StateKind::moment1, run.begin), factor1, run.count);
  scale(state_at(*run.tensor, StateKind::moment2, run.begin), factor2, run.count);
}

}  // namespace adamas::cpu
