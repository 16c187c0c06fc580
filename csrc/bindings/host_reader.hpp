// Reads the gradients of parameters in the host's memory, which are NumPy arrays.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/parameter.hpp"
#include "bindings/reader.hpp"

namespace adamas::bindings {

class HostReader final : public Reader {
 public:
  explicit HostReader(pybind11::function convert) : convert_(std::move(convert)) {}

  ParameterSpec add(const PyParameter& parameter, std::vector<void*>* streams) override;
  std::size_t size() const override { return parameters_.size(); }
  void shrink(std::size_t size) override;
  const std::string& name(std::size_t i) const override { return parameters_.at(i).name(); }
  std::vector<pybind11::ssize_t> shape(std::size_t i) const override;
  std::vector<pybind11::ssize_t> steps(std::size_t i) const override;
  void* memory_of(std::size_t i, const PyParameter& parameter) const override;
  void rebind(std::size_t i, const PyParameter& parameter) override;
  void check_unchanged(std::size_t i) const override;
  void read(const pybind11::tuple& grads, int threads, Views& views) const override;
  void read(std::size_t i, pybind11::handle grad, Views& views) const override;
  // Raises ValueError if a stream is named: there are none.
  Queueing queueing(std::optional<std::uintptr_t> stream, const Views& views) const override;
  void find_streams(const pybind11::tuple&, std::vector<void*>*) const override {}

 private:
  bool view_all(PyObject* const* grads, int threads, Gradient* gradients) const;
  // Views a dense gradient where it lies, or copies it; false if it is something else.
  bool place(const BoundParameter& parameter, pybind11::handle grad, Views& views,
             Gradient* gradient) const;
  void convert(std::size_t i, pybind11::handle grad, Views& views, Gradient* gradient) const;

  void set_owner(std::size_t i, pybind11::object owner);
  void check_owner_of(std::size_t i) const;

  std::vector<BoundParameter> parameters_;
  // By parameter, what its memory is if that can tell, else null; empty if none can.
  std::vector<pybind11::object> owners_;
  std::vector<bool> dense_only_;  // must not have sparse gradients
  pybind11::function convert_;
};

}  // namespace adamas::bindings
