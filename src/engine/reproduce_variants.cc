// quipu reproduce variants, quipu reproduce depths: the same small model with every memory of the context, and with mixture of
// depths, trained alike.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "engine/study.h"

namespace quipu {
namespace {

// 128 wide, heads of 32: MLA and MTLA keep 64 + 8 numbers a token, of MHA's 256 the share the MTLA paper has (288 of 1024).
std::string grouped(int64_t kv_heads, int64_t window) {
  std::ostringstream out;
  out << R"({"room": "grouped_query", "heads": 4, "kv_heads": )" << kv_heads << R"(, "head_dim": 32, "rope_theta": 10000.0)";
  if (window > 0) out << R"(, "window": )" << window;
  out << "}";
  return out.str();
}
std::string latent(int64_t stride) {
  std::ostringstream out;
  out << R"({"room": ")" << (stride > 0 ? "temporal_latent" : "latent")
      << R"(", "heads": 4, "latent_rank": 64, "nope_dim": 32, "rope_dim": 8, "value_dim": 32, "latent_norm": ")" << (stride > 0 ? "layer" : "rms")
      << R"(", "norm_epsilon": 1e-6, "rope_theta": 10000.0, "rope_interleaved": true)";
  if (stride > 0) out << R"(, "stride": )" << stride;
  out << "}";
  return out.str();
}
std::string infini(const char* rule, int64_t segment) {
  std::ostringstream out;
  out << R"({"room": "infini", "heads": 4, "kv_heads": 4, "head_dim": 32, "rope_theta": 10000.0, "window": "previous", "segment_tokens": )" << segment
      << R"(, "rule": ")" << rule << "\"";
  if (std::string(rule) == "delta_true") out << R"(, "feature": "silu_l2")";
  out << "}";
  return out.str();
}

constexpr const char* kDepths = R"({"capacity": 0.125, "decode": "threshold"})";
constexpr int64_t kSegment = 128, kQuickSegment = 32;
constexpr int64_t kHeadlineSeeds = 3;

// An Infini layer sees its segment and the one before, the window-only model as much at most: what it sees beyond is memory.
std::vector<StudyModel> variants(bool quick) {
  const int64_t segment = quick ? kQuickSegment : kSegment;
  std::vector<StudyModel> all = {
      {.name = "mha", .label = "MHA", .attention = grouped(4, 0), .mixture_of_depths = {}, .seeds = quick ? 1 : kHeadlineSeeds},
      {.name = "mtla2", .label = "MTLA s=2", .attention = latent(2), .mixture_of_depths = {}, .stride = 2, .seeds = quick ? 1 : kHeadlineSeeds},
      {.name = "window", .label = "window only", .attention = grouped(4, 2 * segment), .mixture_of_depths = {}},
      {.name = "infini-linear", .label = "Infini linear", .attention = infini("linear", segment), .mixture_of_depths = {}},
  };
  if (quick) {
    all.push_back({.name = "shuffled", .label = "MHA, shuffled texts", .attention = grouped(4, 0), .mixture_of_depths = {}, .shuffled = true});
    return all;
  }
  all.push_back({.name = "mla", .label = "MLA", .attention = latent(0), .mixture_of_depths = {}});
  all.push_back({.name = "infini-delta", .label = "Infini delta", .attention = infini("delta", segment), .mixture_of_depths = {}});
  all.push_back({.name = "infini-delta-true", .label = "Infini delta_true", .attention = infini("delta_true", segment), .mixture_of_depths = {}});
  all.push_back({.name = "gqa", .label = "GQA 2", .attention = grouped(2, 0), .mixture_of_depths = {}});
  all.push_back({.name = "mqa", .label = "MQA", .attention = grouped(1, 0), .mixture_of_depths = {}});
  all.push_back({.name = "mtla3", .label = "MTLA s=3", .attention = latent(3), .mixture_of_depths = {}, .stride = 3});
  all.push_back({.name = "mtla4", .label = "MTLA s=4", .attention = latent(4), .mixture_of_depths = {}, .stride = 4});
  return all;
}

std::vector<StudyModel> depths(bool quick) {
  const int64_t segment = quick ? kQuickSegment : kSegment;
  return {
      {.name = "dense", .label = "dense", .attention = grouped(4, 0), .mixture_of_depths = {}},
      {.name = "mod", .label = "Mixture-of-Depths", .attention = grouped(4, 0), .mixture_of_depths = kDepths},
      {.name = "infini", .label = "Infini linear", .attention = infini("linear", segment), .mixture_of_depths = {}},
      {.name = "infini-mod", .label = "Infini linear + Mixture-of-Depths", .attention = infini("linear", segment), .mixture_of_depths = kDepths},
  };
}

Result<StudyShape> shape_of(const std::string& name, const ReproduceOptions& options) {
  StudyShape shape;
  shape.name = name;
  if (options.quick) {
    shape.hidden = 128;
    shape.layers = 2;
    shape.inner = 256;
    shape.vocabulary = 320;
    shape.sequence = 256;
    shape.batch = 8;
    shape.steps = options.steps > 0 ? options.steps : 150;
    shape.longest = 512;
    shape.least = 256;
    shape.contexts = {1024};
    shape.corpus = options.work + "/corpus";
    RETURN_IF_ERROR(write_quick_corpus(shape.corpus));
    return shape;
  }
  if (options.steps > 0) shape.steps = options.steps;
  shape.corpus = options.corpus;
  if (shape.corpus.empty()) {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    shape.corpus = (cache != nullptr && *cache != 0 ? std::string(cache) : std::string(home != nullptr ? home : ".") + "/.cache") + "/quipu/corpus";
  }
  return shape;
}

