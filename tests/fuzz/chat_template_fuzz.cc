// Any bytes as template, any bytes as conversation: an answer or an error, within the limits.
//
// Input: template, then optionally a NUL and the messages as JSON.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/utf8.h"
#include "text/chat_template.h"

namespace {

constexpr std::string_view kMessages = R"([{"role": "system", "content": "S\n"}, {"role": "user", "content": "a {{ b }} é🚀"},
  {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": [1, 2.5]}}}]},
  {"role": "tool", "content": "t"}])";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const auto parsed = quipu::ChatTemplate::parse(input.substr(0, end));
  if (!parsed.ok()) {
    CHECK(!parsed.error().message.empty());
    return 0;
  }
  quipu::ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  options.tools_json = R"([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}])";
  options.limits = {.steps = 20000, .work_bytes = 4 << 20, .memory_bytes = 4 << 20, .output_bytes = 1 << 18, .call_depth = 100};
  const auto text = parsed->render_json(end < input.size() ? input.substr(end + 1) : kMessages, options);
  if (text.ok()) {
    CHECK(quipu::utf8_is_valid(*text));
    CHECK(text->size() <= static_cast<size_t>(options.limits.output_bytes));
    // The same input gives the same text.
    const auto again = parsed->render_json(end < input.size() ? input.substr(end + 1) : kMessages, options);
    CHECK(again.ok());
    CHECK(*again == *text || input.find("strftime") != std::string_view::npos);
  }
  return 0;
}
