#include "core/storage.hpp"

#include <algorithm>

#include "core/layout.hpp"
#include "core/memory.hpp"
#include "rules/low_precision.hpp"
#include "rules/mindspore.hpp"

namespace adamas::core {

Range range_of(const void* data, std::size_t nbytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + nbytes};
}

namespace {

// Elements per scale: what divides a row, between 64 and 256 and as large as can be; a row itself
// if it is shorter; else the largest, and rows share scales.
std::int64_t choose_scale_block(std::int64_t row_length) {
  constexpr std::int64_t kSmallest = 64;
  constexpr std::int64_t kLargest = rules::kLargestScaleBlock;
  constexpr std::int64_t kShared = kLargest;
  constexpr std::int64_t kShortest = 16;  // a scale per fewer elements would not be worth it
  if (row_length >= kShortest && row_length < kSmallest) return row_length;
  for (std::int64_t block = kLargest; block >= kSmallest; --block) {
    if (row_length > 0 && row_length % block == 0) return block;
  }
  return kShared;
}

// How far into wide accesses of the arithmetic's type kernels find the first element of a
// parameter: state that begins as far into its own is read and written in wide accesses with it.
std::size_t shift_of(const Tensor& tensor, std::size_t state_nbytes, std::size_t access_width) {
  const std::size_t width = access_width / item_size(tensor.real);
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.spec.data);
  const auto past = static_cast<std::size_t>(address) / item_size(tensor.spec.dtype) % width;
  return past * (state_nbytes / static_cast<std::size_t>(tensor.spec.count));
}

}  // namespace

Status Storage::prepare(const Options& options, Span<const ParameterSpec> parameters,
                        const Allocate& allocate, std::size_t access_width) {
  tensors_.clear();
  states_.clear();
  state_nbytes_ = 0;
  return extend(options, parameters, allocate, access_width);
}

Status Storage::extend(const Options& options, Span<const ParameterSpec> parameters,
                       const Allocate& allocate, std::size_t access_width) {
  const AdamConfig& config = options.all;
  const std::size_t first = tensors_.size();
  tensors_.reserve(first + parameters.size);
  for (const ParameterSpec& spec : parameters) {
    Tensor tensor{};
    tensor.spec = spec;
    tensor.spec.centralize = rules::centralizes(config, spec);
    tensor.dense_only = spec.centralize;
    tensor.real = real_type(spec.dtype);
    tensor.row_length = spec.rows > 0 ? spec.count / spec.rows : 0;
    tensor.index = static_cast<std::int64_t>(tensors_.size());
    tensor.key = spec.key < 0 ? tensor.index : spec.key;
    tensor.has_vhat = options.of(spec).use_amsgrad;
    tensor.format = config.state_format;
    tensor.scale_block =
        config.state_format == StateFormat::int8 ? choose_scale_block(tensor.row_length) : 1;
    tensor.nbytes = static_cast<std::size_t>(spec.count) * item_size(spec.dtype);
    tensors_.push_back(tensor);
  }
  Status status = reserve_state(config, first, allocate, access_width);
  return status.ok() ? sort_ranges(config) : status;
}

// Whether nothing must be reserved; then the state is where the caller has it.
bool Storage::has_all_state(const AdamConfig& config, std::size_t first) const {
  for (std::size_t i = first; i < tensors_.size(); ++i) {
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      if (tensors_[i].spec.states[k] != nullptr) continue;
      if (layout_of(static_cast<StateKind>(k), tensors_[i], config).nbytes() > 0) return false;
    }
  }
  return true;
}

