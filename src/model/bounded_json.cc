#include "model/bounded_json.h"

#include <nlohmann/json.hpp>

namespace quipu {

using nlohmann::json;

namespace {

constexpr int kMaxDepth = 128;
constexpr size_t kMaxBytes = size_t{16} << 20;

// Deep nesting is refused before the parser sees it.
bool too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      else if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

Result<json> parse_bounded_json(const std::string& file, std::string_view text) {
  if (text.size() > kMaxBytes) {
    return bad_input(file + ": " + std::to_string(text.size()) + " bytes, a configuration has at most " +
                     std::to_string(kMaxBytes));
  }
  if (too_deep(text)) return bad_input(file + ": nested more than " + std::to_string(kMaxDepth) + " levels deep");
  try {
    json root = json::parse(text.begin(), text.end());
    if (!root.is_object()) return bad_input(file + ": is not a JSON object");
    return root;
  } catch (const json::parse_error& e) {
    return bad_input(file + ": not valid JSON at byte " + std::to_string(e.byte));
  } catch (const json::exception&) {
    return bad_input(file + ": not valid JSON (a number out of range)");
  }
}

}  // namespace quipu
