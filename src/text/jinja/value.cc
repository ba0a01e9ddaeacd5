#include "text/jinja/value.h"

#include "text/jinja/operators.h"

namespace quipu::jinja {

void Heap::charge_steps(int64_t steps) {
  if (steps > limits_.steps - steps_) fail("rendering takes more than " + std::to_string(limits_.steps) + " steps");
  steps_ += steps;
}

void Heap::charge_work(size_t bytes) {
  const auto amount = static_cast<int64_t>(bytes);
  if (amount > limits_.work_bytes - work_) {
    fail("rendering reads more than " + std::to_string(limits_.work_bytes) + " bytes of text");
  }
  work_ += amount;
}

void Heap::charge_memory(size_t bytes) {
  const auto amount = static_cast<int64_t>(bytes);
  if (amount > limits_.memory_bytes - memory_) {
    fail("rendering needs more than " + std::to_string(limits_.memory_bytes) + " bytes of memory");
  }
  memory_ += amount;
}

void Heap::require_room(Int bytes) const {
  if (bytes > limits_.memory_bytes - memory_) {
    fail("rendering needs more than " + std::to_string(limits_.memory_bytes) + " bytes of memory");
  }
}

Value Heap::string(std::string bytes, bool markup) {
  charge_memory(bytes.size() + sizeof(StringObject));
  return Value::of(&strings_.emplace_back(StringObject{std::move(bytes), markup}));
}

Value Heap::list(std::vector<Value> items, Flavor flavor) {
  charge_steps(static_cast<int64_t>(items.size()));
  charge_memory(items.size() * sizeof(Value) + sizeof(ListObject));
  ListObject& object = lists_.emplace_back();
  object.items = std::move(items);
  object.flavor = flavor;
  return Value::of(&object);
}

DictObject* Heap::dict() {
  charge_memory(sizeof(DictObject));
  return &dicts_.emplace_back();
}

void Heap::set_item(DictObject* dict, const Value& key, const Value& value) {
  charge_steps(1);
  const int64_t found = find_key(*this, *dict, key);
  if (found >= 0) {
    dict->entries[static_cast<size_t>(found)].second = value;
    return;
  }
  constexpr size_t kIndexFrom = 12;   // below this a scan is faster than the tree
  charge_memory(2 * sizeof(Value) + (key.is_string() ? 64 : 0));
  dict->entries.emplace_back(key, value);
  const size_t count = dict->entries.size();
  if (count < kIndexFrom) return;
  for (size_t i = dict->index.empty() ? 0 : count - 1; i < count; ++i) {
    const Value& entry = dict->entries[i].first;
    if (entry.is_string()) dict->index.emplace(entry.string->bytes, i);
  }
}

NamespaceObject* Heap::name_space() {
  charge_memory(sizeof(NamespaceObject));
  return &namespaces_.emplace_back();
}

void Heap::set_attribute(NamespaceObject* target, std::string_view name, const Value& value) {
  charge_steps(1 + static_cast<int64_t>(target->attributes.size()) / 8);
  for (auto& [known, held] : target->attributes) {
    if (known == name) {
      held = value;
      return;
    }
  }
  charge_memory(sizeof(Value) + sizeof(std::string) + name.size());
  target->attributes.emplace_back(std::string(name), value);
}

LoopObject* Heap::loop() {
  charge_memory(sizeof(LoopObject) + 512);   // a deque's first blocks
  return &loops_.emplace_back();
}

Value Heap::function(std::string_view name) {
  charge_memory(sizeof(CallableObject));
  CallableObject& object = callables_.emplace_back();
  object.name = name;
  return Value::of(&object);
}

Value Heap::method(const Value& self, std::string_view name) {
  const Value value = function(name);
  auto* object = &callables_.back();
  object->type = CallableObject::Type::kMethod;
  object->self = self;
  return value;
}

Value Heap::macro(const Statement* statement, Scope* scope) {
  const Value value = function("");
  auto* object = &callables_.back();
  object->type = CallableObject::Type::kMacro;
  object->macro = statement;
  object->scope = scope;
  return value;
}

Scope* Heap::scope(Scope* parent) {
  charge_memory(sizeof(Scope) + 64);
  Scope& scope = scopes_.emplace_back();
  scope.parent = parent;
  return &scope;
}

const Value* find_string_key(const DictObject& dict, std::string_view key) {
  if (!dict.index.empty()) {
    const auto found = dict.index.find(key);
    return found == dict.index.end() ? nullptr : &dict.entries[found->second].second;
  }
  for (const auto& [name, value] : dict.entries) {
    if (name.is_string() && name.string->bytes == key) return &value;
  }
  return nullptr;
}

namespace {

void require_hashable(const Value& key, int depth = 0) {
  if (key.kind == Kind::kDict || (key.is_list() && key.list->flavor != Flavor::kTuple)) {
    fail("a " + std::string(type_name(key)) + " cannot be a dictionary key");
  }
  if (!key.is_list()) return;
  if (depth > kMaxValueDepth) fail("value is nested too deeply");
  for (const Value& item : key.list->items) require_hashable(item, depth + 1);
}

}  // namespace

int64_t find_key(Heap& heap, const DictObject& dict, const Value& key) {
  require_hashable(key);
  if (key.is_string() && !dict.index.empty()) {
    const auto found = dict.index.find(key.string->bytes);
    return found == dict.index.end() ? -1 : static_cast<int64_t>(found->second);
  }
  heap.charge_steps(static_cast<int64_t>(dict.entries.size()) / 8);
  for (size_t i = 0; i < dict.entries.size(); ++i) {
    if (equal(heap, dict.entries[i].first, key)) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace quipu::jinja
