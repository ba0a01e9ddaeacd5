#include "text/jinja/operators.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/utf8.h"
#include "text/jinja/ast.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

constexpr Int kIntMax = static_cast<Int>(~static_cast<unsigned __int128>(0) >> 1);
constexpr Int kIntMin = -kIntMax - 1;

[[noreturn]] void overflow() { fail("integer overflow"); }

Int checked_add(Int a, Int b) {
  if ((b > 0 && a > kIntMax - b) || (b < 0 && a < kIntMin - b)) overflow();
  return a + b;
}

Int checked_multiply(Int a, Int b) {
  if (a == 0 || b == 0) return 0;
  // The builtin needs a run-time function that one of our two compilers lacks for 128 bits.
  const unsigned __int128 ua = a < 0 ? -static_cast<unsigned __int128>(a) : static_cast<unsigned __int128>(a);
  const unsigned __int128 ub = b < 0 ? -static_cast<unsigned __int128>(b) : static_cast<unsigned __int128>(b);
  if (ua > static_cast<unsigned __int128>(kIntMax) / ub) overflow();
  return a * b;
}

Int floor_quotient(Int a, Int b) {
  if (b == 0) fail("division by zero");
  if (a == kIntMin && b == -1) overflow();
  const Int quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

Int floor_remainder(Int a, Int b) {
  if (b == 0) fail("division by zero");
  if (b == -1) return 0;
  const Int remainder = a % b;
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

double floor_remainder(double a, double b) {
  if (b == 0) fail("division by zero");
  double remainder = std::fmod(a, b);
  if (remainder != 0) {
    if ((b < 0) != (remainder < 0)) remainder += b;
  } else {
    remainder = std::copysign(0.0, b);
  }
  return remainder;
}

[[noreturn]] void undefined_error(const Value& value) {
  if (value.missing_name) fail("'" + *value.missing_name + "' is undefined");
  fail("the value is undefined");
}

void require_defined(const Value& a, const Value& b) {
  if (a.is_undefined()) undefined_error(a);
  if (b.is_undefined()) undefined_error(b);
}

[[noreturn]] void type_error(const char* op, const Value& a, const Value& b) {
  require_defined(a, b);
  fail(std::string("cannot compute ") + std::string(type_name(a)) + " " + op + " " + std::string(type_name(b)));
}

// 'a' * 3, [0] * 3, and the other way round.
Value repeat(Heap& heap, const Value& sequence, Int count) {
  count = std::clamp<Int>(count, 0, Int{1} << 60);   // beyond every limit, within arithmetic
  if (sequence.is_string()) {
    const std::string& bytes = sequence.string->bytes;
    if (bytes.empty()) return sequence;
    heap.require_room(count * static_cast<Int>(bytes.size()));
    std::string out;
    out.reserve(static_cast<size_t>(count) * bytes.size());
    for (Int i = 0; i < count; ++i) out += bytes;
    return heap.string(std::move(out), sequence.string->markup);
  }
  const auto& items = sequence.list->items;
  if (items.empty()) count = 0;
  heap.require_room(count * static_cast<Int>(items.size() * sizeof(Value)));
  std::vector<Value> out;
  for (Int i = 0; i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  return heap.list(std::move(out), sequence.list->flavor);
}

bool is_plain_sequence(const Value& v) {
  return v.is_list() && (v.list->flavor == Flavor::kList || v.list->flavor == Flavor::kTuple);
}

bool same_numbers(const Value& a, const Value& b) {
  if (a.kind != Kind::kFloat && b.kind != Kind::kFloat) return a.as_int() == b.as_int();
  return a.as_double() == b.as_double();
}

}  // namespace

std::string_view type_name(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return value.string->markup ? "Markup" : "str";
    case Kind::kDict: return "dict";
    case Kind::kNamespace: return "Namespace";
    case Kind::kLoop: return "LoopContext";
    case Kind::kCallable: return value.callable->type == CallableObject::Type::kMacro ? "Macro" : "function";
    case Kind::kList: break;
  }
  switch (value.list->flavor) {
    case Flavor::kList: return "list";
    case Flavor::kTuple: return "tuple";
    case Flavor::kRange: return "range";
    case Flavor::kIterator: return "generator";
    case Flavor::kKeysView: return "dict_keys";
    case Flavor::kValuesView: return "dict_values";
    case Flavor::kItemsView: return "dict_items";
  }
  return "list";
}

bool truth(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return value.boolean;
    case Kind::kInt: return value.integer != 0;
    case Kind::kFloat: return value.real != 0;
    case Kind::kString: return !value.string->bytes.empty();
    case Kind::kList: return value.list->flavor == Flavor::kIterator || !value.list->items.empty();
    case Kind::kDict: return !value.dict->entries.empty();
    default: return true;
  }
}

