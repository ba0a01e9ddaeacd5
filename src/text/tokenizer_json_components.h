// The parts of a tokenizer.json around the model. Internal to text/; includes simdjson.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "text/json_fields.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"

namespace quipu {

// "normalizer"; null is no step.
Result<std::vector<normalize::Step>> normalizer_from_json(JsonFields::Element element, const std::string& where);

struct PreTokenizerSpec {
  std::vector<pre_tokenize::Step> steps;
  bool byte_level = false;   // the last step hands bytes to the model
};
// "pre_tokenizer"; null is no step.
Result<PreTokenizerSpec> pre_tokenizer_from_json(JsonFields::Element element, const std::string& where);

// What "decoder" does to each token, in order, and to the whole text.
struct DecoderSpec {
  struct Replace { std::string from, to; };
  struct ByteFallback {};
  struct ByteLevel {};
  std::vector<std::variant<Replace, ByteFallback, ByteLevel>> steps;
  bool strips_leading_space = false;

  std::string apply(std::string_view token) const;
};
Result<DecoderSpec> decoder_from_json(JsonFields::Element element, const std::string& where);

// "post_processor": ids around a single text.
struct TemplateSpec {
  std::vector<int32_t> prefix, suffix;
};
Result<TemplateSpec> post_processor_from_json(JsonFields::Element element, const std::string& where, int64_t vocab_size);

}  // namespace quipu
