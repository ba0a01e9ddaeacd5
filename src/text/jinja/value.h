// The values of the template language: Python's, as far as templates see them.
//
// All values are immutable but namespaces (the reference environment is the *immutable* sandbox), and all of them live
// in a Heap until the render ends. So values are plain pointers, cycles through namespaces cannot leak, and freeing a
// million nested lists is a flat loop instead of a deep recursion.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/limits.h"

namespace quipu::jinja {

// Python's integers are unbounded; ours hold what JSON schemas contain (2^64 - 1 as "maximum") and report overflow.
using Int = __int128;

enum class Kind : uint8_t {
  kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kDict, kNamespace, kLoop, kCallable
};

// Sequences behave alike but print, compare and serialise differently.
enum class Flavor : uint8_t { kList, kTuple, kRange, kIterator, kKeysView, kValuesView, kItemsView };

struct StringObject;
struct ListObject;
struct DictObject;
struct NamespaceObject;
struct LoopObject;
struct CallableObject;

struct Value {
  Kind kind = Kind::kUndefined;
  union {
    Int integer;
    bool boolean;
    double real;
    const StringObject* string;
    const ListObject* list;
    const DictObject* dict;
    NamespaceObject* name_space;
    LoopObject* loop;
    const CallableObject* callable;
    const std::string* missing_name;  // kUndefined: what was looked for, may be null; outlives the render
  };

  Value() : missing_name(nullptr) {}
  static Value none() { Value v; v.kind = Kind::kNone; return v; }
  static Value undefined(const std::string* name = nullptr) { Value v; v.missing_name = name; return v; }
  static Value of(bool b) { Value v; v.kind = Kind::kBool; v.integer = 0; v.boolean = b; return v; }
  static Value of(Int i) { Value v; v.kind = Kind::kInt; v.integer = i; return v; }
  static Value of(double d) { Value v; v.kind = Kind::kFloat; v.real = d; return v; }
  static Value of(const StringObject* s) { Value v; v.kind = Kind::kString; v.string = s; return v; }
  static Value of(const ListObject* l) { Value v; v.kind = Kind::kList; v.list = l; return v; }
  static Value of(const DictObject* d) { Value v; v.kind = Kind::kDict; v.dict = d; return v; }
  static Value of(NamespaceObject* n) { Value v; v.kind = Kind::kNamespace; v.name_space = n; return v; }
  static Value of(LoopObject* l) { Value v; v.kind = Kind::kLoop; v.loop = l; return v; }
  static Value of(const CallableObject* c) { Value v; v.kind = Kind::kCallable; v.callable = c; return v; }

  bool is_undefined() const { return kind == Kind::kUndefined; }
  bool is_none() const { return kind == Kind::kNone; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_dict() const { return kind == Kind::kDict; }
  bool is_integral() const { return kind == Kind::kInt || kind == Kind::kBool; }
  bool is_number() const { return is_integral() || kind == Kind::kFloat; }
  // Contract: is_integral() and is_number(), respectively.
  Int as_int() const { return kind == Kind::kBool ? Int{boolean} : integer; }
  double as_double() const { return kind == Kind::kFloat ? real : static_cast<double>(as_int()); }
};

// Valid UTF-8. `markup`: came from |safe or |escape, so `+` escapes what is added to it, as MarkupSafe does.
struct StringObject {
  std::string bytes;
  bool markup = false;
};

struct ListObject {
  std::vector<Value> items;
  Flavor flavor = Flavor::kList;
  mutable bool consumed = false;  // kIterator: a second pass sees nothing, as with Python's generators
};

// Insertion-ordered. Keys are strings, numbers, booleans, None or tuples. String keys are indexed past a few entries.
struct DictObject {
  std::vector<std::pair<Value, Value>> entries;
  std::map<std::string_view, size_t> index;  // a tree, not a hash table: nobody can choose keys that collide
};

struct NamespaceObject {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Scope {
  Scope* parent = nullptr;
  bool captured = false;  // a macro was defined here and may still read it
  std::vector<std::pair<std::string_view, Value>> variables;
};

struct Statement;

struct CallableObject {
  enum class Type : uint8_t { kFunction, kMethod, kMacro } type = Type::kFunction;
  std::string_view name;               // kFunction, kMethod
  Value self;                          // kMethod: what it is bound to
  const Statement* macro = nullptr;    // kMacro: also the body of a call block
  Scope* scope = nullptr;              // kMacro: where it was defined
};

// The state behind `loop`. Items are filtered one ahead, as in the reference, because the filter may read a namespace
// that the body changes.
struct LoopObject {
  const Statement* statement = nullptr;
  Scope* outer = nullptr;
  std::vector<Value> source;
  size_t next_source = 0;
  std::deque<Value> ahead;   // passed the filter, not yet visited
  Int index0 = -1;
  int depth = 1;
  Value previous, current;
  bool has_previous = false;
  std::vector<Value> changed_key;
  bool has_changed_key = false;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;
};

// Makes the values of one render and counts what it costs; throws TemplateError at a limit.
class Heap {
 public:
  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  Value string(std::string bytes, bool markup = false);
  Value list(std::vector<Value> items, Flavor flavor = Flavor::kList);
  DictObject* dict();
  void set_item(DictObject* dict, const Value& key, const Value& value);
  NamespaceObject* name_space();
  void set_attribute(NamespaceObject* target, std::string_view name, const Value& value);
  LoopObject* loop();
  Value function(std::string_view name);
  Value method(const Value& self, std::string_view name);
  Value macro(const Statement* statement, Scope* scope);
  Scope* scope(Scope* parent);

  void charge_steps(int64_t steps);
  void charge_work(size_t bytes);
  void charge_memory(size_t bytes);
  // Before making something whose size is arithmetic, not data: 'a' * n, range(n), center(n).
  void require_room(Int bytes) const;
  const Limits& limits() const { return limits_; }

  // Counts filters applied inside filters.
  class FilterNesting {
   public:
    explicit FilterNesting(Heap& heap) : heap_(heap) {
      if (heap.filter_nesting_ >= 10) fail("filters inside filters deeper than 10");
      ++heap.filter_nesting_;
    }
    ~FilterNesting() { --heap_.filter_nesting_; }
    FilterNesting(const FilterNesting&) = delete;
    FilterNesting& operator=(const FilterNesting&) = delete;

   private:
    Heap& heap_;
  };

 private:
  const Limits limits_;
  int64_t steps_ = 0, work_ = 0, memory_ = 0;
  int filter_nesting_ = 0;
  std::deque<StringObject> strings_;
  std::deque<ListObject> lists_;
  std::deque<DictObject> dicts_;
  std::deque<NamespaceObject> namespaces_;
  std::deque<LoopObject> loops_;
  std::deque<CallableObject> callables_;
  std::deque<Scope> scopes_;
};

// The entry's position in dict.entries, or -1. An unhashable key is an error, as in Python.
int64_t find_key(Heap& heap, const DictObject& dict, const Value& key);
// Null when absent.
const Value* find_string_key(const DictObject& dict, std::string_view key);

}  // namespace quipu::jinja
