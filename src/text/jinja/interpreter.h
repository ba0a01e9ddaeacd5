// Walks the syntax tree and writes the output.
#pragma once

#include <ctime>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/value.h"

namespace quipu::jinja {

class Interpreter {
 public:
  // `now`: what strftime_now() shows. heap and body outlive the interpreter.
  Interpreter(Heap& heap, const std::function<std::tm()>& now) : heap_(heap), now_(now) {}

  // The keys of `variables` outlive the interpreter. Throws TemplateError.
  std::string run(const Block& body, std::vector<std::pair<std::string_view, Value>> variables);

  // The line being worked on when run() threw.
  int line() const { return line_; }

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  class Depth;

  Flow execute(const Block& block, Scope* scope);
  Flow execute_statement(const Statement& statement, Scope* scope);
  Flow execute_if(const Statement& statement, Scope* scope);
  Flow execute_for(const Statement& statement, Scope* scope, const Value& source, int depth);
  void execute_set(const Statement& statement, Scope* scope);
  void execute_set_block(const Statement& statement, Scope* scope);
  void execute_call_block(const Statement& statement, Scope* scope);
  void execute_filter_block(const Statement& statement, Scope* scope);
  Flow execute_with(const Statement& statement, Scope* scope);
  // What the block writes, instead of writing it. A break inside passes through `flow`.
  std::string capture(const Block& block, Scope* scope, Flow* flow = nullptr);
  void emit(std::string_view text);

  Value evaluate(const Expression& expression, Scope* scope);
  Value evaluate_name(const Expression& expression, Scope* scope);
  Value evaluate_sequence(const Expression& expression, Scope* scope);
  Value evaluate_dict(const Expression& expression, Scope* scope);
  Value evaluate_attribute(const Expression& expression, Scope* scope);
  Value evaluate_item(const Expression& expression, Scope* scope);
  Value evaluate_slice(const Expression& expression, Scope* scope);
  Value evaluate_call(const Expression& expression, Scope* scope);
  Value evaluate_filter(const Expression& expression, Scope* scope);
  Value evaluate_test(const Expression& expression, Scope* scope);
  Value evaluate_sum(const Expression& expression, Scope* scope);
  Value evaluate_product(const Expression& expression, Scope* scope);
  Value evaluate_power(const Expression& expression, Scope* scope);
  Value evaluate_join(const Expression& expression, Scope* scope);
  Value evaluate_compare(const Expression& expression, Scope* scope);
  Value evaluate_logic(const Expression& expression, Scope* scope);
  Value evaluate_conditional(const Expression& expression, Scope* scope);
  Arguments evaluate_arguments(const ArgumentList* list, Scope* scope);

  Value call(const Value& callee, const Arguments& arguments);
  Value call_function(std::string_view name, const Arguments& arguments);
  Value call_macro(const CallableObject& callable, const Arguments& arguments);
  Scope* bind_parameters(const CallableObject& callable, const Arguments& arguments);
  Value call_loop(LoopObject& loop, std::string_view method, const Arguments& arguments);
  Value make_range(const Arguments& arguments);
  Value make_namespace(const Arguments& arguments);
  Value format_time(const Arguments& arguments);

  // The next item that passes the loop's filter, without visiting it; null at the end.
  const Value* peek(LoopObject& loop);
  Value loop_attribute(LoopObject& loop, const std::string& name);

  void assign(const Expression& target, const Value& value, Scope* scope);
  void define(Scope* scope, std::string_view name, const Value& value);

  Heap& heap_;
  const std::function<std::tm()>& now_;
  std::string* out_ = nullptr;
  Value filtered_body_;      // what the innermost filter of a filter block is applied to
  int depth_ = 0, calls_ = 0, line_ = 0;
};

}  // namespace quipu::jinja
