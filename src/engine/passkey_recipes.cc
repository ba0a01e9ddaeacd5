#include <sstream>

#include "engine/reproduce_passkey.h"

namespace quipu {
namespace {

// What every model here has. Found with models of 127K parameters (docs/passkey.md):
// - random matrices of 1 / sqrt(hidden) or so instead of 0.02, which is for wide models: answers come in 200 steps, not 1900;
// - first questions so short that local attention answers them, then longer and longer ones: queries and keys are shared
//   with the memory, so what was learnt locally is what the memory needs;
// - a weight on the needle's second statement, which trains the same look-up once more in every question;
// - gates with a learning rate of their own.
constexpr std::string_view kModel = R"(model_type = "quipu"
max_position_embeddings = 33554432
rms_norm_eps = 1e-6
tie_word_embeddings = true
)";
constexpr std::string_view kTask = R"(lm_weight = 0.05
lm_share = 0.1
copy_weight = 0.2
shorter = 0.4
)";
constexpr std::string_view kTrain = R"(seed = 1
batch = 16
)";
constexpr std::string_view kRest = R"([optimizer]
learning_rate = 3e-3
gate_learning_rate = 0.05
weight_decay = 0.01
warmup_steps = 100
[evaluate]
every = 100
sequences = 64
)";

// Words the task's vocabulary has.
constexpr int kVocabulary = 310, kProseVocabulary = 480;

// A model and its heads of 32, as wide together as the model.
struct Size {
  int hidden, layers, inner;
  std::string model(int vocabulary) const {
    std::ostringstream out;
    out << "hidden_size = " << hidden << "\nnum_hidden_layers = " << layers << "\nvocab_size = " << vocabulary << "\nintermediate_size = " << inner << "\n";
    return out.str();
  }
  std::string heads() const {
    std::ostringstream out;
    out << "heads = " << hidden / 32 << ", kv_heads = " << hidden / 32 << ", head_dim = 32, rope_theta = 10000.0";
    return out.str();
  }
  // more: further settings of the room.
  std::string infini(const std::string& rule, const std::string& more = "") const {
    return "room = \"infini\", " + heads() + ", segment_tokens = 64, window = \"previous\", rule = \"" + rule + "\"" + more;
  }
};
constexpr Size kSmall{64, 2, 192};    // 127K parameters
constexpr Size kLarge{128, 4, 344};   // 0.8M: it learns what the small ones do not

std::string steps(int count) { return "steps = " + std::to_string(count) + "\nsequence = 512\n"; }
// Of the write gates' mean, from this share of the run on.
std::string penalty(const std::string& start) { return "write_penalty = 0.3\nwrite_penalty_start = " + start + "\n"; }
std::string growing(int from, const std::string& share) {
  return "start_length = " + std::to_string(from) + "\ncurriculum = " + share + "\n";
}
// Repeat-count augmentation.
std::string repeats(const std::string& most, const std::string& start, const std::string& full) {
  return "repeat_max = " + most + "\nrepeat_start = " + start + "\nrepeat_full = " + full + "\n";
}

