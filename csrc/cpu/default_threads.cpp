#include "cpu/default_threads.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace adamas {
namespace cpu {
namespace {

constexpr const char* kOwnVariable = "ADAMAS_NUM_THREADS";
constexpr int kMaxThreads = 4096;  // as in python/adamas/_adam.py

// Where launchers say how many processes they have started on this machine; first those that others
// start.  Slurm writes "4" or "4(x2)", on two machines.
constexpr const char* kLauncherVariables[] = {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
                                              "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"};

// The positive number that a text is, or begins with before one of `ends`; 0: none.
int number_in(const char* text, const char* ends) noexcept {
  const char* const end = text + std::strlen(text);
  int number = 0;
  const auto [rest, error] = std::from_chars(text, end, number);
  const bool is_number = error == std::errc{} && (rest == end || std::strchr(ends, *rest));
  return is_number && number > 0 ? number : 0;
}

int cores() noexcept {
#if defined(__linux__)
  cpu_set_t own;
  if (sched_getaffinity(0, sizeof(own), &own) == 0) return std::max(1, CPU_COUNT(&own));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// A container may have fewer cores than the machine; so has its first process then.
bool is_bound() noexcept {
#if defined(__linux__)
  cpu_set_t own;
  cpu_set_t first;
  if (sched_getaffinity(0, sizeof(own), &own) != 0) return false;
  if (sched_getaffinity(1, sizeof(first), &first) == 0 && CPU_EQUAL(&own, &first)) return false;
  return CPU_COUNT(&own) < sysconf(_SC_NPROCESSORS_ONLN);
#else
  return false;
#endif
}

const char* variable(const char* name) noexcept { return std::getenv(name); }

}  // namespace

Status choose_threads(const Surroundings& surroundings, DefaultThreads* result) noexcept {
  *result = {surroundings.cores, surroundings.cores, 1, nullptr};
  const char* own = surroundings.variable(kOwnVariable);
  if (own != nullptr && *own != '\0') {
    const int threads = number_in(own, "");
    if (threads < 1 || threads > kMaxThreads) {
      return {StatusCode::invalid_argument,
              "ADAMAS_NUM_THREADS must be a whole number from 1 to 4096"};
    }
    result->threads = threads;
    result->variable = kOwnVariable;
    return {};
  }
  for (const char* name : kLauncherVariables) {
    const char* said = surroundings.variable(name);
    const int processes = said == nullptr ? 0 : number_in(said, "(,");
    if (processes < 2) continue;
    if (surroundings.is_bound()) return {};
    *result = {std::max(1, surroundings.cores / processes), surroundings.cores, processes, name};
    return {};
  }
  return {};
}

}  // namespace cpu

Status default_threads(DefaultThreads* result) noexcept {
  return cpu::choose_threads({cpu::variable, cpu::cores(), cpu::is_bound}, result);
}

int available_threads() noexcept {
  DefaultThreads result;
  return default_threads(&result).ok() ? result.threads : result.cores;
}

}  // namespace adamas
