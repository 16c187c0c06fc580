#include "core/checks.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "core/layout.hpp"
#include "rules/fold_rates.hpp"
#include "rules/mindspore.hpp"

namespace adamas::core {
namespace {

// The list of options names every member of AdamConfig: one more initializer than it has lines
// would be too many, and one for each is not.
struct Anything {
  template <class T>
  operator T() const;
};
template <std::size_t>
using AnythingAt = Anything;
template <std::size_t... k>
constexpr auto takes(std::index_sequence<k...>, int)
    -> decltype(AdamConfig{AnythingAt<k>()...}, true) {
  return true;
}
template <std::size_t... k>
constexpr bool takes(std::index_sequence<k...>, long) {
  return false;
}
#define ADAMAS_NAME(name, decides, of_group) #name,
constexpr const char* kOptionNames[] = {ADAMAS_OPTIONS(ADAMAS_NAME)};
#undef ADAMAS_NAME
constexpr std::size_t kOptions = std::size(kOptionNames);
static_assert(takes(std::make_index_sequence<kOptions>(), 0) &&
              !takes(std::make_index_sequence<kOptions + 1>(), 0));

bool is_decay_rate(double beta, bool allow_zero) {
  return beta < 1.0 && (beta > 0.0 || (allow_zero && beta == 0.0));
}

// The smallest eps that a step will use is that of the first (rules/fold.hpp).
template <class Real>
Status check_real_eps(const AdamConfig& config, std::int64_t i) {
  if (config.eps == 0.0) return {};
  const bool inside = rules::has_eps_inside(config);
  const double smallest = inside ? config.eps : config.eps * std::sqrt(1.0 - config.beta2);
  if (!(static_cast<Real>(smallest) > 0)) return bad("eps rounds to zero in the arithmetic", i);
  if (std::isinf(static_cast<Real>(config.eps))) return bad("eps is infinite in the arithmetic", i);
  return {};
}

Status check(const AdamConfig& config, const ParameterSpec& parameter, std::int64_t i) {
  if (parameter.count < 0 || parameter.rates < 0) return bad("a count or index is negative", i);
  if (parameter.axes < 0 || parameter.second_axis < 0) return bad("a shape is negative", i);
  if (parameter.count > 0 && parameter.data == nullptr) return bad("a parameter has no memory", i);
  if (parameter.count > 0 && (parameter.rows < 1 || parameter.count % parameter.rows != 0)) {
    return bad("the rows of a parameter must divide its count", i);
  }
  if (parameter.rows < 0) return bad("a number of rows is negative", i);
  if (config.writes_delta ? parameter.count > 0 && parameter.delta == nullptr
                          : parameter.delta != nullptr) {
    return bad("a parameter must have a place for its change with writes_delta, and else none", i);
  }
  if (parameter.key < -1) return bad("a key must be -1 or more", i);
  return check_eps(config, parameter.dtype, i);
}

Status check_format(const AdamConfig& config, Span<const ParameterSpec> parameters) {
  if (config.state_format == StateFormat::real) return {};
  if (config.row_policy == RowPolicy::catch_up) {
    return bad("moments in 16 or 8 bits do not go with the row policy catch_up");
  }
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (real_type(parameters[i].dtype) == DType::float32) continue;
    return bad("a float64 parameter keeps float64 moments", static_cast<std::int64_t>(i));
  }
  return {};
}

// Whether it has so many elements, as far as its caller has said.
bool has_count(const Gradient& grad, std::size_t wanted) {
  return grad.count == -1 || static_cast<std::size_t>(grad.count) == wanted;
}

// State that the caller has brought for a parameter.
Status check_given(const Options& options, const Tensor& tensor) {
  constexpr bool kCanBeGiven[kStateKinds] = {true, true, true, true, false, false, false, true};
  for (std::size_t k = 0; k < kStateKinds; ++k) {
    const void* given = tensor.spec.states[k];
    if (given == nullptr) continue;
    const auto kind = static_cast<StateKind>(k);
    const StateLayout layout = layout_of(kind, tensor, options.all);
    if (!layout.is_kept) {
      return bad("an array of state is given that these options do not keep", tensor.index);
    }
    if (!kCanBeGiven[k] || (kind <= StateKind::moment2 && tensor.format == StateFormat::int8)) {
      return bad("state with scales or steps of its own can't be the caller's", tensor.index);
    }
    if (reinterpret_cast<std::uintptr_t>(given) % item_size(layout.type) != 0) {
      return bad("an array of state must be aligned to its items", tensor.index);
    }
  }
  return {};
}

// Whether the change is written over a dense gradient, item by item; the CPU's kernels have read a
// tile before they write it.
bool becomes_change(const Tensor& tensor, const Gradient& grad) {
  return tensor.spec.delta != nullptr && grad.values == tensor.spec.delta &&
         grad.dtype == tensor.spec.dtype && grad.device == kCpu;
}

Status check_rows(const Options& options, const Storage& storage, const Tensor& tensor,
                  const Gradient& grad) {
  const std::int64_t index = tensor.index;
  if (const AdamConfig& group = options.of(tensor.spec);
      group.clip_after_decay && group.max_grad_norm + options.all.max_grad_norm > 0.0) {
    return bad("clip_after_decay needs dense gradients", index);
  }
  const RowIndices& rows = *grad.rows;
  if (tensor.dense_only) {
    return bad("a centralized parameter must not have a sparse gradient", index);
  }
  if (!tensor.has_own_scales()) {
    return bad("int8 moments of a sparse gradient need rows that blocks of 64 to 256 fill", index);
  }
  if (rows.count < 0 || rows.count >= static_cast<std::int64_t>(rules::kEntryLimit)) {
    return bad("a sparse gradient must have fewer than 2^32 - 1 entries", index);
  }
  const auto count = static_cast<std::size_t>(rows.count);
  const std::size_t wanted = count * static_cast<std::size_t>(tensor.row_length);
  if (!has_count(grad, wanted)) {
    return bad("a sparse gradient must have a row of values for each index", index);
  }
  const std::size_t values = wanted * item_size(grad.dtype);
  if ((count > 0 && rows.data == nullptr) || (values > 0 && grad.values == nullptr)) {
    return bad("a gradient is missing", index);
  }
  if (storage.overlaps(grad.values, values) ||
      storage.overlaps(rows.data, count * (rows.is_int64 ? 8 : 4))) {
    return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
  }
  return {};
}

}  // namespace

