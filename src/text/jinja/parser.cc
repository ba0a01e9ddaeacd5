#include "text/jinja/parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "text/jinja/expression_parser.h"
#include "text/jinja/lexer.h"

namespace quipu::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() {
    Block block = parse_block({});
    return block;
  }

 private:
  using Ends = std::initializer_list<std::string_view>;

  // Parses until one of the tags in `ends`, whose name becomes the current token; until the end when there are none.
  Block parse_block(Ends ends) {
    Nesting nesting(*this, "statements");
    Block block;
    while (true) {
      const Token& token = current();
      if (token.type == TokenType::kEnd) {
        if (ends.size() > 0) fail("template ends where {% " + std::string(*ends.begin()) + " %} was expected", token.line);
        return block;
      }
      if (token.type == TokenType::kText) {
        auto text = start(StatementKind::kText);
        text->text = take().text;
        block.push_back(std::move(text));
      } else if (token.type == TokenType::kOutputBegin) {
        auto output = start(StatementKind::kOutput);
        take();
        output->value = parse_tuple(true, {});
        expect(TokenType::kOutputEnd, "}}");
        block.push_back(std::move(output));
      } else {
        expect(TokenType::kBlockBegin, "a tag");
        if (current().type != TokenType::kName) fail("a tag name was expected, found " + describe(current()), line());
        for (std::string_view end : ends) {
          if (current().text == end) return block;
        }
        block.push_back(parse_statement());
      }
    }
  }

  StatementPtr start(StatementKind kind) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line();
    return statement;
  }

  void end_tag() { expect(TokenType::kBlockEnd, "%}"); }

  // Reads a body up to {% name %}, that tag included.
  Block parse_body(std::string_view end_name) {
    end_tag();
    Block body = parse_block({end_name});
    take();
    end_tag();
    return body;
  }

  StatementPtr parse_statement() {
    const Token tag = take();
    if (tag.text == "if") return parse_if();
    if (tag.text == "for") return parse_for();
    if (tag.text == "set") return parse_set();
    if (tag.text == "macro") return parse_macro();
    if (tag.text == "call") return parse_call_block();
    if (tag.text == "filter") return parse_filter_block();
    if (tag.text == "with") return parse_with();
    if (tag.text == "print") return parse_print();
    if (tag.text == "generation") {
      auto statement = start(StatementKind::kGeneration);
      OutsideLoops outside(*this);
      statement->body = parse_body("endgeneration");
      return statement;
    }
    if (tag.text == "break" || tag.text == "continue") {
      if (loops_ == 0) fail("{% " + tag.text + " %} outside a loop", tag.line);
      auto statement = start(tag.text == "break" ? StatementKind::kBreak : StatementKind::kContinue);
      end_tag();
      return statement;
    }
    fail("unknown or unsupported tag " + describe(tag), tag.line);
  }

  StatementPtr parse_if() {
    auto statement = start(StatementKind::kIf);
    ExpressionPtr condition = parse_tuple(false, {});
    while (true) {
      end_tag();
      Block body = parse_block({"endif", "elif", "else"});
      statement->branches.emplace_back(std::move(condition), std::move(body));
      const Token tag = take();
      if (tag.text == "elif") {
        condition = parse_tuple(false, {});
        continue;
      }
      if (tag.text == "else") statement->branches.emplace_back(nullptr, parse_body("endif"));
      else end_tag();
      return statement;
    }
  }

  static void refuse_loop(const Expression& target) {
    if (target.text == "loop") fail("a loop cannot assign to 'loop'", target.line);
    for (const auto& child : target.children) refuse_loop(*child);
  }

  StatementPtr parse_for() {
    auto statement = start(StatementKind::kFor);
    statement->target = parse_target({"in"}, false);
    refuse_loop(*statement->target);
    expect_name("in");
    statement->value = parse_tuple(false, {"recursive"});
    if (skip_name("if")) statement->condition = parse_expression();
    statement->recursive = skip_name("recursive");
    end_tag();
    ++loops_;
    statement->body = parse_block({"endfor", "else"});
    --loops_;
    if (take().text == "endfor") end_tag();
    else statement->orelse = parse_body("endfor");
    return statement;
  }

  StatementPtr parse_set() {
    auto statement = start(StatementKind::kSet);
    statement->target = parse_target({}, true);
    if (skip_operator("=")) {
      statement->value = parse_tuple(true, {});
      end_tag();
      return statement;
    }
    statement->kind = StatementKind::kSetBlock;
    statement->value = parse_filters(nullptr);
    statement->body = parse_body("endset");
    return statement;
  }

  // (name, name=default, ...)
  void parse_parameters(Statement& statement) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!statement.assignments.empty()) expect_operator(",");
      ExpressionPtr name = parse_name_target();
      ExpressionPtr fallback;
      if (skip_operator("=")) {
        fallback = parse_expression();
      } else if (!statement.assignments.empty() && statement.assignments.back().second) {
        fail("parameter without a default after one with a default", line());
      }
      statement.assignments.emplace_back(std::move(name), std::move(fallback));
    }
    take();
  }

  // The body of a macro or call block; notes which of the implicit names it reads.
  void parse_callable_body(Statement& statement, std::string_view end_name) {
    OutsideLoops outside(*this);
    const ImplicitNames saved = std::exchange(implicit_names_, ImplicitNames{});
    statement.body = parse_body(end_name);
    for (const auto& [name, fallback] : statement.assignments) {
      if (name->text == "caller") implicit_names_.caller = false;
      if (name->text == "varargs") implicit_names_.varargs = false;
      if (name->text == "kwargs") implicit_names_.kwargs = false;
    }
    statement.reads_caller = implicit_names_.caller;
    statement.reads_varargs = implicit_names_.varargs;
    statement.reads_kwargs = implicit_names_.kwargs;
    implicit_names_ = saved;
  }

  StatementPtr parse_macro() {
    auto statement = start(StatementKind::kMacro);
    statement->target = parse_name_target();
    statement->text = statement->target->text;
    parse_parameters(*statement);
    parse_callable_body(*statement, "endmacro");
    return statement;
  }

  StatementPtr parse_call_block() {
    auto statement = start(StatementKind::kCallBlock);
    statement->text = "caller";
    if (is_operator("(")) parse_parameters(*statement);
    statement->value = parse_expression();
    if (statement->value->kind != ExpressionKind::kCall) fail("{% call %} needs a call such as name(...)", statement->line);
    parse_callable_body(*statement, "endcall");
    return statement;
  }

  StatementPtr parse_filter_block() {
    auto statement = start(StatementKind::kFilterBlock);
    statement->value = parse_first_filter();
    statement->body = parse_body("endfilter");
    return statement;
  }

  StatementPtr parse_with() {
    auto statement = start(StatementKind::kWith);
    while (current().type != TokenType::kBlockEnd) {
      if (!statement->assignments.empty()) expect_operator(",");
      ExpressionPtr target = parse_target({}, false);
      expect_operator("=");
      statement->assignments.emplace_back(std::move(target), parse_expression());
    }
    statement->body = parse_body("endwith");
    return statement;
  }

  StatementPtr parse_print() {
    auto statement = start(StatementKind::kOutput);
    statement->value = parse_tuple(true, {});
    end_tag();
    return statement;
  }

  // Bodies that are functions in the reference: a break inside cannot leave a loop outside.
  class OutsideLoops {
   public:
    explicit OutsideLoops(Parser& parser) : parser_(parser), saved_(std::exchange(parser.loops_, 0)) {}
    ~OutsideLoops() { parser_.loops_ = saved_; }
    OutsideLoops(const OutsideLoops&) = delete;
    OutsideLoops& operator=(const OutsideLoops&) = delete;

   private:
    Parser& parser_;
    int saved_;
  };

  int loops_ = 0;
};

}  // namespace

Block parse_template(std::string_view source) {
  if (source.size() > static_cast<size_t>(kMaxSourceBytes)) {
    fail("template is " + std::to_string(source.size()) + " bytes, limit " + std::to_string(kMaxSourceBytes));
  }
  return Parser(tokenize(source)).run();
}

}  // namespace quipu::jinja
