#include "text/jinja/filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "base/utf8.h"
#include "text/jinja/arguments.h"
#include "text/jinja/attributes.h"
#include "text/jinja/json_text.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

struct Call {
  Heap& heap;
  std::string_view name;
  const Value& operand;
  ArgumentReader arguments;
  const Arguments& raw;

  bool markup() const { return operand.is_string() && operand.string->markup; }
  std::string text() const { return to_text(heap, operand); }
  Value made(std::string bytes) const { return heap.string(std::move(bytes), markup()); }
  Value made(std::string_view bytes) const { return made(std::string(bytes)); }
};

using Filter = Value (*)(Call&);

// "a.b.0" or a number: the path that attribute= arguments give.
struct Path {
  std::vector<Value> parts;
  bool given = false;
};

Path read_path(Call& call, const Value& attribute) {
  Path path;
  if (attribute.is_none()) return path;
  path.given = true;
  if (!attribute.is_string()) {
    path.parts = {attribute};
    return path;
  }
  for (std::string_view part : split_on(call.heap, attribute.string->bytes, ".", -1, false)) {
    Int index = 0;
    const bool number = !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string_view::npos;
    if (number) for (char c : part) index = index * 10 + (c - '0');
    path.parts.push_back(number ? Value::of(index) : call.heap.string(std::string(part)));
  }
  return path;
}

Value follow(Heap& heap, const Path& path, Value value, const Value& otherwise = Value::undefined()) {
  for (const Value& part : path.parts) {
    heap.charge_steps(1);
    value = get_item(heap, value, part);
    if (value.is_undefined() && !otherwise.is_undefined()) value = otherwise;
  }
  return value;
}

// What sorting and grouping compare: strings without case unless asked.
Value fold_case(Heap& heap, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  heap.charge_work(value.string->bytes.size());
  return heap.string(lower(value.string->bytes));
}

// Sorts by key, stably, also when reversed.
std::vector<Value> sort_by(Heap& heap, const std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  std::vector<size_t> order(keyed.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    heap.charge_steps(1);
    return reverse ? less(heap, keyed[b].first, keyed[a].first) : less(heap, keyed[a].first, keyed[b].first);
  });
  std::vector<Value> out;
  for (size_t i : order) out.push_back(keyed[i].second);
  return out;
}

// ---- text ----

Value case_filter(Call& call) {
  call.arguments.finish();
  if (call.name == "upper") return call.made(upper(call.text()));
  if (call.name == "lower") return call.made(lower(call.text()));
  return call.made(capitalize(call.text()));
}

// Jinja's own idea of a title: words begin after white space and - ( { [ <.
Value title_filter(Call& call) {
  call.arguments.finish();
  const std::string text = call.text();
  std::string_view rest = text;
  std::string out;
  bool first = true;
  while (!rest.empty()) {
    const size_t bytes = utf8_sequence_length(rest);
    const std::string_view character = rest.substr(0, bytes);
    const bool breaks = space_length(rest) > 0 || std::string_view("-({[<").find(character) != std::string_view::npos;
    out += first && !breaks ? upper(character) : lower(character);
    first = breaks;
    rest.remove_prefix(bytes);
  }
  return call.made(std::move(out));
}

Value trim_filter(Call& call) {
  const Value characters = call.arguments.optional("chars", Value::none());
  call.arguments.finish();
  std::optional<std::string_view> set;
  if (!characters.is_none()) {
    set = call.arguments.as_text("chars", characters);
    if (set->size() > 256) fail("filter trim with more than 256 bytes of characters");
  }
  return call.made(strip(call.text(), set, true, true));
}

Value replace_filter(Call& call) {
  const std::string from = to_text(call.heap, call.arguments.required("old"));
  const std::string to = to_text(call.heap, call.arguments.required("new"));
  const Value count = call.arguments.optional("count", Value::none());
  call.arguments.finish();
  const int64_t limit = count.is_none() ? -1 : small_int(count, "filter replace argument 'count'");
  return call.heap.string(replace_all(call.heap, call.text(), from, to, limit));
}

Value string_filter(Call& call) {
  call.arguments.finish();
  return call.operand.is_string() ? call.operand : call.heap.string(call.text());
}

Value safe_filter(Call& call) {
  call.arguments.finish();
  return call.heap.string(call.text(), true);
}

