#include "conversation.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace quipu::cli {
namespace {

// Placeholders no person writes by accident. One that is written on purpose stands for a message of the same writer.
constexpr std::string_view kMaskBegin = "\x02quipu-text-";
constexpr char kMaskEnd = '\x03';
const std::string kEarlierAnswer = "\x02quipu-earlier-answer\x03";

ChatMessage message_of(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
}

}  // namespace

Result<std::string> Conversation::render(const std::vector<ChatMessage>& messages) const {
  std::vector<ChatMessage> all;
  if (!system_.empty()) all.push_back(message_of("system", system_));
  all.insert(all.end(), messages.begin(), messages.end());
  ChatTemplateOptions options;
  if (const auto bos = tokenizer_.bos()) options.bos_token = std::string(tokenizer_.token_bytes(*bos));
  if (const auto eos = tokenizer_.eos()) options.eos_token = std::string(tokenizer_.token_bytes(*eos));
  return template_->render(all, options);
}

std::string Conversation::masked(const std::string& text) {
  const auto ids = tokenizer_.encode(text, {.add_special = false, .parse_special = true});
  // A text that cannot be encoded is reported when it is fed.
  if (!ids.ok() || std::none_of(ids->begin(), ids->end(), [&](int32_t id) { return tokenizer_.is_special(id); })) {
    return text;
  }
  masked_texts_.push_back(text);
  return std::string(kMaskBegin) + std::to_string(masked_texts_.size() - 1) + kMaskEnd;
}

Result<std::vector<int32_t>> Conversation::encode(const std::string& rendered, bool starts_text) const {
  std::vector<int32_t> all;
  const auto append = [&](std::string_view text, bool parse_special) -> Result<void> {
    if (text.empty()) return {};
    ASSIGN_OR_RETURN(const auto ids, tokenizer_.encode(text, {.add_special = starts_text && all.empty(),
                                                              .parse_special = parse_special}));
    all.insert(all.end(), ids.begin(), ids.end());
    return {};
  };
  size_t from = 0;
  while (true) {
    const size_t at = rendered.find(kMaskBegin, from);
    RETURN_IF_ERROR(append(std::string_view(rendered).substr(from, at == std::string::npos ? at : at - from), true));
    if (at == std::string::npos) break;
    size_t index = masked_texts_.size();
    const char* const digits = rendered.data() + at + kMaskBegin.size();
    const char* const end = std::from_chars(digits, rendered.data() + rendered.size(), index).ptr;
    if (index < masked_texts_.size()) RETURN_IF_ERROR(append(masked_texts_[index], false));
    from = std::min(static_cast<size_t>(end - rendered.data()) + 1, rendered.size());
  }
  // Templates write the begin token themselves; the tokenizer's own would be a second one.
  if (starts_text && all.size() >= 2 && tokenizer_.bos() && all[0] == *tokenizer_.bos() && all[1] == all[0]) {
    all.erase(all.begin());
  }
  return all;
}

void Conversation::drop_repeated_end(std::vector<int32_t>& ids) const {
  const auto past = session_.token_ids();
  if (!ids.empty() && !past.empty() && ids[0] == past.back() && tokenizer_.ends_generation(ids[0])) {
    ids.erase(ids.begin());
  }
}

Result<std::string> Conversation::turn_after_unknown_past(const ChatMessage& message) const {
  // Any conversation will do: what the template puts after an answer does not depend on the words before it.
  ASSIGN_OR_RETURN(const std::string rendered,
                   render({message_of("user", "earlier"), message_of("assistant", kEarlierAnswer), message}));
  const size_t at = rendered.find(kEarlierAnswer);
  if (at == std::string::npos) {
    return bad_input(
        "chat template: it does not show earlier answers, so a saved state cannot be continued with it; use --raw");
  }
  return rendered.substr(at + kEarlierAnswer.size());
}

Result<Conversation::Turn> Conversation::next_turn(const std::vector<ChatMessage>& messages) const {
  Turn turn;
  turn.keep = session_.tokens();
  if (template_ == nullptr) {
    ASSIGN_OR_RETURN(turn.ids, encode(*messages.back().content, turn.keep == 0));
    return turn;
  }
  if (!past_known_) {
    ASSIGN_OR_RETURN(const std::string text, turn_after_unknown_past(messages.back()));
    ASSIGN_OR_RETURN(turn.ids, encode(text, false));
    drop_repeated_end(turn.ids);
    return turn;
  }
  ASSIGN_OR_RETURN(turn.seen, render(messages));
  if (turn.keep > 0 && turn.seen.starts_with(seen_text_)) {
    ASSIGN_OR_RETURN(turn.ids, encode(turn.seen.substr(seen_text_.size()), false));
    drop_repeated_end(turn.ids);
    return turn;
  }
  ASSIGN_OR_RETURN(turn.ids, encode(turn.seen, true));
  const auto past = session_.token_ids();
  // At least one token is fed anew, so that there are logits to go on from.
  const size_t most = std::min(past.size(), turn.ids.empty() ? 0 : turn.ids.size() - 1);
  const auto differs =
      std::mismatch(past.begin(), past.begin() + static_cast<std::ptrdiff_t>(most), turn.ids.begin()).second;
  turn.keep = differs - turn.ids.begin();
  turn.ids.erase(turn.ids.begin(), differs);
  return turn;
}

Result<void> Conversation::feed_user(const std::string& text, const FeedProgress& progress,
                                     const volatile bool* interrupted) {
  std::vector<ChatMessage> messages = messages_;
  messages.push_back(message_of("user", masked(text)));
  ASSIGN_OR_RETURN(Turn turn, next_turn(messages));
  if (turn.keep + static_cast<int64_t>(turn.ids.size()) > session_.context()) {
    return usage_error("the context is full: it holds " + std::to_string(session_.context()) + " tokens, and " +
                       std::to_string(turn.keep) + " + " + std::to_string(turn.ids.size()) +
                       " are needed; give a larger --context, or start anew");
  }
  if (turn.keep < session_.tokens() && !session_.rewind(turn.keep).ok()) {
    // A state that cannot be cut back is built again from the start.
    RETURN_IF_ERROR(session_.reset());
    ASSIGN_OR_RETURN(turn, next_turn(messages));
  }
  if (const auto fed = session_.feed(turn.ids, progress, interrupted); !fed.ok()) {
    if (session_.tokens() > turn.keep && !session_.rewind(turn.keep).ok()) RETURN_IF_ERROR(clear());
    return fed;
  }
  if (template_ != nullptr && past_known_) messages_ = std::move(messages);
  seen_text_ = std::move(turn.seen);
  return {};
}

void Conversation::add_answer(const std::string& text) {
  if (template_ == nullptr || !past_known_) return;
  messages_.push_back(message_of("assistant", text));
  seen_text_ += text;
}

Result<void> Conversation::clear() {
  messages_.clear();
  seen_text_.clear();
  past_known_ = true;
  return session_.reset();
}

void Conversation::forget_messages() {
  messages_.clear();
  seen_text_.clear();
  past_known_ = session_.tokens() == 0;
}

}  // namespace quipu::cli
