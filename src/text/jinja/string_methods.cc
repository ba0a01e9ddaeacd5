#include "text/jinja/string_methods.h"

#include <unordered_map>

#include "base/utf8.h"
#include "text/jinja/arguments.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

struct Call {
  Heap& heap;
  const Value& self;
  std::string_view name;
  ArgumentReader arguments;

  const std::string& text() const { return self.string->bytes; }
  Value made(std::string bytes) const { return heap.string(std::move(bytes), self.string->markup); }
  Value made(std::string_view bytes) const { return made(std::string(bytes)); }
  std::vector<Value> made(const std::vector<std::string_view>& parts) const {
    std::vector<Value> out;
    for (std::string_view part : parts) out.push_back(made(part));
    return out;
  }
};

using Method = Value (*)(Call&);

Value strip_method(Call& call) {
  const Value characters = call.arguments.optional("chars", Value::none());
  call.arguments.finish();
  std::optional<std::string_view> set;
  if (!characters.is_none()) {
    set = call.arguments.as_text("chars", characters);
    call.heap.charge_work(set->size());
    // Each character stripped searches the set.
    if (set->size() > 256) fail("str.strip with more than 256 bytes of characters");
  }
  return call.made(strip(call.text(), set, call.name != "rstrip", call.name != "lstrip"));
}

Value split_method(Call& call) {
  const bool from_right = call.name == "rsplit";
  const Value separator = call.arguments.optional("sep", Value::none());
  const int64_t limit = call.arguments.integer("maxsplit", -1);
  call.arguments.finish();
  if (separator.is_none()) return call.heap.list(call.made(split_space(call.heap, call.text(), limit, from_right)));
  const std::string& text = call.arguments.as_text("sep", separator);
  if (text.empty()) fail("str.split with an empty separator");
  call.heap.charge_work(text.size());
  return call.heap.list(call.made(split_on(call.heap, call.text(), text, limit, from_right)));
}

Value splitlines_method(Call& call) {
  const bool keep_ends = call.arguments.flag("keepends", false);
  call.arguments.finish();
  return call.heap.list(call.made(split_lines(call.heap, call.text(), keep_ends)));
}

// startswith and endswith: one string or a tuple of them.
Value affix_method(Call& call) {
  const Value affix = call.arguments.required("prefix");
  call.arguments.finish();
  const bool at_start = call.name == "startswith";
  const auto matches = [&](const Value& v) {
    const std::string_view wanted = call.arguments.as_text("prefix", v);
    call.heap.charge_work(wanted.size());
    const std::string_view text = call.text();
    return at_start ? text.starts_with(wanted) : text.ends_with(wanted);
  };
  if (!affix.is_list() || affix.list->flavor != Flavor::kTuple) return Value::of(matches(affix));
  for (const Value& one : affix.list->items) {
    if (matches(one)) return Value::of(true);
  }
  return Value::of(false);
}

