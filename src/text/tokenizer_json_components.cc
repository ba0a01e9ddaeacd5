#include "text/tokenizer_json_components.h"

#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer_build.h"

namespace quipu {
namespace {

using Element = JsonFields::Element;
constexpr size_t kStepLimit = 64;
constexpr std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Error unsupported(const JsonFields& fields, std::string_view type, std::string_view supported) {
  return bad_input(fields.where("type") + " is \"" + printable(type) + "\", supported are " + std::string(supported));
}

// Calls read(element, where) for `element`, or for each part of it when it is a Sequence, nested ones too. The parser
// bounds the nesting.
template <class Read>
Result<void> for_each_part(Element element, const std::string& where, std::string_view parts_key, const Read& read) {
  if (element.is_null()) return {};
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(element, where));
  ASSIGN_OR_RETURN(const std::string type, fields.type());
  if (type != "Sequence") return read(fields, type);
  ASSIGN_OR_RETURN(const simdjson::dom::array parts, fields.array(parts_key));
  size_t index = 0;
  for (Element part : parts) {
    RETURN_IF_ERROR(for_each_part(part, fields.where(parts_key) + "[" + std::to_string(index++) + "]", parts_key, read));
  }
  return {};
}

// {"String": text} or {"Regex": pattern}.
Result<std::variant<Regex, std::string>> pattern_from_json(const JsonFields& owner) {
  ASSIGN_OR_RETURN(const JsonFields pattern, owner.fields("pattern"));
  if (pattern.has("String")) {
    ASSIGN_OR_RETURN(const std::string_view text, pattern.string("String"));
    if (text.empty()) return bad_input(pattern.where("String") + " is empty");
    return std::variant<Regex, std::string>(std::string(text));
  }
  ASSIGN_OR_RETURN(const std::string_view source, pattern.string("Regex"));
  ASSIGN_OR_RETURN(Regex regex, Regex::compile(source, pattern.where("Regex")));
  return std::variant<Regex, std::string>(std::move(regex));
}

template <class Step>
Result<void> check_count(const std::vector<Step>& steps, const std::string& where) {
  if (steps.size() <= kStepLimit) return {};
  return bad_input(where + " has more than " + std::to_string(kStepLimit) + " steps");
}

Result<normalize::Step> normalizer_step(const JsonFields& fields, const std::string& type) {
  using namespace normalize;
  if (type == "NFC") return Step(Unicode{Form::kNfc});
  if (type == "NFD") return Step(Unicode{Form::kNfd});
  if (type == "NFKC") return Step(Unicode{Form::kNfkc});
  if (type == "NFKD") return Step(Unicode{Form::kNfkd});
  if (type == "Lowercase") return Step(Lowercase{});
  if (type == "StripAccents") return Step(StripAccents{});
  if (type == "Strip") {
    ASSIGN_OR_RETURN(const bool left, fields.boolean_or("strip_left", true));
    ASSIGN_OR_RETURN(const bool right, fields.boolean_or("strip_right", true));
    return Step(Strip{left, right});
  }
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string_view text, fields.string("prepend"));
    return Step(Prepend{std::string(text)});
  }
  if (type == "Replace") {
    ASSIGN_OR_RETURN(auto pattern, pattern_from_json(fields));
    ASSIGN_OR_RETURN(const std::string_view to, fields.string("content"));
    if (auto* text = std::get_if<std::string>(&pattern)) return Step(ReplaceText{std::move(*text), std::string(to)});
    return Step(ReplaceRegex{std::get<Regex>(std::move(pattern)), std::string(to)});
  }
  return unsupported(fields, type, "NFC NFD NFKC NFKD Lowercase StripAccents Strip Prepend Replace Sequence");
}

Result<pre_tokenize::Behavior> behavior_of(const JsonFields& fields) {
  using pre_tokenize::Behavior;
  ASSIGN_OR_RETURN(const std::string_view name, fields.string("behavior"));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return bad_input(fields.where("behavior") + " is \"" + printable(name) +
                   "\", supported are Removed Isolated MergedWithPrevious MergedWithNext Contiguous");
}

