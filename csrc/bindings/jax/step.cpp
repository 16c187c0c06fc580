#include "bindings/jax/step.hpp"

#include <xla/ffi/api/ffi.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "adamas/update.hpp"
#include "bindings/given_state.hpp"
#include "bindings/jax/idle_updates.hpp"

namespace ffi = xla::ffi;

namespace adamas::bindings::jax {
namespace {

// Something that Python should have seen; caught below.
struct Refusal {
  ffi::ErrorCode code;
  std::string message;
};

// Not kInvalidArgument: of that code JAX makes a JaxRuntimeError at the first call of a program and
// a ValueError at others.
[[noreturn]] void refuse(const std::string& message) {
  throw Refusal{ffi::ErrorCode::kFailedPrecondition, message};
}

constexpr const char* kNotAsMany = "there are not as many arrays as the options need";

// Options

template <class T>
T read(const ffi::Dictionary& attributes, const char* name) {
  const auto found = attributes.get<T>(name);
  if (!found.has_value()) refuse("there is no option " + std::string(name) + " of its type");
  return *found;
}

template <class T>
void read(const ffi::Dictionary& attributes, const char* name, T* member) {
  if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, double>) {
    *member = read<T>(attributes, name);
  } else {  // seeds as the numbers with the same bits
    *member = static_cast<T>(read<std::int64_t>(attributes, name));
  }
}

struct Options {
  AdamConfig config;
  bool centralize = false;
  std::int64_t first = 0;                // position of the first parameter
  ffi::Span<const std::int32_t> decays;  // one for each parameter
};

bool is_operand(std::string_view name) {
  return std::find(std::begin(kNumbers), std::end(kNumbers), name) != std::end(kNumbers);
}

Options read_options(const ffi::Dictionary& attributes) {
  Options options;
  std::size_t known = 3;
  options.first = read<std::int64_t>(attributes, "first");
  read(attributes, "grad_centralization", &options.centralize);
  options.decays = read<ffi::Span<const std::int32_t>>(attributes, "decays");
#define ADAMAS_READ(name, decides, of_group)       \
  if (!is_operand(#name)) {                        \
    read(attributes, #name, &options.config.name); \
    ++known;                                       \
  }
  ADAMAS_OPTIONS(ADAMAS_READ)
#undef ADAMAS_READ
  if (attributes.size() != known) refuse("there are options that this version does not have");
  return options;
}

// Arrays

ffi::AnyBuffer operand(const ffi::RemainingArgs& operands, std::size_t i) {
  const auto found = operands.get<ffi::AnyBuffer>(i);
  if (!found.has_value()) refuse(kNotAsMany);
  return *found;
}

ffi::AnyBuffer result(const ffi::RemainingRets& results, std::size_t i) {
  auto found = results.get<ffi::AnyBuffer>(i);
  if (!found.has_value()) refuse(kNotAsMany);
  return **found;
}

DType dtype_of(const ffi::AnyBuffer& array) {
  switch (array.element_type()) {
    case ffi::DataType::F32:
      return DType::float32;
    case ffi::DataType::F64:
      return DType::float64;
    case ffi::DataType::F16:
      return DType::float16;
    case ffi::DataType::BF16:
      return DType::bfloat16;
    default:
      refuse("parameters, gradients and state must be of a float type");
  }
}

// The same shape; the same type if `dtype` says so.
void check_alike(const ffi::AnyBuffer& array, const ffi::AnyBuffer& other, DType dtype) {
  const auto mine = array.dimensions();
  const auto theirs = other.dimensions();
  if (!(mine == theirs) || dtype_of(array) != dtype) {
    refuse("an array has not the shape or the type that goes with its parameter's");
  }
}

// Memory in which an operand is changed: that of its result.  XLA lets both be one, as it has been
// told; were it to forget, a copy keeps the step right.
void* in_place(const ffi::AnyBuffer& array, const ffi::AnyBuffer& written) {
  void* const to = written.untyped_data();
  if (to != array.untyped_data() && array.size_bytes() > 0) {
    std::memcpy(to, array.untyped_data(), array.size_bytes());
  }
  return to;
}

// Numbers

double number(const ffi::AnyBuffer& array) {
  const std::size_t count = array.element_count();
  const void* const data = array.untyped_data();
  const auto is = [&](ffi::DataType type, std::size_t wanted) {
    return array.element_type() == type && count == wanted;
  };
  double value = 0.0;
  if (is(ffi::DataType::U32, 3) || is(ffi::DataType::F64, 1)) {
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  if (!is(ffi::DataType::F32, 1)) refuse("a rate must be one number");
  float narrow = 0.0F;
  std::memcpy(&narrow, data, sizeof narrow);
  return narrow;
}

std::int64_t read_count(const ffi::AnyBuffer& array) {
  if (array.element_count() == 1 && array.element_type() == ffi::DataType::S32) {
    return *static_cast<const std::int32_t*>(array.untyped_data());
  }
  if (array.element_count() == 1 && array.element_type() == ffi::DataType::S64) {
    return *static_cast<const std::int64_t*>(array.untyped_data());
  }
  refuse("the number of steps must be one int32 or int64");
}

// Stands still at the largest int32, as optax's does.
void write_count(const ffi::AnyBuffer& to, std::int64_t count) {
  if (to.element_type() == ffi::DataType::S64) {
    *static_cast<std::int64_t*>(to.untyped_data()) = count;
    return;
  }
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const std::int64_t written = count < kLargest ? count : kLargest;
  *static_cast<std::int32_t*>(to.untyped_data()) = static_cast<std::int32_t>(written);
}

// The call

class Call {
 public:
  Call(const ffi::RemainingArgs& operands, const ffi::RemainingRets& results,
       const ffi::Dictionary& attributes)
      : operands_(operands),
        results_(results),
        options_(read_options(attributes)),
        count_(options_.decays.size()) {
    check_numbers();
    check_arrays();
  }

  void run() {
    AdamConfig& config = options_.config;
    Rates rates[2];  // for weights that decay, and for others
    rates[0].learning_rate = rates[1].learning_rate = number("learning_rate");
    rates[0].weight_decay = number("weight_decay");
    config.loss_scale = number("loss_scale");
    config.beta1 = number("beta1");
    config.beta2 = number("beta2");
    config.eps = number("eps");
    const std::int64_t steps = read_count(operand(operands_, 0));
    std::unique_ptr<Update> update = idle_updates().take(result(results_, 1).untyped_data());
    view(*update);
    update->steps.assign(count_, steps);
    UpdateResult made;
    const Status status = update->update.step(config, {update->specs}, {update->grads}, {rates, 2},
                                              {update->steps}, &made);
    if (status.ok() && made.skipped) clear_changes(*update);
    idle_updates().give_back(std::move(update));
    if (!status.ok()) throw_error(status);
    write_count(result(results_, 0), made.skipped ? steps : steps + 1);
  }

 private:
  static constexpr std::size_t kFirst = 2 + std::size(kNumbers);  // of the parameters

  double number(const char* name) const {
    const auto* const found = std::find(std::begin(kNumbers), std::end(kNumbers), name);
    return jax::number(operand(operands_, 1 + static_cast<std::size_t>(found - kNumbers)));
  }

  void check_numbers() const {
    if (count_ == 0 || operands_.size() < kFirst + 2 * count_ || results_.size() < 1 + count_) {
      refuse(kNotAsMany);
    }
    const ffi::AnyBuffer written = result(results_, 0);
    if (written.element_type() != operand(operands_, 0).element_type() ||
        written.element_count() != 1) {
      refuse("the number of steps must keep its type");
    }
  }

  // Nothing is written before all types and shapes are known to be right.
  void check_arrays() const {
    std::size_t from = kFirst + 2 * count_;
    std::size_t to = 1 + count_;
    for (std::size_t i = 0; i < count_; ++i) {
      const ffi::AnyBuffer grad = gradient(i);
      const DType dtype = dtype_of(parameter(i));
      if (!goes_with(dtype_of(grad), dtype)) {
        refuse("a gradient has a type that does not go with its parameter's");
      }
      check_alike(grad, parameter(i), dtype_of(grad));
      check_alike(result(results_, 1 + i), parameter(i), dtype);
    }
    for (const StateKind kind : kGivenKinds) {
      for (std::size_t i = 0; i < count_; ++i) {
        const DType dtype = dtype_of(parameter(i));
        if (!is_kept(kind, options_.config, dtype)) continue;
        const DType kept = state_dtype(kind, options_.config, dtype);
        check_alike(operand(operands_, from++), parameter(i), kept);
        check_alike(result(results_, to++), parameter(i), kept);
      }
    }
    if (from != operands_.size() || to != results_.size()) refuse(kNotAsMany);
  }

  void view(Update& update) const {
    update.specs.assign(count_, {});
    update.grads.assign(count_, {});
    for (std::size_t i = 0; i < count_; ++i) view(i, &update.specs[i], &update.grads[i]);
    std::size_t from = kFirst + 2 * count_;
    std::size_t to = 1 + count_;
    for (const StateKind kind : kGivenKinds) {
      for (ParameterSpec& spec : update.specs) {
        if (!is_kept(kind, options_.config, spec.dtype)) continue;
        spec.states[static_cast<std::size_t>(kind)] =
            in_place(operand(operands_, from++), result(results_, to++));
      }
    }
  }

  void view(std::size_t i, ParameterSpec* spec, Gradient* grad) const {
    const ffi::AnyBuffer param = parameter(i);
    const ffi::AnyBuffer written = result(results_, 1 + i);
    if (options_.config.writes_delta) {
      spec->data = param.untyped_data();
      spec->delta = written.untyped_data();
    } else {
      spec->data = in_place(param, written);
    }
    const auto lengths = param.dimensions();
    spec->count = static_cast<std::int64_t>(param.element_count());
    spec->dtype = dtype_of(param);
    spec->rates = options_.decays[i] != 0 ? 0 : 1;
    spec->rows = lengths.size() == 0 ? 1 : lengths[0];
    spec->axes = lengths.size() == 0 ? 1 : static_cast<std::int32_t>(lengths.size());
    spec->second_axis = lengths.size() < 2 ? 0 : lengths[1];
    spec->centralize = options_.centralize;
    spec->key = options_.first + static_cast<std::int64_t>(i);
    grad->values = gradient(i).untyped_data();
    grad->dtype = dtype_of(gradient(i));
    grad->count = spec->count;
  }

  // A step that is skipped writes no changes.
  void clear_changes(const Update& update) const {
    if (!options_.config.writes_delta) return;
    for (const ParameterSpec& spec : update.specs) {
      std::memset(spec.delta, 0, static_cast<std::size_t>(spec.count) * item_size(spec.dtype));
    }
  }

  [[noreturn]] void throw_error(const Status& status) const {
    const std::int64_t index = status.index() < 0 ? -1 : options_.first + status.index();
    throw Refusal{status.code() == StatusCode::out_of_memory ? ffi::ErrorCode::kResourceExhausted
                                                             : ffi::ErrorCode::kFailedPrecondition,
                  Status(status.code(), status.what(), index).message()};
  }

  ffi::AnyBuffer parameter(std::size_t i) const { return operand(operands_, kFirst + i); }
  ffi::AnyBuffer gradient(std::size_t i) const { return operand(operands_, kFirst + count_ + i); }

  const ffi::RemainingArgs& operands_;
  const ffi::RemainingRets& results_;
  Options options_;
  std::size_t count_;
};

ffi::Error step(ffi::RemainingArgs operands, ffi::RemainingRets results,
                ffi::Dictionary attributes) noexcept {
  try {
    Call(operands, results, attributes).run();
    return ffi::Error::Success();
  } catch (const Refusal& refusal) {
    return {refusal.code, "adamas: " + refusal.message};
  } catch (const std::exception& error) {
    return {ffi::ErrorCode::kResourceExhausted, std::string("adamas: ") + error.what()};
  }
}

XLA_FFI_DEFINE_HANDLER(handler, step, ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());

}  // namespace

XLA_FFI_Handler* step_handler() noexcept { return handler; }

}  // namespace adamas::bindings::jax
