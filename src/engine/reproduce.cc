#include "engine/reproduce.h"

namespace quipu {

std::span<const Reproduction> all_reproductions() {
  static constexpr Reproduction kAll[] = {
      {"costs", "state and speed of MTLA, DeepSeek-V2's MLA, Infini-attention and Mixture-of-Depths", reproduce_costs},
      {"variants", "loss, state and speed of small models with every memory of the context, trained alike", reproduce_variants},
      {"depths", "Mixture-of-Depths against dense models at equal training operations", reproduce_depths},
      {"passkey", "a pass key found in up to four million tokens by models trained on short texts", reproduce_passkey},
  };
  return kAll;
}

}  // namespace quipu
