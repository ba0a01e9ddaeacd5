// The syntax tree. Its depth is bounded by the parser, so walking and destroying it may recurse.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace quipu::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using StatementPtr = std::unique_ptr<Statement>;
using Block = std::vector<StatementPtr>;

enum class ExpressionKind : uint8_t {
  kLiteral,      // literal
  kName,         // text
  kList, kTuple, // children
  kDict,         // children: key, value, key, value, ...
  kAttribute,    // children[0] . text
  kItem,         // children[0] [ children[1] ]
  kSlice,        // children[0] [ children[1] : children[2] : children[3] ], absent parts null
  kCall,         // children[0] ( arguments )
  kFilter,       // children[0] | text ( arguments ); children[0] null inside filter blocks
  kTest,         // children[0] is text ( arguments )
  kNot, kNegate, kPlus,  // children[0]
  kSum, kProduct,        // children with `operators` between them, left to right (chains are long in real templates)
  kPower,        // children[0] ** children[1] ** ..., left to right as in Jinja
  kJoin,         // children[0] ~ children[1] ~ ...
  kCompare,      // children with `operators` between them, as in Python: a < b < c
  kAnd, kOr,     // children
  kConditional,  // children[0] if children[1] else children[2] (null: undefined)
};

enum class Operator : uint8_t {
  kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo,
  kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn
};

struct ArgumentList {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star, double_star;
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kLiteral;
  int line = 0;
  int depth = 1;
  std::string text;
  Value literal;
  std::unique_ptr<StringObject> literal_string;   // what `literal` points to when it is a string
  std::vector<ExpressionPtr> children;
  std::vector<Operator> operators;
  std::unique_ptr<ArgumentList> arguments;        // null: none
};

enum class StatementKind : uint8_t {
  kText,         // text
  kOutput,       // value
  kIf,           // branches: condition (null for else) and body
  kFor,          // target in value [if condition] body [else orelse]
  kSet,          // target = value
  kSetBlock,     // target = rendered body, through value (a filter chain) if present
  kMacro,        // text = name, parameters, body
  kCallBlock,    // value = call expression; parameters and body make its `caller`
  kFilterBlock,  // rendered body through value
  kWith,         // assignments, body
  kGeneration,   // body: the tag by which training code marks what the assistant said
  kBreak, kContinue,
};

struct Statement {
  StatementKind kind = StatementKind::kText;
  int line = 0;
  std::string text;
  ExpressionPtr target, value, condition;
  Block body, orelse;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> assignments;   // kWith; kMacro and kCallBlock: name, default or null
  bool recursive = false;                                              // kFor
  bool reads_varargs = false, reads_kwargs = false, reads_caller = false;  // kMacro, kCallBlock
};

}  // namespace quipu::jinja