std::vector<PasskeyRecipe> make_recipes() {
  const std::string plain = growing(72, "0.6"), aided = plain + repeats("30000", "0.6", "0.85");
  const std::string linear = growing(72, "0.4") + repeats("30000", "0.45", "0.8");
  const std::string prose = "haystack = \"prose\"\n", identifier = "needle = \"identifier\"\ndigits = 16\n";
  const PasskeyKind of_prose{.prose = true}, of_identifiers{.identifier = true, .digits = 16};
  const std::string hard_gate = ", write_gate = \"hard\"", unit_feature = ", feature = \"silu_l2\"";
  const std::string large_train = "micro_batch = 4\nprecision = \"bf16\"\n", large_deviation = "0.088";
  const std::string small = kSmall.model(kVocabulary), large = kLarge.model(kVocabulary);
  return {
      {.name = "linear", .summary = "published rule; repeat counts in training", .model = small, .attention = kSmall.infini("linear"),
       .task = linear, .train = steps(1800), .controls = true},
      {.name = "delta", .summary = "published rule; repeat counts in training", .model = small, .attention = kSmall.infini("delta"), .task = aided,
       .train = steps(1200)},
      {.name = "delta_true", .summary = "no aid in training", .model = small, .attention = kSmall.infini("delta_true"), .task = plain,
       .train = steps(1200), .repeats = false},
      {.name = "linear-gated", .summary = "ours: hard write gate, no repeat counts", .model = small, .attention = kSmall.infini("linear", hard_gate),
       .task = plain, .train = steps(1200) + penalty("0.6"), .repeats = false},
      {.name = "linear-plain", .summary = "published rule, no aid in training", .model = small, .attention = kSmall.infini("linear"), .task = plain,
       .train = steps(1200), .repeats = false},
      {.name = "window", .summary = "no memory: attention to the last 128 tokens", .model = small,
       .attention = "room = \"grouped_query\", " + kSmall.heads() + ", window = 128", .task = plain, .train = steps(1200), .repeats = false},
      {.name = "linear-large", .summary = "published rule; 0.8M; repeat counts in training", .model = large, .attention = kLarge.infini("linear"),
       .task = linear, .train = steps(1500) + large_train, .deviation = large_deviation, .controls = true},
      {.name = "prose", .summary = "varied prose; 0.8M, delta_true, no aid", .model = kLarge.model(kProseVocabulary),
       .attention = kLarge.infini("delta_true", unit_feature), .task = plain + prose, .train = steps(1200) + large_train,
       .deviation = large_deviation, .kind = of_prose, .repeats = false, .samples = 10},
      {.name = "prose-gated", .summary = "the same, hard write gate (ours)", .model = kLarge.model(kProseVocabulary),
       .attention = kLarge.infini("delta_true", unit_feature + hard_gate), .task = plain + prose,
       .train = steps(1200) + penalty("0.5") + large_train, .deviation = large_deviation, .kind = of_prose, .repeats = false, .samples = 10},
      {.name = "identifier", .summary = "16 hexadecimal digits; 0.8M, delta_true", .model = large, .attention = kLarge.infini("delta_true", unit_feature),
       .task = growing(112, "0.6") + identifier, .train = steps(1200) + large_train, .deviation = large_deviation, .kind = of_identifiers,
       .repeats = false, .samples = 10},
      {.name = "identifier-gated", .summary = "16 hexadecimal digits; hard write gate (ours)", .model = large,
       .attention = kLarge.infini("delta_true", unit_feature + hard_gate), .task = growing(112, "0.4") + identifier,
       .train = steps(2400) + penalty("0.5") + large_train, .deviation = large_deviation, .kind = of_identifiers, .repeats = false, .samples = 10},
      {.name = "prose-small", .summary = "linear; varied prose instead of repeated filler", .model = kSmall.model(kProseVocabulary),
       .attention = kSmall.infini("linear"), .task = aided + prose, .train = steps(1200), .kind = of_prose},
      {.name = "identifier-small", .summary = "linear; needle of 16 hexadecimal digits", .model = small, .attention = kSmall.infini("linear"),
       .task = growing(112, "0.6") + repeats("30000", "0.6", "0.85") + identifier, .train = steps(1200), .kind = of_identifiers},
      {.name = "quick", .summary = "linear, trained for a minute", .model = small, .attention = kSmall.infini("linear"),
       .task = growing(72, "0.5") + repeats("1000", "0.75", "0.95"), .train = steps(800), .controls = true, .quick = true},
  };
}

}  // namespace

const std::vector<PasskeyRecipe>& passkey_recipes() {
  static const std::vector<PasskeyRecipe> recipes = make_recipes();
  return recipes;
}

std::string passkey_training_text(const PasskeyRecipe& recipe, const std::string& folder) {
  std::ostringstream text;
  text << "# quipu reproduce passkey: " << recipe.name << " (" << recipe.summary << ")\n"
       << "[model]\ndeviation = " << recipe.deviation << "\n[model.config]\n" << kModel << recipe.model << "attention = { " << recipe.attention << " }\n"
       << "[data]\ntask = \"passkey\"\n[data.passkey]\n" << kTask << recipe.task
       << "[train]\n" << kTrain << recipe.train << kRest
       << "[output]\nfolder = \"" << folder << "\"\ncheckpoint_minutes = 1\ntensorboard = false\n";
  return text.str();
}

}  // namespace quipu
