// Steps without an optimizer: the same checks and engines over state that is all the caller's.
#include "adamas/update.hpp"

#include <algorithm>
#include <new>
#include <vector>

#include "adamas/system.hpp"
#include "core/checks.hpp"
#include "core/engine.hpp"
#include "core/float_environment.hpp"
#include "core/fork.hpp"
#include "core/gradient_checks.hpp"
#include "core/layout.hpp"
#include "core/storage.hpp"
#include "rules/mindspore.hpp"

namespace adamas {
namespace {

using core::bad;
using core::check;

bool operator==(const AdamConfig& a, const AdamConfig& b) {
#define ADAMAS_EQUAL(name, decides, of_group) \
  if (!(a.name == b.name)) return false;
  ADAMAS_OPTIONS(ADAMAS_EQUAL)
#undef ADAMAS_EQUAL
  return true;
}

// Whether what was prepared for the arrays serves options that differ so: those of groups do, but
// for the state that they keep, and the loss scale, which steps look up.
bool keep_arrays(const AdamConfig& a, const AdamConfig& b) {
  AdamConfig changed = a;
#define ADAMAS_TAKE(name, decides, of_group) \
  if (of_group) changed.name = b.name;
  ADAMAS_OPTIONS(ADAMAS_TAKE)
#undef ADAMAS_TAKE
  changed.use_amsgrad = a.use_amsgrad;
  changed.loss_scale = b.loss_scale;
  return changed == b;
}

bool operator==(const ParameterSpec& a, const ParameterSpec& b) {
  return a.data == b.data && a.count == b.count && a.dtype == b.dtype && a.rates == b.rates &&
         a.rows == b.rows && a.centralize == b.centralize && a.device == b.device &&
         a.axes == b.axes && a.second_axis == b.second_axis && a.key == b.key &&
         a.delta == b.delta && std::equal(a.states, a.states + kStateKinds, b.states);
}

template <class T, class Alike>
bool are_alike(const std::vector<T>& known, Span<const T> given, Alike alike) {
  return known.size() == given.size && std::equal(known.begin(), known.end(), given.begin(), alike);
}

template <class T>
bool is_same(const std::vector<T>& known, Span<const T> given) {
  return are_alike(known, given, [](const T& a, const T& b) { return a == b; });
}

}  // namespace

struct AdamUpdate::Impl {
  Status prepare(const AdamConfig& config, Span<const ParameterSpec> parameters,
                 Span<const AdamConfig> groups);
  Status take_options(const AdamConfig& config, Span<const ParameterSpec> parameters,
                      Span<const AdamConfig> groups);
  Status take_arrays(Span<const ParameterSpec> parameters);
  Status start_engine(std::int32_t wanted);
  Status check_given() const;
  Status step(Span<const Gradient> grads, Span<const Rates> rates, Span<std::int64_t> steps,
              UpdateResult* result, const Queueing& queueing) noexcept;

  // What was asked for last, if that could be done.
  bool is_ready = false;
  AdamConfig asked;
  std::vector<AdamConfig> asked_groups;
  std::vector<ParameterSpec> specs;

  int usual_threads = 0;  // 0: not asked for yet
  core::Options options;
  std::int32_t device = kCpu;
  std::unique_ptr<core::Engine> engine;
  core::Storage storage;
  core::GradientChecks gradients;
};

// All state must have been given: there is nobody to keep it.
Status AdamUpdate::Impl::check_given() const {
  for (const core::Tensor& tensor : storage.tensors()) {
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      const StateLayout layout = core::layout_of(static_cast<StateKind>(k), tensor, options.all);
      if (layout.nbytes() == 0 || tensor.spec.states[k] != nullptr) continue;
      return bad("an array of state that these options keep is missing", tensor.index);
    }
  }
  return {};
}

Status AdamUpdate::Impl::take_options(const AdamConfig& config,
                                      Span<const ParameterSpec> parameters,
                                      Span<const AdamConfig> groups) {
  if (config.use_locking || config.capturable || config.use_offload) {
    return bad("use_locking, capturable and use_offload need an optimizer");
  }
  options.all = rules::used_config(config);
  options.groups.clear();
  if (Status status = check(options.all); !status.ok()) return status;
  if (options.all.num_threads == 0) {
    if (usual_threads == 0) {
      DefaultThreads usual;
      if (Status status = default_threads(&usual); !status.ok()) return status;
      usual_threads = usual.threads;
    }
    options.all.num_threads = usual_threads;
  }
  if (Status status = core::make_groups(groups, parameters, &options); !status.ok()) return status;
  return check(options, parameters);
}

