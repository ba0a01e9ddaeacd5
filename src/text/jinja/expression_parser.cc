#include "text/jinja/expression_parser.h"

#include <algorithm>
#include <charconv>

#include "text/jinja/python_text.h"

namespace quipu::jinja {

std::string describe(const Token& token) {
  switch (token.type) {
    case TokenType::kEnd: return "the end of the template";
    case TokenType::kText: return "text";
    case TokenType::kOutputBegin: return "'{{'";
    case TokenType::kOutputEnd: return "'}}'";
    case TokenType::kBlockBegin: return "'{%'";
    case TokenType::kBlockEnd: return "'%}'";
    default: return quoted(std::string_view(token.text).substr(0, byte_offset(token.text, 40)));
  }
}

ExpressionParser::Nesting::Nesting(ExpressionParser& parser, const char* what) : parser_(parser) {
  if (parser.nesting_ >= kMaxNesting) {
    fail(std::string(what) + " nested deeper than " + std::to_string(kMaxNesting), parser.line());
  }
  ++parser.nesting_;
}

Token ExpressionParser::take() {
  if (current().type == TokenType::kEnd) return current();
  return std::move(tokens_[position_++]);
}

bool ExpressionParser::skip_operator(std::string_view op) {
  if (!is_operator(op)) return false;
  take();
  return true;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  take();
  return true;
}

void ExpressionParser::expect(TokenType type, std::string_view what) {
  if (current().type != type) fail("expected " + std::string(what) + ", found " + describe(current()), line());
  take();
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail("expected '" + std::string(op) + "', found " + describe(current()), line());
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail("expected '" + std::string(name) + "', found " + describe(current()), line());
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, int line) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  return node;
}

ExpressionPtr ExpressionParser::finish(ExpressionPtr node) const {
  int deepest = 0;
  const auto see = [&](const ExpressionPtr& child) {
    if (child) deepest = std::max(deepest, child->depth);
  };
  for (const auto& child : node->children) see(child);
  if (node->arguments) {
    for (const auto& argument : node->arguments->positional) see(argument);
    for (const auto& [name, argument] : node->arguments->named) see(argument);
    see(node->arguments->star);
    see(node->arguments->double_star);
  }
  node->depth = deepest + 1;
  if (node->depth > kMaxNodeDepth) fail("expression is more than " + std::to_string(kMaxNodeDepth) + " operations deep", node->line);
  return node;
}

bool ExpressionParser::is_tuple_end(Names ends) const {
  const TokenType type = current().type;
  if (type == TokenType::kOutputEnd || type == TokenType::kBlockEnd || is_operator(")")) return true;
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return is_name(end); });
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_conditional, Names ends, bool in_parentheses) {
  const int at = line();
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_operator(",");
    if (is_tuple_end(ends)) break;
    items.push_back(parse_expression(with_conditional));
    if (!is_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!items.empty()) return std::move(items[0]);
    if (!in_parentheses) fail("expected an expression, found " + describe(current()), line());
  }
  ExpressionPtr node = make(ExpressionKind::kTuple, at);
  node->children = std::move(items);
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_name_target() {
  if (current().type != TokenType::kName) fail("expected a name, found " + describe(current()), line());
  const int at = line();
  Token token = take();
  for (std::string_view reserved : {"true", "false", "True", "False", "none", "None"}) {
    if (token.text == reserved) fail("cannot assign to '" + token.text + "'", at);
  }
  ExpressionPtr node = make(ExpressionKind::kName, at);
  node->text = std::move(token.text);
  return node;
}

