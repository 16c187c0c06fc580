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
#include "cuda/offload.hpp"
#include "cuda/stepper.hpp"
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

  Status prepare(const AdamConfig& options, Span<const ParameterSpec> parameters,
                 Span<void* const> after);
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
  Status copy_out(const ArrayCopy& copy) const noexcept;
  Status copy_in(const ArrayCopy& copy) noexcept;
  void close() noexcept;
  rules::Corrections corrections(std::int64_t step) noexcept;
  Status fold(Span<const Rates> rates, double factor) noexcept;
  Status step(Span<const Gradient> grads, Span<const Rates> rates,
              const Queueing& queueing) noexcept;
  Status update_on_device(const core::Selection& selection, Span<const Rates> rates,
                          const Queueing& queueing) noexcept;
  cuda::Control outcome() const noexcept;
  bool device_decides() const { return device_stepper != nullptr && device_stepper->decides(); }
  Status open_device(Span<const ParameterSpec> parameters, std::vector<ParameterSpec>* copies);
  Status step_offloaded(Span<const Gradient> grads, Span<const Rates> rates,
                        const Queueing& queueing) noexcept;
  Status update_offloaded(Span<const Gradient> grads, Span<const Rates> rates) noexcept;
  Status apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept;
  bool streams(Span<const Gradient> grads) const noexcept;
  Status clip(const cpu::Measure& measure, Span<const Rates> rates) noexcept;
  void decode(const core::Tensor& tensor, StateKind kind, float* values) const noexcept;
  Status decode_on_host(const core::Tensor& tensor, StateKind kind, float* values) const noexcept;
  bool measures() const { return config.max_grad_norm > 0.0 || config.skip_nonfinite; }

  AdamConfig config;
  // First, so that it goes last: it owns the state on the device.  Null: the CPU.
  std::unique_ptr<cuda::Stepper> device_stepper;
  // Parameters on a device that are updated on the host; owns the copies.  Null: none are.
  std::unique_ptr<cuda::Offload> offload;
  core::Storage storage;
  core::Stepper stepper;
  core::ParameterLocks locks;
  std::size_t rates_count = 0;
  std::vector<Accepted> accepted;  // by parameter

  mutable std::mutex mutex;      // of one call at a time; taken before `locks`
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

Status Optimizer::Impl::prepare(const AdamConfig& options, Span<const ParameterSpec> parameters,
                                Span<void* const> after) {
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
  std::vector<ParameterSpec> copies;
  if (Status status = open_device(parameters, &copies); !status.ok()) return status;
  core::Storage::Allocate allocate;
  if (device_stepper) {
    allocate = [this](std::size_t nbytes) { return device_stepper->allocate_state(nbytes); };
  }
  const Span<const ParameterSpec> placed =
      offload ? Span<const ParameterSpec>{copies.data(), copies.size()} : parameters;
  if (Status status = storage.prepare(config, placed, allocate); !status.ok()) return status;
  if (Status status = check_scales(); !status.ok()) return status;
  if (config.use_locking) {
    std::vector<core::Tensor> tensors = storage.tensors();
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].spec.data = parameters[i].data;
    locks.prepare(tensors);
  }
  applied.resize(parameters.size);
  accepted.resize(parameters.size);
  if (device_stepper) return device_stepper->prepare(config, storage, rates_count, after);
  stepper.prepare(config, storage, rates_count);
  load_masters();
  return {};
}

Status Optimizer::Impl::open_device(Span<const ParameterSpec> parameters,
                                    std::vector<ParameterSpec>* copies) {
  const std::int32_t device = parameters.size == 0 ? kCpu : parameters[0].device;
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].device == device) continue;
    return bad("all parameters of an optimizer must be on one device; make one for each device",
               static_cast<std::int64_t>(i));
  }
  if (device == kCpu) return {};
  if (!config.use_offload) return cuda::Stepper::open(device, &device_stepper);
  if (config.capturable) return bad("capturable and use_offload exclude each other");
  return cuda::Offload::open(parameters, &offload, copies);
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
  if (grad.device != tensor.spec.device) {
    return bad("a gradient must be where its parameter is", index);
  }
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
  if (device_stepper) return device_stepper->fold(rates, corrections(step), step, factor);
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

// The work of a step on a device; the host decides, unless that depends on the gradients.
Status Optimizer::Impl::update_on_device(const core::Selection& selection, Span<const Rates> rates,
                                         const Queueing& queueing) noexcept {
  const cuda::Place place{queueing, locks.all()};
  if (device_stepper->decides()) {
    return device_stepper->decide_and_update(selection, rates, config.loss_scale, place);
  }
  const std::int64_t step = global_step.load() + 1;
  Status status = device_stepper->fold(rates, corrections(step), step, 1.0 / config.loss_scale);
  if (status.ok()) status = device_stepper->update(selection, place);
  if (!status.ok()) return status;
  last_step_skipped.store(false);
  global_step.fetch_add(1);
  return {};
}