Value escape_filter(Call& call) {
  call.arguments.finish();
  if (call.markup() && call.name != "forceescape") return call.operand;
  return call.heap.string(html_escape(call.text()), true);
}

Value indent_filter(Call& call) {
  const Value width = call.arguments.optional("width", Value::of(Int{4}));
  const bool first = call.arguments.flag("first", false), blank = call.arguments.flag("blank", false);
  call.arguments.finish();
  std::string unit;
  if (width.is_string()) {
    unit = width.string->bytes;
  } else {
    const int64_t spaces = std::max<int64_t>(0, small_int(width, "filter indent argument 'width'"));
    call.heap.require_room(spaces);
    unit.assign(static_cast<size_t>(spaces), ' ');
  }
  const std::string text = call.text() + "\n";
  std::string out;
  bool first_line = true;
  for (std::string_view line : split_lines(call.heap, text, false)) {
    call.heap.require_room(static_cast<Int>(out.size() + unit.size() + line.size()));
    if (!first_line) out += "\n";
    if (first_line ? first : blank || !line.empty()) out += unit;
    out += line;
    first_line = false;
  }
  return call.made(std::move(out));
}

Value center_filter(Call& call) {
  const int64_t width = call.arguments.integer("width", 80);
  call.arguments.finish();
  Arguments arguments;
  arguments.positional.push_back(Value::of(Int{width}));
  return call_method(call.heap, call.made(call.text()), "center", arguments);
}

Value truncate_filter(Call& call) {
  const int64_t limit = call.arguments.integer("length", 255);
  const bool kill_words = call.arguments.flag("killwords", false);
  const Value ending = call.arguments.optional("end", Value::none());
  const int64_t leeway = call.arguments.integer("leeway", 5);
  call.arguments.finish();
  const std::string text = call.text(), end = ending.is_none() ? "..." : to_text(call.heap, ending);
  const int64_t end_length = count_code_points(end);
  if (limit < end_length || leeway < 0) fail("filter truncate: length is shorter than the ending");
  if (count_code_points(text) <= limit + leeway) return call.made(text);
  std::string kept = text.substr(0, byte_offset(text, limit - end_length));
  if (!kill_words) kept = kept.substr(0, std::min(kept.rfind(' '), kept.size()));
  return call.made(kept + end);
}

Value wordcount_filter(Call& call) {
  call.arguments.finish();
  const std::string text = call.text();
  Int words = 0;
  bool inside = false;
  for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(utf8_sequence_length(rest))) {
    const char32_t c = utf8_code_point(rest);
    const bool word = is_alphabetic(c) || is_digit(c) || c == '_';
    words += word && !inside;
    inside = word;
  }
  return Value::of(words);
}

Value urlencode_filter(Call& call) {
  call.arguments.finish();
  if (!call.operand.is_string() && is_iterable(call.operand)) fail("filter urlencode of pairs is not supported");
  std::string out;
  for (char c : call.text()) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (byte < 0x80 && std::isalnum(byte)) || std::string_view("_.-~/").find(c) != std::string_view::npos;
    if (plain) { out.push_back(c); continue; }
    static constexpr char kDigits[] = "0123456789ABCDEF";
    out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return call.heap.string(std::move(out));
}

Value format_filter(Call& call) {
  if (!call.raw.positional.empty() && !call.raw.named.empty()) fail("filter format takes values either by position or by name");
  Value values = call.heap.list(call.raw.positional, Flavor::kTuple);
  if (!call.raw.named.empty()) {
    DictObject* dict = call.heap.dict();
    for (const auto& [name, value] : call.raw.named) call.heap.set_item(dict, call.heap.string(std::string(name)), value);
    values = Value::of(dict);
  }
  return call.made(percent_format(call.heap, call.text(), values));
}

