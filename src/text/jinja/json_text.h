// JSON in and out, as Python's json module reads and writes it.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace quipu::jinja {

// Throws TemplateError on malformed text and past kMaxValueDepth. `what` names the text in messages.
Value value_from_json(Heap& heap, std::string_view json, std::string_view what);

struct JsonStyle {
  bool ensure_ascii = false;
  bool has_indent = false;
  std::string indent;               // one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};

// json.dumps. Throws on values that JSON cannot hold: undefined, namespaces, macros, generators.
std::string json_from_value(Heap& heap, const Value& value, const JsonStyle& style);

}  // namespace quipu::jinja
