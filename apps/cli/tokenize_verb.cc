// quipu tokenize MODEL: text to ids.
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "engine/engine.h"
#include "human_text.h"
#include "model_flags.h"
#include "prompt_text.h"
#include "report.h"
#include "text/tokenizer.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct TokenizeFlags {
  ModelFlags model;
  PromptFlags prompt;
  bool no_special = false, no_parse_special = false, count = false, ids = false, json = false;
};

Result<void> tokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.model.model));
  ASSIGN_OR_RETURN(const std::string text, prompt_text(flags.prompt));
  ASSIGN_OR_RETURN(const auto tokenizer, Engine::load_tokenizer(path));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->encode(text, {.add_special = !flags.no_special,
                                                                            .parse_special = !flags.no_parse_special}));
  if (flags.json) {
    nlohmann::ordered_json json = {{"count", ids.size()}, {"bytes", text.size()}};
    json["ids"] = ids;
    if (!flags.count) {
      json["pieces"] = nlohmann::ordered_json::array();
      for (const int32_t id : ids) json["pieces"].push_back(utf8_lossy(tokenizer->token_bytes(id)));
    }
    return print_json(json);
  }
  if (flags.count) return print_text(std::to_string(ids.size()) + "\n");
  std::string out;
  if (flags.ids) {
    for (size_t i = 0; i < ids.size(); ++i) out += (i == 0 ? "" : " ") + std::to_string(ids[i]);
    return print_text(out + "\n");
  }
  for (const int32_t id : ids) out += text_f("%8d  '", id) + printable(tokenizer->token_bytes(id), 400) + "'\n";
  return print_text(out +
                    text_f("%s tokens, %.2f bytes per token\n", grouped_count(static_cast<int64_t>(ids.size())).c_str(),
                           ids.empty() ? 0.0 : static_cast<double>(text.size()) / static_cast<double>(ids.size())));
}

}  // namespace

Action declare_tokenize(CLI::App& app) {
  auto flags = std::make_shared<TokenizeFlags>();
  add_model_word(app, flags->model);
  add_prompt_flags(app, flags->prompt);
  app.add_flag("--no-special,--no-bos", flags->no_special, "add no begin and end tokens");
  app.add_flag("--no-parse-special", flags->no_parse_special, "read <|im_end|> and its like as plain text");
  app.add_flag("--count,--show-count", flags->count, "only how many");
  app.add_flag("--ids", flags->ids, "only the ids, on one line");
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return tokenize(*flags); };
}

}  // namespace quipu::cli
