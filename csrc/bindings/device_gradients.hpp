// Parameters on a device, and the gradients that are given for them: what gradients.hpp is for
// NumPy arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "adamas/optimizer.hpp"
#include "bindings/device_array.hpp"
#include "bindings/gradients.hpp"

namespace adamas::bindings {

class DeviceReader {
 public:
  // `convert(grad, array, label)` returns a DeviceArray, or for sparse rows a tuple of two, or
  // raises.
  explicit DeviceReader(pybind11::function convert) : convert_(std::move(convert)) {}

  // Adds a parameter, a DeviceArray that can be updated in place.
  const DeviceArray& add(pybind11::object array, std::string name, bool dense_only);

  std::size_t size() const { return parameters_.size(); }
  const DeviceArray& array(std::size_t i) const { return *parameters_.at(i).array; }
  const std::string& name(std::size_t i) const { return parameters_.at(i).name; }

  // Views gradients where they lie; raises if one can't be used or a parameter was moved.
  void read(const pybind11::tuple& grads, Views& views) const;
  void read(std::size_t i, pybind11::handle grad, Views& views) const;

  // Raises if the parameter was moved in memory.
  void check_unmoved(std::size_t i) const;

  // Where a step is queued: on `stream`, else on the first that a producer names.
  static Queueing queueing(std::optional<std::uintptr_t> stream, const Views& views);

  // The streams on which gradients are made, as far as that can be told at a glance.
  void find_streams(const pybind11::tuple& grads, std::vector<void*>* streams) const;

 private:
  struct Parameter {
    pybind11::object object;
    const DeviceArray* array;
    std::string name;
    bool dense_only;
    mutable const void* checked = nullptr;  // the last gradient's memory found to be on the device
  };

  bool view(const Parameter& parameter, pybind11::handle grad, Gradient* gradient,
            std::vector<void*>* streams) const;
  bool view_interface(const Parameter& parameter, pybind11::handle grad, Gradient* gradient,
                      std::vector<void*>* streams) const;
  void read_one(const Parameter& parameter, std::size_t i, pybind11::handle grad, Views& views,
                Gradient* gradient) const;

  std::vector<Parameter> parameters_;
  pybind11::function convert_;
};

}  // namespace adamas::bindings
