// From what Python hands over as gradients to what the core takes.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <string>
#include <vector>

#include "adamas/types.hpp"
#include "bindings/parameter.hpp"

namespace adamas::bindings {

// The gradients of one call, and what keeps their memory.
struct Views {
  std::vector<Gradient> grads;
  std::vector<RowIndices> rows;             // as many as there is room for: grads point into it
  std::vector<pybind11::object> converted;  // kept alive until the step is done
  std::vector<void*> streams;               // of a device, on which the gradients are made
};

class GradientReader {
 public:
  // `convert(grad, array, label)` returns an array like the parameter's, or for sparse rows a tuple
  // of indices and values, or raises.
  explicit GradientReader(pybind11::function convert) : convert_(std::move(convert)) {}

  // Adds a parameter; `dense_only` if it must not have a sparse gradient.
  const BoundParameter& add(pybind11::array array, std::string name, bool dense_only);

  std::size_t size() const { return parameters_.size(); }
  const BoundParameter& parameter(std::size_t i) const { return parameters_.at(i); }

  // Views the gradients of all parameters, converting those that need it, with up to `threads`
  // threads if they are many.  Raises if one can't be used or a parameter was changed.
  void read(const pybind11::tuple& grads, int threads, Views& views) const;

  // The same for the gradient of parameter i alone.
  void read(std::size_t i, pybind11::handle grad, Views& views) const;

 private:
  bool view_all(PyObject* const* grads, int threads, Gradient* gradients) const;
  void convert(std::size_t i, pybind11::handle grad, Views& views, Gradient* gradient) const;

  std::vector<BoundParameter> parameters_;
  std::vector<bool> dense_only_;
  pybind11::function convert_;
};

}  // namespace adamas::bindings