Status check(const AdamConfig& config) {
  const bool allow_zero = config.allow_zero;
  if (!is_decay_rate(config.beta1, allow_zero)) {
    return bad("beta1 must be in (0, 1), or 0 with allow_zero");
  }
  if (!is_decay_rate(config.beta2, allow_zero)) {
    return bad("beta2 must be in (0, 1), or 0 with allow_zero");
  }
  if (!(config.eps > 0.0 || (allow_zero && config.eps == 0.0)) || std::isinf(config.eps)) {
    return bad("eps must be finite and > 0, or 0 with allow_zero");
  }
  if (!(config.loss_scale >= kMinLossScale && config.loss_scale <= kMaxLossScale)) {
    return bad("loss_scale must be in [2^-126, 2^126]");
  }
  if (!(config.max_grad_norm >= 0.0) || std::isinf(config.max_grad_norm)) {
    return bad("max_grad_norm must be finite and >= 0");
  }
  if (!(config.ema_decay == 0.0 || is_decay_rate(config.ema_decay, false))) {
    return bad("ema_decay must be in (0, 1), or 0 for none");
  }
  if (config.writes_delta && (config.master_weights || config.ema_decay > 0.0)) {
    return bad(
        "writes_delta does not go with master_weights or ema_decay, which follow parameters");
  }
  if (config.writes_delta && config.use_offload) {
    return bad("writes_delta does not go with use_offload, which has parameters on the host");
  }
  if (config.num_threads < 0) return bad("num_threads must not be negative");
  return {};
}

