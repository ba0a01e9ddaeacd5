// Python's str methods.
#pragma once

#include <string_view>

#include "text/jinja/value.h"

namespace quipu::jinja {

bool is_string_method(std::string_view name);
// Contract: self is a string and is_string_method(name).
Value call_string_method(Heap& heap, const Value& self, std::string_view name, const Arguments& arguments);

}  // namespace quipu::jinja
