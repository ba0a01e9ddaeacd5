// printf-style and brace formatting of Python strings, the parts that templates use.
#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/utf8.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

constexpr int kMaxWidth = 1000;

struct Spec {
  char fill_sign = '\0';       // '+' or ' '
  bool left = false, centre = false, zero = false, alternate = false, grouped = false, has_align = false;
  std::string fill = " ";
  int width = 0;
  int precision = -1;
  char type = '\0';
};

int read_number(std::string_view text, size_t& i) {
  int value = 0;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9') {
    value = value * 10 + (text[i++] - '0');
    if (value > kMaxWidth) fail("format width or precision over " + std::to_string(kMaxWidth));
  }
  return value;
}

std::string pad(const std::string& body, const Spec& spec, bool number) {
  const int64_t missing = spec.width - count_code_points(body);
  if (missing <= 0) return body;
  const auto fill = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += spec.fill;
    return out;
  };
  if (spec.zero && number && !spec.left) {
    const size_t sign = !body.empty() && (body[0] == '-' || body[0] == '+' || body[0] == ' ') ? 1 : 0;
    return body.substr(0, sign) + std::string(static_cast<size_t>(missing), '0') + body.substr(sign);
  }
  if (spec.centre) return fill(missing / 2) + body + fill(missing - missing / 2);
  return spec.left ? body + fill(missing) : fill(missing) + body;
}

std::string with_sign(std::string digits, bool negative, const Spec& spec) {
  if (negative) return "-" + digits;
  return spec.fill_sign ? spec.fill_sign + digits : digits;
}

std::string group(const std::string& digits) {
  const size_t whole = std::min(digits.find('.'), digits.size());
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && i < whole && (whole - i) % 3 == 0) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out;
}

std::string format_integer(Int value, const Spec& spec) {
  unsigned __int128 rest = value < 0 ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  const unsigned base = spec.type == 'x' || spec.type == 'X' ? 16 : spec.type == 'o' ? 8 : spec.type == 'b' ? 2 : 10;
  // Not indexed as a literal: g++ 12 with -fsanitize=bounds takes the wrong character from (c ? "..." : "...")[i].
  const std::string_view alphabet = spec.type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string digits;
  do {
    digits.insert(digits.begin(), alphabet[static_cast<size_t>(rest % base)]);
    rest /= base;
  } while (rest != 0);
  if (spec.alternate && base != 10) digits = std::string{'0', spec.type} + digits;
  return with_sign(spec.grouped ? group(digits) : digits, value < 0, spec);
}

std::string format_real(double value, const Spec& spec) {
  if (std::isnan(value) || std::isinf(value)) return with_sign(std::isnan(value) ? "nan" : "inf", value < 0, spec);
  const char layout[] = {'%', '.', '*', spec.type, '\0'};
  char buffer[kMaxWidth + 400];
  const int size = std::snprintf(buffer, sizeof buffer, layout, spec.precision < 0 ? 6 : spec.precision, std::fabs(value));
  std::string digits(buffer, static_cast<size_t>(size));
  return with_sign(spec.grouped ? group(digits) : digits, std::signbit(value), spec);
}

bool is_real_type(char type) { return std::string_view("eEfFgG").find(type) != std::string_view::npos; }

double real_operand(const Value& value) {
  if (!value.is_number()) fail("format needs a number, found " + std::string(type_name(value)));
  return value.as_double();
}

Int integer_operand(const Value& value) {
  if (value.is_integral()) return value.as_int();
  const double real = std::trunc(real_operand(value));
  if (!(std::fabs(real) < 1e30)) fail("number out of range for an integer format");
  return static_cast<Int>(real);
}

std::string percent_item(Heap& heap, const Value& value, const Spec& spec) {
  if (spec.type == 's' || spec.type == 'r') {
    std::string body;
    if (spec.type == 's') body = to_text(heap, value);
    else append_repr(heap, body, value);
    if (spec.precision >= 0) body.resize(byte_offset(body, spec.precision));
    return pad(body, spec, false);
  }
  if (spec.type == 'd' || spec.type == 'i' || spec.type == 'u') return pad(format_integer(integer_operand(value), spec), spec, true);
  if (spec.type == 'x' || spec.type == 'X' || spec.type == 'o') {
    if (!value.is_integral()) fail("format needs an integer, found " + std::string(type_name(value)));
    return pad(format_integer(value.as_int(), spec), spec, true);
  }
  if (is_real_type(spec.type)) return pad(format_real(real_operand(value), spec), spec, true);
  fail(std::string("unsupported format character '%") + spec.type + "'");
}

Spec percent_spec(std::string_view format, size_t& i) {
  Spec spec;
  for (; i < format.size(); ++i) {
    if (format[i] == '-') spec.left = true;
    else if (format[i] == '0') spec.zero = true;
    else if (format[i] == '#') spec.alternate = true;
    else if (format[i] == '+') spec.fill_sign = '+';
    else if (format[i] == ' ' && spec.fill_sign == '\0') spec.fill_sign = ' ';
    else if (format[i] != ' ') break;
  }
  spec.width = read_number(format, i);
  if (i < format.size() && format[i] == '.') spec.precision = read_number(format, ++i);
  if (i >= format.size()) fail("incomplete format");
  spec.type = format[i++];
  if (static_cast<unsigned char>(spec.type) >= 0x80) fail("unsupported format character");
  return spec;
}

