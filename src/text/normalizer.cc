#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <bitset>
#include <cstdlib>
#include <memory>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/characters.h"

namespace quipu {
namespace {

using namespace normalize;

constexpr size_t kFixedBytes = 1 << 16;   // what a normalizer may add to any text, beside 64 times its length

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};

utf8proc_option_t options_of(Form form) {
  switch (form) {
    case Form::kNfc: return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    case Form::kNfd: return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    case Form::kNfkc: return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    case Form::kNfkd: break;
  }
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
}

Result<void> append_normal_form(std::string& out, std::string_view text, Form form) {
  uint8_t* mapped = nullptr;
  const auto bytes = utf8proc_map(reinterpret_cast<const uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                                  &mapped, options_of(form));
  const std::unique_ptr<uint8_t, Free> owner(mapped);
  if (bytes < 0) return failed(std::string("Unicode normalisation: ") + utf8proc_errmsg(bytes));
  out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(bytes));
  return {};
}

// Characters that no normal form changes or joins to the character on their left. Checked with the tables of utf8proc;
// nearly all ideographs and letters are, so that plain text is only copied.
bool is_stable(char32_t c, bool compatible) {
  if (c < 0x80) return true;
  if ((c >= 0x1160 && c <= 0x11ff) || (c >= 0xd7b0 && c <= 0xd7ff)) return false;   // Hangul vowels and finals join
  const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
  const bool second_of_pair = property->comb_index != UINT16_MAX && (property->comb_index & 0x8000) != 0;
  const bool syllable = c >= 0xac00 && c <= 0xd7a3;
  return property->combining_class == 0 && !second_of_pair && (compatible || !syllable) && property->decomp_seqindex == UINT16_MAX;
}

class StableCharacters {
 public:
  // composed: for NFC and NFKC, where a Hangul syllable stays.
  explicit StableCharacters(bool composed) : composed_(composed) {
    for (char32_t c = 0; c < 0x10000; ++c) low_[c] = is_stable(c, composed);
  }
  bool contains(char32_t c) const { return c < 0x10000 ? low_[c] : is_stable(c, composed_); }

 private:
  bool composed_;
  std::bitset<0x10000> low_;
};

// Hands utf8proc only stretches of characters that may change, each with the stable one before it.
Result<std::string> to_normal_form(std::string_view text, Form form) {
  static const StableCharacters composed(true), decomposed(false);
  const StableCharacters& stable = form == Form::kNfc || form == Form::kNfkc ? composed : decomposed;
  std::string out;
  out.reserve(text.size());
  size_t copied = 0, base = 0;   // base: the last stable character before `at`
  for (size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    if (static_cast<unsigned char>(rest[0]) < 0x80 || stable.contains(utf8_code_point(rest))) {
      base = at;
      at += static_cast<unsigned char>(rest[0]) < 0x80 ? 1 : utf8_sequence_length(rest);
      continue;
    }
    size_t end = at;
    while (end < text.size() && !stable.contains(utf8_code_point(text.substr(end)))) end += utf8_sequence_length(text.substr(end));
    base = std::max(base, copied);
    out.append(text, copied, base - copied);
    RETURN_IF_ERROR(append_normal_form(out, text.substr(base, end - base), form));
    copied = base = at = end;
  }
  out.append(text, copied, text.size() - copied);
  return out;
}

// Calls visit(code point, its bytes) for every character.
template <class Visit>
void for_each_character(std::string_view text, const Visit& visit) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_sequence_length(text.substr(at));
    visit(utf8_code_point(text.substr(at)), text.substr(at, length));
    at += length;
  }
}

std::string lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for_each_character(text, [&out](char32_t c, std::string_view) {
    if (c == 0x130) {
      out += "i\u0307";   // the one character whose lower case is two
    } else {
      utf8_append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
  });
  return out;
}

std::string without_accents(std::string_view text) {
  std::string out;
  for_each_character(text, [&out](char32_t c, std::string_view bytes) {
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    if (category < UTF8PROC_CATEGORY_MN || category > UTF8PROC_CATEGORY_ME) out += bytes;
  });
  return out;
}

std::string strip(std::string_view text, bool left, bool right) {
  size_t begin = text.size(), end = 0, at = 0;
  for_each_character(text, [&](char32_t c, std::string_view bytes) {
    if (!is_white_space(c)) {
      if (begin == text.size()) begin = at;
      end = at + bytes.size();
    }
    at += bytes.size();
  });
  if (begin == text.size()) return left || right ? std::string() : std::string(text);
  if (!left) begin = 0;
  if (!right) end = text.size();
  return std::string(text.substr(begin, end - begin));
}

Result<std::string> replace_regex(std::string_view text, const ReplaceRegex& step, RegexScratch& scratch) {
  std::string out;
  size_t copied = 0, from = 0;
  Regex::Span match;
  while (from <= text.size()) {
    const Regex::Found found = step.from.find(match, text, from, scratch);
    if (found == Regex::Found::kLimit) return bad_input("a normalizer regex passed its step limit: " + printable(step.from.source()));
    if (found == Regex::Found::kNone) break;
    out.append(text, copied, match.begin - copied);
    out += step.to;
    copied = match.end;
    from = match.end;
    if (match.end == match.begin) from += from < text.size() ? utf8_sequence_length(text.substr(from)) : 1;
  }
  out.append(text, copied);
  return out;
}

std::string replace_text(std::string_view text, const ReplaceText& step) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  for (size_t hit = text.find(step.from); hit != std::string_view::npos; hit = text.find(step.from, at)) {
    out.append(text, at, hit - at);
    out += step.to;
    at = hit + step.from.size();
  }
  out.append(text, at);
  return out;
}

struct Apply {
  std::string_view text;
  RegexScratch& scratch;
  Result<std::string> operator()(const Unicode& step) const { return to_normal_form(text, step.form); }
  Result<std::string> operator()(const Prepend& step) const { return text.empty() ? std::string() : step.text + std::string(text); }
  Result<std::string> operator()(const ReplaceText& step) const { return replace_text(text, step); }
  Result<std::string> operator()(const ReplaceRegex& step) const { return replace_regex(text, step, scratch); }
  Result<std::string> operator()(const Lowercase&) const { return lower(text); }
  Result<std::string> operator()(const Strip& step) const { return strip(text, step.left, step.right); }
  Result<std::string> operator()(const StripAccents&) const { return without_accents(text); }
};

}  // namespace

Result<std::string> Normalizer::apply(std::string_view text, RegexScratch& scratch) const {
  std::string current(text);
  for (const normalize::Step& step : steps_) {
    ASSIGN_OR_RETURN(std::string changed, std::visit(Apply{current, scratch}, step));
    if (changed.size() > 64 * text.size() + kFixedBytes) {
      return bad_input("the normalizer turns " + std::to_string(text.size()) + " bytes into " + std::to_string(changed.size()) +
                       ", limit 64 times the text");
    }
    current = std::move(changed);
  }
  return current;
}

}  // namespace quipu
