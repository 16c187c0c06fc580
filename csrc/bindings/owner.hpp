// Objects of other libraries whose memory parameters are: they may come to have other memory, and
// want to know when it was written to.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bindings/parameter.hpp"

namespace adamas::bindings {

// Whether it can tell where its memory is now: tensors of torch and MindSpore.
bool tells_memory(pybind11::handle owner);

// Raises ValueError unless `owner`, which tells, still has the memory, type and layout of the
// parameter.
void check_owner(pybind11::handle owner, const BoundParameter& parameter);

// Raises ValueError unless the state, called `label`, is where it was.
void check_state_owner(pybind11::handle owner, const void* data, const std::string& label);

// The version counters of torch's tensors, by which autograd notices that a value was changed that
// it needs.
class VersionCounters {
 public:
  // One owner for each parameter.  Does not import torch: its tensors exist if it is imported.
  explicit VersionCounters(const std::vector<pybind11::object>& owners);

  // Parameters were written to: those that had a gradient, or one.
  void advance(const std::vector<Gradient>& grads) const;
  void advance(std::size_t i) const;

 private:
  void advance(const pybind11::object& tensors) const;

  pybind11::object increment_;  // of torch; null: there is nothing to count
  pybind11::list all_;
  std::vector<pybind11::object> tensors_;  // by parameter, or null
};

// The same where no optimizer knows the tensors: those of `params` that had a gradient.
void advance_versions(PyObject* const* params, const std::vector<Gradient>& grads);

}  // namespace adamas::bindings