Status check_group(const AdamConfig& all, const AdamConfig& group) {
#define ADAMAS_EQUAL(name, decides, of_group)              \
  if (!(of_group) && !(group.name == all.name)) {          \
    return bad("a group can't have " #name " of its own"); \
  }
  ADAMAS_OPTIONS(ADAMAS_EQUAL)
#undef ADAMAS_EQUAL
  return check(group);
}

Status check_eps(const AdamConfig& config, DType parameter, std::int64_t index) {
  return real_type(parameter) == DType::float32 ? check_real_eps<float>(config, index)
                                                : check_real_eps<double>(config, index);
}

Status make_groups(Span<const AdamConfig> given, Span<const ParameterSpec> parameters,
                   Options* options) {
  for (std::size_t k = 0; k < given.size; ++k) {
    AdamConfig group = rules::used_config(given[k]);
    group.num_threads = options->all.num_threads;
    if (Status status = check_group(options->all, group); !status.ok()) return status;
    options->groups.push_back(group);
  }
  std::size_t wanted = 0;
  for (const ParameterSpec& parameter : parameters) {
    if (parameter.rates < 0) continue;  // refused later
    wanted = std::max(wanted, static_cast<std::size_t>(parameter.rates) + 1);
  }
  if (given.size < wanted) options->groups.resize(wanted, default_group(options->all));
  return {};
}

Status check(const Options& options, Span<const ParameterSpec> parameters) {
  for (std::size_t i = 0; i < parameters.size; ++i) {
    const auto index = static_cast<std::int64_t>(i);
    if (parameters[i].rates < 0) return bad("a count or index is negative", index);
    Status status = check(options.of(parameters[i]), parameters[i], index);
    if (!status.ok()) return status;
  }
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].device == parameters[0].device) continue;
    return bad("all parameters of an optimizer must be on one device; make one for each device",
               static_cast<std::int64_t>(i));
  }
  return check_format(options.all, parameters);
}

Status check(const Options& options, Span<const Rates> rates) {
  if (rates.size < options.groups.size()) {
    return bad("there are fewer rates than the parameters refer to");
  }
  for (const Rates& rate : rates) {
    const double used = rules::used_learning_rate(options.all, rate.learning_rate);
    if (!(used >= 0.0) || std::isinf(used)) {
      return bad("a learning rate must be finite and >= 0");
    }
    if (!(rate.weight_decay >= 0.0) || std::isinf(rate.weight_decay)) {
      return bad("a weight decay must be finite and >= 0");
    }
  }
  return {};
}

Status check_steps(Span<const std::int64_t> steps, const Storage& storage) {
  if (steps.size != storage.tensors().size()) return bad(kNotAsManySteps);
  for (std::size_t i = 0; i < steps.size; ++i) {
    if (steps[i] >= 0 && steps[i] <= kMaxStep) continue;
    return bad("the steps of a parameter must be in [0, 2^62]", static_cast<std::int64_t>(i));
  }
  return {};
}

Status check_state(const Options& options, const Storage& storage) {
  for (const Tensor& tensor : storage.tensors()) {
    if (Status status = check_given(options, tensor); !status.ok()) return status;
    if (!tensor.spec.centralize || tensor.has_own_scales()) continue;
    return bad("int8 moments of a centralized parameter need rows that blocks of 64 to 256 fill",
               tensor.index);
  }
  return {};
}

Status check(const Options& options, const Storage& storage, const Tensor& tensor,
             const Gradient& grad) {
  const std::int64_t index = tensor.index;
  if (grad.device != tensor.spec.device) {
    return bad("a gradient must be where its parameter is", index);
  }
  if (!goes_with(grad.dtype, tensor.spec.dtype)) {
    return bad("a gradient has a type that does not go with its parameter's", index);
  }
  if (grad.rows != nullptr) return check_rows(options, storage, tensor, grad);
  const auto wanted = static_cast<std::size_t>(tensor.spec.count);
  if (!has_count(grad, wanted)) {
    return bad("a gradient must have as many elements as its parameter", index);
  }
  const std::size_t nbytes = wanted * item_size(grad.dtype);
  if (nbytes == 0) return {};
  if (grad.values == nullptr) return bad("a gradient is missing", index);
  if (becomes_change(tensor, grad)) return {};
  if (storage.overlaps(grad.values, nbytes)) {
    return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
  }
  return {};
}

}  // namespace adamas::core
