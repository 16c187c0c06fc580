// The C API: checks what C can get wrong, translates the structs, calls the C++ API.
#include "adamas/adamas.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "adamas/optimizer.hpp"
#include "adamas/system.hpp"
#include "adamas/update.hpp"
#include "core/internals.hpp"

struct adamas_optimizer {
  std::unique_ptr<adamas::Optimizer> native;
};

namespace adamas::c {
namespace {

adamas_status to_c(const Status& status) {
  return {static_cast<std::int32_t>(status.code()), status.index(), status.what()};
}

Status bad(const char* what, std::int64_t index = -1) {
  return {StatusCode::invalid_argument, what, index};
}

// Runs a function that returns a Status and may run out of memory.
template <class Function>
adamas_status guarded(Function function) noexcept {
  try {
    return to_c(function());
  } catch (...) {  // also of counts that no vector can have
    return to_c({StatusCode::out_of_memory, "no memory for the call"});
  }
}

// Structs that grow

void set_defaults(adamas_config* config) {
  const AdamConfig usual;
#define ADAMAS_DEFAULT(name, decides, of_group) \
  config->name = static_cast<decltype(config->name)>(usual.name);
  ADAMAS_OPTIONS(ADAMAS_DEFAULT)
#undef ADAMAS_DEFAULT
}

void set_defaults(adamas_parameter* parameter) {
  parameter->rows = 1;
  parameter->device = kCpu;
  parameter->key = -1;
}

void set_defaults(adamas_gradient* gradient) {
  gradient->indices_are_int64 = 1;
  gradient->device = kCpu;
  gradient->count = Gradient{}.count;
}

void set_defaults(adamas_queueing*) {}

void set_defaults(adamas_counters* counters) {
  const Counters usual;
  counters->loss_scale = usual.loss_scale;
  counters->last_grad_norm = usual.last_grad_norm;
}

// Of the first version: no program has shorter ones.  Never to be changed.
constexpr std::size_t first_size(const adamas_config&) { return 112; }
constexpr std::size_t first_size(const adamas_parameter&) { return 48; }
constexpr std::size_t first_size(const adamas_gradient&) { return 48; }
constexpr std::size_t first_size(const adamas_queueing&) { return 32; }
constexpr std::size_t first_size(const adamas_counters&) { return 48; }

template <class Struct>
void init(Struct* given, std::size_t struct_size) {
  if (given == nullptr || struct_size < sizeof(std::size_t)) return;
  Struct usual{};
  set_defaults(&usual);
  usual.struct_size = struct_size;
  std::memset(static_cast<void*>(given), 0, struct_size);
  std::memcpy(static_cast<void*>(given), &usual, std::min(struct_size, sizeof(Struct)));
}

// No struct ends in padding: a member of a later version that found room there would not be missed.
template <class Struct, class Member>
constexpr bool ends_with(Member Struct::*, std::size_t offset) {
  return offset + sizeof(Member) == sizeof(Struct);
}
static_assert(ends_with(&adamas_config::reduction, offsetof(adamas_config, reduction)));
static_assert(ends_with(&adamas_parameter::delta, offsetof(adamas_parameter, delta)));
static_assert(ends_with(&adamas_gradient::reserved, offsetof(adamas_gradient, reserved)));
static_assert(ends_with(&adamas_queueing::after_count, offsetof(adamas_queueing, after_count)));
static_assert(ends_with(&adamas_counters::reserved, offsetof(adamas_counters, reserved)));

template <class Struct, class = void>
struct HasReserved : std::false_type {};
template <class Struct>
struct HasReserved<Struct, std::void_t<decltype(Struct::reserved)>> : std::true_type {};

// Copies a struct of the caller's version to one of this; false if that is impossible.
template <class Struct>
bool read(const void* given, Struct* full) {
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (size < first_size(*full)) return false;
  *full = Struct{};
  set_defaults(full);
  const auto* bytes = static_cast<const char*>(given);
  std::memcpy(static_cast<void*>(full), bytes, std::min(size, sizeof(Struct)));
  const std::size_t known = std::min(size, sizeof(Struct));
  if constexpr (HasReserved<Struct>::value) {
    if (full->reserved != 0) return false;
  }
  return std::all_of(bytes + known, bytes + size, [](char byte) { return byte == 0; });
}

constexpr const char* kUnknownStruct =
    "struct_size is not set, or members are set that this version of adamas does not know";

// Element i of the caller's array, whose elements have the caller's size.
template <class Struct>
const char* element(const Struct* array, std::size_t i) {
  return reinterpret_cast<const char*>(array) + i * array->struct_size;
}

// Values: of C's type and of C++'s; false if there is no such value

template <class Number>
bool assign(Number value, Number* result) {
  *result = value;
  return true;
}

bool assign(std::int32_t value, bool* result) {
  *result = value != 0;
  return true;
}

template <class Enum>
bool assign(std::int32_t value, std::size_t count, Enum* result) {
  if (value < 0 || static_cast<std::size_t>(value) >= count) return false;
  *result = static_cast<Enum>(value);
  return true;
}

bool assign(std::int32_t value, DType* result) { return assign(value, kDTypes, result); }
bool assign(std::int32_t value, StateKind* result) { return assign(value, kStateKinds, result); }
bool assign(std::int32_t value, StateFormat* result) {
  return assign(value, kStateFormats, result);
}
bool assign(std::int32_t value, Numerics* result) {
  return assign(value, std::size(kNumericsNames), result);
}
bool assign(std::int32_t value, EpsilonPlacement* result) {
  return assign(value, std::size(kEpsilonPlacementNames), result);
}
bool assign(std::int32_t value, Reduction* result) {
  return assign(value, std::size(kReductionNames), result);
}
bool assign(std::int32_t value, RowPolicy* result) {
  return assign(value, std::size(kRowPolicyNames), result);
}

static_assert(ADAMAS_DEVICE_ERROR == static_cast<int>(StatusCode::device_error));
// The last of each enumeration.
static_assert(ADAMAS_BFLOAT16 == kDTypes - 1);
static_assert(ADAMAS_ROWS_CATCH_UP == std::size(kRowPolicyNames) - 1);
static_assert(ADAMAS_NUMERICS_MINDSPORE == std::size(kNumericsNames) - 1);
static_assert(ADAMAS_STATE_INT8 == kStateFormats - 1);
static_assert(ADAMAS_EMA == kStateKinds - 1);
static_assert(ADAMAS_EPSILON_INSIDE == std::size(kEpsilonPlacementNames) - 1);
static_assert(ADAMAS_REDUCTION_SUM == std::size(kReductionNames) - 1);
static_assert(ADAMAS_CPU == kCpu);

// The options

Status to_cpp(const adamas_config* given, AdamConfig* config) {
  adamas_config c;
  if (given == nullptr || !read(given, &c)) return bad(kUnknownStruct);
#define ADAMAS_ASSIGN(name, decides, of_group) \
  if (!assign(c.name, &config->name)) return bad("unknown " #name);
  ADAMAS_OPTIONS(ADAMAS_ASSIGN)
#undef ADAMAS_ASSIGN
  return {};
}

Status to_cpp(const char* given, std::int64_t index, ParameterSpec* spec) {
  adamas_parameter c;
  if (!read(given, &c)) return bad(kUnknownStruct, index);
  if (!assign(c.dtype, &spec->dtype)) return bad("unknown dtype", index);
  spec->data = c.data;
  spec->count = c.count;
  spec->rates = c.rates;
  spec->rows = c.rows;
  spec->centralize = c.centralize != 0;
  spec->device = c.device;
  spec->axes = c.axes;
  spec->second_axis = c.second_axis;
  spec->key = c.key;
  const auto give = [&](StateKind kind, void* state) {
    spec->states[static_cast<std::size_t>(kind)] = state;
  };
  give(StateKind::moment1, c.moment1);
  give(StateKind::moment2, c.moment2);
  give(StateKind::vhat, c.vhat);
  give(StateKind::master, c.master);
  give(StateKind::ema, c.ema);
  spec->delta = c.delta;
  return {};
}

Status to_cpp(const char* given, std::int64_t index, Gradient* grad, RowIndices* rows) {
  adamas_gradient c;
  if (!read(given, &c)) return bad(kUnknownStruct, index);
  if (!assign(c.dtype, &grad->dtype)) return bad("unknown dtype", index);
  *rows = {c.indices, c.indices_count, c.indices_are_int64 != 0};
  grad->values = c.values;
  grad->rows = c.is_sparse != 0 ? rows : nullptr;
  grad->device = c.device;
  grad->count = c.count;
  grad->is_absent = c.is_absent != 0;
  return {};
}

Status to_cpp(const adamas_queueing* given, Queueing* queueing) {
  if (given == nullptr) return {};
  adamas_queueing c;
  if (!read(given, &c)) return bad(kUnknownStruct);
  *queueing = {c.stream, {c.after, c.after_count}};
  return {};
}

Status to_cpp(const adamas_rates* given, std::size_t count, std::vector<Rates>* rates) {
  if (given == nullptr && count > 0) return bad("the rates are missing");
  rates->reserve(count);
  for (std::size_t k = 0; k < count; ++k) {
    rates->push_back({given[k].learning_rate, given[k].weight_decay});
  }
  return {};
}

// The copies; the function that is called with them only reads what load() was given.
Status to_cpp(const adamas_array_copy* given, std::size_t count, std::vector<ArrayCopy>* copies) {
  if (given == nullptr && count > 0) return bad("the arrays are missing");
  for (std::size_t k = 0; k < count; ++k) {
    ArrayCopy copy{given[k].parameter, std::nullopt, given[k].data, given[k].nbytes};
    StateKind kind;
    if (given[k].kind != ADAMAS_PARAM) {
      if (!assign(given[k].kind, &kind)) return bad("unknown kind of state");
      copy.kind = kind;
    }
    copies->push_back(copy);
  }
  return {};
}

// The work

constexpr const char* kNoOptimizer = "the optimizer is null";
constexpr const char* kNoSteps = "the steps are missing";

// The arguments of create() and update().
struct Specs {
  AdamConfig config;
  std::vector<AdamConfig> groups;
  std::vector<ParameterSpec> parameters;

  Status read(const adamas_config* given, const adamas_parameter* given_parameters,
              std::size_t count, const adamas_config* given_groups, std::size_t groups_count) {
    if (Status status = to_cpp(given, &config); !status.ok()) return status;
    return read(given_parameters, count, given_groups, groups_count);
  }

  Status read(const adamas_parameter* given_parameters, std::size_t count,
              const adamas_config* given_groups, std::size_t groups_count) {
    if ((given_parameters == nullptr && count > 0) ||
        (given_groups == nullptr && groups_count > 0)) {
      return bad("a pointer is null");
    }
    groups.resize(groups_count);
    for (std::size_t k = 0; k < groups_count; ++k) {
      const auto* group = reinterpret_cast<const adamas_config*>(element(given_groups, k));
      if (Status status = to_cpp(group, &groups[k]); !status.ok()) return status;
    }
    parameters.assign(count, {});
    for (std::size_t i = 0; i < count; ++i) {
      const char* parameter = element(given_parameters, i);
      Status status = to_cpp(parameter, static_cast<std::int64_t>(i), &parameters[i]);
      if (!status.ok()) return status;
    }
    return {};
  }
};

Status create(const adamas_config* given, const adamas_parameter* parameters, std::size_t count,
              const adamas_config* groups, std::size_t groups_count, adamas_optimizer** optimizer) {
  if (optimizer == nullptr) return bad("a pointer is null");
  Specs specs;
  Status status = specs.read(given, parameters, count, groups, groups_count);
  if (!status.ok()) return status;
  auto made = std::make_unique<adamas_optimizer>();
  status = Optimizer::create(specs.config, specs.parameters, &made->native, {}, specs.groups);
  if (status.ok()) *optimizer = made.release();
  return status;
}

Status add(adamas_optimizer* optimizer, const adamas_parameter* parameters, std::size_t count,
           const adamas_config* groups, std::size_t groups_count) {
  if (optimizer == nullptr) return bad(kNoOptimizer);
  Specs specs;
  Status status = specs.read(parameters, count, groups, groups_count);
  return status.ok() ? optimizer->native->add(specs.parameters, specs.groups) : status;
}

// The gradients of a step.
struct Grads {
  std::vector<Gradient> list;
  std::vector<RowIndices> rows;

  Status read(const adamas_gradient* given, std::size_t count) {
    if (given == nullptr && count > 0) return bad("the gradients are missing");
    list.assign(count, {});
    rows.assign(count, {});
    for (std::size_t i = 0; i < count; ++i) {
      Status status = to_cpp(element(given, i), static_cast<std::int64_t>(i), &list[i], &rows[i]);
      if (!status.ok()) return status;
    }
    return {};
  }
};

Status step(adamas_optimizer* optimizer, const adamas_gradient* given, std::size_t count,
            const adamas_rates* given_rates, std::size_t rates_count,
            const adamas_queueing* given_queueing) {
  if (optimizer == nullptr) return bad(kNoOptimizer);
  Grads grads;
  if (Status status = grads.read(given, count); !status.ok()) return status;
  std::vector<Rates> rates;
  if (Status status = to_cpp(given_rates, rates_count, &rates); !status.ok()) return status;
  Queueing queueing;
  if (Status status = to_cpp(given_queueing, &queueing); !status.ok()) return status;
  return optimizer->native->step(grads.list, rates, queueing);
}

Status accumulate(adamas_optimizer* optimizer, const adamas_gradient* given, std::size_t count,
                  const adamas_queueing* given_queueing) {
  if (optimizer == nullptr) return bad(kNoOptimizer);
  Grads grads;
  Queueing queueing;
  Status status = grads.read(given, count);
  if (status.ok()) status = to_cpp(given_queueing, &queueing);
  return status.ok() ? optimizer->native->accumulate(grads.list, queueing) : status;
}

Status step_accumulated(adamas_optimizer* optimizer, const adamas_rates* given_rates,
                        std::size_t rates_count, const adamas_queueing* given_queueing) {
  if (optimizer == nullptr) return bad(kNoOptimizer);
  std::vector<Rates> rates;
  Queueing queueing;
  Status status = to_cpp(given_rates, rates_count, &rates);
  if (status.ok()) status = to_cpp(given_queueing, &queueing);
  return status.ok() ? optimizer->native->step_accumulated(rates, queueing) : status;
}

// A thread keeps what it needs from call to call.
Status update(const adamas_config* config, const adamas_parameter* parameters,
              const adamas_gradient* given, std::int64_t* steps, std::size_t count,
              const adamas_rates* given_rates, std::size_t rates_count, const adamas_config* groups,
              std::size_t groups_count, std::int32_t* skipped) {
  thread_local Specs specs;
  thread_local Grads grads;
  thread_local std::vector<Rates> rates;
  thread_local AdamUpdate native;
  if (steps == nullptr && count > 0) return bad("a pointer is null");
  Status status = specs.read(config, parameters, count, groups, groups_count);
  if (status.ok()) status = grads.read(given, count);
  rates.clear();
  if (status.ok()) status = to_cpp(given_rates, rates_count, &rates);
  UpdateResult result;
  if (status.ok()) {
    status = native.step(specs.config, specs.parameters, grads.list, rates, {steps, count}, &result,
                         specs.groups);
  }
  if (status.ok() && skipped != nullptr) *skipped = result.skipped ? 1 : 0;
  return status;
}

Status apply(adamas_optimizer* optimizer, std::size_t index, const adamas_gradient* given,
             const adamas_queueing* given_queueing) {
  if (optimizer == nullptr || given == nullptr) return bad("a pointer is null");
  Gradient grad;
  RowIndices rows;
  Status status = to_cpp(element(given, 0), static_cast<std::int64_t>(index), &grad, &rows);
  if (!status.ok()) return status;
  Queueing queueing;
  if (status = to_cpp(given_queueing, &queueing); !status.ok()) return status;
  return optimizer->native->apply(index, grad, queueing);
}

Status save(const adamas_optimizer* optimizer, const adamas_array_copy* to, std::size_t count,
            adamas_counters* counters) {
  if (optimizer == nullptr || counters == nullptr) return bad("a pointer is null");
  adamas_counters c;
  if (!read(counters, &c)) return bad(kUnknownStruct);
  std::vector<ArrayCopy> copies;
  if (Status status = to_cpp(to, count, &copies); !status.ok()) return status;
  Counters now;
  if (Status status = optimizer->native->save(copies, &now); !status.ok()) return status;
  c.global_step = now.global_step;
  c.skipped_steps = now.skipped_steps;
  c.loss_scale = now.loss_scale;
  c.last_grad_norm = now.last_grad_norm;
  c.last_step_skipped = now.last_step_skipped ? 1 : 0;
  std::memcpy(counters, &c, std::min(c.struct_size, sizeof(c)));
  return {};
}

Status load(adamas_optimizer* optimizer, const adamas_array_copy* from, std::size_t count,
            const adamas_counters* counters) {
  if (optimizer == nullptr || counters == nullptr) return bad("a pointer is null");
  adamas_counters c;
  if (!read(counters, &c)) return bad(kUnknownStruct);
  std::vector<ArrayCopy> copies;
  if (Status status = to_cpp(from, count, &copies); !status.ok()) return status;
  Counters wanted;
  wanted.global_step = c.global_step;
  wanted.skipped_steps = c.skipped_steps;
  wanted.loss_scale = c.loss_scale;
  wanted.last_grad_norm = c.last_grad_norm;
  wanted.last_step_skipped = c.last_step_skipped != 0;
  return optimizer->native->load(copies, wanted);
}

Status clone(const adamas_optimizer* optimizer, const adamas_parameter* parameters,
             std::size_t count, adamas_optimizer** clone) {
  if (optimizer == nullptr) return bad(kNoOptimizer);
  if (clone == nullptr) return bad("a pointer is null");
  Specs specs;
  Status status = specs.read(parameters, count, nullptr, 0);
  auto made = std::make_unique<adamas_optimizer>();
  if (status.ok()) status = optimizer->native->clone(specs.parameters, &made->native);
  if (status.ok()) *clone = made.release();
  return status;
}

// Calls `function(native, rates)`.
template <class Function>
adamas_status with_rates(adamas_optimizer* optimizer, const adamas_rates* given, std::size_t count,
                         Function function) noexcept {
  return guarded([&]() -> Status {
    if (optimizer == nullptr) return bad(kNoOptimizer);
    std::vector<Rates> rates;
    if (Status status = to_cpp(given, count, &rates); !status.ok()) return status;
    return function(*optimizer->native, rates);
  });
}

// Calls `function(native)`; `Handle` is an optimizer, const or not.
template <class Handle, class Function>
adamas_status with_native(Handle* optimizer, Function function) noexcept {
  return to_c(optimizer == nullptr ? bad(kNoOptimizer) : function(*optimizer->native));
}

}  // namespace
}  // namespace adamas::c

namespace c = adamas::c;

void adamas_config_init(adamas_config* config, size_t struct_size) { c::init(config, struct_size); }

void adamas_parameter_init(adamas_parameter* parameter, size_t struct_size) {
  c::init(parameter, struct_size);
}

void adamas_gradient_init(adamas_gradient* gradient, size_t struct_size) {
  c::init(gradient, struct_size);
}

void adamas_queueing_init(adamas_queueing* queueing, size_t struct_size) {
  c::init(queueing, struct_size);
}

void adamas_counters_init(adamas_counters* counters, size_t struct_size) {
  c::init(counters, struct_size);
}

adamas_status adamas_create(const adamas_config* config, const adamas_parameter* parameters,
                            size_t count, adamas_optimizer** optimizer) {
  return adamas_create_groups(config, parameters, count, nullptr, 0, optimizer);
}

adamas_status adamas_create_groups(const adamas_config* config, const adamas_parameter* parameters,
                                   size_t count, const adamas_config* groups, size_t groups_count,
                                   adamas_optimizer** optimizer) {
  return c::guarded(
      [&] { return c::create(config, parameters, count, groups, groups_count, optimizer); });
}

adamas_status adamas_set_group(adamas_optimizer* optimizer, size_t index,
                               const adamas_config* given) {
  return c::with_native(optimizer, [&](auto& native) -> adamas::Status {
    adamas::AdamConfig group;
    if (adamas::Status status = c::to_cpp(given, &group); !status.ok()) return status;
    return native.set_group(index, group);
  });
}

adamas_status adamas_add(adamas_optimizer* optimizer, const adamas_parameter* parameters,
                         size_t count, const adamas_config* groups, size_t groups_count) {
  return c::guarded([&] { return c::add(optimizer, parameters, count, groups, groups_count); });
}

void adamas_destroy(adamas_optimizer* optimizer) { delete optimizer; }

adamas_status adamas_step(adamas_optimizer* optimizer, const adamas_gradient* grads, size_t count,
                          const adamas_rates* rates, size_t rates_count,
                          const adamas_queueing* queueing) {
  return c::guarded([&] { return c::step(optimizer, grads, count, rates, rates_count, queueing); });
}

adamas_status adamas_begin_step(adamas_optimizer* optimizer, const adamas_rates* rates,
                                size_t rates_count) {
  return c::with_rates(
      optimizer, rates, rates_count,
      [](adamas::Optimizer& native, const auto& list) { return native.begin_step(list); });
}

adamas_status adamas_apply(adamas_optimizer* optimizer, size_t index, const adamas_gradient* grad,
                           const adamas_queueing* queueing) {
  return c::guarded([&] { return c::apply(optimizer, index, grad, queueing); });
}

adamas_status adamas_accumulate(adamas_optimizer* optimizer, const adamas_gradient* grads,
                                size_t count, const adamas_queueing* queueing) {
  return c::guarded([&] { return c::accumulate(optimizer, grads, count, queueing); });
}

adamas_status adamas_step_accumulated(adamas_optimizer* optimizer, const adamas_rates* rates,
                                      size_t rates_count, const adamas_queueing* queueing) {
  return c::guarded([&] { return c::step_accumulated(optimizer, rates, rates_count, queueing); });
}

int64_t adamas_accumulated(const adamas_optimizer* optimizer) {
  return optimizer->native->accumulated();
}

void adamas_discard_accumulated(adamas_optimizer* optimizer) {
  optimizer->native->discard_accumulated();
}

adamas_status adamas_end_step(adamas_optimizer* optimizer) {
  return c::with_native(optimizer, [](auto& native) { return native.end_step(); });
}

adamas_status adamas_end_step_skipping(adamas_optimizer* optimizer) {
  return c::with_native(optimizer, [](auto& native) { return native.end_step(true); });
}

adamas_status adamas_cancel_step(adamas_optimizer* optimizer) {
  return c::with_native(optimizer, [](auto& native) { return native.cancel_step(); });
}

int32_t adamas_last_step_skipped(const adamas_optimizer* optimizer) {
  return optimizer->native->last_step_skipped() ? 1 : 0;
}

int64_t adamas_skipped_steps(const adamas_optimizer* optimizer) {
  return optimizer->native->skipped_steps();
}

double adamas_last_grad_norm(const adamas_optimizer* optimizer) {
  return optimizer->native->last_grad_norm();
}

int64_t adamas_global_step(const adamas_optimizer* optimizer) {
  return optimizer->native->global_step();
}

adamas_status adamas_set_global_step(adamas_optimizer* optimizer, int64_t step) {
  return c::with_native(optimizer, [&](auto& native) { return native.set_global_step(step); });
}

adamas_status adamas_steps(const adamas_optimizer* optimizer, int64_t* steps, size_t count) {
  return c::with_native(optimizer, [&](const auto& native) {
    return steps == nullptr && count > 0 ? c::bad(c::kNoSteps) : native.steps({steps, count});
  });
}

adamas_status adamas_set_steps(adamas_optimizer* optimizer, const int64_t* steps, size_t count) {
  return c::with_native(optimizer, [&](auto& native) {
    return steps == nullptr && count > 0 ? c::bad(c::kNoSteps) : native.set_steps({steps, count});
  });
}

double adamas_loss_scale(const adamas_optimizer* optimizer) {
  return optimizer->native->loss_scale();
}

adamas_status adamas_set_loss_scale(adamas_optimizer* optimizer, double loss_scale) {
  return c::with_native(optimizer, [&](auto& native) { return native.set_loss_scale(loss_scale); });
}

int32_t adamas_centralizes(const adamas_optimizer* optimizer, size_t index) {
  return optimizer->native->centralizes(index) ? 1 : 0;
}

void* adamas_state(const adamas_optimizer* optimizer, int32_t kind, size_t index) {
  adamas::StateKind known;
  if (!c::assign(kind, &known)) return nullptr;
  return optimizer->native->state(known, index);
}

adamas_status adamas_decode_moment(const adamas_optimizer* optimizer, int32_t kind, size_t index,
                                   float* values) {
  return c::with_native(optimizer, [&](auto& native) -> adamas::Status {
    adamas::StateKind known;
    if (!c::assign(kind, &known)) return c::bad("unknown moment");
    if (values == nullptr) return c::bad("a pointer is null");
    return native.decode_moment(known, index, values);
  });
}

adamas_status adamas_save(const adamas_optimizer* optimizer, const adamas_array_copy* to,
                          size_t count, adamas_counters* counters) {
  return c::guarded([&] { return c::save(optimizer, to, count, counters); });
}

adamas_status adamas_load(adamas_optimizer* optimizer, const adamas_array_copy* from, size_t count,
                          const adamas_counters* counters) {
  return c::guarded([&] { return c::load(optimizer, from, count, counters); });
}

adamas_status adamas_clone(const adamas_optimizer* optimizer, const adamas_parameter* parameters,
                           size_t count, adamas_optimizer** clone) {
  return c::guarded([&] { return c::clone(optimizer, parameters, count, clone); });
}

int64_t adamas_scale_block(const adamas_optimizer* optimizer, size_t index) {
  return optimizer->native->scale_block(index);
}

size_t adamas_state_nbytes(const adamas_optimizer* optimizer) {
  return optimizer->native->state_nbytes();
}

adamas_status adamas_read_device(const adamas_optimizer* optimizer, const void* device, void* host,
                                 size_t nbytes) {
  return c::with_native(optimizer, [&](const auto& native) {
    return adamas::core::Internals::read_device(native, device, host, nbytes);
  });
}

adamas_status adamas_write_device(adamas_optimizer* optimizer, void* device, const void* host,
                                  size_t nbytes) {
  return c::with_native(optimizer, [&](auto& native) {
    return adamas::core::Internals::write_device(native, device, host, nbytes);
  });
}

adamas_status adamas_set_rates(adamas_optimizer* optimizer, const adamas_rates* rates,
                               size_t rates_count, void* stream) {
  return c::with_rates(
      optimizer, rates, rates_count,
      [&](adamas::Optimizer& native, const auto& list) { return native.set_rates(list, stream); });
}

adamas_status adamas_update(const adamas_config* config, const adamas_parameter* parameters,
                            const adamas_gradient* grads, int64_t* steps, size_t count,
                            const adamas_rates* rates, size_t rates_count,
                            const adamas_config* groups, size_t groups_count, int32_t* skipped) {
  return c::guarded([&] {
    return c::update(config, parameters, grads, steps, count, rates, rates_count, groups,
                     groups_count, skipped);
  });
}

const char* adamas_version(void) { return adamas::version(); }

const char* adamas_isa_in_use(void) { return adamas::isa_in_use(); }

adamas_status adamas_select_isa(const char* name) { return c::to_c(adamas::select_isa(name)); }

int32_t adamas_available_threads(void) { return adamas::available_threads(); }

int32_t adamas_cuda_devices(void) { return adamas::cuda_devices(); }

const char* adamas_cuda_unavailable_reason(void) { return adamas::cuda_unavailable_reason(); }