// One kind of state after the other, each tensor's part on a cache line of its own, so that vectors
// and rows of whole lines split none.  The kinds are staggered by an odd number of lines: equal
// offsets within a page would compete for the same cache sets.
Status Storage::reserve_state(const AdamConfig& config, std::size_t first, const Allocate& allocate,
                              std::size_t access_width) {
  if (!allocate || has_all_state(config, first)) {
    for (std::size_t i = first; i < tensors_.size(); ++i) {
      Tensor& tensor = tensors_[i];
      for (std::size_t k = 0; k < kStateKinds; ++k) {
        tensor.states[k] = static_cast<char*>(tensor.spec.states[k]);
        state_nbytes_ += layout_of(static_cast<StateKind>(k), tensor, config).nbytes();
      }
    }
    return {};
  }
  constexpr std::size_t kStagger = 17 * kLine;
  constexpr std::size_t kNone = ~std::size_t{0};
  std::size_t cursor = 0;
  std::vector<std::size_t> offsets;
  const std::size_t count = tensors_.size() - first;
  offsets.reserve(kStateKinds * count);
  for (std::size_t k = 0; k < kStateKinds; ++k) {
    for (std::size_t i = first; i < tensors_.size(); ++i) {
      const Tensor& tensor = tensors_[i];
      const std::size_t nbytes = layout_of(static_cast<StateKind>(k), tensor, config).nbytes();
      state_nbytes_ += nbytes;
      if (nbytes == 0 || tensor.spec.states[k] != nullptr) {
        offsets.push_back(kNone);
        continue;
      }
      cursor = (cursor + kLine - 1) / kLine * kLine;
      if (access_width > 0 &&
          layout_of(static_cast<StateKind>(k), tensor, config).is_like_parameter) {
        cursor += shift_of(tensor, nbytes, access_width);
      }
      offsets.push_back(cursor);
      cursor += nbytes;
    }
    cursor += kStagger;
  }
  char* memory = allocate(cursor);
  if (memory == nullptr && cursor > 0) {
    return {StatusCode::out_of_memory, "no memory for the state"};
  }
  states_.push_back(range_of(memory, cursor));
  for (std::size_t k = 0; k < kStateKinds; ++k) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t offset = offsets[k * count + i];
      Tensor& tensor = tensors_[first + i];
      tensor.states[k] =
          offset == kNone ? static_cast<char*>(tensor.spec.states[k]) : memory + offset;
    }
  }
  return {};
}

Status Storage::rebind(const AdamConfig& config, Span<const NewMemory> memory) {
  for (const NewMemory& one : memory) tensors_[one.parameter].spec.data = one.data;
  return sort_ranges(config);
}

Status Storage::sort_ranges(const AdamConfig& config) {
  owned_.clear();
  ranges_.clear();
  const auto add = [&](const void* data, std::size_t nbytes, std::int64_t index, bool is_state) {
    if (nbytes > 0) owned_.push_back({range_of(data, nbytes), index, is_state});
  };
  for (const Tensor& tensor : tensors_) {
    void* const written = config.writes_delta ? tensor.spec.delta : tensor.spec.data;
    add(written, tensor.nbytes, tensor.index, false);
    for (std::size_t k = 0; k < kStateKinds; ++k) {
      const void* given = tensor.spec.states[k];
      if (given == nullptr) continue;
      add(given, layout_of(static_cast<StateKind>(k), tensor, config).nbytes(), tensor.index, true);
    }
  }
  for (const Range& state : states_) {
    if (state.end > state.begin) owned_.push_back({state, -1, true});
  }
  std::sort(owned_.begin(), owned_.end(),
            [](const Owned& a, const Owned& b) { return a.range.begin < b.range.begin; });
  for (std::size_t k = 0; k < owned_.size(); ++k) {
    if (k > 0 && owned_[k].range.begin < owned_[k - 1].range.end) {
      const bool has_state = owned_[k].is_state || owned_[k - 1].is_state;
      return {StatusCode::overlap,
              has_state ? "an array of state shares memory with another or with a parameter"
                        : "a parameter shares memory with another",
              std::max(owned_[k].index, owned_[k - 1].index)};
    }
    ranges_.push_back(owned_[k].range);
  }
  if (!config.writes_delta) return {};
  // Only read, and so free to share memory with others and with gradients.
  for (const Tensor& tensor : tensors_) {
    if (!overlaps(tensor.spec.data, tensor.nbytes)) continue;
    return {StatusCode::overlap, "a parameter shares memory with a change or the state",
            tensor.index};
  }
  return {};
}

std::vector<Range> Storage::parameter_ranges() const {
  std::vector<Range> ranges;
  for (const Tensor& tensor : tensors_) {
    ranges.push_back(range_of(tensor.spec.data, tensor.nbytes));
  }
  return ranges;
}

bool Storage::overlaps(const void* data, std::size_t nbytes) const noexcept {
  const Range range = range_of(data, nbytes);
  const auto next = std::upper_bound(
      ranges_.begin(), ranges_.end(), range,
      [](const Range& value, const Range& other) { return value.begin < other.end; });
  return nbytes > 0 && next != ranges_.end() && next->begin < range.end;
}

}  // namespace adamas::core
