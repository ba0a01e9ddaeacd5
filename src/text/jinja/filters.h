// Jinja's filters and tests (and the tojson that Hugging Face puts in its place).
#pragma once

#include <string_view>

#include "text/jinja/value.h"

namespace quipu::jinja {

Value apply_filter(Heap& heap, std::string_view name, const Value& operand, const Arguments& arguments);
bool apply_test(Heap& heap, std::string_view name, const Value& operand, const Arguments& arguments);

}  // namespace quipu::jinja
