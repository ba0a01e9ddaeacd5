// Source text to tokens, with Jinja's whitespace rules (trim_blocks and lstrip_blocks on, as chat templates expect).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quipu::jinja {

enum class TokenType : unsigned char {
  kText, kOutputBegin, kOutputEnd, kBlockBegin, kBlockEnd, kName, kString, kInteger, kFloat, kOperator, kEnd
};

struct Token {
  TokenType type = TokenType::kEnd;
  int line = 0;
  std::string text;   // strings: with escapes resolved; numbers: without underscores
};

// `source` is valid UTF-8 within kMaxSourceBytes. Throws TemplateError. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace quipu::jinja
