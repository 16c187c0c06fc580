#include "core/plan.hpp"

#include <algorithm>

namespace adamas::core {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void add_rows(Plan& plan, const ParameterSpec& parameter, std::int32_t index) {
  Rows rows{};
  rows.parameter = index;
  rows.row_length = parameter.count / parameter.rows;
  rows.segments_per_row = divide_up(rows.row_length, kBlock);
  rows.first_sum = plan.segment_sums;
  rows.first_chunk = static_cast<std::int64_t>(plan.segment_chunks.size());
  const auto rows_index = static_cast<std::int32_t>(plan.rows.size());
  plan.rows_of_parameter[static_cast<std::size_t>(index)] = rows_index;

  const std::int64_t segments = parameter.rows * rows.segments_per_row;
  const std::int64_t segment_length = divide_up(rows.row_length, rows.segments_per_row);
  const std::int64_t per_chunk = std::max<std::int64_t>(1, kBlock / segment_length);
  for (std::int64_t begin = 0; begin < segments; begin += per_chunk) {
    plan.segment_chunks.push_back({rows_index, begin, std::min(begin + per_chunk, segments)});
  }
  plan.segment_sums += segments;
  rows.last_chunk = static_cast<std::int64_t>(plan.segment_chunks.size());
  plan.rows.push_back(rows);
}

}  // namespace

void make_plan(const std::vector<Tensor>& tensors, Plan* made) {
  Plan& plan = *made;
  plan.blocks.clear();
  plan.chunks.clear();
  plan.blocks_of_parameter.clear();
  plan.rows.clear();
  plan.segment_chunks.clear();
  plan.segment_sums = 0;
  plan.rows_of_parameter.assign(tensors.size(), -1);
  std::int64_t in_chunk = kBlock;  // the first block opens the first chunk
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const ParameterSpec& parameter = tensors[i].spec;
    const std::int64_t length = kBlock / tensors[i].scale_block * tensors[i].scale_block;
    const auto index = static_cast<std::int32_t>(i);
    plan.blocks_of_parameter.push_back(static_cast<std::int64_t>(plan.blocks.size()));
    if (parameter.centralize && parameter.count > 0) add_rows(plan, parameter, index);
    for (std::int64_t begin = 0; begin < parameter.count; begin += length) {
      const std::int64_t count = std::min(length, parameter.count - begin);
      if (in_chunk + count > kBlock) {
        plan.chunks.push_back(static_cast<std::int64_t>(plan.blocks.size()));
        in_chunk = 0;
      }
      plan.blocks.push_back({begin, count, index});
      in_chunk += count;
    }
  }
  plan.chunks.push_back(static_cast<std::int64_t>(plan.blocks.size()));
  plan.blocks_of_parameter.push_back(static_cast<std::int64_t>(plan.blocks.size()));
}

}  // namespace adamas::core