Result<pre_tokenize::Step> metaspace_step(const JsonFields& fields) {
  using pre_tokenize::Prepend;
  pre_tokenize::Metaspace step;
  ASSIGN_OR_RETURN(const std::string_view replacement, fields.string("replacement"));
  if (replacement.empty() || utf8_sequence_length(replacement) != replacement.size()) {
    return bad_input(fields.where("replacement") + " is \"" + printable(replacement) + "\", expected one character");
  }
  step.replacement = replacement;
  ASSIGN_OR_RETURN(step.split, fields.boolean_or("split", true));
  if (fields.has("prepend_scheme")) {
    ASSIGN_OR_RETURN(const std::string_view scheme, fields.string("prepend_scheme"));
    if (scheme != "always" && scheme != "never" && scheme != "first") {
      return bad_input(fields.where("prepend_scheme") + " is \"" + printable(scheme) + "\", supported are always first never");
    }
    step.prepend = scheme == "always" ? Prepend::kAlways : scheme == "first" ? Prepend::kFirst : Prepend::kNever;
  } else {
    ASSIGN_OR_RETURN(const bool prefix, fields.boolean_or("add_prefix_space", true));
    step.prepend = prefix ? Prepend::kAlways : Prepend::kNever;
  }
  return pre_tokenize::Step(std::move(step));
}

// One component of ours that is a pattern.
Result<void> add_pattern(PreTokenizerSpec& spec, std::string_view pattern, pre_tokenize::Behavior behavior, bool invert,
                         const std::string& where) {
  ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern, where));
  spec.steps.emplace_back(pre_tokenize::Split{.pattern = std::move(regex), .behavior = behavior, .invert = invert});
  return {};
}

Result<void> add_pre_tokenizer(PreTokenizerSpec& spec, const JsonFields& fields, const std::string& type) {
  using pre_tokenize::Behavior;
  if (spec.byte_level) return bad_input(fields.where() + ": a pre-tokenizer after ByteLevel is not supported");
  if (type == "ByteLevel") {
    spec.byte_level = true;
    ASSIGN_OR_RETURN(const bool prefix, fields.boolean_or("add_prefix_space", true));
    ASSIGN_OR_RETURN(const bool cuts, fields.boolean_or("use_regex", true));
    if (prefix) spec.steps.emplace_back(pre_tokenize::PrefixSpace{});
    return cuts ? add_pattern(spec, kGpt2Pattern, Behavior::kIsolated, false, fields.where()) : Result<void>();
  }
  if (type == "Split") {
    ASSIGN_OR_RETURN(auto pattern, pattern_from_json(fields));
    ASSIGN_OR_RETURN(const Behavior behavior, behavior_of(fields));
    ASSIGN_OR_RETURN(const bool invert, fields.boolean_or("invert", false));
    spec.steps.emplace_back(pre_tokenize::Split{.pattern = std::move(pattern), .behavior = behavior, .invert = invert});
    return {};
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool each, fields.boolean_or("individual_digits", false));
    return add_pattern(spec, each ? R"(\p{N})" : R"(\p{N}+)", Behavior::kIsolated, false, fields.where());
  }
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(pre_tokenize::Step step, metaspace_step(fields));
    spec.steps.push_back(std::move(step));
    return {};
  }
  if (type == "Whitespace") return add_pattern(spec, R"(\w+|[^\w\s]+)", Behavior::kRemoved, true, fields.where());
  if (type == "WhitespaceSplit") return add_pattern(spec, R"(\s+)", Behavior::kRemoved, false, fields.where());
  if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const Behavior behavior, fields.has("behavior") ? behavior_of(fields) : Result<Behavior>(Behavior::kIsolated));
    return add_pattern(spec, R"([\p{P}$+<=>^`|~])", behavior, false, fields.where());
  }
  if (type == "CharDelimiterSplit") {
    ASSIGN_OR_RETURN(const std::string_view delimiter, fields.string("delimiter"));
    if (delimiter.empty()) return bad_input(fields.where("delimiter") + " is empty");
    spec.steps.emplace_back(pre_tokenize::Split{.pattern = std::string(delimiter), .behavior = Behavior::kRemoved});
    return {};
  }
  return unsupported(fields, type, "ByteLevel Split Digits Metaspace Whitespace WhitespaceSplit Punctuation CharDelimiterSplit Sequence");
}

}  // namespace

Result<std::vector<normalize::Step>> normalizer_from_json(Element element, const std::string& where) {
  std::vector<normalize::Step> steps;
  const auto add = [&](const JsonFields& fields, const std::string& type) -> Result<void> {
    ASSIGN_OR_RETURN(normalize::Step step, normalizer_step(fields, type));
    steps.push_back(std::move(step));
    return check_count(steps, where);
  };
  RETURN_IF_ERROR(for_each_part(element, where, "normalizers", add));
  return steps;
}

Result<PreTokenizerSpec> pre_tokenizer_from_json(Element element, const std::string& where) {
  PreTokenizerSpec spec;
  const auto add = [&](const JsonFields& fields, const std::string& type) -> Result<void> {
    RETURN_IF_ERROR(add_pre_tokenizer(spec, fields, type));
    return check_count(spec.steps, where);
  };
  RETURN_IF_ERROR(for_each_part(element, where, "pretokenizers", add));
  return spec;
}

