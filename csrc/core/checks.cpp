#include "core/checks.hpp"

#include <cmath>
#include <iterator>
#include <utility>

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
#define ADAMAS_NAME(name, decides) #name,
constexpr const char* kOptionNames[] = {ADAMAS_OPTIONS(ADAMAS_NAME)};
#undef ADAMAS_NAME
constexpr std::size_t kOptions = std::size(kOptionNames);
static_assert(takes(std::make_index_sequence<kOptions>(), 0) &&
              !takes(std::make_index_sequence<kOptions + 1>(), 0));

bool is_probability(double beta) { return beta > 0.0 && beta < 1.0; }

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
  if (parameter.axes < 0 || parameter.second_axis < 0) return bad("a shape is negative", i);
  if (parameter.count > 0 && parameter.data == nullptr) return bad("a parameter has no memory", i);
  if (parameter.count > 0 && (parameter.rows < 1 || parameter.count % parameter.rows != 0)) {
    return bad("the rows of a parameter must divide its count", i);
  }
  if (parameter.rows < 0) return bad("a number of rows is negative", i);
  return real_type(parameter.dtype) == DType::float32 ? check_eps<float>(config, i)
                                                      : check_eps<double>(config, i);
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

Status check_rows(const Storage& storage, const Tensor& tensor, const Gradient& grad) {
  const std::int64_t index = tensor.index;
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
  if (!is_probability(config.beta1)) return bad("beta1 must be in (0, 1)");
  if (!is_probability(config.beta2)) return bad("beta2 must be in (0, 1)");
  if (!(config.eps > 0.0) || std::isinf(config.eps)) return bad("eps must be finite and > 0");
  if (!(config.loss_scale >= kMinLossScale && config.loss_scale <= kMaxLossScale)) {
    return bad("loss_scale must be in [2^-126, 2^126]");
  }
  if (!(config.max_grad_norm >= 0.0) || std::isinf(config.max_grad_norm)) {
    return bad("max_grad_norm must be finite and >= 0");
  }
  if (config.num_threads < 0) return bad("num_threads must not be negative");
  return {};
}

Status check(const AdamConfig& config, Span<const ParameterSpec> parameters) {
  for (std::size_t i = 0; i < parameters.size; ++i) {
    Status status = check(config, parameters[i], static_cast<std::int64_t>(i));
    if (!status.ok()) return status;
  }
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].device == parameters[0].device) continue;
    return bad("all parameters of an optimizer must be on one device; make one for each device",
               static_cast<std::int64_t>(i));
  }
  return check_format(config, parameters);
}

Status check(const AdamConfig& config, Span<const Rates> rates, std::size_t wanted) {
  if (rates.size < wanted) return bad("there are fewer rates than the parameters refer to");
  for (const Rates& rate : rates) {
    const double used = rules::used_learning_rate(config, rate.learning_rate);
    if (!(used >= 0.0) || std::isinf(used)) {
      return bad("a learning rate must be finite and >= 0");
    }
    if (!(rate.weight_decay >= 0.0) || std::isinf(rate.weight_decay)) {
      return bad("a weight decay must be finite and >= 0");
    }
  }
  return {};
}

Status check_scales(const Storage& storage) {
  for (const Tensor& tensor : storage.tensors()) {
    if (!tensor.spec.centralize || tensor.has_own_scales()) continue;
    return bad("int8 moments of a centralized parameter need rows that blocks of 64 to 256 fill",
               tensor.index);
  }
  return {};
}

Status check(const Storage& storage, const Tensor& tensor, const Gradient& grad) {
  const std::int64_t index = tensor.index;
  if (grad.device != tensor.spec.device) {
    return bad("a gradient must be where its parameter is", index);
  }
  if (!goes_with(grad.dtype, tensor.spec.dtype)) {
    return bad("a gradient has a type that does not go with its parameter's", index);
  }
  if (grad.rows != nullptr) return check_rows(storage, tensor, grad);
  const auto wanted = static_cast<std::size_t>(tensor.spec.count);
  if (!has_count(grad, wanted)) {
    return bad("a gradient must have as many elements as its parameter", index);
  }
  const std::size_t nbytes = wanted * item_size(grad.dtype);
  if (nbytes == 0) return {};
  if (grad.values == nullptr) return bad("a gradient is missing", index);
  if (storage.overlaps(grad.values, nbytes)) {
    return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
  }
  return {};
}

}  // namespace adamas::core