bool equal(Heap& heap, const Value& a, const Value& b, int depth) {
  if (depth > kMaxValueDepth) fail("values are nested too deeply to compare");
  if (a.is_number() && b.is_number()) return same_numbers(a, b);
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kString:
      if (a.string->bytes.size() != b.string->bytes.size()) return false;
      heap.charge_work(a.string->bytes.size());
      return a.string->bytes == b.string->bytes;
    case Kind::kList: {
      if (a.list == b.list) return true;
      if (a.list->flavor != b.list->flavor || a.list->flavor == Flavor::kIterator) return false;
      if (a.list->items.size() != b.list->items.size()) return false;
      for (size_t i = 0; i < a.list->items.size(); ++i) {
        heap.charge_steps(1);
        if (!equal(heap, a.list->items[i], b.list->items[i], depth + 1)) return false;
      }
      return true;
    }
    case Kind::kDict:
      if (a.dict == b.dict) return true;
      if (a.dict->entries.size() != b.dict->entries.size()) return false;
      for (const auto& [key, value] : a.dict->entries) {
        heap.charge_steps(1);
        const int64_t found = find_key(heap, *b.dict, key);
        if (found < 0 || !equal(heap, value, b.dict->entries[static_cast<size_t>(found)].second, depth + 1)) return false;
      }
      return true;
    case Kind::kNamespace: return a.name_space == b.name_space;
    case Kind::kLoop: return a.loop == b.loop;
    case Kind::kCallable: {
      const CallableObject &x = *a.callable, &y = *b.callable;
      return &x == &y || (x.type == CallableObject::Type::kFunction && y.type == x.type && x.name == y.name);
    }
    default: return false;
  }
}

bool less(Heap& heap, const Value& a, const Value& b, int depth) {
  if (depth > kMaxValueDepth) fail("values are nested too deeply to compare");
  if (a.is_number() && b.is_number()) {
    if (a.kind != Kind::kFloat && b.kind != Kind::kFloat) return a.as_int() < b.as_int();
    return a.as_double() < b.as_double();
  }
  if (a.is_string() && b.is_string()) {
    heap.charge_work(std::min(a.string->bytes.size(), b.string->bytes.size()));
    return a.string->bytes < b.string->bytes;   // UTF-8 sorts like its code points
  }
  if (!is_plain_sequence(a) || !is_plain_sequence(b) || a.list->flavor != b.list->flavor) type_error("<", a, b);
  const auto &left = a.list->items, &right = b.list->items;
  for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    heap.charge_steps(1);
    if (!equal(heap, left[i], right[i], depth + 1)) return less(heap, left[i], right[i], depth + 1);
  }
  return left.size() < right.size();
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  switch (container.kind) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!item.is_string()) type_error("in", item, container);
      heap.charge_work(container.string->bytes.size() + item.string->bytes.size());
      return find_bytes(container.string->bytes, item.string->bytes) != std::string_view::npos;
    case Kind::kDict: return find_key(heap, *container.dict, item) >= 0;
    case Kind::kList:
      for (const Value& candidate : iterate(heap, container)) {
        heap.charge_steps(1);
        if (equal(heap, candidate, item)) return true;
      }
      return false;
    default: type_error("in", item, container);
  }
}

Value add(Heap& heap, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Value::of(checked_add(a.as_int(), b.as_int()));
  if (a.is_number() && b.is_number()) return Value::of(a.as_double() + b.as_double());
  if (a.is_string() && b.is_string()) {
    const bool markup = a.string->markup || b.string->markup;
    const std::string left = markup && !a.string->markup ? html_escape(a.string->bytes) : a.string->bytes;
    return heap.string(left + (markup && !b.string->markup ? html_escape(b.string->bytes) : b.string->bytes), markup);
  }
  if (is_plain_sequence(a) && is_plain_sequence(b) && a.list->flavor == b.list->flavor) {
    heap.require_room(static_cast<Int>((a.list->items.size() + b.list->items.size()) * sizeof(Value)));
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    return heap.list(std::move(items), a.list->flavor);
  }
  type_error("+", a, b);
}

Value subtract(Heap&, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    if (b.as_int() == kIntMin) overflow();
    return Value::of(checked_add(a.as_int(), -b.as_int()));
  }
  if (a.is_number() && b.is_number()) return Value::of(a.as_double() - b.as_double());
  type_error("-", a, b);
}

