// What the bindings ask of whoever knows the parameters of an optimizer as Python objects: NumPy
// arrays (host_reader.hpp) or arrays on a device (device_reader.hpp).
#pragma once

#include <pybind11/numpy.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adamas/optimizer.hpp"

namespace adamas::bindings {

// One parameter and its options, as Python hands them over.
struct PyParameter {
  pybind11::object array;
  std::string name;
  std::int32_t rates;
  bool centralize;
  std::map<StateKind, pybind11::object> states;  // of the caller's, used in place
  std::int64_t key;                              // of stochastic rounding
  // The adamas.Parameter, if there is one: an object with `memory`, which is `array` until it is
  // rebound, and `data`, whose memory that is.
  pybind11::object source = pybind11::none();

  // What the memory belongs to.
  pybind11::object owner() const { return source.is_none() ? array : source.attr("data"); }
};

// The gradients of one call, and what keeps their memory.
struct Views {
  std::vector<Gradient> grads;
  std::vector<RowIndices> rows;                 // as many as there is room for: grads point into it
  std::vector<pybind11::object> converted;      // kept alive until the step is done
  std::vector<std::unique_ptr<char[]>> copies;  // likewise
  std::vector<void*> streams;                   // of a device, on which the gradients are made
};

class Reader {
 public:
  Reader() = default;
  virtual ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // The next parameter as the core knows it; its producer's stream is added to `streams`.  Raises
  // TypeError or ValueError for an array that can't be updated in place.
  virtual ParameterSpec add(const PyParameter& parameter, std::vector<void*>* streams) = 0;

  virtual std::size_t size() const = 0;
  // Forgets all parameters but the first `size` ones.
  virtual void shrink(std::size_t size) = 0;
  virtual const std::string& name(std::size_t i) const = 0;
  virtual std::vector<pybind11::ssize_t> shape(std::size_t i) const = 0;
  // How far apart its elements and those of its state are, in elements; empty: as in C.
  virtual std::vector<pybind11::ssize_t> steps(std::size_t) const { return {}; }

  // The memory of what parameter i may become.  Raises as add(), or ValueError if it is not like
  // its own or on a device.
  virtual void* memory_of(std::size_t i, const PyParameter& parameter) const = 0;
  // Parameter i has become it.
  virtual void rebind(std::size_t i, const PyParameter& parameter) = 0;

  // Raises ValueError if the array is not what it was when it was added.
  virtual void check_unchanged(std::size_t i) const = 0;

  // Views the gradients of all parameters, converting those that need it and can be, with up to
  // `threads` threads; or that of one.  Raises if one can't be used or a parameter was changed.
  virtual void read(const pybind11::tuple& grads, int threads, Views& views) const = 0;
  virtual void read(std::size_t i, pybind11::handle grad, Views& views) const = 0;

  // Where a step is queued: on `stream`, else where the gradients' producers say.
  virtual Queueing queueing(std::optional<std::uintptr_t> stream, const Views& views) const = 0;

  // The streams on which gradients are made, as far as that can be told at a glance.
  virtual void find_streams(const pybind11::tuple& grads, std::vector<void*>* streams) const = 0;
};

// For the parameters of one optimizer, by the kind of the first; `convert(grad, array, label)`
// returns an array like the parameter's, or for sparse rows a tuple of indices and values, or
// raises.
std::unique_ptr<Reader> make_reader(const std::vector<PyParameter>& parameters,
                                    const pybind11::function& convert);

// What the core is told of a parameter's shape; one without axes is one row of one element.
void set_shape(const pybind11::ssize_t* lengths, pybind11::ssize_t axes, ParameterSpec* spec);

}  // namespace adamas::bindings
