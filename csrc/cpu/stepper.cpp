#include "cpu/stepper.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "cpu/kernels/isa.hpp"
#include "cpu/prefetch.hpp"
#include "rules/ordered_sum.hpp"

namespace adamas::cpu {
namespace {

static_assert(rules::kEntryLimit == RowMerge::kEnd);

// Where the rows of a table, of its moments and of a sparse gradient lie.
class RowMemory {
 public:
  RowMemory(const Tensor& tensor, const Gradient& grad, const RowMerge& merge)
      : merge_(merge),
        param_(tensor.data()),
        moment1_(tensor.state(StateKind::moment1)),
        moment2_(tensor.state(StateKind::moment2)),
        grads_(static_cast<const char*>(grad.values)),
        param_nbytes_(tensor.row_length * static_cast<std::int64_t>(item_size(tensor.spec.dtype))),
        moment_nbytes_(tensor.row_length * tensor.moment_nbytes()),
        grad_nbytes_(tensor.row_length * static_cast<std::int64_t>(item_size(grad.dtype))) {}

  const char* first_grad(const ListedRow& listed) const {
    return grads_ + merge_.index(listed.first) * grad_nbytes_;
  }

  template <CacheLevel level>
  __attribute__((always_inline)) void prefetch(const ListedRow& listed) const {
    prefetch_run<level>(param_ + listed.row * param_nbytes_, param_nbytes_);
    prefetch_run<level>(moment1_ + listed.row * moment_nbytes_, moment_nbytes_);
    prefetch_run<level>(moment2_ + listed.row * moment_nbytes_, moment_nbytes_);
    prefetch_run<level>(first_grad(listed), grad_nbytes_);
  }

