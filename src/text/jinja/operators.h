// Python's operators on template values. All of them charge their cost to the heap and throw TemplateError.
#pragma once

#include <string>

#include "text/jinja/value.h"

namespace quipu::jinja {

bool truth(const Value& value);
bool equal(Heap& heap, const Value& a, const Value& b, int depth = 0);
// a < b. Numbers, strings, and lists with lists or tuples with tuples.
bool less(Heap& heap, const Value& a, const Value& b, int depth = 0);
// `item in container`
bool contains(Heap& heap, const Value& container, const Value& item);

Value add(Heap& heap, const Value& a, const Value& b);
Value subtract(Heap& heap, const Value& a, const Value& b);
Value multiply(Heap& heap, const Value& a, const Value& b);
Value divide(Heap& heap, const Value& a, const Value& b);
Value floor_divide(Heap& heap, const Value& a, const Value& b);
Value modulo(Heap& heap, const Value& a, const Value& b);   // also 'text %s' % values
Value power(Heap& heap, const Value& a, const Value& b);
Value negate(const Value& a);

// str(value) and repr(value).
std::string to_text(Heap& heap, const Value& value);
void append_repr(Heap& heap, std::string& out, const Value& value, int depth = 0);
std::string float_repr(double value);
std::string int_text(Int value);

// The items that `for` sees. Undefined has none; None, numbers and functions cannot be iterated over.
std::vector<Value> iterate(Heap& heap, const Value& value);
bool is_iterable(const Value& value);
// len(value); throws for what has no length.
Int length(Heap& heap, const Value& value);
// What a person calls the type: 'str', 'NoneType', ...
std::string_view type_name(const Value& value);
std::string html_escape(std::string_view text);

// A size, index or count argument that must fit a machine word.
int64_t small_int(const Value& value, std::string_view what);

}  // namespace quipu::jinja
