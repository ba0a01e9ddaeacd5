// Conversation: a session, a chat template and the messages between them, fed so that only what is new is computed.
//
// A turn's text is what the template adds to the conversation so far. When the template continues the text that the
// model has already seen, its end alone is tokenised and fed; the ids of earlier answers stay exactly as the model
// wrote them. When the template rewrites the past (some drop earlier reasoning), the context is cut back to the common
// prefix.
//
// What people write never becomes a control token: if a message spells one ("<|im_end|>"), it is fed as plain text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace quipu::cli {

using FeedProgress = std::function<void(int64_t done, int64_t total)>;

class Conversation {
 public:
  // All must outlive it. chat_template may be null: messages are then fed as they are, one after the other.
  Conversation(const Tokenizer& tokenizer, const ChatTemplate* chat_template, Session& session)
      : tokenizer_(tokenizer), template_(chat_template), session_(session) {}

  // Instructions that stand before the first turn; takes effect when the context is empty.
  void set_system(const std::string& text) { system_ = masked(text); }

  // Feeds one message of the user and what leads to the answer. On error messages and context are as before, unless the
  // machine failed in between (then the context is cut back).
  Result<void> feed_user(const std::string& text, const FeedProgress& progress, const volatile bool* interrupted);
  // Records what the model answered (already in the session's context).
  void add_answer(const std::string& text);

  // Forgets everything. The system text stays.
  Result<void> clear();
  // The session was filled from elsewhere (a saved state): the words of the past are unknown, its tokens stand.
  void forget_messages();

  int64_t turns() const { return static_cast<int64_t>(messages_.size() / 2); }

 private:
  Result<std::string> render(const std::vector<ChatMessage>& messages) const;
  // `text`, or a placeholder for it when it spells a control token; encode() puts it back as plain text.
  std::string masked(const std::string& text);
  Result<std::vector<int32_t>> encode(const std::string& rendered, bool starts_text) const;
  // What follows an answer whose words are unknown.
  Result<std::string> turn_after_unknown_past(const ChatMessage& message) const;
  // Drops a leading id that the context already ends with (the end-of-turn token after an answer).
  void drop_repeated_end(std::vector<int32_t>& ids) const;

  // Ids that take the context from `keep` tokens to where the answer begins.
  struct Turn {
    int64_t keep = 0;
    std::vector<int32_t> ids;
    std::string seen;
  };
  Result<Turn> next_turn(const std::vector<ChatMessage>& messages) const;

  const Tokenizer& tokenizer_;
  const ChatTemplate* template_;
  Session& session_;
  std::vector<std::string> masked_texts_;  // what placeholder number i stands for
  std::string system_;
  std::vector<ChatMessage> messages_;  // without the system text; user and assistant in turn
  std::string seen_text_;              // the rendered text the context stands for, answers included
  bool past_known_ = true;
};

}  // namespace quipu::cli
