// How the work of a step is cut: fixed blocks, gathered into chunks for the thread pool.
//
// Made once, from the shapes alone: neither the number of threads nor the time of day changes what
// is computed together.
#pragma once

#include <cstdint>
#include <vector>

#include "core/storage.hpp"
#include "rules/ordered_sum.hpp"

namespace adamas::core {

// Elements per block (fewer if scales are to stay whole), and about as many per chunk: 64 KiB of
// each float32 array, so that the arrays of a block fit the L2 cache together.
using rules::kBlock;

// A run of elements of one parameter.
struct Block {
  std::int64_t begin;
  std::int64_t count;
  std::int32_t parameter;
};

// The rows of one centralized parameter.  Long rows are summed in segments of kBlock elements.
struct Rows {
  std::int32_t parameter;
  std::int64_t row_length;
  std::int64_t segments_per_row;
  std::int64_t first_sum;    // where the segment sums of its first row stand
  std::int64_t first_chunk;  // its segment chunks are [first_chunk, last_chunk)
  std::int64_t last_chunk;
};

// Consecutive segments of one centralized parameter.
struct SegmentChunk {
  std::int32_t rows;  // index into Plan::rows
  std::int64_t begin;
  std::int64_t end;
};

struct Plan {
  std::vector<Block> blocks;
  std::vector<std::int64_t> chunks;               // chunk k is blocks [chunks[k], chunks[k + 1])
  std::vector<std::int64_t> blocks_of_parameter;  // i has [blocks_of_parameter[i], ..[i + 1])
  std::vector<Rows> rows;
  std::vector<std::int32_t> rows_of_parameter;  // index into `rows`, or -1
  std::vector<SegmentChunk> segment_chunks;
  std::int64_t segment_sums = 0;  // how many the step needs room for
};

// Into `plan`, whose memory is used again.  Throws std::bad_alloc.
void make_plan(const std::vector<Tensor>& tensors, Plan* plan);

}  // namespace adamas::core
