// What the tests of whole steps share: parameters of any type with gradients and state of the
// caller's, at addresses that no array of a library would have.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "adamas/adamas.hpp"
#include "check.hpp"
#include "rules/half.hpp"

namespace adamas::tests {

using Optimizers = std::unique_ptr<Optimizer>;

// Memory that begins some items behind a cache line.
class Bytes {
 public:
  Bytes(std::size_t nbytes, std::size_t offset) : memory_(nbytes + offset + kLine), size_(nbytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    begin_ = (kLine - address % kLine) % kLine + offset;
  }
  Bytes(const Bytes& other) : Bytes(other.size_, other.offset()) {
    std::memcpy(data(), other.data(), size_);
  }
  Bytes& operator=(const Bytes&) = delete;

  char* data() { return memory_.data() + begin_; }
  const char* data() const { return memory_.data() + begin_; }
  std::size_t size() const { return size_; }
  bool operator==(const Bytes& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_) == 0;
  }

 private:
  static constexpr std::size_t kLine = 64;
  std::size_t offset() const { return reinterpret_cast<std::uintptr_t>(data()) % kLine; }

  std::vector<char> memory_;
  std::size_t size_;
  std::size_t begin_ = 0;
};

// For what a step changes through pointers: a copy that looks like none is needed.
template <class Thing>
Thing copy_of(const Thing& thing) {
  return thing;
}

inline double number_at(const Bytes& array, DType dtype, std::size_t i) {
  const char* item = array.data() + i * item_size(dtype);
  if (dtype == DType::float64) return *reinterpret_cast<const double*>(item);
  if (dtype == DType::float32) return *reinterpret_cast<const float*>(item);
  const auto half = *reinterpret_cast<const std::uint16_t*>(item);
  return dtype == DType::float16 ? rules::Float16::load(half) : rules::BFloat16::load(half);
}

inline void set_number(Bytes& array, DType dtype, std::size_t i, double value) {
  char* item = array.data() + i * item_size(dtype);
  const auto single = static_cast<float>(value);
  if (dtype == DType::float64) {
    *reinterpret_cast<double*>(item) = value;
  } else if (dtype == DType::float32) {
    *reinterpret_cast<float*>(item) = single;
  } else {
    *reinterpret_cast<std::uint16_t*>(item) =
        dtype == DType::float16 ? rules::Float16::store(single) : rules::BFloat16::store(single);
  }
}

inline Bytes random_array(std::int64_t count, DType dtype, std::size_t offset,
                          std::mt19937_64& random) {
  Bytes array(static_cast<std::size_t>(count) * item_size(dtype), offset);
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    set_number(array, dtype, i, normal(random));
  }
  return array;
}

// The shape of a parameter, and the options of its own.
struct Shape {
  std::int64_t rows;
  std::int64_t row_length;
  std::int32_t rates = 0;
  bool centralize = false;

  std::int64_t count() const { return rows * row_length; }
};

// Parameters, to be updated in one of several ways.  Copies have memory of their own.
class Model {
 public:
  Model(std::vector<Shape> shapes, std::vector<DType> dtypes, std::uint64_t seed)
      : shapes_(std::move(shapes)), dtypes_(std::move(dtypes)) {
    std::mt19937_64 random(seed);
    for (std::size_t i = 0; i < size(); ++i) {
      const std::size_t offset = items_before(i, 0) * item_size(dtype(i));
      params_.push_back(random_array(shapes_[i].count(), dtype(i), offset, random));
    }
  }

  std::size_t size() const { return shapes_.size(); }
  DType dtype(std::size_t i) const { return dtypes_[i % dtypes_.size()]; }
  const Shape& shape(std::size_t i) const { return shapes_[i]; }
  Bytes& param(std::size_t i) { return params_[i]; }
  const Bytes& param(std::size_t i) const { return params_[i]; }
  double at(std::size_t i, std::size_t k) const { return number_at(params_[i], dtype(i), k); }

  ParameterSpec spec(std::size_t i) {
    ParameterSpec spec;
    spec.data = params_[i].data();
    spec.count = shapes_[i].count();
    spec.dtype = dtype(i);
    spec.rates = shapes_[i].rates;
    spec.rows = shapes_[i].rows;
    spec.centralize = shapes_[i].centralize;
    spec.key = static_cast<std::int64_t>(100 + i);
    return spec;
  }
  std::vector<ParameterSpec> specs() {
    std::vector<ParameterSpec> specs;
    for (std::size_t i = 0; i < size(); ++i) specs.push_back(spec(i));
    return specs;
  }

