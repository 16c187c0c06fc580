// The Adam family over a list of parameters, updated in place.
//
//   adamas::ParameterSpec weights{data, count, adamas::DType::float32};
//   std::unique_ptr<adamas::Optimizer> optimizer;
//   adamas::Status status = adamas::Optimizer::create({}, {&weights, 1}, &optimizer);
//   const void* grads[] = {grad};
//   adamas::Rates rates{1e-3, 0.0};
//   status = optimizer->step({grads, 1}, {&rates, 1});
//
// No function throws.  A step that returns an error has changed nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "adamas/status.hpp"
#include "adamas/types.hpp"

namespace adamas {

// A pointer and a length (C++17 has no std::span).
template <class T>
struct Span {
  T* data = nullptr;
  std::size_t size = 0;

  T* begin() const { return data; }
  T* end() const { return data + size; }
  T& operator[](std::size_t i) const { return data[i]; }
};

// The arrays of state kept for each parameter element.
enum class StateKind : std::uint8_t { moment1, moment2, vhat };
inline constexpr std::size_t kStateKinds = 3;

class Optimizer {
 public:
  // Reserves the state, zeroed, of all parameters.  Their memory must outlive the optimizer.
  static Status create(const AdamConfig& config, Span<const ParameterSpec> parameters,
                       std::unique_ptr<Optimizer>* optimizer) noexcept;
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One step: grads[i] is the gradient of parameter i, of its type and count, and rates[k] what
  // the parameters with ParameterSpec::rates == k use.  Safe to call from several threads, each
  // call being one whole step.
  Status step(Span<const void* const> grads, Span<const Rates> rates) noexcept;

  // The number of steps made; setting it moves bias correction with it.  In [0, 2^62].
  std::int64_t global_step() const noexcept;
  Status set_global_step(std::int64_t step) noexcept;

  // The state of parameter i, as many elements as it has, or null if this optimizer keeps none.
  void* state(StateKind kind, std::size_t i) const noexcept;

  // Bytes of all state arrays together.
  std::size_t state_nbytes() const noexcept;

  // The threads that a large step uses.
  int num_threads() const noexcept;

 private:
  struct Impl;
  explicit Optimizer(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace adamas
