// Conversations to the text a model was trained on, by the template that comes with the model.
//
// Both sides are hostile: the template is a program from a model file (bounded in steps, memory and output), and
// messages are only ever data: braces in a message are never read as template.
#pragma once

#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/jinja/template.h"

namespace quipu {

struct ChatMessage {
  std::string role;
  std::optional<std::string> content;   // absent: none, as for an assistant that only calls tools
  std::string content_json;             // JSON (a list of parts, say) to use in place of content; empty: not used
  std::string fields_json;              // a JSON object with further fields: tool_calls, name, reasoning_content; may be empty
};

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  std::optional<std::string> bos_token, eos_token;   // absent: undefined in the template
  std::string tools_json;                            // a JSON array; empty: tools is none
  std::string documents_json;                        // likewise
  std::vector<std::pair<std::string, std::string>> variables_json;   // name and JSON: enable_thinking, "false";
                                                                     // these replace the ones above
  std::function<std::tm()> now;                      // what strftime_now shows; empty: local time
  jinja::Limits limits;
};

class ChatTemplate {
 public:
  // Errors: "chat template: line 3: ...", class bad_input.
  static Result<ChatTemplate> parse(std::string_view source);

  // Errors: also what the template itself refuses through raise_exception, with its message.
  Result<std::string> render(const std::vector<ChatMessage>& messages, const ChatTemplateOptions& options) const;
  // messages_json: a JSON array of message objects, passed on as they are.
  Result<std::string> render_json(std::string_view messages_json, const ChatTemplateOptions& options) const;

 private:
  explicit ChatTemplate(jinja::Template parsed) : template_(std::move(parsed)) {}
  jinja::Template template_;
};

}  // namespace quipu
