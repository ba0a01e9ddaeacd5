#include "text/jinja/json_text.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/jinja/operators.h"

namespace quipu::jinja {
namespace {

class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(Heap& heap, std::string_view what) : heap_(heap), what_(what) {}

  bool null() override { return add(Value::none()); }
  bool boolean(bool value) override { return add(Value::of(value)); }
  bool number_integer(number_integer_t value) override { return add(Value::of(Int{value})); }
  bool number_unsigned(number_unsigned_t value) override { return add(Value::of(static_cast<Int>(value))); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos) return add(integer(text));
    return add(Value::of(value));
  }
  bool string(string_t& value) override { return add(heap_.string(std::move(value))); }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override {
    open({heap_.dict(), {}, {}});
    return true;
  }
  bool key(string_t& name) override {
    open_.back().key = heap_.string(std::move(name));
    return true;
  }
  bool end_object() override {
    DictObject* dict = open_.back().dict;
    open_.pop_back();
    return add(Value::of(dict));
  }
  bool start_array(std::size_t) override {
    open({nullptr, {}, {}});
    return true;
  }
  bool end_array() override {
    std::vector<Value> items = std::move(open_.back().items);
    open_.pop_back();
    return add(heap_.list(std::move(items)));
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(std::string(what_) + ": not valid JSON at byte " + std::to_string(position));
  }

  Value result;

 private:
  struct Container {
    DictObject* dict;   // null: a list
    std::vector<Value> items;
    Value key;
  };

  void open(Container container) {
    if (open_.size() >= static_cast<size_t>(kMaxValueDepth)) {
      fail(std::string(what_) + ": JSON nested deeper than " + std::to_string(kMaxValueDepth));
    }
    open_.push_back(std::move(container));
  }

  bool add(const Value& value) {
    heap_.charge_steps(1);
    if (open_.empty()) result = value;
    else if (open_.back().dict) heap_.set_item(open_.back().dict, open_.back().key, value);
    else open_.back().items.push_back(value);
    return true;
  }

  Value integer(const std::string& text) const {
    Int value = 0;
    for (char c : text) {
      if (c < '0' || c > '9') continue;
      value = value * 10 + (c - '0');
      if (value >> 100 != 0) fail(std::string(what_) + ": integer too large: " + text.substr(0, 40));
    }
    return Value::of(text[0] == '-' ? -value : value);
  }

  Heap& heap_;
  std::string_view what_;
  std::vector<Container> open_;
};

class Writer {
 public:
  Writer(Heap& heap, const JsonStyle& style) : heap_(heap), style_(style) {}

  void write(const Value& value, int depth) {
    if (depth > kMaxValueDepth) fail("value is nested too deeply for tojson");
    heap_.charge_steps(1);
    switch (value.kind) {
      case Kind::kNone: out += "null"; return;
      case Kind::kBool: out += value.boolean ? "true" : "false"; return;
      case Kind::kInt: out += int_text(value.integer); return;
      case Kind::kFloat: out += number(value.real); return;
      case Kind::kString: write_string(value.string->bytes); return;
      case Kind::kDict: write_dict(*value.dict, depth); return;
      case Kind::kList:
        if (value.list->flavor == Flavor::kList || value.list->flavor == Flavor::kTuple) return write_list(*value.list, depth);
        break;
      default: break;
    }
    fail("a value of type " + std::string(type_name(value)) + " cannot be written as JSON");
  }

  std::string out;

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void new_line(int depth) {
    if (!style_.has_indent) return;
    heap_.require_room(static_cast<Int>(out.size()) + static_cast<Int>(style_.indent.size()) * depth);
    out += "\n";
    for (int i = 0; i < depth; ++i) out += style_.indent;
  }

  void write_list(const ListObject& list, int depth) {
    if (list.items.empty()) { out += "[]"; return; }
    out += "[";
    bool first = true;
    for (const Value& item : list.items) {
      if (!std::exchange(first, false)) out += style_.item_separator;
      new_line(depth + 1);
      write(item, depth + 1);
    }
    new_line(depth);
    out += "]";
  }

  void write_dict(const DictObject& dict, int depth) {
    if (dict.entries.empty()) { out += "{}"; return; }
    std::vector<std::pair<Value, Value>> entries = dict.entries;
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto& a, const auto& b) { return less(heap_, a.first, b.first); });
    }
    out += "{";
    bool first = true;
    for (const auto& [key, value] : entries) {
      if (!std::exchange(first, false)) out += style_.item_separator;
      new_line(depth + 1);
      write_key(key);
      out += style_.key_separator;
      write(value, depth + 1);
    }
    new_line(depth);
    out += "}";
  }

  void write_key(const Value& key) {
    switch (key.kind) {
      case Kind::kString: write_string(key.string->bytes); return;
      case Kind::kNone: out += "\"null\""; return;
      case Kind::kBool: out += key.boolean ? "\"true\"" : "\"false\""; return;
      case Kind::kInt: out += "\"" + int_text(key.integer) + "\""; return;
      case Kind::kFloat: out += "\"" + number(key.real) + "\""; return;
      default: fail("a dictionary key of type " + std::string(type_name(key)) + " cannot be written as JSON");
    }
  }

  void write_string(std::string_view text) {
    heap_.charge_work(text.size());
    heap_.require_room(static_cast<Int>(out.size() + text.size()));
    out += '"';
    while (!text.empty()) {
      const auto c = static_cast<unsigned char>(text[0]);
      const size_t bytes = utf8_sequence_length(text);
      if (c == '"') out += "\\\"";
      else if (c == '\\') out += "\\\\";
      else if (c == '\n') out += "\\n";
      else if (c == '\r') out += "\\r";
      else if (c == '\t') out += "\\t";
      else if (c == '\f') out += "\\f";
      else if (c == '\b') out += "\\b";
      else if (c < 0x20) escape(c);
      else if (style_.ensure_ascii && c == 0x7F) out += static_cast<char>(c);
      else if (style_.ensure_ascii && c >= 0x80) escape(utf8_code_point(text));
      else out += text.substr(0, bytes);
      text.remove_prefix(bytes);
    }
    out += '"';
  }

  void escape(char32_t c) {
    static constexpr char kDigits[] = "0123456789abcdef";
    if (c >= 0x10000) {
      escape(0xD800 + ((c - 0x10000) >> 10));
      c = 0xDC00 + ((c - 0x10000) & 0x3FF);
    }
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += kDigits[(c >> shift) & 15];
  }

  Heap& heap_;
  const JsonStyle& style_;
};

}  // namespace

Value value_from_json(Heap& heap, std::string_view json, std::string_view what) {
  Builder builder(heap, what);
  nlohmann::json::sax_parse(json.begin(), json.end(), &builder);
  return builder.result;
}

std::string json_from_value(Heap& heap, const Value& value, const JsonStyle& style) {
  Writer writer(heap, style);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace quipu::jinja
