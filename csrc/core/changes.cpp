// What of an optimizer may change between steps: more parameters, other memory, options of groups.
#include <new>
#include <utility>

#include "core/float_environment.hpp"
#include "core/optimizer_impl.hpp"
#include "rules/mindspore.hpp"

namespace adamas {

using core::bad;
using core::check;

namespace {

// Memory of state that is given back unless it is kept.
class NewState {
 public:
  explicit NewState(core::Engine& engine) : engine_(engine) {}
  ~NewState() {
    if (memory_ != nullptr) engine_.release_state(memory_);
  }
  NewState(const NewState&) = delete;
  NewState& operator=(const NewState&) = delete;

  char* allocate(std::size_t nbytes) { return memory_ = engine_.allocate_state(nbytes); }
  void keep() { memory_ = nullptr; }

 private:
  core::Engine& engine_;
  char* memory_ = nullptr;
};

}  // namespace

// All that can be refused is done on copies, which then take the place of what there is.
Status Optimizer::Impl::add(Span<const ParameterSpec> parameters, Span<const AdamConfig> groups,
                            Span<void* const> after) {
  const core::FloatEnvironment pinned;
  const std::size_t first = storage.tensors().size();
  std::vector<ParameterSpec> specs;
  for (const core::Tensor& tensor : storage.tensors()) specs.push_back(tensor.spec);
  specs.insert(specs.end(), parameters.begin(), parameters.end());
  std::vector<AdamConfig> more_groups = options.groups;
  more_groups.insert(more_groups.end(), groups.begin(), groups.end());
  core::Options more{options.all, {}};
  Status status = core::make_groups(more_groups, specs, &more);
  if (status.ok()) status = check(more, specs);
  if (!status.ok()) return status;
  if (engine->device() != kCpu && more.measures() != options.measures()) {
    return {StatusCode::bad_state,
            "on a device, clipping can't be turned on once an optimizer is made"};
  }
  core::Storage grown = storage;
  NewState state(*engine);
  const auto allocate = [&](std::size_t nbytes) { return state.allocate(nbytes); };
  status = grown.extend(more, parameters, allocate, engine->access_width());
  if (status.ok()) status = core::check_state(more, grown);
  if (!status.ok()) return status;
  Counters now;
  status = read_counters(&now);
  core::ParameterSteps more_steps = steps;
  if (status.ok()) status = more_steps.extend(parameters.size, now.global_step);
  if (status.ok() && more_steps.differing() != nullptr)
    status = engine->allow_differing_steps(nullptr);
  if (!status.ok()) return status;
  core::ParameterLocks renewed;
  if (more.all.use_locking) renewed.prepare(grown.parameter_ranges());
  core::GradientChecks fresh;
  fresh.prepare(options, storage);
  fresh.extend(specs.size());
  core::OpenStep closed;
  closed.prepare(specs.size());
  // The engine looks at options and tensors where they are.
  std::swap(options, more);
  std::swap(storage, grown);
  try {
    status = engine->extend(first, after);
  } catch (const std::bad_alloc&) {
    status = {StatusCode::out_of_memory, "no memory for more parameters"};
  }
  if (!status.ok()) {
    std::swap(options, more);
    std::swap(storage, grown);
    return status;
  }
  state.keep();
  steps = std::move(more_steps);
  locks = std::move(renewed);
  gradients = std::move(fresh);
  parts = std::move(closed);
  return {};
}

Status Optimizer::Impl::check_memory(Span<const NewMemory> memory) const noexcept {
  for (const NewMemory& one : memory) {
    const auto index = static_cast<std::int64_t>(one.parameter);
    if (one.parameter >= storage.tensors().size()) return bad("there is no such parameter", index);
    const ParameterSpec& spec = storage.tensors()[one.parameter].spec;
    if (spec.device != kCpu)
      return bad("a parameter on a device can't be given other memory", index);
    if (spec.count > 0 && one.data == nullptr) return bad("a parameter has no memory", index);
  }
  return {};
}

// Nobody holds the locks: that needs the mutex.
Status Optimizer::Impl::rebind(Span<const NewMemory> memory) {
  core::Storage moved = storage;
  if (Status status = moved.rebind(options.all, memory); !status.ok()) return status;
  core::ParameterLocks renewed;
  if (options.all.use_locking) renewed.prepare(moved.parameter_ranges());
  // Nothing can fail any more: there is room for the copy.  Engines know the tensors where they
  // are.
  storage = moved;
  locks = std::move(renewed);
  gradients.forget();
  for (const NewMemory& one : memory) engine->rebind(one.parameter);
  return {};
}

// What needs other memory or other kernels than those that were chosen can't be changed any more.
Status Optimizer::Impl::set_group(std::size_t k, AdamConfig group) noexcept {
  if (k >= options.groups.size()) return bad("there is no such group");
  if (Status status = parts.check_closed(); !status.ok()) return status;
  group = rules::used_config(group);
  group.loss_scale = options.all.loss_scale;
  group.num_threads = options.all.num_threads;
  if (Status status = core::check_group(options.all, group); !status.ok()) return status;
  if (group.use_amsgrad != options.groups[k].use_amsgrad) {
    return bad("use_amsgrad can't be changed: its state is reserved when an optimizer is made");
  }
  for (const core::Tensor& tensor : storage.tensors()) {
    if (static_cast<std::size_t>(tensor.spec.rates) != k) continue;
    if (Status status = core::check_eps(group, tensor.spec.dtype, tensor.index); !status.ok()) {
      return status;
    }
  }
  const AdamConfig former = std::exchange(options.groups[k], group);
  Status status = engine->take_options();
  if (!status.ok()) options.groups[k] = former;
  return status;
}

Status Optimizer::set_group(std::size_t k, const AdamConfig& group) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return impl_->set_group(k, group);
}

AdamConfig Optimizer::group(std::size_t k) const noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  return k < impl_->options.groups.size() ? impl_->options.groups[k] : AdamConfig{};
}

Status Optimizer::add(Span<const ParameterSpec> parameters, Span<const AdamConfig> groups,
                      Span<void* const> after) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  if (Status status = impl_->check_unaccumulated(); !status.ok()) return status;
  try {
    return impl_->add(parameters, groups, after);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for more parameters"};
  }
}

Status Optimizer::rebind(Span<const NewMemory> memory) noexcept {
  const std::lock_guard<core::CallMutex> lock(impl_->mutex);
  if (Status status = impl_->parts.check_closed(); !status.ok()) return status;
  if (Status status = impl_->check_memory(memory); !status.ok()) return status;
  try {
    return impl_->rebind(memory);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory to rebind parameters"};
  }
}

}  // namespace adamas