Value multiply(Heap& heap, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Value::of(checked_multiply(a.as_int(), b.as_int()));
  if (a.is_number() && b.is_number()) return Value::of(a.as_double() * b.as_double());
  if ((a.is_string() || is_plain_sequence(a)) && b.is_integral()) return repeat(heap, a, b.as_int());
  if ((b.is_string() || is_plain_sequence(b)) && a.is_integral()) return repeat(heap, b, a.as_int());
  type_error("*", a, b);
}

Value divide(Heap&, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) type_error("/", a, b);
  if (b.as_double() == 0) fail("division by zero");
  return Value::of(a.as_double() / b.as_double());
}

Value floor_divide(Heap&, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Value::of(floor_quotient(a.as_int(), b.as_int()));
  if (!a.is_number() || !b.is_number()) type_error("//", a, b);
  const double x = a.as_double(), y = b.as_double();
  const double quotient = (x - floor_remainder(x, y)) / y;
  const double floored = std::floor(quotient);
  if (quotient == 0) return Value::of(std::copysign(0.0, x / y));
  return Value::of(quotient - floored > 0.5 ? floored + 1 : floored);
}

Value modulo(Heap& heap, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Value::of(floor_remainder(a.as_int(), b.as_int()));
  if (a.is_number() && b.is_number()) return Value::of(floor_remainder(a.as_double(), b.as_double()));
  if (a.is_string()) return heap.string(percent_format(heap, a.string->bytes, b), a.string->markup);
  type_error("%", a, b);
}

Value power(Heap&, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) type_error("**", a, b);
  if (a.is_integral() && b.is_integral() && b.as_int() >= 0) {
    Int base = a.as_int(), exponent = b.as_int(), result = 1;
    if (base >= -1 && base <= 1) return Value::of(base == -1 && exponent % 2 == 0 ? Int{1} : exponent == 0 ? Int{1} : base);
    if (exponent > 127) overflow();
    for (Int i = 0; i < exponent; ++i) result = checked_multiply(result, base);
    return Value::of(result);
  }
  const double base = a.as_double(), exponent = b.as_double();
  if (base == 0 && exponent < 0) fail("division by zero");
  const double result = std::pow(base, exponent);
  if (std::isnan(result) && !std::isnan(base) && !std::isnan(exponent)) fail("the power is not a real number");
  if (std::isinf(result) && !std::isinf(base) && !std::isinf(exponent)) fail("float overflow");
  return Value::of(result);
}

Value negate(const Value& a) {
  if (a.is_integral()) {
    if (a.as_int() == kIntMin) overflow();
    return Value::of(-a.as_int());
  }
  if (a.kind == Kind::kFloat) return Value::of(-a.real);
  if (a.is_undefined()) undefined_error(a);
  fail("cannot negate a " + std::string(type_name(a)));
}

std::string int_text(Int value) {
  if (value == 0) return "0";
  unsigned __int128 rest = value < 0 ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  std::string out;
  for (; rest != 0; rest /= 10) out.push_back(static_cast<char>('0' + static_cast<int>(rest % 10)));
  if (value < 0) out.push_back('-');
  std::reverse(out.begin(), out.end());
  return out;
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<size_t>(end - buffer));
  const size_t e = shortest.find('e');
  int exponent = 0;
  const char* exponent_begin = shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1);
  std::from_chars(exponent_begin, end, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);   // the same form as Python's
  const auto fixed_end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  std::string out(buffer, fixed_end);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string html_escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '\'': out += "&#39;"; break;
      case '"': out += "&#34;"; break;
      default: out.push_back(c);
    }
  }
  return out;
}

std::string to_text(Heap& heap, const Value& value) {
  if (value.is_string()) {
    heap.charge_work(value.string->bytes.size());
    return value.string->bytes;
  }
  if (value.is_undefined()) return "";
  std::string out;
  append_repr(heap, out, value);
  return out;
}

namespace {

void append_list_repr(Heap& heap, std::string& out, const ListObject& list, int depth) {
  static constexpr std::string_view kOpen[] = {"[", "(", "", "", "dict_keys([", "dict_values([", "dict_items(["};
  static constexpr std::string_view kClose[] = {"]", ")", "", "", "])", "])", "])"};
  if (list.flavor == Flavor::kIterator) {
    out += "<generator object>";   // the reference prints an address: no template can want it
    return;
  }
  if (list.flavor == Flavor::kRange) {
    const auto& items = list.items;
    const Int first = items.empty() ? 0 : items.front().integer;
    const Int step = items.size() < 2 ? 1 : items[1].integer - first;
    out += "range(" + int_text(first) + ", " + int_text(items.empty() ? 0 : items.back().integer + (step > 0 ? 1 : -1));
    out += step == 1 ? ")" : ", " + int_text(step) + ")";
    return;
  }
  const auto flavor = static_cast<size_t>(list.flavor);
  out += kOpen[flavor];
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(heap, out, list.items[i], depth + 1);
  }
  if (list.flavor == Flavor::kTuple && list.items.size() == 1) out += ",";
  out += kClose[flavor];
}

}  // namespace

