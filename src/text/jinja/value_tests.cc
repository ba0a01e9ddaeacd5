// `is` tests.
#include <unordered_map>

#include "base/utf8.h"
#include "text/jinja/arguments.h"
#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

using Plain = bool (*)(const Value&);
using Compared = bool (*)(Heap&, const Value&, const Value&);

Int integer_operand(const Value& value) {
  if (!value.is_integral()) fail("the test needs an integer, found " + std::string(type_name(value)));
  return value.as_int();
}

bool is_sequence(const Value& v) {
  if (v.is_undefined() || v.is_string() || v.is_dict()) return true;
  if (!v.is_list()) return false;
  return v.list->flavor == Flavor::kList || v.list->flavor == Flavor::kTuple || v.list->flavor == Flavor::kRange;
}

bool same_object(const Value& a, const Value& b) {
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kBool: return a.boolean == b.boolean;
    case Kind::kInt: return a.integer == b.integer;
    case Kind::kFloat: return a.real == b.real;
    case Kind::kString: return a.string == b.string;
    case Kind::kList: return a.list == b.list;
    case Kind::kDict: return a.dict == b.dict;
    case Kind::kNamespace: return a.name_space == b.name_space;
    case Kind::kLoop: return a.loop == b.loop;
    case Kind::kCallable: return a.callable == b.callable;
  }
  return false;
}

const std::unordered_map<std::string_view, Plain>& plain_tests() {
  static const std::unordered_map<std::string_view, Plain> table = {
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"boolean", [](const Value& v) { return v.kind == Kind::kBool; }},
      {"true", [](const Value& v) { return v.kind == Kind::kBool && v.boolean; }},
      {"false", [](const Value& v) { return v.kind == Kind::kBool && !v.boolean; }},
      {"integer", [](const Value& v) { return v.kind == Kind::kInt; }},
      {"float", [](const Value& v) { return v.kind == Kind::kFloat; }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"string", [](const Value& v) { return v.is_string(); }},
      {"mapping", [](const Value& v) { return v.is_dict(); }},
      {"iterable", [](const Value& v) { return is_iterable(v); }},
      {"sequence", is_sequence},
      {"callable", [](const Value& v) { return v.kind == Kind::kCallable || v.kind == Kind::kLoop || v.is_undefined(); }},
      {"escaped", [](const Value& v) { return v.is_string() && v.string->markup; }},
      {"odd", [](const Value& v) { return integer_operand(v) % 2 != 0; }},
      {"even", [](const Value& v) { return integer_operand(v) % 2 == 0; }},
  };
  return table;
}

const std::unordered_map<std::string_view, Compared>& compared_tests() {
  static const Compared eq = [](Heap& h, const Value& a, const Value& b) { return equal(h, a, b); };
  static const Compared ne = [](Heap& h, const Value& a, const Value& b) { return !equal(h, a, b); };
  static const Compared lt = [](Heap& h, const Value& a, const Value& b) { return less(h, a, b); };
  static const Compared gt = [](Heap& h, const Value& a, const Value& b) { return less(h, b, a); };
  static const Compared le = [](Heap& h, const Value& a, const Value& b) { return less(h, a, b) || equal(h, a, b); };
  static const Compared ge = [](Heap& h, const Value& a, const Value& b) { return less(h, b, a) || equal(h, a, b); };
  static const std::unordered_map<std::string_view, Compared> table = {
      {"eq", eq}, {"==", eq}, {"equalto", eq}, {"ne", ne}, {"!=", ne}, {"lt", lt}, {"<", lt}, {"lessthan", lt},
      {"gt", gt}, {">", gt}, {"greaterthan", gt}, {"le", le}, {"<=", le}, {"ge", ge}, {">=", ge},
      {"in", [](Heap& h, const Value& a, const Value& b) { return contains(h, b, a); }},
      {"sameas", [](Heap&, const Value& a, const Value& b) { return same_object(a, b); }},
      {"divisibleby", [](Heap& h, const Value& a, const Value& b) { return !truth(modulo(h, a, b)); }},
  };
  return table;
}

bool is_cased(Heap& heap, const Value& value, bool is_upper_test) {
  const std::string text = to_text(heap, value);
  bool any = false;
  for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(utf8_sequence_length(rest))) {
    const char32_t c = utf8_code_point(rest);
    if (is_upper_test ? is_lower(c) : is_upper(c)) return false;
    any |= is_upper(c) || is_lower(c);
  }
  return any;
}

}  // namespace

bool apply_test(Heap& heap, std::string_view name, const Value& operand, const Arguments& arguments) {
  heap.charge_steps(1);
  ArgumentReader reader("test " + std::string(name.substr(0, byte_offset(name, 40))), arguments);
  if (const auto plain = plain_tests().find(name); plain != plain_tests().end()) {
    reader.finish();
    return plain->second(operand);
  }
  if (name == "upper" || name == "lower") {
    reader.finish();
    return is_cased(heap, operand, name == "upper");
  }
  const auto compared = compared_tests().find(name);
  if (compared == compared_tests().end()) fail("there is no test " + quoted(name.substr(0, byte_offset(name, 40))));
  const Value other = reader.required("other");
  reader.finish();
  return compared->second(heap, operand, other);
}

}  // namespace quipu::jinja
