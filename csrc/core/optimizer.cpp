// The step: check everything, fold the scalars, run the blocks, count.
//
// After the first store nothing can fail: all memory is reserved by create().
#include "adamas/optimizer.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "adamas/system.hpp"
#include "core/memory.hpp"
#include "core/plan.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/isa.hpp"
#include "cpu/thread_pool.hpp"
#include "rules/fold.hpp"

namespace adamas {
namespace {

constexpr std::int64_t kMaxStep = std::int64_t{1} << 62;

// An address range; none overlaps another in the list that an optimizer keeps.
struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

Range range_of(const void* data, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + bytes};
}

struct Tensor {
  ParameterSpec spec;
  std::size_t nbytes;
  char* state[kStateKinds];
  const void* checked_grad;  // the last gradient that was found to overlap nothing
};

template <class Real>
bool is_finite(const rules::Scalars<Real>& s) {
  return std::isfinite(s.decay) && std::isfinite(s.keep) && std::isfinite(s.negative_step) &&
         std::isfinite(s.inverse_correction);
}

bool is_probability(double beta) { return beta > 0.0 && beta < 1.0; }

Status check(const AdamConfig& config) {
  const auto bad = [](const char* what) { return Status{StatusCode::invalid_argument, what}; };
  if (!is_probability(config.beta1)) return bad("beta1 must be in (0, 1)");
  if (!is_probability(config.beta2)) return bad("beta2 must be in (0, 1)");
  if (!(config.eps > 0.0) || std::isinf(config.eps)) return bad("eps must be finite and > 0");
  if (!(config.loss_scale >= 0x1p-126 && config.loss_scale <= 0x1p126)) {
    return bad("loss_scale must be in [2^-126, 2^126]");
  }
  if (config.num_threads < 0) return bad("num_threads must not be negative");
  return {};
}

Status check(const AdamConfig& config, const ParameterSpec& parameter, std::int64_t i) {
  const auto bad = [i](const char* what) { return Status{StatusCode::invalid_argument, what, i}; };
  if (parameter.count < 0 || parameter.rates < 0) return bad("a count or index is negative");
  if (parameter.count > 0 && parameter.data == nullptr) return bad("a parameter has no memory");
  if (parameter.centralize && (parameter.rows < 1 || parameter.count % parameter.rows != 0)) {
    return bad("the rows of a centralized parameter must divide its count");
  }
  if (parameter.dtype == DType::float32 && !(static_cast<float>(config.eps) > 0.0F)) {
    return bad("eps rounds to zero in the type of a parameter");
  }
  return {};
}

Status check(Span<const Rates> rates) {
  for (const Rates& rate : rates) {
    if (!(rate.learning_rate >= 0.0) || std::isinf(rate.learning_rate)) {
      return {StatusCode::invalid_argument, "a learning rate must be finite and >= 0"};
    }
    if (!(rate.weight_decay >= 0.0) || std::isinf(rate.weight_decay)) {
      return {StatusCode::invalid_argument, "a weight decay must be finite and >= 0"};
    }
  }
  return {};
}

}  // namespace

struct Optimizer::Impl {
  // What one step works with; valid while mutex is held.
  struct Step {
    const cpu::KernelTable* kernels;
    const void* const* grads;
  };

  Status prepare(const AdamConfig& options, Span<const ParameterSpec> parameters);
  Status place_state();
  Status sort_ranges();
  Status check_grads(Span<const void* const> grads) noexcept;
  rules::Corrections corrections(std::int64_t step) noexcept;
  Status fold_scalars(Span<const Rates> rates) noexcept;
  void run() noexcept;

  cpu::DenseSpan span(std::int32_t parameter, std::int64_t begin, std::int64_t count) const;
  void sum_segments(std::int64_t chunk) noexcept;
  void update_chunk(std::int64_t chunk) noexcept;
  void update_rows(const core::Block& block, cpu::DenseKernel kernel) noexcept;
  double row_mean(const core::Rows& rows, std::int64_t row) const noexcept;

  AdamConfig config;
  unsigned variant = 0;  // what of the rule is the same for all parameters
  int threads = 1;
  std::vector<Tensor> tensors;
  std::vector<Range> ranges;
  core::ZeroedBlock memory;
  std::size_t state_nbytes = 0;
  core::Plan plan;
  std::size_t rates_count = 0;
  bool has_float32 = false;