Value remove_affix_method(Call& call) {
  const std::string_view affix = call.arguments.text("prefix");
  call.arguments.finish();
  std::string_view text = call.text();
  if (call.name == "removeprefix" && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (call.name == "removesuffix" && text.ends_with(affix)) text.remove_suffix(affix.size());
  return call.made(text);
}

Value replace_method(Call& call) {
  const std::string_view from = call.arguments.text("old"), to = call.arguments.text("new");
  const int64_t limit = call.arguments.integer("count", -1);
  call.arguments.finish();
  call.heap.charge_work(from.size());
  return call.made(replace_all(call.heap, call.text(), from, to, limit));
}

Value case_method(Call& call) {
  call.arguments.finish();
  if (call.name == "upper") return call.made(upper(call.text()));
  if (call.name == "lower" || call.name == "casefold") return call.made(lower(call.text()));
  if (call.name == "title") return call.made(title(call.text()));
  return call.made(capitalize(call.text()));
}

// isdigit and the like: not empty and every character is.
Value class_method(Call& call) {
  call.arguments.finish();
  const auto is_cased = [](char32_t c) { return is_upper(c) || is_lower(c); };
  std::string_view rest = call.text();
  bool all = !rest.empty(), any_cased = false;
  while (all && !rest.empty()) {
    const char32_t c = utf8_code_point(rest);
    rest.remove_prefix(utf8_sequence_length(rest));
    any_cased |= is_cased(c);
    if (call.name == "isdigit" || call.name == "isnumeric" || call.name == "isdecimal") all = is_digit(c);
    else if (call.name == "isalpha") all = is_alphabetic(c);
    else if (call.name == "isalnum") all = is_alphabetic(c) || is_digit(c);
    else if (call.name == "isspace") all = is_space(c);
    else if (call.name == "isupper") all = !is_lower(c);
    else if (call.name == "islower") all = !is_upper(c);
    else all = c < 0x80;   // isascii, which an empty string is too
  }
  if (call.name == "isascii") return Value::of(all || call.text().empty());
  if (call.name == "isupper" || call.name == "islower") all = all && any_cased;
  return Value::of(all);
}

Value find_method(Call& call) {
  const std::string_view wanted = call.arguments.text("sub");
  call.arguments.finish();
  call.heap.charge_work(wanted.size());
  const std::string_view text = call.text();
  size_t found = find_bytes(text, wanted);
  if (call.name == "rfind" || call.name == "rindex") {
    const std::string back(text.rbegin(), text.rend()), needle(wanted.rbegin(), wanted.rend());
    const size_t from_end = find_bytes(back, needle);
    found = from_end == std::string::npos ? from_end : text.size() - from_end - wanted.size();
  }
  if (found != std::string_view::npos) return Value::of(Int{count_code_points(text.substr(0, found))});
  if (call.name == "index" || call.name == "rindex") fail("substring not found");
  return Value::of(Int{-1});
}

Value count_method(Call& call) {
  const std::string_view wanted = call.arguments.text("sub");
  call.arguments.finish();
  if (wanted.empty()) return Value::of(Int{count_code_points(call.text()) + 1});
  Int count = 0;
  for (size_t i = find_bytes(call.text(), wanted); i != std::string_view::npos;
       i = find_bytes(call.text(), wanted, i + wanted.size())) {
    ++count;
  }
  return Value::of(count);
}

Value join_method(Call& call) {
  const Value items = call.arguments.required("iterable");
  call.arguments.finish();
  std::string out;
  bool first = true;
  for (const Value& item : iterate(call.heap, items)) {
    if (!item.is_string()) fail("str.join needs strings, found " + std::string(type_name(item)));
    call.heap.require_room(static_cast<Int>(out.size() + call.text().size() + item.string->bytes.size()));
    if (!std::exchange(first, false)) out += call.text();
    out += item.string->bytes;
  }
  return call.made(std::move(out));
}

Value pad_method(Call& call) {
  const int64_t width = call.arguments.integer("width", 0);
  const Value fill = call.arguments.optional("fillchar", Value::none());
  call.arguments.finish();
  const std::string space = call.name == "zfill" ? "0" : " ";
  const std::string& unit = fill.is_none() ? space : call.arguments.as_text("fillchar", fill);
  if (count_code_points(unit) != 1) fail("the fill character must be one character");
  const int64_t missing = width - count_code_points(call.text());
  if (missing <= 0) return call.self;
  call.heap.require_room(Int{missing} * static_cast<Int>(unit.size()));
  const auto filled = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += unit;
    return out;
  };
  if (call.name == "ljust") return call.made(call.text() + filled(missing));
  if (call.name == "rjust") return call.made(filled(missing) + call.text());
  if (call.name == "zfill") {
    const size_t sign = !call.text().empty() && (call.text()[0] == '-' || call.text()[0] == '+') ? 1 : 0;
    return call.made(call.text().substr(0, sign) + filled(missing) + call.text().substr(sign));
  }
  const int64_t left = missing / 2 + (missing & width & 1);   // CPython's choice of the longer side
  return call.made(filled(left) + call.text() + filled(missing - left));
}

Value partition_method(Call& call) {
  const std::string_view separator = call.arguments.text("sep");
  call.arguments.finish();
  if (separator.empty()) fail("str.partition with an empty separator");
  const bool from_right = call.name == "rpartition";
  auto parts = split_on(call.heap, call.text(), separator, 1, from_right);
  if (parts.size() == 1) {
    const Value empty = call.made(std::string());
    return from_right ? call.heap.list({empty, empty, call.self}, Flavor::kTuple)
                      : call.heap.list({call.self, empty, empty}, Flavor::kTuple);
  }
  return call.heap.list({call.made(parts[0]), call.made(separator), call.made(parts[1])}, Flavor::kTuple);
}

const std::unordered_map<std::string_view, Method>& methods() {
  static const std::unordered_map<std::string_view, Method> table = {
      {"strip", strip_method}, {"lstrip", strip_method}, {"rstrip", strip_method},
      {"split", split_method}, {"rsplit", split_method}, {"splitlines", splitlines_method},
      {"startswith", affix_method}, {"endswith", affix_method},
      {"removeprefix", remove_affix_method}, {"removesuffix", remove_affix_method},
      {"replace", replace_method},
      {"upper", case_method}, {"lower", case_method}, {"casefold", case_method}, {"title", case_method},
      {"capitalize", case_method},
      {"isdigit", class_method}, {"isnumeric", class_method}, {"isdecimal", class_method}, {"isalpha", class_method},
      {"isalnum", class_method}, {"isspace", class_method}, {"isupper", class_method}, {"islower", class_method},
      {"isascii", class_method},
      {"find", find_method}, {"rfind", find_method}, {"index", find_method}, {"rindex", find_method},
      {"count", count_method}, {"join", join_method},
      {"ljust", pad_method}, {"rjust", pad_method}, {"center", pad_method}, {"zfill", pad_method},
      {"partition", partition_method}, {"rpartition", partition_method},
      {"format", nullptr},   // takes free arguments, so it does not pass through ArgumentReader
  };
  return table;
}

}  // namespace

bool is_string_method(std::string_view name) { return methods().contains(name); }

Value call_string_method(Heap& heap, const Value& self, std::string_view name, const Arguments& arguments) {
  heap.charge_work(self.string->bytes.size());
  const Method method = methods().at(name);
  if (!method) return heap.string(brace_format(heap, self.string->bytes, arguments), self.string->markup);
  Call call{heap, self, name, ArgumentReader("str." + std::string(name), arguments)};
  return method(call);
}

}  // namespace quipu::jinja
