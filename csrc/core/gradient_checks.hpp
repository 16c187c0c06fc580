// The check of all gradients of a step, which remembers what it has found.
#pragma once

#include <vector>

#include "core/checks.hpp"
#include "core/engine.hpp"

namespace adamas::core {

class GradientChecks {
 public:
  // Throws std::bad_alloc.  Options and storage outlive this object.
  void prepare(const Options& options, const Storage& storage);

  // There will be so many parameters.  Throws std::bad_alloc.
  void extend(std::size_t parameters) { accepted_.resize(parameters); }

  // Parameters have moved: what overlapped nothing may do so now.
  void forget() noexcept;

  // Refuses gradients that do not go with their parameters; finds out whether any is sparse, or
  // absent.
  Status check(Selection& selection) noexcept;

 private:
  // The last dense gradient of a parameter that was found to overlap nothing.  Most come again.
  struct Accepted {
    const void* values = nullptr;
    DType dtype = DType::float32;
    std::int32_t device = kCpu;
    std::int64_t count = -1;

    bool is(const Gradient& grad) const {
      return values != nullptr && grad.values == values && grad.dtype == dtype &&
             grad.rows == nullptr && grad.device == device && grad.count == count &&
             !grad.is_absent;
    }
  };

  const Options* options_ = nullptr;
  const Storage* storage_ = nullptr;
  std::vector<Accepted> accepted_;  // by parameter
};

}  // namespace adamas::core