  // beta^step as MindSpore multiplies it up; recomputed when global_step was set back.
  struct RunningPowers {
    std::int64_t step = 0;
    float beta1 = 1.0F;
    float beta2 = 1.0F;
  };

  std::mutex mutex;
  RunningPowers powers;
  std::atomic<std::int64_t> global_step{0};
  std::vector<cpu::StepScalars> scalars;  // by rates
  std::vector<unsigned> l2;               // by rates
  std::vector<double> segment_sums;
  Step current{};
};

Status Optimizer::Impl::prepare(const AdamConfig& options, Span<const ParameterSpec> parameters) {
  config = options;
  if (config.use_nesterov) variant |= rules::kNesterov;
  if (config.use_amsgrad) variant |= rules::kAmsgrad;
  threads = config.num_threads > 0 ? config.num_threads : available_threads();
  tensors.reserve(parameters.size);
  for (const ParameterSpec& spec : parameters) {
    const auto i = static_cast<std::int64_t>(tensors.size());
    if (Status status = check(config, spec, i); !status.ok()) return status;
    rates_count = std::max(rates_count, static_cast<std::size_t>(spec.rates) + 1);
    has_float32 = has_float32 || spec.dtype == DType::float32;
    const std::size_t nbytes = static_cast<std::size_t>(spec.count) * item_size(spec.dtype);
    tensors.push_back({spec, nbytes, {}, nullptr});
  }
  plan = core::make_plan(parameters);
  scalars.resize(rates_count);
  l2.resize(rates_count);
  segment_sums.resize(static_cast<std::size_t>(plan.segment_sums));
  if (Status status = place_state(); !status.ok()) return status;
  return sort_ranges();
}

// One array of state after the other, each tensor's part at the address of its parameter modulo a
// cache line, so that their vectors split lines together.  The arrays are staggered by an odd
// number of lines: equal offsets within a page would compete for the same cache sets.
Status Optimizer::Impl::place_state() {
  constexpr std::size_t kStagger = 17 * core::kLine;
  const std::size_t kinds = config.use_amsgrad ? 3 : 2;
  std::size_t cursor = 0;
  std::vector<std::size_t> offsets;
  offsets.reserve(kinds * tensors.size());
  for (std::size_t kind = 0; kind < kinds; ++kind) {
    for (const Tensor& tensor : tensors) {
      cursor = (cursor + core::kLine - 1) / core::kLine * core::kLine;
      cursor += reinterpret_cast<std::uintptr_t>(tensor.spec.data) % core::kLine;
      offsets.push_back(cursor);
      cursor += tensor.nbytes;
      state_nbytes += tensor.nbytes;
    }
    cursor += kStagger;
  }
  if (!memory.allocate(cursor)) {
    return {StatusCode::out_of_memory, "no memory for the state"};
  }
  for (std::size_t kind = 0; kind < kinds; ++kind) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].state[kind] = memory.data() + offsets[kind * tensors.size() + i];
    }
  }
  return {};
}

Status Optimizer::Impl::sort_ranges() {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].nbytes > 0) order.push_back(i);
  }
  const auto range = [this](std::size_t i) {
    return range_of(tensors[i].spec.data, tensors[i].nbytes);
  };
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return range(a).begin < range(b).begin; });
  for (std::size_t k = 0; k < order.size(); ++k) {
    if (k > 0 && range(order[k]).begin < range(order[k - 1]).end) {
      return {StatusCode::overlap, "a parameter shares memory with another",
              static_cast<std::int64_t>(std::max(order[k], order[k - 1]))};
    }
    ranges.push_back(range(order[k]));
  }
  if (memory.size() > 0) {
    const Range state = range_of(memory.data(), memory.size());
    const auto place =
        std::lower_bound(ranges.begin(), ranges.end(), state,
                         [](const Range& a, const Range& b) { return a.begin < b.begin; });
    ranges.insert(place, state);
  }
  return {};
}