ExpressionPtr ExpressionParser::parse_target(Names ends, bool with_namespace) {
  const int at = line();
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_operator(",");
    if (is_tuple_end(ends) || is_operator("=")) break;
    if (skip_operator("(")) {
      Nesting nesting(*this, "targets");
      items.push_back(parse_target({}, false));
      expect_operator(")");
    } else {
      items.push_back(parse_name_target());
      if (with_namespace && skip_operator(".")) {
        ExpressionPtr attribute = make(ExpressionKind::kAttribute, line());
        if (current().type != TokenType::kName) fail("expected an attribute name, found " + describe(current()), line());
        attribute->text = take().text;
        attribute->children.push_back(std::move(items.back()));
        items.back() = finish(std::move(attribute));
      }
    }
    if (!is_operator(",")) break;
    is_tuple = true;
  }
  if (items.empty()) fail("expected a name, found " + describe(current()), line());
  if (!is_tuple) return std::move(items[0]);
  ExpressionPtr node = make(ExpressionKind::kTuple, at);
  node->children = std::move(items);
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_conditional() {
  Nesting nesting(*this, "expressions");
  ExpressionPtr node = parse_or();
  while (is_name("if")) {
    ExpressionPtr conditional = make(ExpressionKind::kConditional, line());
    take();
    conditional->children.push_back(std::move(node));
    conditional->children.push_back(parse_or());
    conditional->children.push_back(skip_name("else") ? parse_conditional() : nullptr);
    node = finish(std::move(conditional));
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr first = parse_and();
  if (!is_name("or")) return first;
  ExpressionPtr node = make(ExpressionKind::kOr, line());
  node->children.push_back(std::move(first));
  while (skip_name("or")) node->children.push_back(parse_and());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr first = parse_not();
  if (!is_name("and")) return first;
  ExpressionPtr node = make(ExpressionKind::kAnd, line());
  node->children.push_back(std::move(first));
  while (skip_name("and")) node->children.push_back(parse_not());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!is_name("not")) return parse_compare();
  Nesting nesting(*this, "expressions");
  ExpressionPtr node = make(ExpressionKind::kNot, line());
  take();
  node->children.push_back(parse_not());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_compare() {
  ExpressionPtr first = parse_sum();
  ExpressionPtr node;
  while (true) {
    Operator op;
    if (is_operator("==")) op = Operator::kEqual;
    else if (is_operator("!=")) op = Operator::kNotEqual;
    else if (is_operator("<")) op = Operator::kLess;
    else if (is_operator("<=")) op = Operator::kLessEqual;
    else if (is_operator(">")) op = Operator::kGreater;
    else if (is_operator(">=")) op = Operator::kGreaterEqual;
    else if (is_name("in")) op = Operator::kIn;
    else if (is_name("not") && look().type == TokenType::kName && look().text == "in") op = Operator::kNotIn;
    else break;
    if (op == Operator::kNotIn) take();
    if (!node) {
      node = make(ExpressionKind::kCompare, line());
      node->children.push_back(std::move(first));
    }
    take();
    node->operators.push_back(op);
    node->children.push_back(parse_sum());
  }
  return node ? finish(std::move(node)) : std::move(first);
}

ExpressionPtr ExpressionParser::parse_sum() {
  ExpressionPtr first = parse_join();
  if (!is_operator("+") && !is_operator("-")) return first;
  ExpressionPtr node = make(ExpressionKind::kSum, line());
  node->children.push_back(std::move(first));
  while (is_operator("+") || is_operator("-")) {
    node->operators.push_back(take().text == "+" ? Operator::kAdd : Operator::kSubtract);
    node->children.push_back(parse_join());
  }
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_join() {
  ExpressionPtr first = parse_product();
  if (!is_operator("~")) return first;
  ExpressionPtr node = make(ExpressionKind::kJoin, line());
  node->children.push_back(std::move(first));
  while (skip_operator("~")) node->children.push_back(parse_product());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_product() {
  ExpressionPtr first = parse_power();
  ExpressionPtr node;
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    if (!node) {
      node = make(ExpressionKind::kProduct, line());
      node->children.push_back(std::move(first));
    }
    node->operators.push_back(is_operator("*") ? Operator::kMultiply : is_operator("/") ? Operator::kDivide
                              : is_operator("//") ? Operator::kFloorDivide : Operator::kModulo);
    take();
    node->children.push_back(parse_power());
  }
  return node ? finish(std::move(node)) : std::move(first);
}

ExpressionPtr ExpressionParser::parse_power() {
  ExpressionPtr first = parse_unary();
  if (!is_operator("**")) return first;
  ExpressionPtr node = make(ExpressionKind::kPower, line());
  node->children.push_back(std::move(first));
  while (skip_operator("**")) node->children.push_back(parse_unary());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr node;
  if (is_operator("-") || is_operator("+")) {
    Nesting nesting(*this, "expressions");
    node = make(is_operator("-") ? ExpressionKind::kNegate : ExpressionKind::kPlus, line());
    take();
    node->children.push_back(parse_unary(false));
    node = finish(std::move(node));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filters ? parse_filter_expression(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::parse_primary() {
  switch (current().type) {
    case TokenType::kName: return parse_word();
    case TokenType::kString: return parse_strings();
    case TokenType::kInteger:
    case TokenType::kFloat: return parse_number();
    default: break;
  }
  if (is_operator("[")) return parse_list();
  if (is_operator("{")) return parse_dict();
  if (skip_operator("(")) {
    ExpressionPtr node = parse_tuple(true, {}, true);
    expect_operator(")");
    return node;
  }
  fail("expected an expression, found " + describe(current()), line());
}

ExpressionPtr ExpressionParser::parse_word() {
  const int at = line();
  Token token = take();
  ExpressionPtr node = make(ExpressionKind::kLiteral, at);
  if (token.text == "true" || token.text == "True") node->literal = Value::of(true);
  else if (token.text == "false" || token.text == "False") node->literal = Value::of(false);
  else if (token.text == "none" || token.text == "None") node->literal = Value::none();
  else {
    node->kind = ExpressionKind::kName;
    if (token.text == "caller") implicit_names_.caller = true;
    if (token.text == "varargs") implicit_names_.varargs = true;
    if (token.text == "kwargs") implicit_names_.kwargs = true;
    node->text = std::move(token.text);
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_strings() {
  ExpressionPtr node = make(ExpressionKind::kLiteral, line());
  node->literal_string = std::make_unique<StringObject>();
  while (current().type == TokenType::kString) node->literal_string->bytes += take().text;
  node->literal = Value::of(node->literal_string.get());
  return node;
}

ExpressionPtr ExpressionParser::parse_number() {
  ExpressionPtr node = make(ExpressionKind::kLiteral, line());
  const Token token = take();
  if (token.type == TokenType::kFloat) {
    double value = 0;
    const auto result = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (result.ec != std::errc()) fail("number out of range: " + token.text.substr(0, 40), node->line);
    node->literal = Value::of(value);
    return node;
  }
  const bool prefixed = token.text.size() > 2 && token.text[0] == '0';
  const int base = !prefixed ? 10 : token.text[1] == 'x' ? 16 : token.text[1] == 'o' ? 8 : 2;
  Int value = 0;
  for (size_t i = prefixed ? 2 : 0; i < token.text.size(); ++i) {
    const char c = token.text[i];
    value = value * base + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    if (value >> 100 != 0) fail("integer too large: " + token.text.substr(0, 40), node->line);
  }
  node->literal = Value::of(value);
  return node;
}

ExpressionPtr ExpressionParser::parse_list() {
  ExpressionPtr node = make(ExpressionKind::kList, line());
  take();
  while (!is_operator("]")) {
    if (!node->children.empty()) {
      expect_operator(",");
      if (is_operator("]")) break;
    }
    node->children.push_back(parse_expression());
  }
  take();
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_dict() {
  ExpressionPtr node = make(ExpressionKind::kDict, line());
  take();
  while (!is_operator("}")) {
    if (!node->children.empty()) {
      expect_operator(",");
      if (is_operator("}")) break;
    }
    node->children.push_back(parse_expression());
    expect_operator(":");
    node->children.push_back(parse_expression());
  }
  take();
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (is_operator(".")) node = parse_attribute(std::move(node));
    else if (is_operator("[")) node = parse_subscript(std::move(node));
    else if (is_operator("(")) node = parse_call(std::move(node));
    else return node;
  }
}

ExpressionPtr ExpressionParser::parse_filter_expression(ExpressionPtr node) {
  while (true) {
    if (is_operator("|")) {
      take();
      node = parse_filter(std::move(node));
    } else if (is_name("is")) {
      node = parse_test(std::move(node));
    } else if (is_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_attribute(ExpressionPtr node) {
  ExpressionPtr result = make(ExpressionKind::kAttribute, line());
  take();
  result->children.push_back(std::move(node));
  if (current().type == TokenType::kInteger) {   // items.0 is items[0]
    result->kind = ExpressionKind::kItem;
    result->children.push_back(parse_number());
  } else if (current().type == TokenType::kName) {
    result->text = take().text;
  } else {
    fail("expected a name or number after '.', found " + describe(current()), line());
  }
  return finish(std::move(result));
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr node) {
  ExpressionPtr result = make(ExpressionKind::kItem, line());
  take();
  result->children.push_back(std::move(node));
  const auto part = [&]() { return is_operator(":") || is_operator("]") ? nullptr : parse_expression(); };
  ExpressionPtr first = part();
  if (is_operator(":")) {
    result->kind = ExpressionKind::kSlice;
    result->children.push_back(std::move(first));
    take();
    result->children.push_back(part());
    result->children.push_back(skip_operator(":") ? part() : nullptr);
  } else {
    if (!first) fail("expected an index, found " + describe(current()), line());
    if (is_operator(",")) fail("an index with ',' is not supported", line());
    result->children.push_back(std::move(first));
  }
  expect_operator("]");
  return finish(std::move(result));
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr operand) {
  while (skip_operator("|")) operand = parse_filter(std::move(operand));
  return operand;
}

ExpressionPtr ExpressionParser::parse_first_filter() { return parse_filters(parse_filter(nullptr)); }

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr operand) {
  ExpressionPtr node = make(ExpressionKind::kFilter, line());
  if (current().type != TokenType::kName) fail("expected a filter name, found " + describe(current()), line());
  node->text = take().text;
  node->children.push_back(std::move(operand));
  if (is_operator("(")) node->arguments = parse_arguments();
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr operand) {
  const int at = line();
  take();
  const bool negated = skip_name("not");
  ExpressionPtr node = make(ExpressionKind::kTest, at);
  if (current().type != TokenType::kName) fail("expected a test name, found " + describe(current()), line());
  node->text = take().text;
  node->children.push_back(std::move(operand));
  const TokenType next = current().type;
  const bool is_operand = next == TokenType::kName || next == TokenType::kString || next == TokenType::kInteger ||
                          next == TokenType::kFloat || is_operator("[") || is_operator("{");
  if (is_operator("(")) {
    node->arguments = parse_arguments();
  } else if (is_operand && !is_name("else") && !is_name("or") && !is_name("and")) {
    if (is_name("is")) fail("tests cannot be chained with 'is'", line());
    node->arguments = std::make_unique<ArgumentList>();
    node->arguments->positional.push_back(parse_postfix(parse_primary()));
  }
  node = finish(std::move(node));
  if (!negated) return node;
  ExpressionPtr inverse = make(ExpressionKind::kNot, at);
  inverse->children.push_back(std::move(node));
  return finish(std::move(inverse));
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr callee) {
  ExpressionPtr node = make(ExpressionKind::kCall, line());
  node->children.push_back(std::move(callee));
  node->arguments = parse_arguments();
  return finish(std::move(node));
}

std::unique_ptr<ArgumentList> ExpressionParser::parse_arguments() {
  auto list = std::make_unique<ArgumentList>();
  ArgumentList& arguments = *list;
  const int at = line();
  expect_operator("(");
  const auto ensure = [&](bool allowed) {
    if (!allowed) fail("arguments in the wrong order", at);
  };
  bool first = true;
  while (!is_operator(")")) {
    if (!std::exchange(first, false)) {
      expect_operator(",");
      if (is_operator(")")) break;
    }
    if (skip_operator("*")) {
      ensure(!arguments.star && !arguments.double_star);
      arguments.star = parse_expression();
    } else if (skip_operator("**")) {
      ensure(!arguments.double_star);
      arguments.double_star = parse_expression();
    } else if (current().type == TokenType::kName && look().type == TokenType::kOperator && look().text == "=") {
      ensure(!arguments.double_star);
      std::string name = take().text;
      take();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      ensure(!arguments.star && !arguments.double_star && arguments.named.empty());
      arguments.positional.push_back(parse_expression());
    }
  }
  take();
  return list;
}

}  // namespace quipu::jinja
