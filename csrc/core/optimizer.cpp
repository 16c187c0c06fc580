// The public optimizer: checks everything, decides whether a step happens, counts.
//
// The work itself is core/stepper.cpp's.  After the first store nothing can fail.
#include "adamas/optimizer.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "adamas/system.hpp"
#include "core/locks.hpp"
#include "core/stepper.hpp"
#include "core/storage.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/isa.hpp"
#include "rules/fold.hpp"

namespace adamas {
namespace {

constexpr std::int64_t kMaxStep = std::int64_t{1} << 62;
constexpr const char* kOpen = "a step is open: call end_step or cancel_step first";
constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

Status bad(const char* what, std::int64_t index = -1) {
  return {StatusCode::invalid_argument, what, index};
}

bool is_probability(double beta) { return beta > 0.0 && beta < 1.0; }

Status check(const AdamConfig& config) {
  if (!is_probability(config.beta1)) return bad("beta1 must be in (0, 1)");
  if (!is_probability(config.beta2)) return bad("beta2 must be in (0, 1)");
  if (!(config.eps > 0.0) || std::isinf(config.eps)) return bad("eps must be finite and > 0");
  if (!(config.loss_scale >= 0x1p-126 && config.loss_scale <= 0x1p126)) {
    return bad("loss_scale must be in [2^-126, 2^126]");
  }
  if (!(config.max_grad_norm >= 0.0) || std::isinf(config.max_grad_norm)) {
    return bad("max_grad_norm must be finite and >= 0");
  }
  if (config.num_threads < 0) return bad("num_threads must not be negative");
  return {};
}

// The smallest eps that a step will use is that of the first (rules/fold.hpp).
template <class Real>
Status check_eps(const AdamConfig& config, std::int64_t i) {
  const double smallest = config.eps * std::sqrt(1.0 - config.beta2);
  if (!(static_cast<Real>(smallest) > 0)) return bad("eps rounds to zero in the arithmetic", i);
  if (std::isinf(static_cast<Real>(config.eps))) return bad("eps is infinite in the arithmetic", i);
  return {};
}

Status check(const AdamConfig& config, const ParameterSpec& parameter, std::int64_t i) {
  if (parameter.count < 0 || parameter.rates < 0) return bad("a count or index is negative", i);
  if (parameter.count > 0 && parameter.data == nullptr) return bad("a parameter has no memory", i);
  if (parameter.count > 0 && (parameter.rows < 1 || parameter.count % parameter.rows != 0)) {
    return bad("the rows of a parameter must divide its count", i);
  }
  if (parameter.rows < 0) return bad("a number of rows is negative", i);
  return real_type(parameter.dtype) == DType::float32 ? check_eps<float>(config, i)
                                                      : check_eps<double>(config, i);
}

Status check(Span<const Rates> rates, std::size_t wanted) {
  if (rates.size < wanted) return bad("there are fewer rates than the parameters refer to");
  for (const Rates& rate : rates) {
    if (!(rate.learning_rate >= 0.0) || std::isinf(rate.learning_rate)) {
      return bad("a learning rate must be finite and >= 0");
    }
    if (!(rate.weight_decay >= 0.0) || std::isinf(rate.weight_decay)) {
      return bad("a weight decay must be finite and >= 0");
    }
  }
  return {};
}

}  // namespace

struct Optimizer::Impl {
  // The last dense gradient of a parameter that was found to overlap nothing.  Most come again.
  struct Accepted {
    const void* values = nullptr;
    DType dtype = DType::float32;

    bool is(const Gradient& grad) const {
      return values != nullptr && grad.values == values && grad.dtype == dtype &&
             grad.rows == nullptr;
    }
  };

  // beta^step as MindSpore multiplies it up; recomputed when global_step was set back.
  struct RunningPowers {
    std::int64_t step = 0;
    float beta1 = 1.0F;
    float beta2 = 1.0F;
  };

