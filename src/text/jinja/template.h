// The template language of chat templates: a subset of Jinja 3.1 with the semantics of the environment that Hugging
// Face renders them in (immutable sandbox, trim_blocks, lstrip_blocks, loop controls, tojson without HTML escaping).
//
// Goal: templates and conversations from strangers render to the same bytes as there, or give a one-line error; never
// a crash, never more than the Limits. Not goals: inheritance, includes, HTML autoescaping, user-defined filters.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/jinja/ast.h"
#include "text/jinja/value.h"

namespace quipu::jinja {

struct RenderOptions {
  Limits limits;
  std::function<std::tm()> now;   // empty: the machine's local time
};

// Immutable; copies share the syntax tree; threads may render at the same time.
class Template {
 public:
  using Variables = std::vector<std::pair<std::string, Value>>;

  // Errors say "line N: ...".
  static Result<Template> parse(std::string_view source);

  // `fill` makes the variables in the render's heap; it may throw TemplateError.
  Result<std::string> render(const std::function<void(Heap&, Variables&)>& fill, const RenderOptions& options) const;

 private:
  std::shared_ptr<const Block> body_;
};

}  // namespace quipu::jinja
