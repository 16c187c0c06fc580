// The parameters of an optimizer and the state kept for them: where every array lies.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "adamas/optimizer.hpp"
#include "core/options.hpp"
#include "rules/low_precision.hpp"

namespace adamas::core {

struct Tensor {
  ParameterSpec spec;         // `centralize`: what is done
  bool dense_only;            // whether `centralize` was asked for, done or not
  DType real;                 // of the arithmetic and the moments
  std::int64_t row_length;    // elements
  std::int64_t index;         // of the parameter
  std::int64_t key;           // of its random bits
  bool has_vhat;              // use_amsgrad
  StateFormat format;         // of the moments
  std::int64_t scale_block;   // StateFormat::int8: elements per scale; else 1
  std::size_t nbytes;         // of the parameter
  char* states[kStateKinds];  // null: not kept

  bool is_half() const { return spec.dtype != real; }
  // Whether each row begins with a scale of its own, so that rows can be updated one by one.
  bool has_own_scales() const { return scale_block == 1 || row_length % scale_block == 0; }
  ItemType real_item() const {
    return real == DType::float64 ? ItemType::float64 : ItemType::float32;
  }
  ItemType moment_item() const {
    if (format == StateFormat::real) return real_item();
    const bool is_byte = rules::stored_nbytes(rules::ElementFormats(), format) == 1;
    return is_byte ? ItemType::uint8 : ItemType::uint16;
  }
  std::int64_t moment_nbytes() const {  // of one element
    return static_cast<std::int64_t>(item_size(moment_item()));
  }
  char* data() const { return static_cast<char*>(spec.data); }
  char* state(StateKind kind) const { return states[static_cast<std::size_t>(kind)]; }
  // None: the parameter itself.
  char* array(std::optional<StateKind> kind) const { return kind ? state(*kind) : data(); }
  std::int64_t* row_steps() const {
    return reinterpret_cast<std::int64_t*>(state(StateKind::row_step));
  }
};

// An address range, end exclusive.
struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

Range range_of(const void* data, std::size_t nbytes);

class Storage {
 public:
  // Zeroed memory that outlives this object; null: there is none.  No function: nobody keeps state,
  // and what the caller has not brought is null.
  using Allocate = std::function<char*(std::size_t nbytes)>;

  // May be called again, for others.
  //
  // Reserves the state that is not the caller's; `access_width` is that of Engine.  Throws
  // std::bad_alloc; refuses parameters and state of the caller's that share memory.
  Status prepare(const Options& options, Span<const ParameterSpec> parameters,
                 const Allocate& allocate, std::size_t access_width);

  // Adds parameters at the end; the state of the others stays where it is.  An error leaves this
  // object half done.  Throws std::bad_alloc.
  Status extend(const Options& options, Span<const ParameterSpec> parameters,
                const Allocate& allocate, std::size_t access_width);

  // Gives parameters other memory; an error leaves this object half done.  Throws std::bad_alloc.
  Status rebind(const AdamConfig& config, Span<const NewMemory> memory);

  const std::vector<Tensor>& tensors() const { return tensors_; }
  std::size_t state_nbytes() const { return state_nbytes_; }

  // Where each parameter is.
  std::vector<Range> parameter_ranges() const;

  // Whether the memory is that of a parameter or of the state.
  bool overlaps(const void* data, std::size_t nbytes) const noexcept;

 private:
  Status reserve_state(const AdamConfig& config, std::size_t first, const Allocate& allocate,
                       std::size_t access_width);
  bool has_all_state(const AdamConfig& config, std::size_t first) const;
  Status sort_ranges(const AdamConfig& config);

  // Memory of the caller's, while ranges are sorted.
  struct Owned {
    Range range;
    std::int64_t index;  // of the parameter
    bool is_state;
  };

  std::vector<Tensor> tensors_;
  std::vector<Owned> owned_;
  std::vector<Range> ranges_;  // sorted; none overlaps another
  std::vector<Range> states_;  // reserved here
  std::size_t state_nbytes_ = 0;
};

}  // namespace adamas::core