  Status prepare(const AdamConfig& options, Span<const ParameterSpec> parameters);
  Status check_format(Span<const ParameterSpec> parameters) const;
  Status check_scales() const;
  void load_masters();
  Status check_grads(core::Selection& selection) noexcept;
  Status check_grad(const core::Tensor& tensor, const Gradient& grad) noexcept;
  Status check_rows(const core::Tensor& tensor, const Gradient& grad) noexcept;
  Status check_closed() const noexcept;
  Status check_copies(Span<const ArrayCopy> copies) const noexcept;
  Status check_row_steps(const ArrayCopy& copy, std::int64_t newest) const noexcept;
  Status check_load(Span<const ArrayCopy> from, const Counters& counters) const noexcept;
  char* array_of(const ArrayCopy& copy) const noexcept;
  rules::Corrections corrections(std::int64_t step) noexcept;
  Status fold(Span<const Rates> rates, double factor) noexcept;
  Status step(Span<const Gradient> grads, Span<const Rates> rates) noexcept;
  Status clip(const cpu::Measure& measure, Span<const Rates> rates) noexcept;
  bool measures() const { return config.max_grad_norm > 0.0 || config.skip_nonfinite; }

  AdamConfig config;
  core::Storage storage;
  core::Stepper stepper;
  core::ParameterLocks locks;
  std::size_t rates_count = 0;
  std::vector<Accepted> accepted;  // by parameter

  std::mutex mutex;              // of one call at a time; taken before `locks`
  rules::Squares squares1{0.0};  // of beta1
  rules::Squares squares2{0.0};
  RunningPowers powers;
  bool open = false;          // between begin_step and end_step
  std::vector<char> applied;  // by parameter, while open
  std::atomic<std::int64_t> global_step{0};
  std::atomic<std::int64_t> skipped_steps{0};
  std::atomic<bool> last_step_skipped{false};
  std::atomic<double> last_grad_norm{kNotMeasured};
};

Status Optimizer::Impl::prepare(const AdamConfig& options, Span<const ParameterSpec> parameters) {
  const cpu::FloatEnvironment pinned;  // master weights are loaded here
  config = options;
  squares1 = rules::Squares(config.beta1);
  squares2 = rules::Squares(config.beta2);
  if (config.num_threads == 0) config.num_threads = available_threads();
  for (std::size_t i = 0; i < parameters.size; ++i) {
    Status status = check(config, parameters[i], static_cast<std::int64_t>(i));
    if (!status.ok()) return status;
    rates_count = std::max(rates_count, static_cast<std::size_t>(parameters[i].rates) + 1);
  }
  if (Status status = check_format(parameters); !status.ok()) return status;
  if (Status status = storage.prepare(config, parameters); !status.ok()) return status;
  stepper.prepare(config, storage, rates_count);
  if (Status status = check_scales(); !status.ok()) return status;
  if (config.use_locking) locks.prepare(storage.tensors());
  applied.resize(parameters.size);
  accepted.resize(parameters.size);
  load_masters();
  return {};
}

Status Optimizer::Impl::check_format(Span<const ParameterSpec> parameters) const {
  if (config.state_format == StateFormat::real) return {};
  if (config.row_policy == RowPolicy::catch_up) {
    return bad("moments in 16 or 8 bits do not go with the row policy catch_up");
  }
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].dtype != DType::float64) continue;
    return bad("a float64 parameter keeps float64 moments", static_cast<std::int64_t>(i));
  }
  return {};
}

Status Optimizer::Impl::check_scales() const {
  for (const core::Tensor& tensor : storage.tensors()) {
    if (!tensor.spec.centralize || tensor.has_own_scales()) continue;
    return bad("int8 moments of a centralized parameter need rows that blocks of 64 to 256 fill",
               tensor.index);
  }
  return {};
}

void Optimizer::Impl::load_masters() {
  for (const core::Tensor& tensor : storage.tensors()) {
    char* master = tensor.state(StateKind::master);
    if (master == nullptr) continue;
    cpu::kernels().load[cpu::half_index(tensor.spec.dtype)](
        tensor.data(), reinterpret_cast<float*>(master), tensor.spec.count);
  }
}

