// Tokens to the syntax tree. Throws TemplateError on anything outside the grammar and on nesting past the limits.
#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace quipu::jinja {

Block parse_template(std::string_view source);

}  // namespace quipu::jinja
