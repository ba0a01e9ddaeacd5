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

// Four layers of 128: 0.8M parameters. It learns what the small ones do not.
#define S1(vocabulary) "hidden_size = 128\nnum_hidden_layers = 4\nvocab_size = " vocabulary "\nintermediate_size = 344\n"
#define S1_HEADS "heads = 4, kv_heads = 4, head_dim = 32, rope_theta = 10000.0"
#define S1_INFINI "room = \"infini\", " S1_HEADS ", segment_tokens = 64, window = \"previous\""
#define S1_TRAIN "micro_batch = 4\nprecision = \"bf16\"\n"
// Two layers of 64: 127K parameters.
#define SMALL "hidden_size = 64\nnum_hidden_layers = 2\nvocab_size = 310\nintermediate_size = 192\n"
#define SMALL_OF_PROSE "hidden_size = 64\nnum_hidden_layers = 2\nvocab_size = 480\nintermediate_size = 192\n"
#define HEADS "heads = 2, kv_heads = 2, head_dim = 32, rope_theta = 10000.0"
#define INFINI "room = \"infini\", " HEADS ", segment_tokens = 64, window = \"previous\""
#define FROM_72 "start_length = 72\n"
#define CURRICULUM FROM_72 "curriculum = 0.6\n"
#define AIDED "repeat_max = 30000\nrepeat_start = 0.6\nrepeat_full = 0.85\n"
#define REPEATS CURRICULUM AIDED
#define LINEAR_TASK FROM_72 "curriculum = 0.4\nrepeat_max = 30000\nrepeat_start = 0.45\nrepeat_full = 0.8\n"
#define LENGTHS "steps = 1200\nsequence = 512\n"
#define PENALTY LENGTHS "write_penalty = 0.3\nwrite_penalty_start = 0.6\n"

constexpr PasskeyRecipe kRecipes[] = {
    {.name = "linear", .summary = "published rule; repeat counts in training", .model = SMALL,
     .attention = INFINI ", rule = \"linear\"", .task = LINEAR_TASK,
     .train = "steps = 1800\nsequence = 512\n", .controls = true},
    {.name = "delta", .summary = "published rule; repeat counts in training", .model = SMALL, .attention = INFINI ", rule = \"delta\"",
     .task = REPEATS, .train = LENGTHS},
    {.name = "delta_true-gated", .summary = "ours: hard write gate, no repeat counts", .model = SMALL,
     .attention = INFINI ", rule = \"delta_true\", write_gate = \"hard\"", .task = CURRICULUM, .train = PENALTY, .repeats = false},
    {.name = "delta_true", .summary = "no aid in training", .model = SMALL, .attention = INFINI ", rule = \"delta_true\"",
     .task = CURRICULUM, .train = LENGTHS, .repeats = false},
    {.name = "linear-gated", .summary = "ours: hard write gate, no repeat counts", .model = SMALL,
     .attention = INFINI ", rule = \"linear\", write_gate = \"hard\"", .task = CURRICULUM, .train = PENALTY, .repeats = false},
    {.name = "linear-plain", .summary = "published rule, no aid in training", .model = SMALL, .attention = INFINI ", rule = \"linear\"",
     .task = CURRICULUM, .train = LENGTHS, .repeats = false},
    {.name = "window", .summary = "no memory: attention to the last 128 tokens", .model = SMALL,
     .attention = "room = \"grouped_query\", " HEADS ", window = 128", .task = CURRICULUM, .train = LENGTHS, .repeats = false},
    {.name = "linear-large", .summary = "published rule; 0.8M; repeat counts in training", .model = S1("310"),
     .attention = S1_INFINI ", rule = \"linear\"", .task = LINEAR_TASK, .train = "steps = 1500\nsequence = 512\n" S1_TRAIN,
     .deviation = "0.088", .controls = true},
    {.name = "prose", .summary = "varied prose; 0.8M, delta_true, no aid", .model = S1("480"),
     .attention = S1_INFINI ", rule = \"delta_true\", feature = \"silu_l2\"", .task = CURRICULUM "haystack = \"prose\"\n",
     .train = LENGTHS S1_TRAIN, .deviation = "0.088", .kind = {.prose = true}, .repeats = false, .samples = 10},
    {.name = "prose-gated", .summary = "the same, hard write gate (ours)", .model = S1("480"),
     .attention = S1_INFINI ", rule = \"delta_true\", feature = \"silu_l2\", write_gate = \"hard\"",
     .task = CURRICULUM "haystack = \"prose\"\n", .train = LENGTHS "write_penalty = 0.3\nwrite_penalty_start = 0.5\n" S1_TRAIN,
     .deviation = "0.088", .kind = {.prose = true}, .repeats = false, .samples = 10},
    {.name = "identifier", .summary = "16 hexadecimal digits; 0.8M, delta_true", .model = S1("310"),
     .attention = S1_INFINI ", rule = \"delta_true\", feature = \"silu_l2\"",
     .task = "start_length = 112\ncurriculum = 0.6\nneedle = \"identifier\"\ndigits = 16\n", .train = LENGTHS S1_TRAIN,
     .deviation = "0.088", .kind = {.identifier = true, .digits = 16}, .repeats = false, .samples = 10},
    {.name = "identifier-gated", .summary = "the same, hard write gate (ours), twice the steps", .model = S1("310"),
     .attention = S1_INFINI ", rule = \"delta_true\", feature = \"silu_l2\", write_gate = \"hard\"",
     .task = "start_length = 112\ncurriculum = 0.4\nneedle = \"identifier\"\ndigits = 16\n",
     .train = "steps = 2400\nsequence = 512\nwrite_penalty = 0.3\nwrite_penalty_start = 0.5\n" S1_TRAIN,
     .deviation = "0.088", .kind = {.identifier = true, .digits = 16}, .repeats = false, .samples = 10},
    {.name = "prose-small", .summary = "linear; varied prose instead of repeated filler", .model = SMALL_OF_PROSE,
     .attention = INFINI ", rule = \"linear\"", .task = REPEATS "haystack = \"prose\"\n", .train = LENGTHS, .kind = {.prose = true}},
    {.name = "identifier-small", .summary = "linear; needle of 16 hexadecimal digits", .model = SMALL,
     .attention = INFINI ", rule = \"linear\"",
     .task = "start_length = 112\ncurriculum = 0.6\n" AIDED "needle = \"identifier\"\ndigits = 16\n", .train = LENGTHS,
     .kind = {.identifier = true, .digits = 16}},
    {.name = "quick", .summary = "linear, trained for a minute", .model = SMALL, .attention = INFINI ", rule = \"linear\"",
     .task = FROM_72 "curriculum = 0.5\nrepeat_max = 1000\nrepeat_start = 0.75\nrepeat_full = 0.95\n", .train = "steps = 800\nsequence = 512\n",
     .controls = true, .quick = true},
};
#undef S1
#undef S1_HEADS
#undef S1_INFINI
#undef S1_TRAIN
#undef SMALL
#undef SMALL_OF_PROSE
#undef HEADS
#undef INFINI
#undef FROM_72
#undef CURRICULUM
#undef AIDED
#undef REPEATS
#undef LINEAR_TASK
#undef LENGTHS
#undef PENALTY

}  // namespace

std::span<const PasskeyRecipe> passkey_recipes() { return kRecipes; }

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