Status Optimizer::Impl::check_rows(const core::Tensor& tensor, const Gradient& grad) noexcept {
  const std::int64_t index = tensor.index;
  const RowIndices& rows = *grad.rows;
  if (tensor.spec.centralize) {
    return bad("a centralized parameter must not have a sparse gradient", index);
  }
  if (!tensor.has_own_scales()) {
    return bad("int8 moments of a sparse gradient need rows that blocks of 64 to 256 fill", index);
  }
  if (rows.count < 0 || rows.count >= std::int64_t{core::RowMerge::kEnd}) {
    return bad("a sparse gradient must have fewer than 2^32 - 1 entries", index);
  }
  const auto count = static_cast<std::size_t>(rows.count);
  const std::size_t values =
      count * static_cast<std::size_t>(tensor.row_length) * item_size(grad.dtype);
  if ((count > 0 && rows.data == nullptr) || (values > 0 && grad.values == nullptr)) {
    return bad("a gradient is missing", index);
  }
  if (storage.overlaps(grad.values, values) ||
      storage.overlaps(rows.data, count * (rows.is_int64 ? 8 : 4))) {
    return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
  }
  return {};
}

Status Optimizer::Impl::check_grad(const core::Tensor& tensor, const Gradient& grad) noexcept {
  const std::int64_t index = tensor.index;
  if ((grad.dtype == DType::float64) != (tensor.spec.dtype == DType::float64)) {
    return bad("a gradient has a type that does not go with its parameter's", index);
  }
  if (grad.rows != nullptr) return check_rows(tensor, grad);
  const std::size_t nbytes = static_cast<std::size_t>(tensor.spec.count) * item_size(grad.dtype);
  if (nbytes == 0) return {};
  if (grad.values == nullptr) return bad("a gradient is missing", index);
  if (storage.overlaps(grad.values, nbytes)) {
    return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
  }
  accepted[static_cast<std::size_t>(index)] = {grad.values, grad.dtype};
  return {};
}

Status Optimizer::Impl::check_grads(core::Selection& selection) noexcept {
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    const Gradient& grad = selection.grad(i);
    if (accepted[i].is(grad)) continue;
    if (grad.rows != nullptr) selection.has_sparse = true;
    if (Status status = check_grad(storage.tensors()[i], grad); !status.ok()) return status;
  }
  return {};
}

Status Optimizer::Impl::check_closed() const noexcept {
  if (open) return {StatusCode::bad_state, kOpen};
  if (global_step.load() >= kMaxStep) return bad("global_step has reached its limit of 2^62");
  return {};
}

rules::Corrections Optimizer::Impl::corrections(std::int64_t step) noexcept {
  if (!config.bias_correction) return {};
  if (config.numerics == Numerics::standard) {
    return rules::exact_corrections(squares1, squares2, step);
  }
  if (step < powers.step) powers = {};
  const auto advance = [&](double beta, float power) {
    return rules::running_power(static_cast<float>(beta), power, powers.step, step);
  };
  powers = {step, advance(config.beta1, powers.beta1), advance(config.beta2, powers.beta2)};
  return rules::running_corrections(powers.beta1, powers.beta2);
}

Status Optimizer::Impl::fold(Span<const Rates> rates, double factor) noexcept {
  const std::int64_t step = global_step.load() + 1;
  return stepper.fold(rates, corrections(step), step, factor);
}

// Folds once more if the gradients are longer than allowed.
Status Optimizer::Impl::clip(const cpu::Measure& measure, Span<const Rates> rates) noexcept {
  const double norm = std::sqrt(measure.squares) / config.loss_scale;
  if (config.max_grad_norm > 0.0 && norm > config.max_grad_norm) {
    if (std::isinf(norm)) return bad("the norm of the gradients overflows, so it can't be clipped");
    Status status = fold(rates, config.max_grad_norm / norm / config.loss_scale);
    if (!status.ok()) return status;
  }
  last_grad_norm.store(norm);
  return {};
}

Status Optimizer::Impl::step(Span<const Gradient> grads, Span<const Rates> rates) noexcept {
  if (Status status = check_closed(); !status.ok()) return status;
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = check(rates, rates_count); !status.ok()) return status;
  core::Selection selection{0, grads.size, grads.data};
  if (Status status = check_grads(selection); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = fold(rates, 1.0 / config.loss_scale); !status.ok()) return status;
  if (Status status = stepper.merge(selection, measures()); !status.ok()) return status;
  if (measures()) {
    const cpu::Measure measure = stepper.measure();
    if (!measure.finite && config.skip_nonfinite) {
      last_grad_norm.store(std::sqrt(measure.squares) / config.loss_scale);
      last_step_skipped.store(true);
      skipped_steps.fetch_add(1);
      return {};
    }
    if (!measure.finite)
      return bad("a gradient holds a NaN or infinity, so its norm can't be clipped");
    if (Status status = clip(measure, rates); !status.ok()) return status;
  }
  stepper.update();
  last_step_skipped.store(false);
  global_step.fetch_add(1);
  return {};
}