 private:
  const RowMerge& merge_;
  const char* param_;
  const char* moment1_;
  const char* moment2_;
  const char* grads_;
  std::int64_t param_nbytes_;
  std::int64_t moment_nbytes_;
  std::int64_t grad_nbytes_;
};

}  // namespace

void Stepper::prepare(const core::Options& options, const std::vector<Tensor>& tensors,
                      const core::RateFolder& rates) {
  options_ = &options;
  tensors_ = &tensors;
  rates_ = &rates;
  core::make_plan(tensors, &plan_);
  const int threads = options.all.num_threads;
  if (!pools_ || threads_ != threads) pools_.emplace(threads);
  threads_ = threads;
  direct_.clear();
  direct_.reserve(tensors.size());
  for (const Tensor& tensor : tensors) direct_.emplace_back(tensor);
  segment_sums_.resize(static_cast<std::size_t>(plan_.segment_sums));
  block_squares_.resize(plan_.blocks.size());
  while (single_blocks_.size() <= plan_.blocks.size()) {
    single_blocks_.push_back(static_cast<std::int64_t>(single_blocks_.size()));
  }
  sparse_.resize(tensors.size());
  sparse_parameters_.reserve(tensors.size());
}

void Stepper::rebind(std::size_t parameter) noexcept {
  direct_[parameter] = DirectTensor((*tensors_)[parameter]);
}

const rules::FoldedRates& Stepper::folded(const Tensor& tensor) const {
  return rates_->of(static_cast<std::size_t>(tensor.index), tensor.spec.rates);
}

Scaling Stepper::scaling(const rules::FoldedRates& folded, const Folded& used) const {
  return {&used, options_->all.seed, folded.step, 1.0 - options_->all.ema_decay};
}

Scaling Stepper::listed_scaling(const Tensor& tensor) const {
  const rules::FoldedRates& folded = this->folded(tensor);
  return scaling(folded, folded.listed);
}

// Numerics "mindspore" decays once for each entry, "standard" once for each row.  `own` has room
// for scalars of the row's own.
Scaling Stepper::row_scaling(const Tensor& tensor, const RowMerge& merge, const ListedRow& listed,
                             Folded& own) const {
  const rules::FoldedRates& folded = this->folded(tensor);
  const bool repeats = listed.first != listed.last;
  if (rules::decays_all_rows(options_->of(tensor.spec)) || !repeats || folded.weight_decay == 0.0) {
    return scaling(folded, folded.listed);
  }
  double entries = 0.0;
  for (std::uint32_t place = listed.first; place != RowMerge::kEnd; place = merge.next(place)) {
    ++entries;
  }
  own = folded.listed;
  own.float32.decay = rules::decay_of_entries<float>(folded.weight_decay, folded.factor, entries);
  own.float64.decay = rules::decay_of_entries<double>(folded.weight_decay, folded.factor, entries);
  return scaling(folded, own);
}

// Whether any parameter is updated block by block; tables of which only some rows are have so many
// blocks that looking at each would cost more than their rows.
bool Stepper::updates_blocks() const {
  for (std::size_t i = selection_.first; i < selection_.last; ++i) {
    if (updates_all_rows(i)) return true;
  }
  return false;
}

bool Stepper::updates_all_rows(std::size_t parameter) const {
  if (is_absent(parameter)) return false;
  return !is_sparse(parameter) || options_->all.row_policy == RowPolicy::exact;
}

// Small work stays on the calling thread; waking others costs more than it saves.
template <void (Stepper::*method)(std::int64_t) noexcept>
void Stepper::run(std::int64_t chunks) noexcept {
  PoolLease pool(chunks < 2 ? 1 : threads_);
  pool.run([](void* self, std::int64_t k) { (static_cast<Stepper*>(self)->*method)(k); }, this,
           chunks);
}

Status Stepper::merge(const Selection& selection, bool measured) noexcept {
  selection_ = selection;
  kernels_ = &kernels();
  sparse_parameters_.clear();
  const bool sorted = measured || options_->all.row_policy == RowPolicy::exact;
  united_ = sorted;
  if (!selection.has_sparse) return {};
  for (std::size_t i = selection.first; i < selection.last; ++i) {
    if (!is_sparse(i)) continue;
    const Tensor& tensor = (*tensors_)[i];
    try {
      if (!sparse_[i]) sparse_[i] = std::make_unique<Sparse>();
      const RowIndices& rows = *selection.grad(i).rows;
      sparse_[i]->merge.prepare(rows, tensor.spec.rows, sorted, threads_);
      sparse_[i]->sums.prepare(sorted ? 0 : rows.count, tensor.row_length, tensor.real);
      if (measured) sparse_[i]->squares.resize(static_cast<std::size_t>(rows.count));
    } catch (const std::bad_alloc&) {
      return {StatusCode::out_of_memory, "no memory for the rows of a sparse gradient",
              static_cast<std::int64_t>(i)};
    }
    sparse_parameters_.push_back(i);
  }
  for (const std::size_t i : sparse_parameters_) {
    current_ = i;
    RowMerge& merge = sparse_[i]->merge;
    run<&Stepper::count_rows>(merge.segments());
    if (!merge.finish_count()) {
      return {StatusCode::bad_index, "a row index of a sparse gradient is outside the parameter",
              static_cast<std::int64_t>(i)};
    }
    run<&Stepper::scatter_rows>(merge.segments());
    if (sorted) run<&Stepper::unite_rows>(merge.partitions());
  }
  return {};
}

void Stepper::count_rows(std::int64_t segment) noexcept { sparse_[current_]->merge.count(segment); }

void Stepper::scatter_rows(std::int64_t segment) noexcept {
  sparse_[current_]->merge.scatter(segment);
}

void Stepper::unite_rows(std::int64_t partition) noexcept {
  sparse_[current_]->merge.unite(partition);
}

// All parameters: chunks that gather small blocks.  One parameter: its blocks, one by one.
std::int64_t Stepper::select_chunks() noexcept {
  if (selection_.last - selection_.first == (*tensors_).size()) {
    chunks_ = plan_.chunks.data();
    return static_cast<std::int64_t>(plan_.chunks.size()) - 1;
  }
  const std::int64_t first = plan_.blocks_of_parameter[selection_.first];
  chunks_ = &single_blocks_[static_cast<std::size_t>(first)];
  return plan_.blocks_of_parameter[selection_.last] - first;
}

void Stepper::accumulate(const Selection& selection, const core::Accumulation& sums) noexcept {
  selection_ = selection;
  kernels_ = &kernels();
  accumulation_ = &sums;
  run<&Stepper::accumulate_chunk>(select_chunks());
}

void Stepper::accumulate_chunk(std::int64_t chunk) noexcept {
  for (std::int64_t b = chunks_[chunk]; b < chunks_[chunk + 1]; ++b) {
    const Block& block = plan_.blocks[static_cast<std::size_t>(b)];
    const auto i = static_cast<std::size_t>(block.parameter);
    if (is_absent(i)) continue;
    const Tensor& tensor = (*tensors_)[i];
    const GradSource source(selection_.grad(i));
    add_run(*kernels_, {&tensor, block.begin, block.count, &source, block.begin},
            accumulation_->sums[i], accumulation_->has_any[i] != 0);
  }
}

SquareSum Stepper::measure(const core::StepInput& input) noexcept {
  input_ = &input;
  all_finite_.store(true, std::memory_order_relaxed);
  std::fill(block_squares_.begin(), block_squares_.end(), 0.0);
  run<&Stepper::measure_chunk>(select_chunks());
  for (const std::size_t i : sparse_parameters_) {
    if ((*tensors_)[i].spec.count == 0) continue;
    current_ = i;
    const RowMerge& merge = sparse_[i]->merge;
    std::vector<double>& squares = sparse_[i]->squares;
    run<&Stepper::measure_rows>(merge.partitions());
    std::size_t rows = 0;
    for (std::int64_t p = 0; p < merge.partitions(); ++p) {
      const auto begin = static_cast<std::size_t>(merge.begin(p) - merge.begin(0));
      const auto count = static_cast<std::size_t>(merge.end(p) - merge.begin(p));
      std::copy_n(squares.begin() + static_cast<std::ptrdiff_t>(begin), count,
                  squares.begin() + static_cast<std::ptrdiff_t>(rows));
      rows += count;
    }
    const auto first = static_cast<std::size_t>(plan_.blocks_of_parameter[i]);
    block_squares_[first] = rules::ordered_sum(squares.data(), rows);
  }
  return {rules::ordered_sum(block_squares_.data(), block_squares_.size()),
          all_finite_.load(std::memory_order_relaxed)};
}

double Stepper::squares_of(std::size_t parameter) const noexcept {
  const auto first = static_cast<std::size_t>(plan_.blocks_of_parameter[parameter]);
  const auto last = static_cast<std::size_t>(plan_.blocks_of_parameter[parameter + 1]);
  return rules::ordered_sum(block_squares_.data() + first, last - first);
}

void Stepper::measure_chunk(std::int64_t chunk) noexcept {
  for (std::int64_t b = chunks_[chunk]; b < chunks_[chunk + 1]; ++b) {
    const Block& block = plan_.blocks[static_cast<std::size_t>(b)];
    const auto i = static_cast<std::size_t>(block.parameter);
    if (is_sparse(i) || is_absent(i)) continue;
    const Tensor& tensor = (*tensors_)[i];
    const GradSource source(selection_.grad(i));
    const double decay = rules::measured_decay(
        options_->of(tensor.spec), input_->rates[static_cast<std::size_t>(tensor.spec.rates)],
        input_->loss_scale);
    const SquareSum sum =
        square_sum_run(*kernels_, {&tensor, block.begin, block.count, &source, block.begin}, decay);
    block_squares_[static_cast<std::size_t>(b)] = sum.squares;
    if (!sum.finite) all_finite_.store(false, std::memory_order_relaxed);
  }
}

void Stepper::measure_rows(std::int64_t partition) noexcept {
  const Tensor& tensor = (*tensors_)[current_];
  const RowMerge& merge = sparse_[current_]->merge;
  double* squares = sparse_[current_]->squares.data();
  for (const ListedRow* listed = merge.begin(partition); listed != merge.end(partition); ++listed) {
    const GradSource source(selection_.grad(current_), merge, listed->first, tensor.row_length);
    const SquareSum sum = square_sum_run(*kernels_, {&tensor, 0, tensor.row_length, &source, 0});
    squares[listed - merge.begin(0)] = sum.squares;
    if (!sum.finite) all_finite_.store(false, std::memory_order_relaxed);
  }
}

void Stepper::update() noexcept {
  const bool centralizes = !plan_.rows.empty();
  for (std::size_t i = selection_.first; centralizes && i < selection_.last; ++i) {
    const std::int32_t index = plan_.rows_of_parameter[i];
    if (index < 0 || is_absent(i)) continue;
    const core::Rows& rows = plan_.rows[static_cast<std::size_t>(index)];
    first_segment_ = rows.first_chunk;
    run<&Stepper::sum_segments>(rows.last_chunk - rows.first_chunk);
  }
  if (updates_blocks()) run<&Stepper::update_chunk>(select_chunks());
  for (const std::size_t i : sparse_parameters_) {
    if (updates_all_rows(i)) continue;
    const Tensor& tensor = (*tensors_)[i];
    if (tensor.spec.delta != nullptr) std::memset(tensor.spec.delta, 0, tensor.nbytes);
    current_ = i;
    run<&Stepper::update_partition>(sparse_[i]->merge.partitions());
  }
  if (options_->all.row_policy != RowPolicy::catch_up) return;
  for (std::size_t i = selection_.first; i < selection_.last; ++i) {
    const Tensor& tensor = (*tensors_)[i];
    if (updates_all_rows(i) && tensor.row_steps() != nullptr) {
      std::fill_n(tensor.row_steps(), tensor.spec.rows, folded(tensor).step);
    }
  }
}

void Stepper::sum_segments(std::int64_t chunk) noexcept {
  const core::SegmentChunk& work =
      plan_.segment_chunks[static_cast<std::size_t>(first_segment_ + chunk)];
  const core::Rows& rows = plan_.rows[static_cast<std::size_t>(work.rows)];
  const auto i = static_cast<std::size_t>(rows.parameter);
  const Tensor& tensor = (*tensors_)[i];
  const GradSource source(selection_.grad(i));
  for (std::int64_t segment = work.begin; segment < work.end; ++segment) {
    const std::int64_t in_row = segment % rows.segments_per_row * core::kBlock;
    const std::int64_t begin = segment / rows.segments_per_row * rows.row_length + in_row;
    const std::int64_t count = std::min(core::kBlock, rows.row_length - in_row);
    segment_sums_[static_cast<std::size_t>(rows.first_sum + segment)] =
        sum_run(*kernels_, {&tensor, begin, count, &source, begin}, listed_scaling(tensor));
  }
}

void Stepper::update_chunk(std::int64_t chunk) noexcept {
  for (std::int64_t b = chunks_[chunk]; b < chunks_[chunk + 1]; ++b) {
    const Block& block = plan_.blocks[static_cast<std::size_t>(b)];
    const auto i = static_cast<std::size_t>(block.parameter);
    const DirectTensor& direct = direct_[i];
    if (const Gradient& grad = selection_.grad(i); direct.takes(grad)) {
      direct.update(*kernels_, block, grad, rates_->of(i, direct.rates()).listed);
    } else if (updates_all_rows(i)) {
      update_block(block);
    }
  }
}

void Stepper::update_block(const Block& block) noexcept {
  const auto i = static_cast<std::size_t>(block.parameter);
  const Tensor& tensor = (*tensors_)[i];
  if (is_sparse(i)) return update_table(block);
  if (tensor.row_steps() != nullptr) catch_up_block(block);
  if (tensor.spec.centralize) return update_centralized(block);
  const GradSource source(selection_.grad(i));
  update_run(*kernels_, {&tensor, block.begin, block.count, &source, block.begin},
             listed_scaling(tensor));
}

void Stepper::update_centralized(const Block& block) noexcept {
  const auto i = static_cast<std::size_t>(block.parameter);
  const Tensor& tensor = (*tensors_)[i];
  const core::Rows& rows = plan_.rows[static_cast<std::size_t>(plan_.rows_of_parameter[i])];
  const GradSource source(selection_.grad(i));
  const std::int64_t end = block.begin + block.count;
  for (std::int64_t begin = block.begin; begin < end;) {
    const std::int64_t row = begin / rows.row_length;
    const std::int64_t row_end = std::min((row + 1) * rows.row_length, end);
    const double mean = row_mean(rows, row);
    update_run(*kernels_, {&tensor, begin, row_end - begin, &source, begin}, listed_scaling(tensor),
               &mean);
    begin = row_end;
  }
}

double Stepper::row_mean(const core::Rows& rows, std::int64_t row) const noexcept {
  const double* sums = &segment_sums_[static_cast<std::size_t>(rows.first_sum)];
  double sum = 0.0;
  for (std::int64_t k = 0; k < rows.segments_per_row; ++k) {
    sum += sums[row * rows.segments_per_row + k];
  }
  return sum / static_cast<double>(rows.row_length);
}

// A block of a table with a sparse gradient, in one pass: listed rows get their sums, the runs
// between them the gradient zero.
void Stepper::update_table(const Block& block) noexcept {
  const auto i = static_cast<std::size_t>(block.parameter);
  const Tensor& tensor = (*tensors_)[i];
  const RowMerge& merge = sparse_[i]->merge;
  const rules::FoldedRates& folded = this->folded(tensor);
  const Scaling unlisted = scaling(folded, folded.unlisted);
  const GradSource zero;
  Folded own;
  const std::int64_t end = block.begin + block.count;
  ListedRows rows(merge, block.begin / tensor.row_length);
  for (std::int64_t begin = block.begin; begin < end;) {
    const ListedRow* listed = rows.get();
    const std::int64_t row_begin = listed == nullptr ? end : listed->row * tensor.row_length;
    if (begin < row_begin) {
      const std::int64_t run_end = std::min(row_begin, end);
      update_run(*kernels_, {&tensor, begin, run_end - begin, &zero, 0}, unlisted);
      begin = run_end;
      continue;
    }
    const std::int64_t run_end = std::min(row_begin + tensor.row_length, end);
    const GradSource source(selection_.grad(i), merge, listed->first, tensor.row_length);
    update_run(*kernels_, {&tensor, begin, run_end - begin, &source, begin - row_begin},
               row_scaling(tensor, merge, *listed, own));
    begin = run_end;
    rows.advance();
  }
}

// The listed rows of one partition and no others.
void Stepper::update_partition(std::int64_t partition) noexcept {
  constexpr std::ptrdiff_t kFar = 16;  // rows between a prefetch to the second-level cache and use
  constexpr std::ptrdiff_t kNear = 4;  // and to the first
  const Tensor& tensor = (*tensors_)[current_];
  const Gradient& grad = selection_.grad(current_);
  RowMerge& merge = sparse_[current_]->merge;
  if (!united_) merge.unite(partition);
  DuplicateSums& sums = sparse_[current_]->sums;
  const bool has_sums = !united_ && sums.has();
  if (has_sums) sums.sum(*kernels_, merge, grad, partition);
  const RowMemory memory(tensor, grad, merge);
  const ListedRow* const rows = merge.begin(partition);
  const std::ptrdiff_t count = merge.end(partition) - rows;
  const std::int64_t step = folded(tensor).step;
  Folded own;
  for (std::ptrdiff_t k = -kFar; k < count; ++k) {
    if (k + kFar < count) memory.prefetch<CacheLevel::second>(rows[k + kFar]);
    if (k + kNear >= 0 && k + kNear < count) memory.prefetch<CacheLevel::first>(rows[k + kNear]);
    if (k < 0) continue;
    const ListedRow& listed = rows[k];
    const GradSource source =
        listed.first == listed.last ? GradSource({memory.first_grad(listed), nullptr, grad.dtype})
        : has_sums ? GradSource({sums.of(&listed - merge.begin(0)), nullptr, tensor.real})
                   : GradSource(grad, merge, listed.first, tensor.row_length);
    const Run run{&tensor, listed.row * tensor.row_length, tensor.row_length, &source, 0};
    if (tensor.row_steps() != nullptr) {
      catch_up(run, listed.row);
      tensor.row_steps()[listed.row] = step;
    }
    update_run(*kernels_, run, row_scaling(tensor, merge, listed, own));
  }
}

// Brings the rows of a block with a dense gradient up to date.
void Stepper::catch_up_block(const Block& block) noexcept {
  const Tensor& tensor = (*tensors_)[static_cast<std::size_t>(block.parameter)];
  const std::int64_t end = block.begin + block.count;
  for (std::int64_t begin = block.begin; begin < end;) {
    const std::int64_t row = begin / tensor.row_length;
    const std::int64_t row_end = std::min((row + 1) * tensor.row_length, end);
    catch_up({&tensor, begin, row_end - begin, nullptr, 0}, row);
    begin = row_end;
  }
}

// Decays the moments of a run within one row by the steps that the row has missed.
void Stepper::catch_up(const Run& run, std::int64_t row) noexcept {
  const rules::FoldedRates& folded = this->folded(*run.tensor);
  const std::int64_t missed = folded.step - 1 - run.tensor->row_steps()[row];
  if (missed <= 0) return;
  // Powers of the betas as the rule multiplies with them.
  const auto beta_power = [&](double beta) {
    const bool is_float32 = run.tensor->real == DType::float32;
    return rules::power(is_float32 ? rules::as_float32(beta) : beta, missed);
  };
  decay_moments(*kernels_, run, beta_power(folded.beta1), beta_power(folded.beta2));
}

}  // namespace adamas::cpu
