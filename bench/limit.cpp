// The limit: the memory traffic of one Adam step without its arithmetic. For every element the
// parameter, the gradient and two moments are read, and all but the gradient are written: 28 bytes
// for float32 moments, 20 for 16-bit and 16 for 8-bit ones. `limit.py` compiles this file for the
// machine at hand and calls it through ctypes; it is a measuring stick, and no part of the library.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallStep = 16384;   // elements; below this waking a thread costs more than it saves
constexpr size_t kLargeChunk = 262144; // elements
constexpr size_t kRowsAhead = 6;       // rows prefetched before they are used
constexpr std::chrono::microseconds kSpin{50};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Zeroed memory on huge pages, already faulted in.
class HugeArray {
 public:
  explicit HugeArray(size_t bytes) : mapped_(bytes + 2 * kHugePage) {
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(base_);
    data_ = reinterpret_cast<char*>((address + kHugePage - 1) & ~(kHugePage - 1));
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes + kHugePage, MADV_HUGEPAGE);
#endif
    std::fill(data_, data_ + bytes, char{0});
  }
  ~HugeArray() { munmap(base_, mapped_); }
  HugeArray(const HugeArray&) = delete;
  HugeArray& operator=(const HugeArray&) = delete;
  char* data() const { return data_; }

 private:
  size_t mapped_;
  void* base_;
  char* data_;
};

// Threads that own equal shares of numbered chunks and steal from each other when done. The caller
// takes part, so a thread whose core is busy delays nobody. Threads spin for kSpin, then sleep.
class Pool {
 public:
  using Work = std::function<void(size_t)>;

  explicit Pool(int threads) : shares_(static_cast<size_t>(threads)) {
    for (size_t i = 1; i < shares_.size(); ++i) workers_.emplace_back([this, i] { serve(i); });
  }
  ~Pool() {
    quit_ = true;
    start(0);
    for (std::thread& worker : workers_) worker.join();
  }
  size_t threads() const { return shares_.size(); }

