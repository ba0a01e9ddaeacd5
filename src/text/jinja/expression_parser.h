// The expression half of the parser; parser.cc adds the statements.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace quipu::jinja {

std::string describe(const Token& token);

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  using Names = std::initializer_list<std::string_view>;

  // Counts recursion of the parser itself; throws past kMaxNesting.
  class Nesting {
   public:
    Nesting(ExpressionParser& parser, const char* what);
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  const Token& current() const { return tokens_[position_]; }
  const Token& look() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  Token take();   // kEnd is never passed
  bool is_operator(std::string_view op) const { return current().type == TokenType::kOperator && current().text == op; }
  bool is_name(std::string_view name) const { return current().type == TokenType::kName && current().text == name; }
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  void expect(TokenType type, std::string_view what);
  void expect_operator(std::string_view op);
  void expect_name(std::string_view name);

  // One expression, or a tuple without parentheses. `ends`: names that end it (`in`, `recursive`).
  ExpressionPtr parse_tuple(bool with_conditional, Names ends, bool in_parentheses = false);
  ExpressionPtr parse_expression(bool with_conditional = true) {
    return with_conditional ? parse_conditional() : parse_or();
  }
  // Something that can be assigned to: name, (name, name), and, with_namespace, name.attribute.
  ExpressionPtr parse_target(Names ends, bool with_namespace);
  ExpressionPtr parse_name_target();
  // `| filter | filter` after `operand` (null: the rendered body). Null when there is neither.
  ExpressionPtr parse_filters(ExpressionPtr operand);
  // The name after {% filter, and the filters piped to it.
  ExpressionPtr parse_first_filter();

  struct ImplicitNames {
    bool varargs = false, kwargs = false, caller = false;
  };
  ImplicitNames implicit_names_;   // those read since the enclosing macro began

 private:
  ExpressionPtr make(ExpressionKind kind, int line) const;
  // Every finished node passes here: its depth is its deepest child's plus one, and bounded.
  ExpressionPtr finish(ExpressionPtr node) const;
  ExpressionPtr parse_conditional();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_join();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters = true);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_word();
  ExpressionPtr parse_number();
  ExpressionPtr parse_strings();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_attribute(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_filter_expression(ExpressionPtr node);
  ExpressionPtr parse_filter(ExpressionPtr operand);
  ExpressionPtr parse_test(ExpressionPtr node);
  ExpressionPtr parse_call(ExpressionPtr node);
  std::unique_ptr<ArgumentList> parse_arguments();
  bool is_tuple_end(Names ends) const;

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int nesting_ = 0;
};

}  // namespace quipu::jinja
