// value.name, value[key], value[a:b:c] and the methods of strings, lists and dictionaries.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace quipu::jinja {

// What the reference finds: Python's attribute first, then the item; else undefined. Attributes of undefined are an
// error. Methods that would change a list or dictionary are undefined, as in the immutable sandbox.
// `name` outlives the render. Contract: value is not a LoopObject (the interpreter knows those).
Value get_attribute(Heap& heap, const Value& value, const std::string& name);
// The same with the item first.
Value get_item(Heap& heap, const Value& value, const Value& key);
// Absent bounds are None.
Value get_slice(Heap& heap, const Value& value, const Value& start, const Value& stop, const Value& step);

// Contract: made by get_attribute. Throws on wrong arguments.
Value call_method(Heap& heap, const Value& self, std::string_view name, const Arguments& arguments);

}  // namespace quipu::jinja
