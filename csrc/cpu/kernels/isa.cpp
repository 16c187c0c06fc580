// Chooses the instruction set once, by what the machine supports or what ADAMAS_ISA says.
//
// The list is written by CMake from the adamas_add_isa() calls in cpu/CMakeLists.txt: one line
// ADAMAS_ISA_ENTRY(name, condition) each, slowest first.
#include "cpu/kernels/isa.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "adamas/system.hpp"

namespace adamas {
namespace cpu {

#define ADAMAS_ISA_ENTRY(name, supported) extern const KernelTable kernels_##name;
#include "isa_list.inc"
#undef ADAMAS_ISA_ENTRY

namespace {

#define ADAMAS_ISA_ENTRY(name, supported) &kernels_##name,
const KernelTable* const kTables[] = {
#include "isa_list.inc"
};
#undef ADAMAS_ISA_ENTRY

constexpr int kCount = sizeof(kTables) / sizeof(kTables[0]);

struct Infos {
  IsaInfo list[kCount];
};

const Infos& infos() noexcept {
#define ADAMAS_ISA_ENTRY(name, supported) IsaInfo{#name, supported},
  static const Infos result = {{
#include "isa_list.inc"
  }};
#undef ADAMAS_ISA_ENTRY
  return result;
}

int best() noexcept {
  int index = 0;  // the first entry, scalar, runs everywhere
  for (int i = 1; i < kCount; ++i) {
    if (infos().list[i].supported) index = i;
  }
  return index;
}

std::atomic<int>& chosen() noexcept {
  static std::atomic<int> index{best()};
  return index;
}

}  // namespace

const KernelTable& kernels() noexcept { return *kTables[chosen().load(std::memory_order_relaxed)]; }

}  // namespace cpu

const IsaInfo* isas(int* count) noexcept {
  *count = cpu::kCount;
  return cpu::infos().list;
}

const char* isa_in_use() noexcept { return cpu::infos().list[cpu::chosen().load()].name; }

Status select_isa(const char* name) noexcept {
  if (name == nullptr) return {StatusCode::invalid_argument, "the instruction set has no name"};
  for (int i = 0; i < cpu::kCount; ++i) {
    if (std::strcmp(cpu::infos().list[i].name, name) != 0) continue;
    if (!cpu::infos().list[i].supported) {
      return {StatusCode::unavailable, "this machine does not support the instruction set"};
    }
    cpu::chosen().store(i);
    return {};
  }
  return {StatusCode::invalid_argument, "there is no instruction set of that name in this build"};
}

Status select_isa_from_environment() noexcept {
  const char* name = std::getenv("ADAMAS_ISA");
  return name == nullptr || *name == '\0' ? Status{} : select_isa(name);
}

const char* version() noexcept { return ADAMAS_VERSION; }

const char* compiler() noexcept {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace adamas