Value tojson_filter(Call& call) {
  JsonStyle style;
  style.ensure_ascii = call.arguments.flag("ensure_ascii", false);
  const Value indent = call.arguments.optional("indent", Value::none());
  const Value separators = call.arguments.optional("separators", Value::none());
  style.sort_keys = call.arguments.flag("sort_keys", false);
  call.arguments.finish();
  if (!indent.is_none()) {
    style.has_indent = true;
    style.item_separator = ",";
    if (indent.is_string()) {
      style.indent = indent.string->bytes;
    } else {
      const int64_t spaces = small_int(indent, "filter tojson argument 'indent'");
      if (spaces > 1000) fail("filter tojson with an indent of more than 1000");
      style.indent.assign(static_cast<size_t>(std::max<int64_t>(0, spaces)), ' ');
    }
  }
  if (!separators.is_none()) {
    const std::vector<Value> pair = iterate(call.heap, separators);
    if (pair.size() != 2) fail("filter tojson needs two separators");
    style.item_separator = call.arguments.as_text("separators", pair[0]);
    style.key_separator = call.arguments.as_text("separators", pair[1]);
  }
  return call.heap.string(json_from_value(call.heap, call.operand, style));
}

// ---- numbers ----

// Python's int(text) and float(text); false when the text is no number.
bool parse_float(std::string_view text, double& out) {
  text = strip(text, std::nullopt, true, true);
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool separator = text[i] == '_' && i > 0 && i + 1 < text.size() && std::isdigit(static_cast<unsigned char>(text[i - 1])) &&
                           std::isdigit(static_cast<unsigned char>(text[i + 1]));
    if (!separator) digits.push_back(text[i]);
  }
  std::string_view rest = digits;
  if (rest.starts_with("+") && !rest.starts_with("+-")) rest.remove_prefix(1);
  if (rest.empty() || rest.find_first_of("xXpP(") != std::string_view::npos) return false;
  const auto result = std::from_chars(rest.data(), rest.data() + rest.size(), out);
  if (result.ptr != rest.data() + rest.size()) return false;
  if (result.ec == std::errc::result_out_of_range) out = rest[0] == '-' ? -HUGE_VAL : HUGE_VAL;   // or a tiny number
  return result.ec != std::errc::invalid_argument;
}

bool parse_int(std::string_view text, int base, Int& out) {
  text = strip(text, std::nullopt, true, true);
  const bool negative = text.starts_with("-");
  if (negative || text.starts_with("+")) text.remove_prefix(1);
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  if (base == 8 && (text.starts_with("0o") || text.starts_with("0O"))) text.remove_prefix(2);
  if (base == 2 && (text.starts_with("0b") || text.starts_with("0B"))) text.remove_prefix(2);
  if (text.empty() || text.front() == '_' || text.back() == '_') return false;
  Int value = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '_' && text[i - 1] != '_') continue;
    const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10 : 99;
    if (digit >= base) return false;
    value = value * base + digit;
    if (value >> 100 != 0) fail("integer too large: " + std::string(text.substr(0, 40)));
  }
  out = negative ? -value : value;
  return true;
}

bool truncate_float(double real, Int& out) {
  if (!std::isfinite(real)) return false;
  if (std::fabs(real) > 1e30) fail("integer too large");
  out = static_cast<Int>(std::trunc(real));
  return true;
}

Value int_filter(Call& call) {
  const Value otherwise = call.arguments.optional("default", Value::of(Int{0}));
  const int64_t base = call.arguments.integer("base", 10);
  call.arguments.finish();
  if (base == 0) fail("filter int: base 0 is not supported");
  const Value& v = call.operand;
  if (v.is_undefined()) fail("filter int: the value is undefined");
  Int out = 0;
  double real = 0;
  if (v.is_integral()) return Value::of(v.as_int());
  if (v.kind == Kind::kFloat) return truncate_float(v.real, out) ? Value::of(out) : otherwise;
  if (!v.is_string()) return otherwise;
  const bool base_exists = base >= 2 && base <= 36;
  if (base_exists && parse_int(v.string->bytes, static_cast<int>(base), out)) return Value::of(out);
  return parse_float(v.string->bytes, real) && truncate_float(real, out) ? Value::of(out) : otherwise;
}

Value float_filter(Call& call) {
  const Value otherwise = call.arguments.optional("default", Value::of(0.0));
  call.arguments.finish();
  double real = 0;
  if (call.operand.is_undefined()) fail("filter float: the value is undefined");
  if (call.operand.is_number()) return Value::of(call.operand.as_double());
  return call.operand.is_string() && parse_float(call.operand.string->bytes, real) ? Value::of(real) : otherwise;
}

Value abs_filter(Call& call) {
  call.arguments.finish();
  const Value& v = call.operand;
  if (!v.is_number()) fail("filter abs needs a number, found " + std::string(type_name(v)));
  if (v.kind == Kind::kFloat) return Value::of(std::fabs(v.real));
  return v.as_int() < 0 ? negate(v) : Value::of(v.as_int());
}