const StudyModelResult* find(const std::vector<StudyModelResult>& results, std::string_view name) {
  for (const StudyModelResult& r : results) {
    if (r.model.name == name && !r.cells.empty()) return &r;
  }
  return nullptr;
}

// Mean over the seeds, over positions from `from` up to the trained length.
double loss_beyond(const StudyModelResult& r, int64_t from, int64_t to) {
  double sum = 0, tokens = 0;
  for (const StudyCell& cell : r.cells) {
    for (const StudySlice& s : cell.positions) {
      if (s.from < from || s.to > to) continue;
      sum += s.loss * static_cast<double>(s.tokens);
      tokens += static_cast<double>(s.tokens);
    }
  }
  return tokens > 0 ? sum / tokens : 0;
}

// Every model learns what stands in the texts, and the control, whose texts have no order to learn, does not.
void add_learning_claims(std::vector<Claim>& claims, const std::vector<StudyModelResult>& results) {
  for (const StudyModelResult& r : results) {
    for (const StudyCell& cell : r.cells) {
      if (r.model.shuffled) {
        // What the frequencies of tokens give is the best there is; a document's own frequencies are worth a little.
        claims.push_back({r.model.label + ": nothing to learn but how often tokens occur, loss at least", 0.9 * cell.unigram_loss, cell.loss, "nats",
                          cell.loss >= 0.9 * cell.unigram_loss, "nine tenths of the loss of a model that knows frequencies alone"});
      } else {
        claims.push_back({r.model.label + ": held-out loss at most", 0.8 * cell.unigram_loss, cell.loss, "nats", cell.loss <= 0.8 * cell.unigram_loss,
                          "four fifths of the loss of a model that knows frequencies alone"});
      }
    }
  }
}

}  // namespace

Result<std::vector<Claim>> reproduce_variants(const ReproduceOptions& options) {
  ASSIGN_OR_RETURN(const StudyShape shape, shape_of("variants", options));
  ASSIGN_OR_RETURN(const std::vector<StudyModelResult> results, run_study(shape, variants(options.quick), options));
  std::vector<Claim> claims;
  if (options.quick) {
    add_learning_claims(claims, results);
    return claims;
  }
  const StudyModelResult *mha = find(results, "mha"), *mtla = find(results, "mtla2"), *window = find(results, "window");
  if (mha != nullptr && mtla != nullptr) {
    const double above = mtla->mean_loss() - mha->mean_loss(), spread = std::max(mha->spread(), mtla->spread());
    std::ostringstream note;
    note << "MHA " << mha->mean_loss() << " over " << mha->cells.size() << " seeds, MTLA " << mtla->mean_loss() << " over " << mtla->cells.size()
         << "; the first figure is the larger spread of seeds";
    claims.push_back({"MTLA s=2 within the spread of seeds of MHA: held-out loss above MHA's, at most", spread, above, "nats", above <= spread, note.str()});
    if (mha->state_bytes_per_token > 0 && mtla->state_bytes_per_token > 0) {
      const double ratio = mha->state_bytes_per_token / mtla->state_bytes_per_token;
      claims.push_back({"state of MHA over that of MTLA s=2, at least", 7, ratio, "x", ratio >= 7, ""});
    }
  }
  for (const char* name : {"infini-linear", "infini-delta", "infini-delta-true"}) {
    const StudyModelResult* infini_result = find(results, name);
    if (infini_result == nullptr || window == nullptr) continue;
    const double ours = loss_beyond(*infini_result, 2 * kSegment, shape.sequence), theirs = loss_beyond(*window, 2 * kSegment, shape.sequence);
    claims.push_back({infini_result->model.label + ": held-out loss beyond the window, below the window-only model's", theirs, ours, "nats", ours < theirs,
                      "positions " + std::to_string(2 * kSegment) + " to " + std::to_string(shape.sequence - 1)});
  }
  return claims;
}

Result<std::vector<Claim>> reproduce_depths(const ReproduceOptions& options) {
  ASSIGN_OR_RETURN(StudyShape shape, shape_of("depths", options));
  shape.equal_parameters = false;
  shape.equal_operations = true;
  ASSIGN_OR_RETURN(const std::vector<StudyModelResult> results, run_study(shape, depths(options.quick), options));
  std::vector<Claim> claims;
  if (options.quick) add_learning_claims(claims, results);
  for (const auto& [plain, routed] : {std::pair("dense", "mod"), std::pair("infini", "infini-mod")}) {
    const StudyModelResult *dense = find(results, plain), *mod = find(results, routed);
    if (dense == nullptr || mod == nullptr) continue;
    std::ostringstream note;
    note << dense->cells[0].steps << " and " << mod->cells[0].steps << " steps of equal operations in all; the rule it serves with differs from the top k in "
         << 100 * mod->cells[0].routed_differing << " % of rows";
    if (!options.quick) {
      claims.push_back({mod->model.label + ": held-out loss at most that of " + dense->model.label, dense->mean_loss(), mod->mean_loss(), "nats",
                        mod->mean_loss() <= dense->mean_loss(), note.str()});
    }
    for (size_t i = 0; !options.quick && i < std::min(dense->decode.size(), mod->decode.size()); ++i) {
      const double ratio = mod->decode[i].tokens_per_second / dense->decode[i].tokens_per_second;
      claims.push_back({mod->model.label + ": decode steps at " + std::to_string(dense->decode[i].context) + " tokens, speed over that of " + dense->model.label +
                            ", at least",
                        1.5, ratio, "x", ratio >= 1.5, ""});
    }
  }
  return claims;
}

}  // namespace quipu
