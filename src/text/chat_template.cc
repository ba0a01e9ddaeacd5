#include "text/chat_template.h"

#include "base/utf8.h"
#include "text/jinja/json_text.h"
#include "text/jinja/operators.h"

namespace quipu {
namespace {

using jinja::DictObject;
using jinja::Heap;
using jinja::Value;

Value text_value(Heap& heap, std::string_view text, const std::string& what) {
  if (const size_t valid = utf8_valid_prefix(text); valid != text.size()) {
    jinja::fail(what + " is not valid UTF-8 at byte " + std::to_string(valid));
  }
  return heap.string(std::string(text));
}

Value message_value(Heap& heap, const ChatMessage& message, const std::string& what) {
  DictObject* dict = heap.dict();
  const auto set = [&](const char* name, const Value& value) { heap.set_item(dict, heap.string(name), value); };
  set("role", text_value(heap, message.role, what + ".role"));
  if (!message.content_json.empty()) set("content", jinja::value_from_json(heap, message.content_json, what + ".content"));
  else set("content", message.content ? text_value(heap, *message.content, what + ".content") : Value::none());
  if (!message.fields_json.empty()) {
    const Value fields = jinja::value_from_json(heap, message.fields_json, what);
    if (!fields.is_dict()) jinja::fail(what + ": further fields must be a JSON object");
    for (const auto& [key, value] : fields.dict->entries) heap.set_item(dict, key, value);
  }
  return Value::of(dict);
}

void fill_options(Heap& heap, jinja::Template::Variables& variables, const ChatTemplateOptions& options) {
  const auto set = [&](const std::string& name, const Value& value) {   // the last one of a name counts
    std::erase_if(variables, [&](const auto& known) { return known.first == name; });
    variables.emplace_back(name, value);
  };
  set("add_generation_prompt", Value::of(options.add_generation_prompt));
  const auto list = [&](const char* name, const std::string& json) {
    set(name, json.empty() ? Value::none() : jinja::value_from_json(heap, json, name));
  };
  list("tools", options.tools_json);
  list("documents", options.documents_json);
  if (options.bos_token) set("bos_token", text_value(heap, *options.bos_token, "bos_token"));
  if (options.eos_token) set("eos_token", text_value(heap, *options.eos_token, "eos_token"));
  for (const auto& [name, json] : options.variables_json) {
    set(name, jinja::value_from_json(heap, json, name));
  }
}

Error named(Error error) {
  error.message = "chat template: " + error.message;
  return error;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  Result<jinja::Template> parsed = jinja::Template::parse(source);
  if (!parsed.ok()) return named(std::move(parsed).error());
  return ChatTemplate(std::move(parsed).value());
}

Result<std::string> ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                         const ChatTemplateOptions& options) const {
  const auto fill = [&](Heap& heap, jinja::Template::Variables& variables) {
    std::vector<Value> items;
    for (size_t i = 0; i < messages.size(); ++i) {
      items.push_back(message_value(heap, messages[i], "messages[" + std::to_string(i) + "]"));
    }
    variables.emplace_back("messages", heap.list(std::move(items)));
    fill_options(heap, variables, options);
  };
  Result<std::string> text = template_.render(fill, {.limits = options.limits, .now = options.now});
  if (!text.ok()) return named(std::move(text).error());
  return text;
}

Result<std::string> ChatTemplate::render_json(std::string_view messages_json, const ChatTemplateOptions& options) const {
  const auto fill = [&](Heap& heap, jinja::Template::Variables& variables) {
    const Value messages = jinja::value_from_json(heap, messages_json, "messages");
    if (!messages.is_list()) jinja::fail("messages: expected a JSON array, found " + std::string(jinja::type_name(messages)));
    variables.emplace_back("messages", messages);
    fill_options(heap, variables, options);
  };
  Result<std::string> text = template_.render(fill, {.limits = options.limits, .now = options.now});
  if (!text.ok()) return named(std::move(text).error());
  return text;
}

}  // namespace quipu
