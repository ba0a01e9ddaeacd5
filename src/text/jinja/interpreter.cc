#include "text/jinja/interpreter.h"

#include <algorithm>
#include <array>

#include "text/jinja/attributes.h"
#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {

class Interpreter::Depth {
 public:
  explicit Depth(Interpreter& interpreter) : interpreter_(interpreter) {
    if (++interpreter.depth_ > kMaxEvaluationDepth) fail("evaluation is nested too deeply");
  }
  ~Depth() { --interpreter_.depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  Interpreter& interpreter_;
};

std::string Interpreter::run(const Block& body, std::vector<std::pair<std::string_view, Value>> variables) {
  std::string out;
  out_ = &out;
  Scope* root = heap_.scope(nullptr);
  root->variables = std::move(variables);
  execute(body, root);
  return out;
}

void Interpreter::emit(std::string_view text) {
  if (static_cast<int64_t>(out_->size() + text.size()) > heap_.limits().output_bytes) {
    fail("output is more than " + std::to_string(heap_.limits().output_bytes) + " bytes");
  }
  heap_.charge_work(text.size());
  *out_ += text;
}

std::string Interpreter::capture(const Block& block, Scope* scope, Flow* flow) {
  std::string buffer;
  std::string* const outer = std::exchange(out_, &buffer);
  const Flow ended = execute(block, scope);
  if (flow) *flow = ended;
  out_ = outer;
  return buffer;
}

Interpreter::Flow Interpreter::execute(const Block& block, Scope* scope) {
  const Depth depth(*this);
  for (const StatementPtr& statement : block) {
    const Flow flow = execute_statement(*statement, scope);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_statement(const Statement& statement, Scope* scope) {
  heap_.charge_steps(1);
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::kText: emit(statement.text); return Flow::kNext;
    case StatementKind::kOutput: {
      const Value value = evaluate(*statement.value, scope);
      if (value.is_string()) emit(value.string->bytes);
      else emit(to_text(heap_, value));
      return Flow::kNext;
    }
    case StatementKind::kIf: return execute_if(statement, scope);
    case StatementKind::kFor: return execute_for(statement, scope, evaluate(*statement.value, scope), 1);
    case StatementKind::kSet: execute_set(statement, scope); return Flow::kNext;
    case StatementKind::kSetBlock: execute_set_block(statement, scope); return Flow::kNext;
    case StatementKind::kMacro:
      for (Scope* s = scope; s; s = s->parent) s->captured = true;
      define(scope, statement.text, heap_.macro(&statement, scope));
      return Flow::kNext;
    case StatementKind::kCallBlock: execute_call_block(statement, scope); return Flow::kNext;
    case StatementKind::kFilterBlock: execute_filter_block(statement, scope); return Flow::kNext;
    case StatementKind::kWith: return execute_with(statement, scope);
    case StatementKind::kGeneration: execute(statement.body, heap_.scope(scope)); return Flow::kNext;
    case StatementKind::kBreak: return Flow::kBreak;
    case StatementKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_if(const Statement& statement, Scope* scope) {
  for (const auto& [condition, body] : statement.branches) {
    if (!condition || truth(evaluate(*condition, scope))) return execute(body, scope);
  }
  return Flow::kNext;
}

const Value* Interpreter::peek(LoopObject& loop) {
  if (!loop.ahead.empty()) return &loop.ahead.front();
  const Expression* condition = loop.statement->condition.get();
  while (loop.next_source < loop.source.size()) {
    heap_.charge_steps(1);
    const Value item = loop.source[loop.next_source++];
    if (condition) {
      Scope* scope = heap_.scope(loop.outer);
      assign(*loop.statement->target, item, scope);
      if (!truth(evaluate(*condition, scope))) continue;
    }
    loop.ahead.push_back(item);
    return &loop.ahead.front();
  }
  return nullptr;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement, Scope* scope, const Value& source, int depth) {
  LoopObject& loop = *heap_.loop();
  loop.statement = &statement;
  loop.outer = scope;
  loop.source = iterate(heap_, source);
  heap_.charge_memory(loop.source.size() * sizeof(Value));
  loop.depth = depth;
  Scope* body_scope = heap_.scope(scope);
  while (const Value* next = peek(loop)) {
    heap_.charge_steps(1);
    loop.has_previous = loop.index0 >= 0;
    loop.previous = loop.current;
    loop.current = *next;
    loop.ahead.pop_front();
    ++loop.index0;
    if (body_scope->captured) body_scope = heap_.scope(scope);
    body_scope->variables.clear();   // what one round sets, the next does not see
    define(body_scope, "loop", Value::of(&loop));
    assign(*statement.target, loop.current, body_scope);
    if (execute(statement.body, body_scope) == Flow::kBreak) return Flow::kNext;
  }
  if (loop.index0 < 0 && !statement.orelse.empty()) return execute(statement.orelse, heap_.scope(scope));
  return Flow::kNext;
}

void Interpreter::execute_set(const Statement& statement, Scope* scope) {
  assign(*statement.target, evaluate(*statement.value, scope), scope);
}

void Interpreter::execute_set_block(const Statement& statement, Scope* scope) {
  Value value = heap_.string(capture(statement.body, heap_.scope(scope)));
  if (statement.value) {
    filtered_body_ = value;
    value = evaluate(*statement.value, scope);
  }
  assign(*statement.target, value, scope);
}

void Interpreter::execute_call_block(const Statement& statement, Scope* scope) {
  const Expression& call_expression = *statement.value;
  const Value callee = evaluate(*call_expression.children[0], scope);
  Arguments arguments = evaluate_arguments(call_expression.arguments.get(), scope);
  for (Scope* s = scope; s; s = s->parent) s->captured = true;
  arguments.named.emplace_back("caller", heap_.macro(&statement, scope));
  emit(to_text(heap_, call(callee, arguments)));
}

void Interpreter::execute_filter_block(const Statement& statement, Scope* scope) {
  filtered_body_ = heap_.string(capture(statement.body, heap_.scope(scope)));
  emit(to_text(heap_, evaluate(*statement.value, scope)));
}

Interpreter::Flow Interpreter::execute_with(const Statement& statement, Scope* scope) {
  Scope* inner = heap_.scope(scope);
  for (const auto& [target, value] : statement.assignments) assign(*target, evaluate(*value, scope), inner);
  return execute(statement.body, inner);
}

void Interpreter::define(Scope* scope, std::string_view name, const Value& value) {
  for (auto& [known, held] : scope->variables) {
    if (known == name) {
      held = value;
      return;
    }
  }
  heap_.charge_steps(1 + static_cast<int64_t>(scope->variables.size()) / 8);
  heap_.charge_memory(sizeof(Value) + sizeof(std::string_view));
  scope->variables.emplace_back(name, value);
}

void Interpreter::assign(const Expression& target, const Value& value, Scope* scope) {
  if (target.kind == ExpressionKind::kName) return define(scope, target.text, value);
  if (target.kind == ExpressionKind::kTuple) {
    const std::vector<Value> items = iterate(heap_, value);
    if (items.size() != target.children.size()) {
      fail("cannot unpack " + std::to_string(items.size()) + " values into " + std::to_string(target.children.size()) + " names");
    }
    for (size_t i = 0; i < items.size(); ++i) assign(*target.children[i], items[i], scope);
    return;
  }
  const Value holder = evaluate_name(*target.children[0], scope);
  if (holder.kind != Kind::kNamespace) fail("cannot set attribute '" + target.text + "' on something that is not a namespace");
  heap_.set_attribute(holder.name_space, target.text, value);
}

// ---- expressions ----

Value Interpreter::evaluate(const Expression& expression, Scope* scope) {
  const Depth depth(*this);
  heap_.charge_steps(1);
  line_ = expression.line;
  switch (expression.kind) {
    case ExpressionKind::kLiteral: return expression.literal;
    case ExpressionKind::kName: return evaluate_name(expression, scope);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: return evaluate_sequence(expression, scope);
    case ExpressionKind::kDict: return evaluate_dict(expression, scope);
    case ExpressionKind::kAttribute: return evaluate_attribute(expression, scope);
    case ExpressionKind::kItem: return evaluate_item(expression, scope);
    case ExpressionKind::kSlice: return evaluate_slice(expression, scope);
    case ExpressionKind::kCall: return evaluate_call(expression, scope);
    case ExpressionKind::kFilter: return evaluate_filter(expression, scope);
    case ExpressionKind::kTest: return evaluate_test(expression, scope);
    case ExpressionKind::kNot: return Value::of(!truth(evaluate(*expression.children[0], scope)));
    case ExpressionKind::kNegate: return negate(evaluate(*expression.children[0], scope));
    case ExpressionKind::kPlus: return subtract(heap_, evaluate(*expression.children[0], scope), Value::of(Int{0}));
    case ExpressionKind::kSum: return evaluate_sum(expression, scope);
    case ExpressionKind::kProduct: return evaluate_product(expression, scope);
    case ExpressionKind::kPower: return evaluate_power(expression, scope);
    case ExpressionKind::kJoin: return evaluate_join(expression, scope);
    case ExpressionKind::kCompare: return evaluate_compare(expression, scope);
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr: return evaluate_logic(expression, scope);
    case ExpressionKind::kConditional: return evaluate_conditional(expression, scope);
  }
  return Value();
}

namespace {

constexpr std::array<std::string_view, 5> kFunctions = {"range", "namespace", "dict", "raise_exception", "strftime_now"};

}  // namespace

Value Interpreter::evaluate_name(const Expression& expression, Scope* scope) {
  const std::string_view name = expression.text;
  for (const Scope* s = scope; s; s = s->parent) {
    for (const auto& [known, value] : s->variables) {
      if (known == name) return value;
    }
    heap_.charge_steps(static_cast<int64_t>(s->variables.size()) / 16);
  }
  const auto found = std::find(kFunctions.begin(), kFunctions.end(), name);
  return found == kFunctions.end() ? Value::undefined(&expression.text) : heap_.function(*found);
}

Value Interpreter::evaluate_sequence(const Expression& expression, Scope* scope) {
  std::vector<Value> items;
  for (const auto& child : expression.children) items.push_back(evaluate(*child, scope));
  return heap_.list(std::move(items), expression.kind == ExpressionKind::kList ? Flavor::kList : Flavor::kTuple);
}

Value Interpreter::evaluate_dict(const Expression& expression, Scope* scope) {
  DictObject* dict = heap_.dict();
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    const Value key = evaluate(*expression.children[i], scope);
    heap_.set_item(dict, key, evaluate(*expression.children[i + 1], scope));
  }
  return Value::of(dict);
}

Value Interpreter::evaluate_attribute(const Expression& expression, Scope* scope) {
  const Value value = evaluate(*expression.children[0], scope);
  if (value.kind == Kind::kLoop) return loop_attribute(*value.loop, expression.text);
  return get_attribute(heap_, value, expression.text);
}

Value Interpreter::evaluate_item(const Expression& expression, Scope* scope) {
  const Value value = evaluate(*expression.children[0], scope);
  const Value key = evaluate(*expression.children[1], scope);
  if (value.kind == Kind::kLoop && key.is_string()) return loop_attribute(*value.loop, key.string->bytes);
  return get_item(heap_, value, key);
}

Value Interpreter::evaluate_slice(const Expression& expression, Scope* scope) {
  const Value value = evaluate(*expression.children[0], scope);
  std::array<Value, 3> parts;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& part = expression.children[i + 1];
    parts[i] = part ? evaluate(*part, scope) : Value::none();
  }
  return get_slice(heap_, value, parts[0], parts[1], parts[2]);
}

Arguments Interpreter::evaluate_arguments(const ArgumentList* list, Scope* scope) {
  Arguments out;
  if (!list) return out;
  for (const auto& argument : list->positional) out.positional.push_back(evaluate(*argument, scope));
  for (const auto& [name, argument] : list->named) {
    for (const auto& [known, value] : out.named) {
      if (known == name) fail("argument '" + name + "' is given twice");
    }
    out.named.emplace_back(name, evaluate(*argument, scope));
    heap_.charge_steps(static_cast<int64_t>(out.named.size()) / 8);
  }
  if (list->star) {
    for (const Value& value : iterate(heap_, evaluate(*list->star, scope))) out.positional.push_back(value);
  }
  if (list->double_star) {
    const Value extra = evaluate(*list->double_star, scope);
    if (!extra.is_dict()) fail("the value after ** must be a dictionary, found " + std::string(type_name(extra)));
    for (const auto& [key, value] : extra.dict->entries) {
      if (!key.is_string()) fail("the keys of a dictionary after ** must be strings");
      for (const auto& [known, held] : out.named) {
        if (known == key.string->bytes) fail("argument " + quoted(known.substr(0, byte_offset(known, 40))) + " is given twice");
      }
      out.named.emplace_back(key.string->bytes, value);
      heap_.charge_steps(1 + static_cast<int64_t>(out.named.size()) / 8);
    }
  }
  return out;
}

Value Interpreter::evaluate_call(const Expression& expression, Scope* scope) {
  const Value callee = evaluate(*expression.children[0], scope);
  const Arguments arguments = evaluate_arguments(expression.arguments.get(), scope);
  line_ = expression.line;
  return call(callee, arguments);
}

Value Interpreter::evaluate_filter(const Expression& expression, Scope* scope) {
  const Value operand = expression.children[0] ? evaluate(*expression.children[0], scope) : filtered_body_;
  if (!expression.arguments) return apply_filter(heap_, expression.text, operand, Arguments());
  const Arguments arguments = evaluate_arguments(expression.arguments.get(), scope);
  line_ = expression.line;
  return apply_filter(heap_, expression.text, operand, arguments);
}

Value Interpreter::evaluate_test(const Expression& expression, Scope* scope) {
  const Value operand = evaluate(*expression.children[0], scope);
  if (!expression.arguments) return Value::of(apply_test(heap_, expression.text, operand, Arguments()));
  return Value::of(apply_test(heap_, expression.text, operand, evaluate_arguments(expression.arguments.get(), scope)));
}

// Strings in a row are gathered in one buffer: 'a' + b + 'c' + ... would otherwise copy quadratically.
Value Interpreter::evaluate_sum(const Expression& expression, Scope* scope) {
  const auto is_plain_text = [](const Value& v) { return v.is_string() && !v.string->markup; };
  Value total = evaluate(*expression.children[0], scope);
  std::string buffer;
  bool buffered = false;
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const Value operand = evaluate(*expression.children[i + 1], scope);
    const bool adds = expression.operators[i] == Operator::kAdd;
    if (adds && is_plain_text(operand) && (buffered || is_plain_text(total))) {
      if (!std::exchange(buffered, true)) buffer = total.string->bytes;
      heap_.charge_work(operand.string->bytes.size());
      buffer += operand.string->bytes;
      heap_.require_room(static_cast<Int>(buffer.size()));
      continue;
    }
    if (std::exchange(buffered, false)) total = heap_.string(std::move(buffer));
    line_ = expression.line;
    total = adds ? add(heap_, total, operand) : subtract(heap_, total, operand);
  }
  return buffered ? heap_.string(std::move(buffer)) : total;
}

Value Interpreter::evaluate_product(const Expression& expression, Scope* scope) {
  Value product = evaluate(*expression.children[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const Value operand = evaluate(*expression.children[i + 1], scope);
    switch (expression.operators[i]) {
      case Operator::kMultiply: product = multiply(heap_, product, operand); break;
      case Operator::kDivide: product = divide(heap_, product, operand); break;
      case Operator::kFloorDivide: product = floor_divide(heap_, product, operand); break;
      default: product = modulo(heap_, product, operand); break;
    }
  }
  return product;
}

Value Interpreter::evaluate_power(const Expression& expression, Scope* scope) {
  Value result = evaluate(*expression.children[0], scope);
  for (size_t i = 1; i < expression.children.size(); ++i) {
    result = power(heap_, result, evaluate(*expression.children[i], scope));
  }
  return result;
}

Value Interpreter::evaluate_join(const Expression& expression, Scope* scope) {
  std::string out;
  for (const auto& child : expression.children) {
    out += to_text(heap_, evaluate(*child, scope));
    heap_.require_room(static_cast<Int>(out.size()));
  }
  return heap_.string(std::move(out));
}

Value Interpreter::evaluate_compare(const Expression& expression, Scope* scope) {
  Value left = evaluate(*expression.children[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const Value right = evaluate(*expression.children[i + 1], scope);
    bool holds = false;
    switch (expression.operators[i]) {
      case Operator::kEqual: holds = equal(heap_, left, right); break;
      case Operator::kNotEqual: holds = !equal(heap_, left, right); break;
      case Operator::kLess: holds = less(heap_, left, right); break;
      case Operator::kGreater: holds = less(heap_, right, left); break;
      case Operator::kLessEqual: holds = less(heap_, left, right) || equal(heap_, left, right); break;
      case Operator::kGreaterEqual: holds = less(heap_, right, left) || equal(heap_, left, right); break;
      case Operator::kIn: holds = contains(heap_, right, left); break;
      default: holds = !contains(heap_, right, left); break;
    }
    if (!holds) return Value::of(false);
    left = right;
  }
  return Value::of(true);
}

Value Interpreter::evaluate_logic(const Expression& expression, Scope* scope) {
  const bool stops_at = expression.kind == ExpressionKind::kOr;
  Value value;
  for (const auto& child : expression.children) {
    value = evaluate(*child, scope);
    if (truth(value) == stops_at) return value;
  }
  return value;
}

Value Interpreter::evaluate_conditional(const Expression& expression, Scope* scope) {
  if (truth(evaluate(*expression.children[1], scope))) return evaluate(*expression.children[0], scope);
  return expression.children[2] ? evaluate(*expression.children[2], scope) : Value::undefined();
}

}  // namespace quipu::jinja
