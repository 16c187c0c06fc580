// The list of engines, and the choice of one for an optimizer.
#include "core/engine.hpp"
#include "cpu/engine.hpp"
#include "cuda/engine.hpp"
#include "cuda/offload/engine.hpp"

namespace adamas::core {

Status open_engine(const AdamConfig& config, std::int32_t device, std::unique_ptr<Engine>* engine) {
  if (device == kCpu) return cpu::Engine::open(config, engine);
  if (config.use_offload) return cuda::OffloadEngine::open(config, device, engine);
  return cuda::Engine::open(device, engine);
}

}  // namespace adamas::core
