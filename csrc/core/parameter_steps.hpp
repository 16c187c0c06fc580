// How many steps each parameter has made: as many as the optimizer, until one is left out of a
// step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "core/engine.hpp"

namespace adamas::core {

class ParameterSteps {
 public:
  void prepare(std::size_t parameters) { parameters_ = parameters; }

  // Adds parameters that have made no step, to an optimizer that has made `step`.
  Status extend(std::size_t parameters, std::int64_t step) noexcept {
    if (own_.empty() && step == 0) {
      parameters_ += parameters;
      return {};
    }
    if (Status status = differ(step); !status.ok()) return status;
    try {
      own_.resize(parameters_ + parameters, 0);
    } catch (const std::bad_alloc&) {
      return {StatusCode::out_of_memory, "no memory for the steps of parameters"};
    }
    parameters_ += parameters;
    return {};
  }

  // By parameter; null while all have made as many steps as the optimizer.
  const std::int64_t* differing() const { return own_.empty() ? nullptr : own_.data(); }

  // From here on each has a number of its own, `step` to begin with.
  Status differ(std::int64_t step) noexcept {
    if (!own_.empty()) return {};
    try {
      own_.assign(parameters_, step);
      return {};
    } catch (const std::bad_alloc&) {
      return {StatusCode::out_of_memory, "no memory for the steps of parameters"};
    }
  }

  // After a step that was made: those that had a gradient count it.
  void count(const Selection& selection) noexcept {
    for (std::size_t i = 0; i < own_.size(); ++i) {
      own_[i] += selection.grad(i).is_absent ? 0 : 1;
    }
  }
  void count(const std::vector<char>& applied) noexcept {
    for (std::size_t i = 0; i < own_.size(); ++i) own_[i] += applied[i];
  }

  // By parameter, how many steps it has made more than before; `step`: of the optimizer now.
  void move(std::int64_t step, Span<const std::int64_t> moved) noexcept {
    for (std::size_t i = 0; i < own_.size(); ++i) own_[i] += moved[i];
    if (are_all(step, own_)) own_.clear();
  }

  void read(std::int64_t step, Span<std::int64_t> to) const noexcept {
    for (std::size_t i = 0; i < to.size; ++i) to.data[i] = own_.empty() ? step : own_[i];
  }
  // `step`: of the optimizer.  Numbers that all equal it are not kept.
  Status write(std::int64_t step, Span<const std::int64_t> from) noexcept {
    if (are_all(step, from)) {
      own_.clear();
      return {};
    }
    if (Status status = differ(step); !status.ok()) return status;
    std::copy(from.begin(), from.end(), own_.begin());
    return {};
  }

 private:
  static bool are_all(std::int64_t step, Span<const std::int64_t> steps) noexcept {
    return std::all_of(steps.begin(), steps.end(), [&](std::int64_t one) { return one == step; });
  }

  std::size_t parameters_ = 0;
  std::vector<std::int64_t> own_;  // empty: none differs
};

}  // namespace adamas::core