// Zeros if the device fails, which the next step reports.
cuda::Control Optimizer::Impl::outcome() const noexcept {
  const std::lock_guard<std::mutex> lock(mutex);
  cuda::Control control{};
  static_cast<void>(device_stepper->outcome(&control));
  return control;
}

Status Optimizer::Impl::step(Span<const Gradient> grads, Span<const Rates> rates,
                             const Queueing& queueing) noexcept {
  if (Status status = check_closed(); !status.ok()) return status;
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = check(rates, rates_count); !status.ok()) return status;
  core::Selection selection{0, grads.size, grads.data};
  if (Status status = check_grads(selection); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (device_stepper) return update_on_device(selection, rates, queueing);
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

// Whether the update of a parameter depends on its own gradient alone, and nothing in it can fail.
bool Optimizer::Impl::streams(Span<const Gradient> grads) const noexcept {
  return !measures() && std::all_of(grads.begin(), grads.end(),
                                    [](const Gradient& grad) { return grad.rows == nullptr; });
}

// What step() does for parameters on the CPU, with the copies of parameters and gradients.
Status Optimizer::Impl::step_offloaded(Span<const Gradient> grads, Span<const Rates> rates,
                                       const Queueing& queueing) noexcept {
  if (Status status = offload->check_usable(); !status.ok()) return status;
  if (grads.size != storage.tensors().size()) {
    return bad("there must be one gradient for each parameter");
  }
  if (Status status = offload->place(0, grads); !status.ok()) return status;
  const Span<const Gradient> copies{offload->grads(), grads.size};
  if (Status status = check_closed(); !status.ok()) return status;
  core::Selection selection{0, grads.size, copies.data};
  if (Status status = check_grads(selection); !status.ok()) return status;
  if (Status status = offload->fetch(queueing); !status.ok()) return status;
  if (streams(grads)) {
    if (Status status = update_offloaded(copies, rates); !status.ok()) return status;
  } else {
    for (std::size_t i = 0; i < grads.size; ++i) {
      if (Status status = offload->wait(i); !status.ok()) return status;
    }
    if (Status status = step(copies, rates, {}); !status.ok()) return status;
    for (std::size_t i = 0; i < grads.size; ++i) {
      if (Status status = offload->send(i); !status.ok()) return offload->close(), status;
    }
  }
  const Status status = offload->finish(queueing.stream, config.use_locking);
  if (!status.ok()) offload->close();
  return status;
}

// One parameter after the other, while the copies of others are under way.
Status Optimizer::Impl::update_offloaded(Span<const Gradient> grads,
                                         Span<const Rates> rates) noexcept {
  if (Status status = check(rates, rates_count); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = fold(rates, 1.0 / config.loss_scale); !status.ok()) return status;
  for (std::size_t i = 0; i < grads.size; ++i) {
    Status status = offload->wait(i);
    if (status.ok()) status = stepper.merge({i, i + 1, &grads[i]}, false);
    if (status.ok()) {
      stepper.update();
      status = offload->send(i);
    }
    if (!status.ok()) return offload->close(), status;
  }
  last_step_skipped.store(false);
  global_step.fetch_add(1);
  return {};
}

char* Optimizer::Impl::array_of(const ArrayCopy& copy) const noexcept {
  const core::Tensor& tensor = storage.tensors()[copy.parameter];
  return copy.kind ? tensor.state(*copy.kind) : tensor.data();
}

Status Optimizer::Impl::copy_out(const ArrayCopy& copy) const noexcept {
  if (copy.nbytes == 0) return {};
  if (device_stepper) return device_stepper->read(array_of(copy), copy.data, copy.nbytes);
  if (offload && !copy.kind) {
    if (Status status = offload->read(copy.parameter); !status.ok()) return status;
  }
  std::memcpy(copy.data, array_of(copy), copy.nbytes);
  return {};
}

Status Optimizer::Impl::copy_in(const ArrayCopy& copy) noexcept {
  if (copy.nbytes == 0) return {};
  if (device_stepper) return device_stepper->write(array_of(copy), copy.data, copy.nbytes);
  std::memcpy(array_of(copy), copy.data, copy.nbytes);
  return offload && !copy.kind ? offload->write(copy.parameter) : Status{};
}

// After an error of a device that left something half done.
void Optimizer::Impl::close() noexcept {
  if (device_stepper) device_stepper->close();
  if (offload) offload->close();
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
                         std::unique_ptr<Optimizer>* optimizer, Span<void* const> after) noexcept {
  try {
    if (Status status = check(config); !status.ok()) return status;
    auto impl = std::make_unique<Impl>();
    if (Status status = impl->prepare(config, parameters, after); !status.ok()) return status;
    optimizer->reset(new Optimizer(std::move(impl)));
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the optimizer"};
  }
}

Optimizer::Optimizer(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Optimizer::~Optimizer() = default;

Status Optimizer::step(Span<const Gradient> grads, Span<const Rates> rates,
                       const Queueing& queueing) noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const core::ParameterLocks::Guard guard(impl_->locks.all());
  if (impl_->offload) return impl_->step_offloaded(grads, rates, queueing);
  return impl_->step(grads, rates, queueing);
}

Status Optimizer::begin_step(Span<const Rates> rates) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (Status status = impl.check_closed(); !status.ok()) return status;
  if (impl.measures()) {
    return {StatusCode::bad_state,
            "max_grad_norm and skip_nonfinite need all gradients at once: make whole steps"};
  }
  if (impl.device_decides()) {
    return {StatusCode::bad_state, "a capturable optimizer makes whole steps"};
  }
  if (Status status = check(rates, impl.rates_count); !status.ok()) return status;
  const cpu::FloatEnvironment pinned;
  if (Status status = impl.fold(rates, 1.0 / impl.config.loss_scale); !status.ok()) return status;
  std::fill(impl.applied.begin(), impl.applied.end(), char{0});
  impl.open = true;
  return {};
}