Status Optimizer::Impl::check_grads(Span<const void* const> grads) noexcept {
  if (grads.size != tensors.size()) {
    return {StatusCode::invalid_argument, "there must be one gradient for each parameter"};
  }
  for (std::size_t i = 0; i < grads.size; ++i) {
    Tensor& tensor = tensors[i];
    if (grads[i] == tensor.checked_grad || tensor.nbytes == 0) continue;
    const auto index = static_cast<std::int64_t>(i);
    if (grads[i] == nullptr) return {StatusCode::invalid_argument, "a gradient is missing", index};
    const Range grad = range_of(grads[i], tensor.nbytes);
    const auto next = std::upper_bound(
        ranges.begin(), ranges.end(), grad,
        [](const Range& value, const Range& range) { return value.begin < range.end; });
    if (next != ranges.end() && next->begin < grad.end) {
      return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
    }
    tensor.checked_grad = grads[i];
  }
  return {};
}

rules::Corrections Optimizer::Impl::corrections(std::int64_t step) noexcept {
  if (!config.bias_correction) return {};
  if (config.numerics == Numerics::standard) {
    return rules::exact_corrections(config.beta1, config.beta2, step);
  }
  if (step < powers.step) powers = {};
  const auto advance = [&](double beta, float power) {
    return rules::running_power(static_cast<float>(beta), power, powers.step, step);
  };
  powers = {step, advance(config.beta1, powers.beta1), advance(config.beta2, powers.beta2)};
  return rules::running_corrections(powers.beta1, powers.beta2);
}

// Folds into the `scalars` of this step; an error if they leave the range of a parameter's type.
Status Optimizer::Impl::fold_scalars(Span<const Rates> rates) noexcept {
  const rules::Corrections correction = corrections(global_step.load() + 1);
  const double factor = 1.0 / config.loss_scale;
  for (std::size_t k = 0; k < rates_count; ++k) {
    scalars[k].float32 = rules::fold<float>(config, rates[k], correction, factor);
    scalars[k].float64 = rules::fold<double>(config, rates[k], correction, factor);
    const bool has_l2 = rates[k].weight_decay != 0.0 && !config.decoupled_weight_decay;
    l2[k] = has_l2 ? rules::kL2 : 0U;
    if (!is_finite(scalars[k].float64) || (has_float32 && !is_finite(scalars[k].float32))) {
      return {StatusCode::invalid_argument,
              "a learning rate or weight decay is too large for the type of the parameters"};
    }
  }
  return {};
}

cpu::DenseSpan Optimizer::Impl::span(std::int32_t parameter, std::int64_t begin,
                                     std::int64_t count) const {
  const auto i = static_cast<std::size_t>(parameter);
  const Tensor& tensor = tensors[i];
  const std::size_t offset = static_cast<std::size_t>(begin) * item_size(tensor.spec.dtype);
  const auto at = [offset](char* data) { return data == nullptr ? nullptr : data + offset; };
  return {at(static_cast<char*>(tensor.spec.data)),
          static_cast<const char*>(current.grads[i]) + offset,
          at(tensor.state[0]),
          at(tensor.state[1]),
          at(tensor.state[2]),
          count};
}

void Optimizer::Impl::sum_segments(std::int64_t chunk) noexcept {
  const core::SegmentChunk& work = plan.segment_chunks[static_cast<std::size_t>(chunk)];
  const core::Rows& rows = plan.rows[static_cast<std::size_t>(work.rows)];
  const ParameterSpec& spec = tensors[static_cast<std::size_t>(rows.parameter)].spec;
  const auto rate = static_cast<std::size_t>(spec.rates);
  const auto kernel =
      current.kernels->row_sum[static_cast<std::size_t>(spec.dtype)][l2[rate] != 0 ? 1 : 0];
  for (std::int64_t segment = work.begin; segment < work.end; ++segment) {
    const std::int64_t row = segment / rows.segments_per_row;
    const std::int64_t in_row = segment % rows.segments_per_row * core::kBlock;
    const std::int64_t count = std::min(core::kBlock, rows.row_length - in_row);
    segment_sums[static_cast<std::size_t>(rows.first_sum + segment)] =
        kernel(span(rows.parameter, row * rows.row_length + in_row, count), scalars[rate]);
  }
}

double Optimizer::Impl::row_mean(const core::Rows& rows, std::int64_t row) const noexcept {
  const double* sums = &segment_sums[static_cast<std::size_t>(rows.first_sum)];
  double sum = 0.0;
  for (std::int64_t k = 0; k < rows.segments_per_row; ++k) {
    sum += sums[row * rows.segments_per_row + k];
  }
  return sum / static_cast<double>(rows.row_length);
}

