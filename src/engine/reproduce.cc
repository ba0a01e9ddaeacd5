#include "engine/reproduce.h"

namespace quipu {

std::span<const Reproduction> all_reproductions() {
  static constexpr Reproduction kAll[] = {
      {"costs", "state and speed of MTLA, DeepSeek-V2's MLA, Infini-attention and Mixture-of-Depths", reproduce_costs},
  };
  return kAll;
}

}  // namespace quipu
