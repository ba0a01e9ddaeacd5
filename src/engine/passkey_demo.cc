#include "engine/passkey_demo.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "text/tokenizer.h"
#include "train/passkey_task.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;

// Text that is shown on either side of the needle.
constexpr int64_t kShownTokens = 20;

std::string shown(const PasskeyText& text, std::span<const int32_t> tokens) { return text.tokenizer().decode(tokens); }

// Keys and values in f16 of a model with these heads, were all tokens kept.
int64_t cache_bytes(const ModelFacts& facts, int64_t tokens) {
  return tokens * facts.layers * facts.kv_heads * facts.head_dim * 2 * 2;
}

}  // namespace

Result<std::string> find_own_model(const std::string& name) {
  std::vector<std::string> places;
  if (const char* given = std::getenv("QUIPU_MODELS"); given != nullptr && *given != '\0') places.emplace_back(given);
  std::error_code code;
  const fs::path program = fs::read_symlink("/proc/self/exe", code).parent_path();
  if (!code) {
    places.push_back(program / "models");
    places.push_back(program / ".." / "share" / "quipu" / "models");
  }
  places.emplace_back(QUIPU_OWN_MODELS);
  std::string searched;
  for (const std::string& place : places) {
    const std::string folder = fs::path(place + "/" + name).lexically_normal().string();
    if (fs::exists(folder + "/config.json", code)) return folder;
    searched += (searched.empty() ? "" : ", ") + folder;
  }
  return failed("the model '" + name + "' that comes with the program is in none of these places: " + searched +
                "; set QUIPU_MODELS to the folder that holds it");
}

Result<PasskeyDemoOutcome> run_passkey_demo(const PasskeyDemoRequest& request) {
  PasskeyDemoPlan plan;
  plan.model = request.model;
  if (plan.model.empty()) {
    ASSIGN_OR_RETURN(plan.model, find_own_model("passkey"));
  }
  EngineOptions options;
  options.threads = request.threads;
  options.max_chunk = 2048;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::load(plan.model, options));
  ASSIGN_OR_RETURN(const PasskeyText text, PasskeyText::create({}));
  if (!engine->has_tokenizer() || engine->tokenizer().fingerprint() != text.tokenizer().fingerprint()) {
    return bad_input(plan.model + ": its tokens are not those of the pass key task, expected a model trained with data.task = \"passkey\"");
  }
  const ModelFacts& facts = engine->facts();
  if (request.tokens < text.shortest() || request.tokens > facts.trained_context) {
    return usage_error("a text of " + std::to_string(request.tokens) + " tokens, expected " + std::to_string(text.shortest()) +
                       " to " + std::to_string(facts.trained_context));
  }
  // question() counts all of the answer but its last digit.
  const int64_t digits = text.kind().digits;
  const PasskeyQuestion question = text.question(request.tokens + digits - 1, request.position, request.seed);
  const std::span<const int32_t> tokens = std::span(question.tokens).first(static_cast<size_t>(question.answer_begin));
  const auto part = [&](int64_t begin, int64_t end) {
    begin = std::max<int64_t>(begin, 0);
    end = std::min(end, static_cast<int64_t>(tokens.size()));
    return shown(text, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  };
  plan.parameters = facts.parameters;
  plan.layers = facts.layers;
  plan.hidden = facts.hidden;
  plan.memory = facts.layer_rooms.empty() ? "" : facts.layer_rooms[0] + ", " + facts.layer_settings[0];
  plan.key = question.digits;
  plan.needle = part(question.needle_begin, question.needle_end);
  plan.before = part(question.needle_begin - kShownTokens, question.needle_begin);
  plan.after = part(question.needle_end, question.needle_end + kShownTokens);
  plan.tokens = static_cast<int64_t>(tokens.size());
  plan.needle_at = question.needle_begin;
  plan.text_bytes = static_cast<int64_t>(shown(text, tokens).size());
  plan.cache_bytes = cache_bytes(facts, plan.tokens);
  if (request.on_plan) request.on_plan(plan);

  ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, engine->new_session(plan.tokens + digits));
  const double start = monotonic_seconds();
  const auto on_progress = [&](int64_t done, int64_t total) {
    if (request.on_progress) request.on_progress(done, total, static_cast<int64_t>(session->state_bytes()));
  };
  RETURN_IF_ERROR(session->feed(tokens, on_progress, request.interrupted));
  GenerateOptions greedy;
  greedy.sampling.temperature = 0;
  greedy.max_tokens = digits;
  greedy.interrupted = request.interrupted;
  ASSIGN_OR_RETURN(const GenerateResult result, session->generate(greedy, {}));
  PasskeyDemoOutcome out;
  out.expected = question.digits;
  out.answer = result.text;
  out.tokens = plan.tokens;
  out.text_bytes = plan.text_bytes;
  out.seconds = monotonic_seconds() - start;
  out.state_bytes = static_cast<int64_t>(session->state_bytes());
  return out;
}

}  // namespace quipu