Status Optimizer::apply(std::size_t i, const Gradient& grad, const Queueing& queueing) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (!impl.open) return {StatusCode::bad_state, "no step is open: call begin_step first"};
  const auto index = static_cast<std::int64_t>(i);
  if (i >= impl.applied.size()) return bad("there is no such parameter", index);
  if (impl.applied[i] != 0) {
    return {StatusCode::bad_state, "a parameter was applied already in this step", index};
  }
  if (!impl.offload) return impl.apply(i, grad, queueing);
  if (Status status = impl.offload->check_usable(); !status.ok()) return status;
  if (Status status = impl.offload->place(i, {&grad, 1}); !status.ok()) return status;
  if (Status status = impl.offload->fetch(queueing); !status.ok()) return status;
  if (Status status = impl.offload->wait(i); !status.ok()) return status;
  if (Status status = impl.apply(i, *impl.offload->grads(), {}); !status.ok()) return status;
  Status status = impl.offload->send(i);
  if (status.ok()) status = impl.offload->finish(queueing.stream, impl.config.use_locking);
  if (!status.ok()) impl.offload->close();
  return status;
}

Status Optimizer::Impl::apply(std::size_t i, const Gradient& grad,
                              const Queueing& queueing) noexcept {
  core::Selection selection{i, i + 1, &grad};
  if (Status status = check_grads(selection); !status.ok()) return status;
  static const std::vector<core::RangeLock*> kNoLocks;
  const auto& taken = config.use_locking ? locks.of(i) : kNoLocks;
  const core::ParameterLocks::Guard guard(taken);
  const cpu::FloatEnvironment pinned;
  if (device_stepper) {
    if (Status status = device_stepper->update(selection, {queueing, taken}); !status.ok()) {
      return status;
    }
  } else {
    if (Status status = stepper.merge(selection, false); !status.ok()) return status;
    stepper.update();
  }
  applied[i] = 1;
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

bool Optimizer::last_step_skipped() const noexcept {
  return impl_->device_decides() ? impl_->outcome().last_step_skipped != 0
                                 : impl_->last_step_skipped.load();
}

std::int64_t Optimizer::skipped_steps() const noexcept {
  return impl_->device_decides() ? impl_->outcome().skipped_steps : impl_->skipped_steps.load();
}

double Optimizer::last_grad_norm() const noexcept {
  return impl_->device_decides() ? impl_->outcome().last_grad_norm : impl_->last_grad_norm.load();
}

std::int64_t Optimizer::global_step() const noexcept {
  return impl_->device_decides() ? impl_->outcome().step : impl_->global_step.load();
}

// Rows keep their distance to the current step.
Status Optimizer::set_global_step(std::int64_t step) noexcept {
  Impl& impl = *impl_;
  if (step < 0 || step > kMaxStep) return bad("global_step must be in [0, 2^62]");
  const std::lock_guard<std::mutex> lock(impl.mutex);
  if (impl.open) return {StatusCode::bad_state, kOpen};
  const std::int64_t moved = step - impl.global_step.load();
  if (impl.device_stepper) {
    Status status = impl.device_stepper->set_global_step(step, moved);
    if (status.ok()) impl.global_step.store(step);
    return status;
  }
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
    if (Status status = impl.copy_out(copy); !status.ok()) return status;
  }
  *counters = {impl.global_step.load(), impl.skipped_steps.load(), impl.config.loss_scale,
               impl.last_grad_norm.load(), impl.last_step_skipped.load()};
  if (!impl.device_decides()) return {};
  cuda::Control control{};
  Status status = impl.device_stepper->outcome(&control);
  *counters = {control.step, control.skipped_steps, impl.config.loss_scale, control.last_grad_norm,
               control.last_step_skipped != 0};
  return status;
}