  // Calls work(k) for every k below `chunks`; returns when all calls have returned.
  void run(size_t chunks, const Work& work) {
    work_ = &work;
    start(chunks);
    drain(0, epoch_.load());
    while (unfinished_.load(std::memory_order_acquire) > 0) relax();
  }

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};  // the epoch in the high half, the next chunk in the low half
    uint32_t end = 0;
  };

  void start(size_t chunks) {
    const uint32_t epoch = epoch_.load() + 1;
    const size_t count = shares_.size();
    unfinished_.store(chunks);
    for (size_t i = 0; i < count; ++i) {
      shares_[i].end = static_cast<uint32_t>(chunks * (i + 1) / count);
      shares_[i].next.store(uint64_t{epoch} << 32 | (chunks * i / count), std::memory_order_release);
    }
    epoch_.store(epoch);
    if (sleepers_.load() > 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }

  void serve(size_t self) {
    for (uint32_t seen = 0;;) {
      wait_for_change(seen);
      if (quit_) return;
      seen = epoch_.load();
      drain(self, seen);
    }
  }

  void wait_for_change(uint32_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (epoch_.load(std::memory_order_acquire) == seen) {
      relax();
      if (std::chrono::steady_clock::now() < deadline) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      --sleepers_;
    }
  }

  void drain(size_t self, uint32_t epoch) {
    const size_t count = shares_.size();
    for (size_t i = 0; i < count; ++i) drain_share(shares_[(self + i) % count], epoch);
  }

  // A late thread finds another epoch in `next`, and its exchange fails: it can take nothing.
  void drain_share(Share& share, uint32_t epoch) {
    uint64_t next = share.next.load(std::memory_order_acquire);
    while (next >> 32 == epoch && static_cast<uint32_t>(next) < share.end) {
      if (!share.next.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) continue;
      (*work_)(static_cast<uint32_t>(next));
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
      next = share.next.load(std::memory_order_acquire);
    }
  }

  std::vector<Share> shares_;
  std::vector<std::thread> workers_;
  const Work* work_ = nullptr;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<size_t> unfinished_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> quit_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Loads and stores that the compiler cannot leave out: `key` is zero, which it does not know.
template <class State>
void touch(uint32_t* __restrict param, const uint32_t* __restrict grad, State* __restrict moment1,
           State* __restrict moment2, size_t count, uint32_t key) {
  const auto state_key = static_cast<State>(key);
  for (size_t i = 0; i < count; ++i) {
    param[i] ^= grad[i] & key;
    moment1[i] ^= state_key;
    moment2[i] ^= state_key;
  }
}

volatile uint32_t zero = 0;

struct Piece {
  uint32_t* param;
  const uint32_t* grad;
  size_t state;  // index of the first element in the arrays of moments
  size_t count;
};

// The traffic over a list of tensors.
class Dense {
 public:
  Dense(int threads, int state_bytes) : pool_(threads), state_bytes_(state_bytes) {}

  void add(uint32_t* param, const uint32_t* grad, size_t count) {
    tensors_.push_back({param, grad, states_, count});
    states_ += (count + 63) & ~size_t{63};
    elements_ += count;
  }

  void finish() {
    const size_t bytes = states_ * static_cast<size_t>(state_bytes_);
    moment1_ = std::make_unique<HugeArray>(bytes);
    moment2_ = std::make_unique<HugeArray>(bytes + kSkew);
    cut();
  }

  void run(int times) {
    const Pool::Work work = [this](size_t chunk) { run_chunk(chunk); };
    for (; times > 0; --times) {
      if (pool_.threads() == 1 || ends_.size() == 1) {
        for (size_t chunk = 0; chunk < ends_.size(); ++chunk) run_chunk(chunk);
      } else {
        pool_.run(ends_.size(), work);
      }
    }
  }

 private:
  // Keeps both moments of an element from mapping to the same cache sets and memory banks.
  static constexpr size_t kSkew = 1088;

  size_t chunk_size() const {
    const size_t threads = pool_.threads();
    if (elements_ < kSmallStep) return elements_ + 1;
    const size_t wanted = std::clamp(elements_ / (4 * threads), kSmallStep, kLargeChunk);
    const size_t chunks = threads * ((elements_ + threads * wanted - 1) / (threads * wanted));
    return ((elements_ + chunks - 1) / chunks + 63) & ~size_t{63};
  }

  void cut() {
    const size_t size = chunk_size();
    size_t room = size;
    for (Piece rest : tensors_) {
      while (rest.count > 0) {
        const size_t count = std::min(rest.count, room);
        pieces_.push_back({rest.param, rest.grad, rest.state, count});
        rest = {rest.param + count, rest.grad + count, rest.state + count, rest.count - count};
        room -= count;
        if (room > 0) continue;
        ends_.push_back(pieces_.size());
        room = size;
      }
    }
    if (ends_.empty() || ends_.back() != pieces_.size()) ends_.push_back(pieces_.size());
  }

  void run_chunk(size_t chunk) {
    switch (state_bytes_) {
      case 1: return run_pieces<uint8_t>(chunk);
      case 2: return run_pieces<uint16_t>(chunk);
      default: return run_pieces<uint32_t>(chunk);
    }
  }

  template <class State>
  void run_pieces(size_t chunk) {
    auto* moment1 = reinterpret_cast<State*>(moment1_->data());
    auto* moment2 = reinterpret_cast<State*>(moment2_->data() + kSkew);
    const uint32_t key = zero;
    for (size_t i = chunk == 0 ? 0 : ends_[chunk - 1]; i < ends_[chunk]; ++i) {
      const Piece& piece = pieces_[i];
      touch(piece.param, piece.grad, moment1 + piece.state, moment2 + piece.state, piece.count, key);
    }
  }

  Pool pool_;
  int state_bytes_;
  size_t elements_ = 0;
  size_t states_ = 0;
  std::vector<Piece> tensors_;
  std::vector<Piece> pieces_;
  std::vector<size_t> ends_;  // chunk k is pieces_[ends_[k - 1]] to pieces_[ends_[k]]
  std::unique_ptr<HugeArray> moment1_, moment2_;
};

// The traffic over some rows of a table.
class Rows {
 public:
  Rows(uint32_t* table, size_t rows, size_t width, int threads)
      : pool_(threads),
        table_(table),
        width_(width),
        moment1_(rows * width * sizeof(uint32_t)),
        moment2_(rows * width * sizeof(uint32_t)) {}

  void run(const int64_t* indices, size_t count, const uint32_t* grads) {
    const size_t chunks = 8 * pool_.threads();
    pool_.run(chunks, [&](size_t chunk) {
      run_range(indices, grads, count * chunk / chunks, count * (chunk + 1) / chunks);
    });
  }

 private:
  void run_range(const int64_t* indices, const uint32_t* grads, size_t begin, size_t end) {
    auto* moment1 = reinterpret_cast<uint32_t*>(moment1_.data());
    auto* moment2 = reinterpret_cast<uint32_t*>(moment2_.data());
    const uint32_t key = zero;
    for (size_t i = begin; i < end; ++i) {
      if (i + kRowsAhead < end) {
        const size_t later = static_cast<size_t>(indices[i + kRowsAhead]) * width_;
        prefetch(table_ + later);
        prefetch(moment1 + later);
        prefetch(moment2 + later);
      }
      const size_t row = static_cast<size_t>(indices[i]) * width_;
      touch(table_ + row, grads + i * width_, moment1 + row, moment2 + row, width_, key);
    }
  }

  void prefetch(const uint32_t* row) const {
    for (size_t i = 0; i < width_; i += 64 / sizeof(uint32_t)) __builtin_prefetch(row + i);
  }

  Pool pool_;
  uint32_t* table_;
  size_t width_;
  HugeArray moment1_, moment2_;
};

}  // namespace

extern "C" {

void* dense_new(int threads, int state_bytes) { return new Dense(threads, state_bytes); }
void dense_add(void* dense, void* param, const void* grad, size_t count) {
  static_cast<Dense*>(dense)->add(static_cast<uint32_t*>(param),
                                  static_cast<const uint32_t*>(grad), count);
}
void dense_finish(void* dense) { static_cast<Dense*>(dense)->finish(); }
void dense_run(void* dense, int times) { static_cast<Dense*>(dense)->run(times); }
void dense_delete(void* dense) { delete static_cast<Dense*>(dense); }

void* rows_new(void* table, size_t rows, size_t width, int threads) {
  return new Rows(static_cast<uint32_t*>(table), rows, width, threads);
}
void rows_run(void* rows, const int64_t* indices, size_t count, const void* grads) {
  static_cast<Rows*>(rows)->run(indices, count, static_cast<const uint32_t*>(grads));
}
void rows_delete(void* rows) { delete static_cast<Rows*>(rows); }

}  // extern "C"
