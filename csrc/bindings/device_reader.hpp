// Reads the gradients of parameters on a CUDA device.  What `convert` returns is a DeviceArray, or
// for sparse rows a tuple of two.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/device_array.hpp"
#include "bindings/reader.hpp"

namespace adamas::bindings {

class DeviceReader final : public Reader {
 public:
  explicit DeviceReader(pybind11::function convert) : convert_(std::move(convert)) {}

  ParameterSpec add(const PyParameter& parameter, std::vector<void*>* streams) override;
  std::size_t size() const override { return parameters_.size(); }
  void shrink(std::size_t size) override { parameters_.resize(size); }
  const std::string& name(std::size_t i) const override { return parameters_.at(i).name; }
  std::vector<pybind11::ssize_t> shape(std::size_t i) const override {
    return parameters_.at(i).array->shape();
  }
  void* memory_of(std::size_t i, const PyParameter& parameter) const override;
  void rebind(std::size_t, const PyParameter&) override {}
  // It has moved if its owner can move its memory and has.
  void check_unchanged(std::size_t i) const override;
  void read(const pybind11::tuple& grads, int threads, Views& views) const override;
  void read(std::size_t i, pybind11::handle grad, Views& views) const override;
  // Without `stream`: on the first that a producer names, or the default one.
  Queueing queueing(std::optional<std::uintptr_t> stream, const Views& views) const override;
  void find_streams(const pybind11::tuple& grads, std::vector<void*>* streams) const override;

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