void append_repr(Heap& heap, std::string& out, const Value& value, int depth) {
  if (depth > kMaxValueDepth) fail("value is nested too deeply to print");
  heap.charge_steps(1);
  heap.require_room(static_cast<Int>(out.size()));
  switch (value.kind) {
    case Kind::kUndefined: out += "Undefined"; return;
    case Kind::kNone: out += "None"; return;
    case Kind::kBool: out += value.boolean ? "True" : "False"; return;
    case Kind::kInt: out += int_text(value.integer); return;
    case Kind::kFloat: out += float_repr(value.real); return;
    case Kind::kString:
      heap.charge_work(value.string->bytes.size());
      if (value.string->markup) out += "Markup(" + quoted(value.string->bytes) + ")";
      else out += quoted(value.string->bytes);
      return;
    case Kind::kList: append_list_repr(heap, out, *value.list, depth); return;
    case Kind::kDict: {
      out += "{";
      bool first = true;
      for (const auto& [key, held] : value.dict->entries) {
        if (!std::exchange(first, false)) out += ", ";
        append_repr(heap, out, key, depth + 1);
        out += ": ";
        append_repr(heap, out, held, depth + 1);
      }
      out += "}";
      return;
    }
    case Kind::kNamespace: {
      out += "<Namespace {";
      bool first = true;
      for (const auto& [name, held] : value.name_space->attributes) {
        if (!std::exchange(first, false)) out += ", ";
        out += quoted(name) + ": ";
        append_repr(heap, out, held, depth + 1);
      }
      out += "}>";
      return;
    }
    case Kind::kLoop: {
      const LoopObject& loop = *value.loop;
      out += "<LoopContext " + int_text(loop.index0 + 1) + "/" + std::to_string(loop.source.size()) + ">";
      return;
    }
    case Kind::kCallable:
      if (value.callable->type == CallableObject::Type::kMacro) out += "<Macro " + quoted(value.callable->macro->text) + ">";
      else out += "<function " + std::string(value.callable->name) + ">";
      return;
  }
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.is_string() || value.is_list() || value.is_dict() || value.kind == Kind::kLoop;
}

std::vector<Value> iterate(Heap& heap, const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return {};
    case Kind::kString: {
      heap.charge_work(value.string->bytes.size());
      std::vector<Value> out;
      std::string_view rest = value.string->bytes;
      while (!rest.empty()) {
        const size_t bytes = utf8_sequence_length(rest);
        heap.charge_steps(1);
        out.push_back(heap.string(std::string(rest.substr(0, bytes)), value.string->markup));
        rest.remove_prefix(bytes);
      }
      return out;
    }
    case Kind::kList:
      heap.charge_steps(static_cast<int64_t>(value.list->items.size()) / 8);
      if (value.list->flavor == Flavor::kIterator && std::exchange(value.list->consumed, true)) return {};
      return value.list->items;
    case Kind::kDict: {
      heap.charge_steps(static_cast<int64_t>(value.dict->entries.size()) / 8);
      std::vector<Value> out;
      for (const auto& entry : value.dict->entries) out.push_back(entry.first);
      return out;
    }
    default: fail("'" + std::string(type_name(value)) + "' cannot be iterated over");
  }
}

Int length(Heap& heap, const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return 0;
    case Kind::kString: heap.charge_work(value.string->bytes.size()); return count_code_points(value.string->bytes);
    case Kind::kList:
      if (value.list->flavor != Flavor::kIterator) return static_cast<Int>(value.list->items.size());
      break;
    case Kind::kDict: return static_cast<Int>(value.dict->entries.size());
    default: break;
  }
  fail("a " + std::string(type_name(value)) + " has no length");
}

int64_t small_int(const Value& value, std::string_view what) {
  if (value.is_undefined()) undefined_error(value);
  if (!value.is_integral()) fail(std::string(what) + " must be an integer, found " + std::string(type_name(value)));
  const Int n = value.as_int();
  if (n > INT64_MAX / 4 || n < INT64_MIN / 4) fail(std::string(what) + " is out of range: " + int_text(n));
  return static_cast<int64_t>(n);
}

}  // namespace quipu::jinja