Status Optimizer::load(Span<const ArrayCopy> from, const Counters& counters) noexcept {
  Impl& impl = *impl_;
  const std::lock_guard<std::mutex> lock(impl.mutex);
  const core::ParameterLocks::Guard guard(impl.locks.all());
  if (Status status = impl.check_load(from, counters); !status.ok()) return status;
  for (const ArrayCopy& copy : from) {
    if (Status status = impl.copy_in(copy); !status.ok()) return impl.close(), status;
  }
  if (impl.device_decides()) {
    if (Status status = impl.device_stepper->set_counters(counters); !status.ok()) {
      return impl.close(), status;
    }
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
  if (impl_->device_stepper) return impl_->decode_on_host(tensor, kind, values);
  impl_->decode(tensor, kind, values);
  return {};
}

void Optimizer::Impl::decode(const core::Tensor& tensor, StateKind kind,
                             float* values) const noexcept {
  const std::int64_t length = core::kTile / tensor.scale_block * tensor.scale_block;
  for (std::int64_t begin = 0; begin < tensor.spec.count; begin += length) {
    const std::int64_t count = std::min(length, tensor.spec.count - begin);
    float moments[2][core::kTile];
    core::decode_moments(cpu::kernels(), tensor, begin, count, moments[0], moments[1]);
    std::copy_n(moments[static_cast<std::size_t>(kind)], count, values + begin);
  }
}

// The same of copies of the stored moments.
Status Optimizer::Impl::decode_on_host(const core::Tensor& tensor, StateKind kind,
                                       float* values) const noexcept {
  constexpr StateKind kStored[] = {StateKind::moment1, StateKind::moment2, StateKind::scale1,
                                   StateKind::scale2};
  try {
    core::Tensor copy = tensor;
    std::vector<char> copies[std::size(kStored)];
    for (std::size_t k = 0; k < std::size(kStored); ++k) {
      const char* stored = tensor.state(kStored[k]);
      if (stored == nullptr) continue;
      const std::int64_t items =
          k < 2 ? tensor.spec.count * tensor.moment_nbytes()
                : (tensor.spec.count + tensor.scale_block - 1) / tensor.scale_block;
      copies[k].resize(static_cast<std::size_t>(items));
      Status status = device_stepper->read(stored, copies[k].data(), copies[k].size());
      if (!status.ok()) return status;
      copy.states[static_cast<std::size_t>(kStored[k])] = copies[k].data();
    }
    decode(copy, kind, values);
    return {};
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory to decode a moment"};
  }
}

std::int64_t Optimizer::scale_block(std::size_t i) const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  const bool has_scales = i < tensors.size() && tensors[i].format == StateFormat::int8;
  return has_scales ? tensors[i].scale_block : 0;
}

std::size_t Optimizer::state_nbytes() const noexcept { return impl_->storage.state_nbytes(); }

Status Optimizer::set_rates(Span<const Rates> rates, void* stream) noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (Status status = check(rates, impl_->rates_count); !status.ok()) return status;
  if (!impl_->device_decides()) return {StatusCode::bad_state, "the optimizer is not capturable"};
  return impl_->device_stepper->set_rates(rates, impl_->config.loss_scale, stream);
}

bool Optimizer::is_capturing(void* stream) const noexcept {
  return impl_->device_stepper && impl_->device_stepper->is_capturing(stream);
}

std::int32_t Optimizer::device() const noexcept {
  const std::vector<core::Tensor>& tensors = impl_->storage.tensors();
  return tensors.empty() ? kCpu : tensors[0].spec.device;
}

Status Optimizer::read_device(const void* device, void* host, std::size_t nbytes) const noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (!impl_->device_stepper) return bad("the parameters are not on a device");
  return impl_->device_stepper->read(device, host, nbytes);
}

Status Optimizer::write_device(void* device, const void* host, std::size_t nbytes) noexcept {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (!impl_->device_stepper) return bad("the parameters are not on a device");
  return impl_->device_stepper->write(device, host, nbytes);
}

int Optimizer::num_threads() const noexcept { return impl_->config.num_threads; }

}  // namespace adamas
