// What a call of the library reports: success, or what was wrong, where, and in which words.
#pragma once

#include <cstdint>
#include <string>

#include "adamas/cpp17.hpp"

namespace adamas {

enum class StatusCode : std::uint8_t {
  ok,
  invalid_argument,  // a value, a count or a null pointer
  overlap,           // two arrays share memory that must not
  bad_index,         // a row index outside the parameter
  bad_state,         // the call does not fit the calls before it
  out_of_memory,     //
  unavailable,       // this machine or this build cannot do it
  device_error,      // a CUDA device failed
};

// A value type that never allocates.  `index` is the position in the list of parameters that the
// message speaks of, or -1.
class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(StatusCode code, const char* what, std::int64_t index = -1)
      : code_(code), index_(index), what_(what) {}

  constexpr bool ok() const { return code_ == StatusCode::ok; }
  constexpr StatusCode code() const { return code_; }
  constexpr std::int64_t index() const { return index_; }
  constexpr const char* what() const { return what_; }  // stays valid
  std::string message() const {
    if (code_ == StatusCode::device_error) return std::string("CUDA: ") + what_;
    return index_ < 0 ? what_ : what_ + (" (position " + std::to_string(index_) + ")");
  }

 private:
  StatusCode code_ = StatusCode::ok;
  std::int64_t index_ = -1;
  const char* what_ = "ok";  // always a string literal
};

}  // namespace adamas
