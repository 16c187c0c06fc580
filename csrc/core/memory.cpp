#include "core/memory.hpp"

#include <sys/mman.h>

#include <cstdint>

namespace adamas::core {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

bool ZeroedBlock::allocate(std::size_t bytes) noexcept {
  release();
  if (bytes == 0) return true;
  const bool huge = bytes >= kHugePage;
  const std::size_t mapping_size = round_up(bytes, kHugePage) + (huge ? kHugePage : 0);
  void* mapping = mmap(nullptr, huge ? mapping_size : bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return false;
  mapping_ = mapping;
  mapping_size_ = huge ? mapping_size : bytes;
  size_ = bytes;
  data_ = static_cast<char*>(mapping);
  if (huge) {
    const auto address = reinterpret_cast<std::uintptr_t>(mapping);
    data_ += round_up(address, kHugePage) - address;
#if defined(MADV_HUGEPAGE)
    madvise(data_, round_up(bytes, kHugePage), MADV_HUGEPAGE);  // advice: failure costs speed only
#endif
  }
  return true;
}

void ZeroedBlock::release() noexcept {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  data_ = nullptr;
  size_ = 0;
  mapping_ = nullptr;
  mapping_size_ = 0;
}

ZeroedBlock::~ZeroedBlock() { release(); }

}  // namespace adamas::core