Value round_filter(Call& call) {
  const int64_t precision = call.arguments.integer("precision", 0);
  const Value method = call.arguments.optional("method", Value::none());
  call.arguments.finish();
  const std::string how = method.is_none() ? "common" : to_text(call.heap, method);
  if (!call.operand.is_number()) fail("filter round needs a number, found " + std::string(type_name(call.operand)));
  if (precision < 0 || precision > 300) fail("filter round: precision must be from 0 to 300");
  const double value = call.operand.as_double();
  if (how == "common") {
    if (call.operand.is_integral()) return Value::of(call.operand.as_int());
    char buffer[700];   // printf rounds the exact binary value half to even, as Python does
    const int size = std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), value);
    double rounded = value;
    std::from_chars(buffer, buffer + size, rounded);
    return Value::of(rounded);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (how == "ceil") return Value::of(std::ceil(value * scale) / scale);
  if (how == "floor") return Value::of(std::floor(value * scale) / scale);
  fail("filter round: method must be common, ceil or floor");
}

Value sum_filter(Call& call) {
  const Path path = read_path(call, call.arguments.optional("attribute", Value::none()));
  Value total = call.arguments.optional("start", Value::of(Int{0}));
  call.arguments.finish();
  for (const Value& item : iterate(call.heap, call.operand)) total = add(call.heap, total, follow(call.heap, path, item));
  return total;
}

// ---- sequences ----

Value length_filter(Call& call) {
  call.arguments.finish();
  return Value::of(length(call.heap, call.operand));
}

Value default_filter(Call& call) {
  const Value* otherwise = call.arguments.next("default_value");
  const bool also_false = call.arguments.flag("boolean", false);
  call.arguments.finish();
  if (!call.operand.is_undefined() && (!also_false || truth(call.operand))) return call.operand;
  return otherwise ? *otherwise : call.heap.string("");
}

Value first_last_filter(Call& call) {
  call.arguments.finish();
  if (call.name == "last" && call.operand.is_list() && call.operand.list->flavor == Flavor::kIterator) {
    fail("filter last of a generator");
  }
  if (call.operand.is_string()) {
    Value index = Value::of(Int{call.name == "first" ? 0 : -1});
    return get_item(call.heap, call.operand, index);
  }
  const std::vector<Value> items = iterate(call.heap, call.operand);
  if (items.empty()) return Value::undefined();
  return call.name == "first" ? items.front() : items.back();
}

Value list_filter(Call& call) {
  call.arguments.finish();
  return call.heap.list(iterate(call.heap, call.operand));
}

Value reverse_filter(Call& call) {
  call.arguments.finish();
  const Value minus_one = Value::of(Int{-1});
  if (call.operand.is_string()) return get_slice(call.heap, call.operand, Value::none(), Value::none(), minus_one);
  std::vector<Value> items = iterate(call.heap, call.operand);
  std::reverse(items.begin(), items.end());
  return call.heap.list(std::move(items), Flavor::kIterator);
}

Value join_filter(Call& call) {
  const Value* separator = call.arguments.next("d");
  const Path path = read_path(call, call.arguments.optional("attribute", Value::none()));
  call.arguments.finish();
  const std::string between = separator ? to_text(call.heap, *separator) : "";
  std::string out;
  bool first = true;
  for (const Value& item : iterate(call.heap, call.operand)) {
    const std::string text = to_text(call.heap, follow(call.heap, path, item));
    call.heap.require_room(static_cast<Int>(out.size() + between.size() + text.size()));
    if (!std::exchange(first, false)) out += between;
    out += text;
  }
  return call.heap.string(std::move(out));
}

Value items_filter(Call& call) {
  call.arguments.finish();
  if (call.operand.is_undefined()) return call.heap.list({}, Flavor::kIterator);
  if (!call.operand.is_dict()) fail("filter items needs a dictionary, found " + std::string(type_name(call.operand)));
  std::vector<Value> items;
  for (const auto& [key, value] : call.operand.dict->entries) items.push_back(call.heap.list({key, value}, Flavor::kTuple));
  return call.heap.list(std::move(items), Flavor::kIterator);
}