Result<DecoderSpec> decoder_from_json(Element element, const std::string& where) {
  DecoderSpec spec;
  bool fused = false;
  const auto add = [&](const JsonFields& fields, const std::string& type) -> Result<void> {
    if (fused && type != "Strip" && type != "Fuse") return bad_input(fields.where() + ": a decoder after Fuse is not supported");
    if (type == "ByteLevel") {
      spec.steps.emplace_back(DecoderSpec::ByteLevel{});
    } else if (type == "ByteFallback") {
      spec.steps.emplace_back(DecoderSpec::ByteFallback{});
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Metaspace") {
      ASSIGN_OR_RETURN(const pre_tokenize::Step step, metaspace_step(fields));
      const auto& metaspace = std::get<pre_tokenize::Metaspace>(step);
      spec.steps.emplace_back(DecoderSpec::Replace{metaspace.replacement, " "});
      spec.strips_leading_space = metaspace.prepend != pre_tokenize::Prepend::kNever;
    } else if (type == "Replace") {
      ASSIGN_OR_RETURN(auto pattern, pattern_from_json(fields));
      ASSIGN_OR_RETURN(const std::string_view to, fields.string("content"));
      if (!std::holds_alternative<std::string>(pattern)) return bad_input(fields.where("pattern.Regex") + " is not supported in a decoder");
      spec.steps.emplace_back(DecoderSpec::Replace{std::get<std::string>(std::move(pattern)), std::string(to)});
    } else if (type == "Strip") {
      ASSIGN_OR_RETURN(const std::string_view content, fields.string("content"));
      ASSIGN_OR_RETURN(const int64_t start, fields.integer("start"));
      ASSIGN_OR_RETURN(const int64_t stop, fields.integer("stop"));
      if (!fused || content != " " || start < 0 || start > 1 || stop != 0) {
        return bad_input(fields.where() + ": only a Strip of one leading space after Fuse is supported");
      }
      spec.strips_leading_space = start == 1;
    } else {
      return unsupported(fields, type, "ByteLevel ByteFallback Fuse Metaspace Replace Strip Sequence");
    }
    return check_count(spec.steps, where);
  };
  RETURN_IF_ERROR(for_each_part(element, where, "decoders", add));
  return spec;
}

std::string DecoderSpec::apply(std::string_view token) const {
  std::string text(token);
  for (const auto& step : steps) {
    if (const auto* replace = std::get_if<Replace>(&step)) {
      text = replaced(text, replace->from, replace->to);
    } else if (std::holds_alternative<ByteFallback>(step)) {
      const int byte = byte_of_token(text);
      if (byte >= 0) return std::string(1, static_cast<char>(byte));
    } else if (auto bytes = bytes_from_alphabet(text)) {
      text = std::move(*bytes);
    }
  }
  return text;
}

Result<TemplateSpec> post_processor_from_json(Element element, const std::string& where, int64_t vocab_size) {
  TemplateSpec spec;
  const auto add = [&](const JsonFields& fields, const std::string& type) -> Result<void> {
    if (type == "ByteLevel") return {};   // moves offsets only
    if (type != "TemplateProcessing") return unsupported(fields, type, "ByteLevel TemplateProcessing Sequence");
    ASSIGN_OR_RETURN(const simdjson::dom::array pieces, fields.array("single"));
    ASSIGN_OR_RETURN(const JsonFields specials, fields.fields("special_tokens"));
    bool after_text = false;
    for (Element piece : pieces) {
      ASSIGN_OR_RETURN(const JsonFields entry, JsonFields::of(piece, fields.where("single")));
      if (!entry.has("SpecialToken")) {
        if (after_text || !entry.has("Sequence")) return bad_input(entry.where() + ": expected special tokens around one Sequence");
        after_text = true;
        continue;
      }
      ASSIGN_OR_RETURN(const JsonFields token, entry.fields("SpecialToken"));
      ASSIGN_OR_RETURN(const std::string_view name, token.string("id"));
      ASSIGN_OR_RETURN(const JsonFields special, specials.fields(name));
      ASSIGN_OR_RETURN(const simdjson::dom::array ids, special.array("ids"));
      for (Element id_element : ids) {
        int64_t id = -1;
        if (id_element.get(id) != simdjson::SUCCESS || id < 0 || id >= vocab_size) {
          return bad_input(special.where("ids") + ": an id is not in 0 to " + std::to_string(vocab_size - 1));
        }
        auto& side = after_text ? spec.suffix : spec.prefix;
        side.push_back(static_cast<int32_t>(id));
        if (side.size() > kStepLimit) return bad_input(fields.where("single") + " has more than 64 special tokens");
      }
    }
    return {};
  };
  RETURN_IF_ERROR(for_each_part(element, where, "processors", add));
  return spec;
}

}  // namespace quipu