// [[fill]align][sign][#][0][width][,][.precision][type]
Spec brace_spec(std::string_view text) {
  Spec spec;
  size_t i = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^'; };
  const size_t first = text.empty() ? 0 : utf8_sequence_length(text);
  if (text.size() > first && is_align(text[first])) {
    spec.fill = std::string(text.substr(0, first));
    i = first;
  }
  if (i < text.size() && is_align(text[i])) {
    spec.has_align = true;
    spec.left = text[i] == '<';
    spec.centre = text[i++] == '^';
  }
  if (i < text.size() && (text[i] == '+' || text[i] == '-' || text[i] == ' ')) spec.fill_sign = text[i] == '-' ? '\0' : text[i], ++i;
  if (i < text.size() && text[i] == '#') spec.alternate = true, ++i;
  if (i < text.size() && text[i] == '0') spec.zero = true, ++i;
  spec.width = read_number(text, i);
  if (i < text.size() && text[i] == ',') spec.grouped = true, ++i;
  if (i < text.size() && text[i] == '.') spec.precision = read_number(text, ++i);
  if (i < text.size()) spec.type = text[i++];
  if (i < text.size()) fail("unsupported format specification " + quoted(text));
  return spec;
}

std::string brace_item(Heap& heap, const Value& value, std::string_view text) {
  if (text.empty()) return to_text(heap, value);
  Spec spec = brace_spec(text);
  if (value.is_number() && spec.type != 's') {
    if (value.kind == Kind::kBool && spec.type == '\0') fail("unsupported format of a bool");
    if (spec.type == '%') {
      spec.type = 'f';
      return pad(format_real(value.as_double() * 100, spec) + "%", spec, true);
    }
    if (is_real_type(spec.type)) return pad(format_real(value.as_double(), spec), spec, true);
    if (value.is_integral() && std::string_view("\0dxXob", 6).find(spec.type) != std::string_view::npos) {
      return pad(format_integer(value.as_int(), spec), spec, true);
    }
    if (spec.type != '\0' || spec.precision >= 0) fail("unsupported format specification " + quoted(text));
    return pad(with_sign(float_repr(std::fabs(value.real)), std::signbit(value.real), spec), spec, true);
  }
  if (!value.is_string() || (spec.type != '\0' && spec.type != 's')) fail("unsupported format specification " + quoted(text));
  if (!spec.has_align) spec.left = true;
  std::string body = value.string->bytes;
  if (spec.precision >= 0) body.resize(byte_offset(body, spec.precision));
  return pad(body, spec, false);
}

}  // namespace

std::string percent_format(Heap& heap, std::string_view format, const Value& values) {
  heap.charge_work(format.size());
  const bool is_tuple = values.is_list() && values.list->flavor == Flavor::kTuple;
  size_t used = 0;
  std::string out;
  for (size_t i = 0; i < format.size();) {
    if (format[i] != '%') { out.push_back(format[i++]); continue; }
    if (++i < format.size() && format[i] == '%') { out.push_back('%'); ++i; continue; }
    Value value;
    if (i < format.size() && format[i] == '(') {
      const size_t close = format.find(')', i);
      if (close == std::string_view::npos || !values.is_dict()) fail("format with a name needs a dictionary");
      const Value* held = find_string_key(*values.dict, format.substr(i + 1, close - i - 1));
      if (!held) fail("format names a key that is not there");
      value = *held;
      i = close + 1;
      used = 1;
    } else {
      const size_t available = is_tuple ? values.list->items.size() : 1;
      if (used >= available) fail("not enough arguments for the format");
      value = is_tuple ? values.list->items[used] : values;
      ++used;
    }
    const Spec spec = percent_spec(format, i);
    heap.charge_steps(1);
    out += percent_item(heap, value, spec);
    heap.require_room(static_cast<Int>(out.size()));
  }
  const bool all_used = is_tuple ? used == values.list->items.size() : used >= 1 || values.is_dict();
  if (!all_used) fail("not all arguments were used by the format");
  return out;
}

std::string brace_format(Heap& heap, std::string_view format, const Arguments& arguments) {
  heap.charge_work(format.size());
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) { out.push_back(c); ++i; continue; }
    if (c == '}') fail("single '}' in a format");
    if (c != '{') { out.push_back(c); continue; }
    const size_t close = format.find('}', i);
    if (close == std::string_view::npos) fail("single '{' in a format");
    const std::string_view field = format.substr(i + 1, close - i - 1);
    const size_t colon = std::min(field.find(':'), field.size());
    const std::string_view name = field.substr(0, colon);
    const std::string_view spec = colon < field.size() ? field.substr(colon + 1) : std::string_view();
    const Value* value = nullptr;
    size_t index = name.empty() ? next++ : 0;
    const bool by_index = name.empty() || std::from_chars(name.data(), name.data() + name.size(), index).ptr == name.data() + name.size();
    if (by_index && index < arguments.positional.size()) value = &arguments.positional[index];
    for (const auto& [given, held] : arguments.named) {
      if (!by_index && given == name) value = &held;
    }
    if (!value) fail("format field " + quoted(field.substr(0, byte_offset(field, 40))) + " has no argument or is not supported");
    heap.charge_steps(1);
    out += brace_item(heap, *value, spec);
    heap.require_room(static_cast<Int>(out.size()));
    i = close;
  }
  return out;
}

}  // namespace quipu::jinja
