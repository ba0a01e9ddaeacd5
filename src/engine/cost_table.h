// cost_table: what a context costs one model and the same model with every other memory of the context, side by side.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace quipu {

struct CostTableOptions {
  std::vector<int64_t> contexts;  // tokens, each in 1 .. kMostCostedTokens
  DType cache_dtype = DType::kF16;
  int64_t segment_tokens = 2048;  // of Infini, where the model has none
  double capacity = 0.125;        // of the mixture of depths on every other layer
};
inline constexpr int64_t kMostCostedTokens = int64_t{1} << 24;

struct RegionCost {
  std::string name;  // "key", "latent", "memory"
  bool grows = false;
  uint64_t bytes = 0, elements = 0;  // all layers
};

struct RoomCost {
  int64_t tokens = 0;
  uint64_t state_bytes = 0;         // of one sequence, to the row
  std::vector<RegionCost> regions;  // what they are made of
  double decode_flops = 0;          // of one more token
  double decode_context_flops = 0;  // of it: attention over the context
  double decode_bytes = 0;          // weights and state one more token reads
  double prefill_flops = 0;         // of the whole prompt
  double prefill_context_flops = 0;
};

struct RoomCosts {
  std::string name;     // "MHA", "MTLA s=3 + MoD"
  std::string key;      // "mha", "mtla3+mod"
  bool own = false;     // the model as it is
  bool depths = false;  // with mixture of depths on every other layer
  int64_t parameters = 0;
  std::vector<RoomCost> at;  // one per context
};

struct CostTable {
  std::string path, name, architecture;
  int64_t layers = 0, hidden = 0, vocabulary = 0;
  double bits_per_weight = 16;
  bool weights_seen = false;       // bits_per_weight is the file's average; otherwise assumed
  std::vector<std::string> rules;  // how the other rooms' sizes were chosen
  std::vector<RoomCosts> rooms;    // the model itself first
};

// path: a config.json (ours or Hugging Face's), a folder that holds one, with or without weights, or a GGUF file.
Result<CostTable> cost_table(const std::string& path, const CostTableOptions& options);

}  // namespace quipu
