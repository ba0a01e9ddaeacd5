// quipu run MODEL: one prompt, one answer.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "conversation.h"
#include "engine/engine.h"
#include "human_text.h"
#include "interrupt.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "prompt_text.h"
#include "report.h"
#include "text/tokenizer.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct RunFlags {
  ModelFlags model;
  SamplingFlags sampling;
  PromptFlags prompt;
  std::string system, save_state, load_state;
  bool raw = false, quiet = false, json = false;
};

// Feeds the prompt, through the chat template unless there is none or --raw was given.
Result<void> feed_prompt(const RunFlags& flags, const Engine& engine, Session& session, const std::string& prompt) {
  const ChatTemplate* chat_template = flags.raw ? nullptr : engine.chat_template();
  if (chat_template == nullptr && !flags.system.empty()) {
    return usage_error(flags.raw ? "--system has no effect with --raw; put the words into the prompt"
                                 : "--system: this model has no chat template; put the words into the prompt");
  }
  ProgressBar bar("prompt", {.silent = flags.quiet});
  const FeedProgress progress = [&bar](int64_t done, int64_t total) {
    bar.update(static_cast<double>(done), static_cast<double>(total));
  };
  if (chat_template != nullptr) {
    Conversation conversation(engine.tokenizer(), chat_template, session);
    conversation.set_system(flags.system);
    conversation.forget_messages();
    return conversation.feed_user(prompt, progress, interrupt_flag());
  }
  // A raw prompt may spell control tokens: that is how people write a template of their own.
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   engine.tokenizer().encode(prompt, {.add_special = session.tokens() == 0, .parse_special = true}));
  if (ids.empty() && session.tokens() == 0) {
    return usage_error("the prompt is empty, and this model has no begin token to start from");
  }
  return session.feed(ids, progress, interrupt_flag());
}

// Room for the prompt and an answer: the template adds little, and a token is at least a byte.
Result<int64_t> context_for(const RunFlags& flags, const Engine& engine, const std::string& prompt) {
  constexpr int64_t kRoomForTemplate = 256, kRoomForAnswer = 1024;
  if (prompt.size() + flags.system.size() <= static_cast<size_t>(kDefaultContext / 2)) {
    return chosen_context(flags.model, engine.facts(), 0);
  }
  ASSIGN_OR_RETURN(const auto ids, engine.tokenizer().encode(prompt));
  const int64_t answer = flags.sampling.max_tokens >= 0 ? flags.sampling.max_tokens : kRoomForAnswer;
  const int64_t needed = static_cast<int64_t>(ids.size() + flags.system.size()) + answer + kRoomForTemplate;
  ASSIGN_OR_RETURN(const int64_t context, chosen_context(flags.model, engine.facts(), needed));
  // A state of fixed size holds a longer text at no cost.
  const bool fixed = engine.cost_at(2 * needed).state_bytes_allocated == engine.cost_at(needed).state_bytes_allocated;
  return fixed && flags.model.context_text.empty() ? std::max(context, needed) : context;
}

// Said before a long text is read: the most memory the process will have held when the answer is done. What it has held until
// now (weights, text and tokenizer) stays; the state, scratch, token ids and the embedding's pages come to it.
void print_memory_plan(const Engine& engine, int64_t context) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double now = static_cast<double>(usage.ru_maxrss) * 1024;
  const double state = static_cast<double>(engine.cost_at(context).state_bytes_allocated);
  double embedding = 0;
  for (const TensorFacts& tensor : engine.facts().tensors) {
    if (tensor.name.find("embed_tokens") != std::string::npos || tensor.name.find("token_embd") != std::string::npos) {
      embedding = static_cast<double>(tensor.bytes);
    }
  }
  constexpr double kIdBytes = 4 * sizeof(int32_t);      // ids of prompt and session, while they grow
  constexpr double kRoofBytes = 136e6;                  // of the closing line's measurement of the memory roof
  constexpr double kSamplingBytes = 64;                 // a word of the vocabulary
  const double working = static_cast<double>(engine.working_bytes()) + embedding + kIdBytes * static_cast<double>(context) +
                         kSamplingBytes * static_cast<double>(engine.facts().vocabulary) + kRoofBytes;
  print_note("memory: at most " + human_bytes(now + state + working) + " for " + grouped_count(context) + " tokens of context (" +
             human_bytes(now) + " until now, state " + human_bytes(state) + ", working room " + human_bytes(working) + ")");
}