Value dictsort_filter(Call& call) {
  const bool case_sensitive = call.arguments.flag("case_sensitive", false);
  const Value by = call.arguments.optional("by", Value::none());
  const bool reverse = call.arguments.flag("reverse", false);
  call.arguments.finish();
  if (!call.operand.is_dict()) fail("filter dictsort needs a dictionary, found " + std::string(type_name(call.operand)));
  const bool by_value = !by.is_none() && to_text(call.heap, by) == "value";
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : call.operand.dict->entries) {
    keyed.emplace_back(fold_case(call.heap, by_value ? value : key, case_sensitive), call.heap.list({key, value}, Flavor::kTuple));
  }
  return call.heap.list(sort_by(call.heap, keyed, reverse));
}

Value sort_filter(Call& call) {
  const bool reverse = call.arguments.flag("reverse", false), case_sensitive = call.arguments.flag("case_sensitive", false);
  const Path path = read_path(call, call.arguments.optional("attribute", Value::none()));
  call.arguments.finish();
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : iterate(call.heap, call.operand)) {
    keyed.emplace_back(fold_case(call.heap, follow(call.heap, path, item), case_sensitive), item);
  }
  return call.heap.list(sort_by(call.heap, keyed, reverse));
}

Value unique_filter(Call& call) {
  const bool case_sensitive = call.arguments.flag("case_sensitive", false);
  const Path path = read_path(call, call.arguments.optional("attribute", Value::none()));
  call.arguments.finish();
  DictObject* seen = call.heap.dict();
  std::vector<Value> out;
  for (const Value& item : iterate(call.heap, call.operand)) {
    const Value key = fold_case(call.heap, follow(call.heap, path, item), case_sensitive);
    if (find_key(call.heap, *seen, key) >= 0) continue;
    call.heap.set_item(seen, key, Value::none());
    out.push_back(item);
  }
  return call.heap.list(std::move(out), Flavor::kIterator);
}

Value extreme_filter(Call& call) {
  const bool case_sensitive = call.arguments.flag("case_sensitive", false);
  const Path path = read_path(call, call.arguments.optional("attribute", Value::none()));
  call.arguments.finish();
  Value best, best_key;
  bool first = true;
  for (const Value& item : iterate(call.heap, call.operand)) {
    const Value key = fold_case(call.heap, follow(call.heap, path, item), case_sensitive);
    const bool better = first || (call.name == "min" ? less(call.heap, key, best_key) : less(call.heap, best_key, key));
    if (!better) continue;
    first = false;
    best = item;
    best_key = key;
  }
  return best;
}

Value groupby_filter(Call& call) {
  const Path path = read_path(call, call.arguments.required("attribute"));
  const Value otherwise = call.arguments.optional("default", Value::undefined());
  const bool case_sensitive = call.arguments.flag("case_sensitive", false);
  call.arguments.finish();
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : iterate(call.heap, call.operand)) {
    const Value key = follow(call.heap, path, item, otherwise);
    keyed.emplace_back(fold_case(call.heap, key, case_sensitive), call.heap.list({key, item}));
  }
  std::vector<Value> groups, members;
  Value group_key, group_name;
  const auto close = [&]() {
    if (!members.empty()) groups.push_back(call.heap.list({group_name, call.heap.list(std::exchange(members, {}))}, Flavor::kTuple));
  };
  for (const Value& pair : sort_by(call.heap, keyed, false)) {
    const Value key = fold_case(call.heap, pair.list->items[0], case_sensitive);
    if (members.empty() || !equal(call.heap, key, group_key)) {
      close();
      group_key = key;
      group_name = pair.list->items[0];
    }
    members.push_back(pair.list->items[1]);
  }
  close();
  return call.heap.list(std::move(groups));
}

Value batch_filter(Call& call) {
  const int64_t size = call.arguments.integer("linecount", 1);
  const Value fill = call.arguments.optional("fill_with", Value::none());
  call.arguments.finish();
  if (size < 1) fail("filter batch: the size must be at least 1");
  std::vector<Value> out, batch;
  for (const Value& item : iterate(call.heap, call.operand)) {
    if (static_cast<int64_t>(batch.size()) == size) out.push_back(call.heap.list(std::exchange(batch, {})));
    batch.push_back(item);
  }
  if (!batch.empty()) {
    call.heap.require_room(Int{size} * static_cast<Int>(sizeof(Value)));
    if (!fill.is_none()) batch.resize(static_cast<size_t>(size), fill);
    out.push_back(call.heap.list(std::move(batch)));
  }
  return call.heap.list(std::move(out), Flavor::kIterator);
}