char* Optimizer::Impl::array_of(const ArrayCopy& copy) const noexcept {
  const core::Tensor& tensor = storage.tensors()[copy.parameter];
  return copy.kind ? tensor.state(*copy.kind) : tensor.data();
}

Status Optimizer::Impl::check_copies(Span<const ArrayCopy> copies) const noexcept {
  if (open) return {StatusCode::bad_state, kOpen};
  for (const ArrayCopy& copy : copies) {
    const auto index = static_cast<std::int64_t>(copy.parameter);
    if (copy.parameter >= storage.tensors().size()) return bad("there is no such parameter", index);
    const core::Tensor& tensor = storage.tensors()[copy.parameter];
    const std::size_t wanted =
        copy.kind ? storage.state_nbytes_of(*copy.kind, tensor, config) : tensor.nbytes;
    if (copy.nbytes != wanted) return bad("an array to copy has another size", index);
    if (copy.nbytes > 0 && copy.data == nullptr) return bad("an array to copy is missing", index);
    if (storage.overlaps(copy.data, copy.nbytes)) {
      return {StatusCode::overlap, "an array to copy shares memory with a parameter or the state",
              index};
    }
  }
  return {};
}

// The distance of a row to the current step must not be negative, nor overflow.
Status Optimizer::Impl::check_row_steps(const ArrayCopy& copy, std::int64_t newest) const noexcept {
  const auto* row_steps = static_cast<const char*>(copy.data);
  for (std::size_t offset = 0; offset < copy.nbytes; offset += sizeof(std::int64_t)) {
    std::int64_t step;
    std::memcpy(&step, row_steps + offset, sizeof step);
    if (step > newest || step < -kMaxStep) {
      return bad("row_step must be in [-2^62, global_step]",
                 static_cast<std::int64_t>(copy.parameter));
    }
  }
  return {};
}

Status Optimizer::Impl::check_load(Span<const ArrayCopy> from,
                                   const Counters& counters) const noexcept {
  if (Status status = check_copies(from); !status.ok()) return status;
  if (counters.global_step < 0 || counters.global_step > kMaxStep) {
    return bad("global_step must be in [0, 2^62]");
  }
  if (counters.skipped_steps < 0) return bad("skipped_steps must not be negative");
  if (counters.last_grad_norm < 0.0) return bad("last_grad_norm must not be negative");
  AdamConfig changed = config;
  changed.loss_scale = counters.loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (copy.kind != StateKind::row_step) continue;
    if (Status status = check_row_steps(copy, counters.global_step); !status.ok()) return status;
  }
  return {};
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

Status Optimizer::step(Span<const Gradient> grads, Span<const Rates> rates) noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl_->locks.all());
  return impl_->step(grads, rates);
}

Status Optimizer::begin_step(Span<const Rates> rates) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (Status status = impl.check_closed(); !status.ok()) return status;
  if (impl.measures()) {
    return {StatusCode::bad_state,
            "max_grad_norm and skip_nonfinite need all gradients at once: make whole steps"};
  }
  if (Status status = check(rates, impl.rates_count); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = impl.fold(rates, 1.0 / impl.config.loss_scale); !status.ok()) return status;
  std::fill(impl.applied.begin(), impl.applied.end(), char{0});
  impl.open = true;
  return {};
}

Status Optimizer::apply(std::size_t i, const Gradient& grad) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (!impl.open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  const auto index = static_cast<std::int64_t>(i);
  if (i >= impl.applied.size()) return bad("there is no such parameter", index);
  if (impl.applied[i] != 0) {
    return {StatusCode::bad_state, "a parameter was applied already in this step", index};
  }
  core::Selection selection{i, i + 1, &grad};
  if (Status status = impl.check_grads(selection); !status.ok()) return status;
  static const std::vector<core::RangeLock*> kNoLocks;
  const core::ParameterLocks::Guard guard(impl.config.use_locking ? impl.locks.of(i) : kNoLocks);
  const cpu::FloatEnvironment pinned;
  if (Status status = impl.stepper.merge(selection, false); !status.ok()) return status;
  impl.stepper.update();
  impl.applied[i] = 1;
  return {};
}

