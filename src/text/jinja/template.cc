#include "text/jinja/template.h"

#include <new>

#include "base/utf8.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace quipu::jinja {
namespace {

std::string with_line(const std::string& message, int line) {
  return line > 0 ? "line " + std::to_string(line) + ": " + message : message;
}

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm out{};
  localtime_r(&now, &out);
  return out;
}

}  // namespace

Result<Template> Template::parse(std::string_view source) {
  if (source.size() > static_cast<size_t>(kMaxSourceBytes)) {
    return bad_input("template is " + std::to_string(source.size()) + " bytes, limit " + std::to_string(kMaxSourceBytes));
  }
  if (const size_t valid = utf8_valid_prefix(source); valid != source.size()) {
    return bad_input("template is not valid UTF-8 at byte " + std::to_string(valid));
  }
  try {
    Template made;
    made.body_ = std::make_shared<const Block>(parse_template(source));
    return made;
  } catch (const TemplateError& error) {
    return bad_input(with_line(error.what(), error.line));
  } catch (const std::bad_alloc&) {
    return failed("no memory for the template");
  }
}

Result<std::string> Template::render(const std::function<void(Heap&, Variables&)>& fill, const RenderOptions& options) const {
  Variables variables;   // before the heap's values: the interpreter refers to the names
  Heap heap(options.limits);
  const std::function<std::tm()> now = options.now ? options.now : local_time;
  Interpreter interpreter(heap, now);
  try {
    fill(heap, variables);
    std::vector<std::pair<std::string_view, Value>> views(variables.begin(), variables.end());
    return interpreter.run(*body_, std::move(views));
  } catch (const TemplateError& error) {
    return bad_input(with_line(error.what(), error.line > 0 ? error.line : interpreter.line()));
  } catch (const std::bad_alloc&) {
    return failed("no memory to render the template");
  }
}

}  // namespace quipu::jinja