Value map_filter(Call& call) {
  std::vector<Value> out;
  if (call.raw.positional.empty()) {
    const Path path = read_path(call, call.arguments.required("attribute"));
    const Value otherwise = call.arguments.optional("default", Value::undefined());
    call.arguments.finish();
    for (const Value& item : iterate(call.heap, call.operand)) out.push_back(follow(call.heap, path, item, otherwise));
  } else {
    const std::string name = call.arguments.text("filter");
    const Arguments rest{{call.raw.positional.begin() + 1, call.raw.positional.end()}, call.raw.named};
    for (const Value& item : iterate(call.heap, call.operand)) out.push_back(apply_filter(call.heap, name, item, rest));
  }
  return call.heap.list(std::move(out), Flavor::kIterator);
}

// select, reject, selectattr, rejectattr
Value select_filter(Call& call) {
  const bool by_attribute = call.name.ends_with("attr"), wanted = call.name.starts_with("select");
  Path path;
  if (by_attribute) path = read_path(call, call.arguments.required("attribute"));
  const Value* test = call.arguments.next("test");
  const size_t used = (by_attribute ? 1 : 0) + (test ? 1 : 0);
  Arguments rest;
  rest.named = call.raw.named;
  if (call.raw.positional.size() > used) rest.positional.assign(call.raw.positional.begin() + static_cast<int64_t>(used), call.raw.positional.end());
  const std::string test_name = test ? call.arguments.as_text("test", *test) : "";
  std::vector<Value> out;
  for (const Value& item : iterate(call.heap, call.operand)) {
    const Value subject = follow(call.heap, path, item);
    const bool passes = test ? apply_test(call.heap, test_name, subject, rest) : truth(subject);
    if (passes == wanted) out.push_back(item);
  }
  return call.heap.list(std::move(out), Flavor::kIterator);
}

Value attr_filter(Call& call) {
  const Value name = call.arguments.required("name");
  call.arguments.finish();
  if (call.operand.is_dict() && name.is_string() && find_string_key(*call.operand.dict, name.string->bytes)) return Value::undefined();
  return get_attribute(call.heap, call.operand, call.arguments.as_text("name", name));
}

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"upper", case_filter}, {"lower", case_filter}, {"capitalize", case_filter}, {"title", title_filter},
      {"trim", trim_filter}, {"replace", replace_filter}, {"string", string_filter}, {"safe", safe_filter},
      {"escape", escape_filter}, {"e", escape_filter}, {"forceescape", escape_filter}, {"indent", indent_filter},
      {"center", center_filter}, {"truncate", truncate_filter}, {"wordcount", wordcount_filter},
      {"urlencode", urlencode_filter}, {"format", format_filter}, {"tojson", tojson_filter},
      {"int", int_filter}, {"float", float_filter}, {"abs", abs_filter}, {"round", round_filter}, {"sum", sum_filter},
      {"length", length_filter}, {"count", length_filter}, {"default", default_filter}, {"d", default_filter},
      {"first", first_last_filter}, {"last", first_last_filter}, {"list", list_filter}, {"reverse", reverse_filter},
      {"join", join_filter}, {"items", items_filter}, {"dictsort", dictsort_filter}, {"sort", sort_filter},
      {"unique", unique_filter}, {"min", extreme_filter}, {"max", extreme_filter}, {"groupby", groupby_filter},
      {"batch", batch_filter}, {"map", map_filter}, {"select", select_filter}, {"reject", select_filter},
      {"selectattr", select_filter}, {"rejectattr", select_filter}, {"attr", attr_filter},
  };
  return table;
}

}  // namespace

Value apply_filter(Heap& heap, std::string_view name, const Value& operand, const Arguments& arguments) {
  const auto found = filters().find(name);
  if (found == filters().end()) fail("there is no filter " + quoted(name.substr(0, byte_offset(name, 40))));
  heap.charge_steps(1);
  const Heap::FilterNesting nesting(heap);   // 'x' | map('map', 'map', ...)
  Call call{heap, name, operand, ArgumentReader("filter " + std::string(name), arguments), arguments};
  return found->second(call);
}

}  // namespace quipu::jinja
