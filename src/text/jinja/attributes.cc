#include "text/jinja/attributes.h"

#include <algorithm>
#include <array>

#include "base/utf8.h"
#include "text/jinja/arguments.h"
#include "text/jinja/ast.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"
#include "text/jinja/string_methods.h"

namespace quipu::jinja {
namespace {

template <size_t kCount>
bool among(const std::array<std::string_view, kCount>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr std::array<std::string_view, 5> kDictMethods = {"get", "items", "keys", "values", "copy"};
// Attributes in Python, so they hide items of the same name; forbidden by the sandbox.
constexpr std::array<std::string_view, 6> kDictForbidden = {"clear", "pop", "popitem", "setdefault", "update", "fromkeys"};
constexpr std::array<std::string_view, 3> kListMethods = {"index", "count", "copy"};
constexpr std::array<std::string_view, 7> kListForbidden = {"append", "clear", "extend", "insert", "pop", "remove", "sort"};

// True when Python's getattr succeeds; `out` is then set (undefined if the sandbox forbids it).
bool find_attribute(Heap& heap, const Value& value, const std::string& name, Value& out) {
  switch (value.kind) {
    case Kind::kDict:
      if (among(kDictMethods, name)) { out = heap.method(value, name); return true; }
      if (among(kDictForbidden, name)) { out = Value::undefined(&name); return true; }
      return false;
    case Kind::kString:
      if (is_string_method(name)) { out = heap.method(value, name); return true; }
      return false;
    case Kind::kList: {
      const Flavor flavor = value.list->flavor;
      const bool plain = flavor == Flavor::kList || flavor == Flavor::kTuple || flavor == Flavor::kRange;
      if (plain && among(kListMethods, name)) { out = heap.method(value, name); return true; }
      if (flavor == Flavor::kList && among(kListForbidden, name)) { out = Value::undefined(&name); return true; }
      return false;
    }
    case Kind::kNamespace:
      for (const auto& [known, held] : value.name_space->attributes) {
        heap.charge_steps(1);
        if (known == name) { out = held; return true; }
      }
      return false;
    case Kind::kCallable:
      if (value.callable->type == CallableObject::Type::kMacro && name == "name") {
        out = heap.string(value.callable->macro->text);
        return true;
      }
      return false;
    default: return false;
  }
}

void require_defined(const Value& value) {
  if (!value.is_undefined()) return;
  fail(value.missing_name ? "'" + *value.missing_name + "' is undefined" : "the value is undefined");
}

bool is_indexable(const Value& value) {
  if (value.is_string()) return true;
  if (!value.is_list()) return false;
  const Flavor flavor = value.list->flavor;
  return flavor == Flavor::kList || flavor == Flavor::kTuple || flavor == Flavor::kRange;
}

bool is_hashable_scalar(const Value& key) { return !key.is_dict() && !(key.is_list() && key.list->flavor != Flavor::kTuple); }

// The item at a position, undefined outside.
Value at_index(Heap& heap, const Value& value, Int index) {
  if (value.is_list()) {
    const Int size = static_cast<Int>(value.list->items.size());
    if (index < 0) index += size;
    return index < 0 || index >= size ? Value::undefined() : value.list->items[static_cast<size_t>(index)];
  }
  const std::string& bytes = value.string->bytes;
  heap.charge_work(bytes.size());
  if (index < 0) index += count_code_points(bytes);
  if (index < 0 || index >= static_cast<Int>(bytes.size())) return Value::undefined();
  const size_t offset = byte_offset(bytes, static_cast<int64_t>(index));
  if (offset >= bytes.size()) return Value::undefined();
  return heap.string(bytes.substr(offset, utf8_sequence_length(std::string_view(bytes).substr(offset))), value.string->markup);
}

}  // namespace

Value get_attribute(Heap& heap, const Value& value, const std::string& name) {
  require_defined(value);
  Value out;
  if (find_attribute(heap, value, name, out)) return out;
  if (value.is_dict()) {
    heap.charge_steps(1);
    if (const Value* held = find_string_key(*value.dict, name)) return *held;
  }
  return Value::undefined(&name);
}

Value get_item(Heap& heap, const Value& value, const Value& key) {
  require_defined(value);
  if (value.is_dict() && is_hashable_scalar(key)) {
    const int64_t found = find_key(heap, *value.dict, key);
    if (found >= 0) return value.dict->entries[static_cast<size_t>(found)].second;
  }
  if (key.is_integral() && is_indexable(value)) return at_index(heap, value, key.as_int());
  if (key.is_string()) {
    Value out;
    if (find_attribute(heap, value, key.string->bytes, out)) return out;
    return Value::undefined(&key.string->bytes);
  }
  return Value::undefined();
}

Value get_slice(Heap& heap, const Value& value, const Value& start, const Value& stop, const Value& step) {
  require_defined(value);
  if (!is_indexable(value)) fail("a " + std::string(type_name(value)) + " cannot be sliced");
  const auto part = [](const Value& v, const char* what) -> Int {
    if (!v.is_integral()) fail(std::string("slice ") + what + " must be an integer, found " + std::string(type_name(v)));
    return v.as_int();
  };
  const Int stride = step.is_none() ? 1 : part(step, "step");
  if (stride == 0) fail("slice step cannot be zero");
  const Int size = length(heap, value);
  const auto bound = [&](const Value& v, const char* what, Int otherwise) -> Int {
    if (v.is_none()) return otherwise;
    Int position = part(v, what);
    if (position < -size) position = -size - 1;   // no overflow below
    if (position < 0) position += size;
    return std::clamp<Int>(position, stride < 0 ? -1 : 0, stride < 0 ? size - 1 : size);
  };
  const Int first = bound(start, "start", stride < 0 ? size - 1 : 0);
  const Int last = bound(stop, "stop", stride < 0 ? -1 : size);
  if (value.is_string() && stride == 1) {
    const std::string_view bytes = value.string->bytes;
    heap.charge_work(bytes.size());
    if (first >= last) return heap.string("", value.string->markup);
    const size_t begin = byte_offset(bytes, static_cast<int64_t>(first));
    const size_t count = byte_offset(bytes.substr(begin), static_cast<int64_t>(last - first));
    return heap.string(std::string(bytes.substr(begin, count)), value.string->markup);
  }
  std::vector<std::string_view> characters;
  if (value.is_string()) characters = code_points(heap, value.string->bytes);
  std::string text;
  std::vector<Value> items;
  for (Int i = first; stride < 0 ? i > last : i < last; i += std::clamp<Int>(stride, -size - 1, size + 1)) {
    if (value.is_string()) text += characters[static_cast<size_t>(i)];
    else items.push_back(value.list->items[static_cast<size_t>(i)]);
  }
  if (value.is_string()) return heap.string(std::move(text), value.string->markup);
  return heap.list(std::move(items), value.list->flavor);
}

namespace {

Value call_dict_method(Heap& heap, const DictObject& dict, std::string_view name, const Arguments& arguments) {
  ArgumentReader reader("dict." + std::string(name), arguments);
  if (name == "get") {
    const Value key = reader.required("key");
    const Value otherwise = reader.optional("default", Value::none());
    reader.finish();
    const int64_t found = find_key(heap, dict, key);
    return found < 0 ? otherwise : dict.entries[static_cast<size_t>(found)].second;
  }
  reader.finish();
  if (name == "copy") return Value::of(&dict);   // nothing can change either of them
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) {
    heap.charge_steps(1);
    if (name == "keys") items.push_back(key);
    else if (name == "values") items.push_back(value);
    else items.push_back(heap.list({key, value}, Flavor::kTuple));
  }
  return heap.list(std::move(items), name == "keys" ? Flavor::kKeysView : name == "values" ? Flavor::kValuesView : Flavor::kItemsView);
}

Value call_list_method(Heap& heap, const Value& self, std::string_view name, const Arguments& arguments) {
  ArgumentReader reader("list." + std::string(name), arguments);
  if (name == "copy") {
    reader.finish();
    return self;
  }
  const Value wanted = reader.required("value");
  reader.finish();
  Int count = 0;
  for (size_t i = 0; i < self.list->items.size(); ++i) {
    heap.charge_steps(1);
    if (!equal(heap, self.list->items[i], wanted)) continue;
    if (name == "index") return Value::of(static_cast<Int>(i));
    ++count;
  }
  if (name == "index") fail("value is not in the list");
  return Value::of(count);
}

}  // namespace

Value call_method(Heap& heap, const Value& self, std::string_view name, const Arguments& arguments) {
  if (self.is_string()) return call_string_method(heap, self, name, arguments);
  if (self.is_dict()) return call_dict_method(heap, *self.dict, name, arguments);
  return call_list_method(heap, self, name, arguments);
}

}  // namespace quipu::jinja