  std::vector<Bytes> random_grads(std::mt19937_64& random) const {
    std::vector<Bytes> grads;
    for (std::size_t i = 0; i < size(); ++i) {
      const std::size_t offset = items_before(i, 5) * item_size(dtype(i));
      grads.push_back(random_array(shapes_[i].count(), dtype(i), offset, random));
    }
    return grads;
  }
  Gradient gradient(std::size_t i, const Bytes& values) const {
    return {values.data(), nullptr, dtype(i), kCpu, shapes_[i].count()};
  }
  std::vector<Gradient> gradients(const std::vector<Bytes>& values) const {
    std::vector<Gradient> grads;
    for (std::size_t i = 0; i < size(); ++i) grads.push_back(gradient(i, values[i]));
    return grads;
  }

  // How many items behind a cache line an array of a parameter begins.
  static std::size_t items_before(std::size_t i, std::size_t array) {
    return (3 * i + 7 * array + 1) % 8;
  }

 private:
  std::vector<Shape> shapes_;
  std::vector<DType> dtypes_;
  std::vector<Bytes> params_;
};

inline Optimizers make_optimizer(const AdamConfig& config, const std::vector<ParameterSpec>& specs,
                                 const std::vector<AdamConfig>& groups = {}) {
  Optimizers optimizer;
  const Status status = Optimizer::create(config, specs, &optimizer, {}, groups);
  CHECK(status.ok());
  return optimizer;
}

// State of the caller's, as an optimizer with the same options lays it out.
class States {
 public:
  // As an optimizer begins: zeros, and copies of the parameters.
  States(const Optimizer& like, const Model& model) : arrays_(model.size()) {
    for (std::size_t i = 0; i < model.size(); ++i) {
      for (std::size_t k = 0; k < kStateKinds; ++k) {
        const StateLayout layout = like.layout(static_cast<StateKind>(k), i);
        if (!layout.is_kept) continue;
        const std::size_t offset = Model::items_before(i, k + 1) * item_size(layout.type);
        arrays_[i].push_back({k, Bytes(layout.nbytes(), offset)});
        const void* fresh = like.state(static_cast<StateKind>(k), i);
        if (fresh == nullptr) continue;
        std::memcpy(arrays_[i].back().bytes.data(), fresh, layout.nbytes());
      }
    }
  }

  void give(std::size_t i, ParameterSpec* spec) {
    for (One& one : arrays_[i]) spec->states[one.kind] = one.bytes.data();
  }
  void give_all(std::vector<ParameterSpec>* specs) {
    for (std::size_t i = 0; i < specs->size(); ++i) give(i, &(*specs)[i]);
  }

  bool operator==(const States& other) const { return arrays_ == other.arrays_; }
  // Whether an optimizer has the same.
  bool is_of(const Optimizer& optimizer) const {
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      for (const One& one : arrays_[i]) {
        const void* state = optimizer.state(static_cast<StateKind>(one.kind), i);
        if (one.bytes.size() == 0) continue;
        if (std::memcmp(state, one.bytes.data(), one.bytes.size()) != 0) return false;
      }
    }
    return true;
  }

 private:
  struct One {
    std::size_t kind;
    Bytes bytes;
    bool operator==(const One& other) const { return kind == other.kind && bytes == other.bytes; }
  };
  std::vector<std::vector<One>> arrays_;  // by parameter
};

inline bool same_params(const Model& a, const Model& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(a.param(i) == b.param(i))) return false;
  }
  return true;
}

// Whether parameter i of one optimizer and parameter k of another have the same state.
inline bool same_state(const Optimizer& a, std::size_t i, const Optimizer& b, std::size_t k) {
  for (std::size_t kind = 0; kind < kStateKinds; ++kind) {
    const auto which = static_cast<StateKind>(kind);
    const std::size_t nbytes = a.layout(which, i).nbytes();
    if (nbytes != b.layout(which, k).nbytes()) return false;
    if (nbytes > 0 && std::memcmp(a.state(which, i), b.state(which, k), nbytes) != 0) return false;
  }
  return true;
}

}  // namespace adamas::tests