Result<void> report(const RunFlags& flags, const Engine& engine, const Session& session, const GenerateResult& answer,
                    uint64_t seed) {
  if (flags.json) {
    const MemoryRoof& roof = measured_roof(engine.threads());
    nlohmann::ordered_json json = {{"model", engine.facts().path}, {"text", answer.text}};
    json["tokens"] = answer.tokens;
    json["finish"] = finish_reason_name(answer.finish);
    json["seed"] = seed;
    json.update(counters_json(engine, session, roof));
    if (!flags.save_state.empty()) json["saved_state"] = flags.save_state;
    return print_json(json);
  }
  if (flags.quiet) return {};
  std::string line = closing_line(engine, session, measured_roof(engine.threads()));
  line += " | seed " + std::to_string(seed);
  if (answer.finish != FinishReason::kStop) {
    line += " | " + std::string(answer.finish == FinishReason::kContextFull ? "context full"
                                                                            : finish_reason_name(answer.finish));
  }
  print_note(line);
  return {};
}

Result<void> run(const RunFlags& flags) {
  const bool continues = !flags.load_state.empty() && !prompt_given(flags.prompt);
  std::string prompt;
  if (!continues) {
    ASSIGN_OR_RETURN(prompt, prompt_text(flags.prompt));
  }
  const bool quiet = flags.quiet || flags.json;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, load_engine(flags.model, quiet));
  RETURN_IF_ERROR(require_tokenizer(*engine));
  ASSIGN_OR_RETURN(const int64_t context, context_for(flags, *engine, prompt));
  ASSIGN_OR_RETURN(const auto session, engine->new_session(context));
  if (!flags.load_state.empty()) RETURN_IF_ERROR(session->load_state(flags.load_state));
  session->clear_counters();
  if (!quiet && context > kDefaultContext) print_memory_plan(*engine, context);

  GenerateResult answer;
  answer.finish = FinishReason::kLength;
  const GenerateOptions options = generate_options(flags.sampling);
  if (!continues) {
    const auto fed = feed_prompt(flags, *engine, *session, prompt);
    if (!fed.ok() && !interrupted()) return fed;
  }
  if (interrupted()) {
    answer.finish = FinishReason::kInterrupted;
  } else if (options.max_tokens != 0) {
    GenerateOptions stoppable = options;
    stoppable.interrupted = interrupt_flag();
    Result<void> written;
    bool ends_line = true;
    ASSIGN_OR_RETURN(answer, session->generate(stoppable, [&](std::string_view piece) {
      if (flags.json || !written.ok() || piece.empty()) return;
      ends_line = piece.back() == '\n';
      written = print_text(piece);
    }));
    if (!ends_line && written.ok()) written = print_text("\n");
    RETURN_IF_ERROR(written);
  }
  if (!flags.save_state.empty()) {
    ASSIGN_OR_RETURN(const uint64_t bytes, session->save_state(flags.save_state));
    if (!quiet) {
      print_note("saved " + grouped_count(session->tokens()) + " tokens of context to " + flags.save_state + " (" +
                 human_bytes(static_cast<double>(bytes)) + ")");
    }
  }
  return report(flags, *engine, *session, answer, options.sampling.seed);
}

}  // namespace

Action declare_run(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  add_prompt_flags(app, flags->prompt);
  app.add_option("--system", flags->system, "instructions that stand before the prompt; also -sys");
  app.add_flag("--raw", flags->raw, "no chat template: the prompt as it is");
  add_sampling_flags(app, flags->sampling);
  app.add_option("--save-state", flags->save_state, "write the context to a file when the answer is done");
  app.add_option("--load-state", flags->load_state, "start from such a file; without a prompt, go on where it ended");
  add_model_flags(app, flags->model, /*with_context=*/true);
  app.add_flag("-q,--quiet", flags->quiet, "the answer only");
  app.add_flag("--json", flags->json, "one JSON object on standard output when the answer is done");
  return [flags] { return run(*flags); };
}

}  // namespace quipu::cli