Status Optimizer::end_step() noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (!impl.open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  const auto missing = std::find(impl.applied.begin(), impl.applied.end(), char{0});
  if (missing != impl.applied.end()) {
    return {StatusCode::bad_state, "a parameter was not applied in this step",
            missing - impl.applied.begin()};
  }
  impl.open = false;
  impl.last_step_skipped.store(false);
  impl.global_step.fetch_add(1);
  return {};
}

Status Optimizer::cancel_step() noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (!impl_->open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  impl_->open = false;
  return {};
}

double Optimizer::loss_scale() const noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->config.loss_scale;
}

Status Optimizer::set_loss_scale(double loss_scale) noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (impl_->open) return {StatusCode::bad_state, kOpen};
  AdamConfig changed = impl_->config;
  changed.loss_scale = loss_scale;
  if (Status status = check(changed); !status.ok()) return status;
  impl_->config = changed;
  return {};
}

bool Optimizer::last_step_skipped() const noexcept { return impl_->last_step_skipped.load(); }
std::int64_t Optimizer::skipped_steps() const noexcept { return impl_->skipped_steps.load(); }
double Optimizer::last_grad_norm() const noexcept { return impl_->last_grad_norm.load(); }
std::int64_t Optimizer::global_step() const noexcept { return impl_->global_step.load(); }

// Rows keep their distance to the current step.
Status Optimizer::set_global_step(std::int64_t step) noexcept {
  Impl& impl = *impl_;
  if (step < 0 || step > kMaxStep) return bad("global_step must be in [0, 2^62]");
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (impl.open) return {StatusCode::bad_state, kOpen};
  const std::int64_t moved = step - impl.global_step.load();
  for (const core::Tensor& tensor : impl.storage.tensors()) {
    std::int64_t* row_steps = tensor.row_steps();
    if (row_steps == nullptr) continue;
    for (std::int64_t row = 0; row < tensor.spec.rows; ++row) row_steps[row] += moved;
  }
  impl.global_step.store(step);
  return {};
}

void* Optimizer::state(StateKind kind, std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return i < tensors.size() ? tensors[i].state(kind) : nullptr;
}

Status Optimizer::save(Span<const ArrayCopy> to, Counters* counters) const noexcept {
  const Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_copies(to); !status.ok()) return status;
  for (const ArrayCopy& copy : to) {
    if (copy.nbytes > 0) std::memcpy(copy.data, impl.array_of(copy), copy.nbytes);
  }
  *counters = {impl.global_step.load(), impl.skipped_steps.load(), impl.config.loss_scale,
               impl.last_grad_norm.load(), impl.last_step_skipped.load()};
  return {};
}

Status Optimizer::load(Span<const ArrayCopy> from, const Counters& counters) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_load(from, counters); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (copy.nbytes > 0) std::memcpy(impl.array_of(copy), copy.data, copy.nbytes);
  }
  impl.global_step.store(counters.global_step);
  impl.skipped_steps.store(counters.skipped_steps);
  impl.config.loss_scale = counters.loss_scale;
  impl.last_grad_norm.store(counters.last_grad_norm);
  impl.last_step_skipped.store(counters.last_step_skipped);
  return {};
}

Status Optimizer::decode_moment(StateKind kind, std::size_t i, float* values) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  if (i >= tensors.size() || kind > StateKind::moment2) return bad("there is no such moment");
  const core::Tensor& tensor = tensors[i];
  if (tensor.format == StateFormat::real) return bad("the moment is stored as it is");
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const std::int64_t length = core::kTile / tensor.scale_block * tensor.scale_block;
  for (std::int64_t begin = 0; begin < tensor.spec.count; begin += length) {
    const std::int64_t count = std::min(length, tensor.spec.count - begin);
    float moments[2][core::kTile];
    core::decode_moments(cpu::kernels(), tensor, begin, count, moments[0], moments[1]);
    std::copy_n(moments[static_cast<std::size_t>(kind)], count, values + begin);
  }
  return {};
}

std::int64_t Optimizer::scale_block(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  const bool has_scales = i < tensors.size() && tensors[i].format == StateFormat::int8;
  return has_scales ? tensors[i].scale_block : 0;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->storage.state_nbytes(); }

int Optimizer::num_threads() const noexcept { return impl_->config.num_threads; }

}  // namespace adamas
