// A step that is made one parameter at a time: which ones have been, and what is refused meanwhile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "adamas/status.hpp"

namespace adamas::core {

class OpenStep {
 public:
  // Throws std::bad_alloc.
  void prepare(std::size_t parameters) { applied_.resize(parameters); }

  void open() noexcept {
    std::fill(applied_.begin(), applied_.end(), char{0});
    is_open_ = true;
  }
  void close() noexcept { is_open_ = false; }
  void set_applied(std::size_t parameter) noexcept { applied_[parameter] = 1; }

  Status check_closed() const {
    if (!is_open_) return {};
    return {StatusCode::bad_state, "a step is open: call end_step or cancel_step first"};
  }
  Status check_open() const {
    if (is_open_) return {};
    return {StatusCode::bad_state, "no step is open: call begin_step first"};
  }

  // Whether this parameter can be applied.
  Status check_next(std::size_t parameter) const {
    if (Status status = check_open(); !status.ok()) return status;
    const auto index = static_cast<std::int64_t>(parameter);
    if (parameter >= applied_.size()) {
      return {StatusCode::invalid_argument, "there is no such parameter", index};
    }
    if (applied_[parameter] == 0) return {};
    return {StatusCode::bad_state, "a parameter was applied already in this step", index};
  }

  // By parameter: 1 if it has been applied.
  const std::vector<char>& applied() const { return applied_; }
  bool is_complete() const {
    return std::find(applied_.begin(), applied_.end(), char{0}) == applied_.end();
  }

  // Whether all have been.
  Status check_complete() const {
    if (Status status = check_open(); !status.ok()) return status;
    const auto missing = std::find(applied_.begin(), applied_.end(), char{0});
    if (missing == applied_.end()) return {};
    return {StatusCode::bad_state, "a parameter was not applied in this step",
            missing - applied_.begin()};
  }

 private:
  bool is_open_ = false;
  std::vector<char> applied_;  // by parameter
};

}  // namespace adamas::core
