// Reproductions: published tables measured (or worked out) again on this machine, each figure beside the paper's.
// Another one is a function and a line of all_reproductions().
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

// One published figure. holds: ours is as good or better, or equal where the figure is exact; `claim` says which way.
struct Claim {
  std::string claim;
  double published = 0;
  double ours = 0;
  std::string unit;
  bool holds = false;
  std::string note;  // how ours came about, or why it does not hold; may be empty
};

struct ReproduceOptions {
  bool quick = false;  // fewer sizes and repetitions
  int threads = 0;     // 0: one per available core
  // Of reproductions that train models: a folder in which finished parts are kept, and the parts asked for (empty: all).
  std::string work;
  std::vector<std::string> only;
  std::string corpus;  // of variants and depths: folder with train/ and held_out/; empty: what tools/fetch_corpus made
  int64_t steps = 0;   // of the same two: of training; 0: the study's own
  const volatile bool* interrupted = nullptr;
  // What is being done now, and the share of the work behind it, 0..1.
  std::function<void(const std::string& what, double share)> on_progress;
};

struct Reproduction {
  std::string_view name;  // "costs"
  std::string_view summary;
  // kFailed when interrupted or when a measurement could not be made.
  Result<std::vector<Claim>> (*run)(const ReproduceOptions& options);
};

std::span<const Reproduction> all_reproductions();

// Bytes and speeds of the memories: MTLA, DeepSeek-V2, Infini-attention, Mixture-of-Depths.
Result<std::vector<Claim>> reproduce_costs(const ReproduceOptions& options);

// Small models trained alike that differ in their memory of the context; the same with mixture of depths.
Result<std::vector<Claim>> reproduce_variants(const ReproduceOptions& options);
Result<std::vector<Claim>> reproduce_depths(const ReproduceOptions& options);
// Infini-attention's pass key: models trained here on short texts, asked about texts of up to four million tokens.
Result<std::vector<Claim>> reproduce_passkey(const ReproduceOptions& options);

// What `quipu reproduce NAME --json` printed in the last full run the repository holds (results/claims/NAME.json), as it was when
// this program was built; empty when there is none. Made by cmake/recorded_claims.cmake.
std::string_view recorded_claims(std::string_view name);

// The commit this program was built from; "unknown" outside a repository. Made by cmake/commit.cmake.
std::string build_commit();

}  // namespace quipu