Status AdamUpdate::Impl::take_arrays(Span<const ParameterSpec> parameters) {
  Status status = storage.prepare(options, parameters, {}, 0);
  if (status.ok()) status = core::check_state(options, storage);
  if (status.ok()) status = check_given();
  if (!status.ok()) return status;
  gradients.prepare(options, storage);
  return start_engine(parameters.size == 0 ? kCpu : parameters[0].device);
}

// The one there is, on the same device.
Status AdamUpdate::Impl::start_engine(std::int32_t wanted) {
  if (wanted != kCpu && options.measures()) {
    return bad(
        "max_grad_norm and skip_nonfinite need an optimizer on a device, which decides there");
  }
  if (!engine || device != wanted) {
    engine.reset();
    if (Status status = core::open_engine(options.all, wanted, &engine); !status.ok()) {
      return status;
    }
    device = wanted;
  }
  Status status = engine->start(options, storage.tensors(), {});
  if (!status.ok()) engine.reset();
  return status;
}

Status AdamUpdate::Impl::prepare(const AdamConfig& config, Span<const ParameterSpec> parameters,
                                 Span<const AdamConfig> groups) {
  const bool has_arrays = is_ready && is_same(specs, parameters);
  if (has_arrays && config == asked && is_same(asked_groups, groups)) return {};
  const bool keeps_arrays =
      has_arrays && keep_arrays(asked, config) && are_alike(asked_groups, groups, keep_arrays);
  is_ready = false;
  Status status = take_options(config, parameters, groups);
  if (status.ok()) status = keeps_arrays ? engine->take_options() : take_arrays(parameters);
  if (!status.ok()) return status;
  asked = config;
  asked_groups.assign(groups.begin(), groups.end());
  if (!keeps_arrays) specs.assign(parameters.begin(), parameters.end());
  is_ready = true;
  return {};
}

Status AdamUpdate::Impl::step(Span<const Gradient> grads, Span<const Rates> rates,
                              Span<std::int64_t> steps, UpdateResult* result,
                              const Queueing& queueing) noexcept {
  if (grads.size != specs.size()) return bad("there must be one gradient for each parameter");
  if (Status status = core::check_steps({steps.data, steps.size}, storage); !status.ok()) {
    return status;
  }
  if (Status status = check(options, rates); !status.ok()) return status;
  core::Selection all{0, grads.size, grads.data};
  if (Status status = gradients.check(all); !status.ok()) return status;
  const auto is_first = [&](std::int64_t step) { return step == steps[0]; };
  const bool alike = std::all_of(steps.begin(), steps.end(), is_first);
  if (!alike) {
    if (Status status = engine->allow_differing_steps(queueing.stream); !status.ok()) return status;
  }
  const core::StepInput input{steps.size == 0 ? 1 : steps[0] + 1, alike ? nullptr : steps.data,
                              rates, options.all.loss_scale};
  const std::vector<core::RangeLock*> no_locks;
  core::StepResult made;
  Status status = engine->step(all, input, {queueing, no_locks}, &made);
  if (status.code() == StatusCode::device_error) {
    engine.reset();  // it takes no more steps, but the caller's arrays are the caller's
    is_ready = false;
  }
  if (!status.ok()) return status;
  for (std::size_t i = 0; i < steps.size && !made.skipped; ++i) {
    steps[i] += grads[i].is_absent ? 0 : 1;
  }
  if (result == nullptr) return {};
  result->skipped = made.skipped;
  result->grad_norm = made.grad_norm.value_or(UpdateResult{}.grad_norm);
  return {};
}

AdamUpdate::AdamUpdate() noexcept = default;
AdamUpdate::~AdamUpdate() = default;

Status AdamUpdate::step(const AdamConfig& config, Span<const ParameterSpec> parameters,
                        Span<const Gradient> grads, Span<const Rates> rates,
                        Span<std::int64_t> steps, UpdateResult* result,
                        Span<const AdamConfig> groups, const Queueing& queueing) noexcept {
  const core::NoFork no_fork;
  const core::FloatEnvironment pinned;
  try {
    if (!impl_) impl_ = std::make_unique<Impl>();
    if (Status status = impl_->prepare(config, parameters, groups); !status.ok()) return status;
    return impl_->step(grads, rates, steps, result, queueing);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the step"};
  }
}

}  // namespace adamas