void Optimizer::Impl::update_rows(const core::Block& block, cpu::DenseKernel kernel) noexcept {
  const auto i = static_cast<std::size_t>(block.parameter);
  const core::Rows& rows = plan.rows[static_cast<std::size_t>(plan.rows_of_parameter[i])];
  const cpu::StepScalars& step_scalars = scalars[static_cast<std::size_t>(tensors[i].spec.rates)];
  const std::int64_t end = block.begin + block.count;
  for (std::int64_t begin = block.begin; begin < end;) {
    const std::int64_t row = begin / rows.row_length;
    const std::int64_t row_end = std::min((row + 1) * rows.row_length, end);
    kernel(span(block.parameter, begin, row_end - begin), step_scalars, row_mean(rows, row));
    begin = row_end;
  }
}

void Optimizer::Impl::update_chunk(std::int64_t chunk) noexcept {
  const auto first = static_cast<std::size_t>(plan.chunks[static_cast<std::size_t>(chunk)]);
  const auto last = static_cast<std::size_t>(plan.chunks[static_cast<std::size_t>(chunk) + 1]);
  for (std::size_t b = first; b < last; ++b) {
    const core::Block& block = plan.blocks[b];
    const ParameterSpec& spec = tensors[static_cast<std::size_t>(block.parameter)].spec;
    const auto rate = static_cast<std::size_t>(spec.rates);
    const unsigned choice = variant | l2[rate] | (spec.centralize ? rules::kCentralize : 0U);
    const auto kernel = current.kernels->dense[static_cast<std::size_t>(spec.dtype)][choice];
    if (spec.centralize) {
      update_rows(block, kernel);
    } else {
      kernel(span(block.parameter, block.begin, block.count), scalars[rate], 0.0);
    }
  }
}

void Optimizer::Impl::run() noexcept {
  const auto chunks = static_cast<std::int64_t>(plan.chunks.size()) - 1;
  const auto segment_chunks = static_cast<std::int64_t>(plan.segment_chunks.size());
  const auto useful = static_cast<int>(std::min<std::int64_t>(threads, chunks));
  cpu::PoolLease pool(useful < 2 ? 1 : threads);
  const auto sum = [](void* self, std::int64_t k) { static_cast<Impl*>(self)->sum_segments(k); };
  const auto update = [](void* self, std::int64_t k) { static_cast<Impl*>(self)->update_chunk(k); };
  if (segment_chunks > 0) pool.run(sum, this, segment_chunks);
  pool.run(update, this, chunks);
}

Status Optimizer::create(const AdamConfig& config, Span<const ParameterSpec> parameters,
                         std::unique_ptr<Optimizer>* optimizer) noexcept {
  try {
    if (Status status = check(config); !status.ok()) return status;
    auto impl = std::make_unique<Impl>();
    if (Status status = impl->prepare(config, parameters); !status.ok()) return status;
    optimizer->reset(new Optimizer(std::move(impl)));
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the optimizer"};
  }
}

Optimizer::Optimizer(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Optimizer::~Optimizer() = default;

Status Optimizer::step(Span<const void* const> grads, Span<const Rates> rates) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (rates.size < impl.rates_count) {
    return {StatusCode::invalid_argument, "there are fewer rates than the parameters refer to"};
  }
  if (Status status = check(rates); !status.ok()) return status;
  if (Status status = impl.check_grads(grads); !status.ok()) return status;
  if (impl.global_step.load() >= kMaxStep) {
    return {StatusCode::invalid_argument, "global_step has reached its limit of 2^62"};
  }
  const cpu::FloatEnvironment pinned;
  impl.current = {&cpu::kernels(), grads.data};
  if (Status status = impl.fold_scalars(rates); !status.ok()) return status;
  impl.run();
  impl.global_step.fetch_add(1);
  return {};
}

std::int64_t Optimizer::global_step() const noexcept { return impl_->global_step.load(); }

Status Optimizer::set_global_step(std::int64_t step) noexcept {
  if (step < 0 || step > kMaxStep) {
    return {StatusCode::invalid_argument, "global_step must be in [0, 2^62]"};
  }
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->global_step.store(step);
  return {};
}

void* Optimizer::state(StateKind kind, std::size_t i) const noexcept {
  return i < impl_->tensors.size() ? impl_->tensors[i].state[static_cast<std::size_t>(kind)]
                                   : nullptr;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->state_nbytes; }

int Optimizer::num_threads() const noexcept { return impl_->threads; }

}  // namespace adamas
