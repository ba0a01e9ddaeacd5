#include "engine/passkey_evaluation.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/clock.h"
#include "generate/runtime.h"

namespace quipu {
namespace {

constexpr int64_t kMostContext = int64_t{1} << 25;

// Regions that hold what Infini-attention has put away; the others are its local window.
bool is_memory(const std::string& region) {
  for (const char* name : {"memory", "norm", "open_memory", "open_norm", "memory_carry", "norm_carry", "waiting",
                           "waiting_key", "waiting_value"}) {
    if (region == name) return true;
  }
  return false;
}

int32_t largest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

struct PasskeyEvaluation::Stream {
  int64_t question = 0;
  SequenceState state;
  PasskeyHaystack haystack;
  double bytes = 0;   // of the text so far
  int32_t next = -1;  // most likely next token, after a pass with logits

  Result<Stream> fork(int64_t as_question) const {
    ASSIGN_OR_RETURN(SequenceState copy, state.fork());
    return Stream{as_question, std::move(copy), haystack, bytes, next};
  }
};

PasskeyEvaluation::PasskeyEvaluation(std::shared_ptr<Runtime> runtime, PasskeyText text, PasskeyEvaluationOptions options)
    : runtime_(std::move(runtime)), text_(std::move(text)), options_(std::move(options)) {
  for (int64_t id = 0; id < text_.vocabulary(); ++id) {
    const int32_t token = static_cast<int32_t>(id);
    token_bytes_.push_back(id < 256 ? 1.0 : static_cast<double>(text_.tokenizer().decode({&token, 1}).size()));
  }
}

PasskeyEvaluation::~PasskeyEvaluation() = default;
PasskeyEvaluation::PasskeyEvaluation(PasskeyEvaluation&&) noexcept = default;

std::string PasskeyEvaluation::key(int64_t question) const {
  return text_.draw_digits(mix64(options_.seed) ^ mix64(static_cast<uint64_t>(question)));
}

uint64_t PasskeyEvaluation::haystack_seed(int64_t question) const {
  return mix64(options_.seed + 0x68617973) ^ static_cast<uint64_t>(question / options_.share);
}

Result<PasskeyEvaluation::Stream> PasskeyEvaluation::begin(int64_t question) const {
  const std::vector<StateLayout> layouts = runtime_->model->state_layouts(runtime_->state);
  ASSIGN_OR_RETURN(SequenceState state, SequenceState::create(layouts, kMostContext, runtime_->pages));
  return Stream{question, std::move(state), text_.haystack(haystack_seed(question))};
}

// One pass: each stream reads its tokens. With logits, `next` of each is set.
Result<void> PasskeyEvaluation::forward(std::span<Stream*> streams, std::span<const std::span<const int32_t>> tokens,
                                        bool logits) {
  std::vector<int32_t> rows;
  std::vector<BatchSlice> slices;
  std::vector<int64_t> wanted;
  for (size_t i = 0; i < streams.size(); ++i) {
    if (tokens[i].empty()) continue;
    const int64_t count = static_cast<int64_t>(tokens[i].size());
    RETURN_IF_ERROR(streams[i]->state.prepare_append(count));
    slices.push_back({&streams[i]->state, count});
    for (const int32_t token : tokens[i]) {
      rows.push_back(token);
      streams[i]->bytes += token_bytes_[static_cast<size_t>(token)];
    }
    if (logits) wanted.push_back(static_cast<int64_t>(rows.size()) - 1);
  }
  const int64_t count = static_cast<int64_t>(wanted.size()), vocabulary = runtime_->vocabulary();
  logits_.resize(static_cast<size_t>(count * vocabulary));
  RETURN_IF_ERROR(runtime_->forward({logits_.data(), count, vocabulary}, {rows, slices, wanted}));
  read_tokens_ += static_cast<int64_t>(rows.size());
  if (!logits) return {};
  size_t row = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    if (tokens[i].empty()) continue;
    // Rows of a padded vocabulary stand for nothing.
    streams[i]->next = largest(std::span<const float>(logits_).subspan(row++ * static_cast<size_t>(vocabulary),
                                                                       static_cast<size_t>(text_.vocabulary())));
  }
  return {};
}

// Every stream reads its haystack until it has read until[i] tokens of it (nothing when it has read more).
Result<void> PasskeyEvaluation::read(std::span<Stream*> streams, std::span<const int64_t> until) {
  // Streams stay in step with segments of any power of two up to this, so that a pass is few and whole segments.
  constexpr int64_t kStep = 64;
  std::vector<std::vector<int32_t>> buffers(streams.size());
  std::vector<std::span<const int32_t>> tokens(streams.size());
  for (;;) {
    int64_t open = 0;
    for (size_t i = 0; i < streams.size(); ++i) open += streams[i]->haystack.taken() < until[i];
    if (open == 0) return {};
    if (options_.interrupted != nullptr && *options_.interrupted) return failed("interrupted");
    const int64_t share = std::max(options_.rows / open / kStep, int64_t{1}) * kStep;
    for (size_t i = 0; i < streams.size(); ++i) {
      buffers[i].clear();
      const int64_t left = until[i] - streams[i]->haystack.taken();
      if (left > 0) streams[i]->haystack.take(buffers[i], std::min(left, share - streams[i]->state.tokens() % kStep));
      tokens[i] = buffers[i];
    }
    RETURN_IF_ERROR(forward(streams, tokens, false));
    if (options_.on_progress) options_.on_progress(read_tokens_, planned_tokens_);
  }
}

// In groups that fill a pass.
Result<void> PasskeyEvaluation::read_in_groups(std::span<Stream*> streams, int64_t until) {
  const size_t group = static_cast<size_t>(std::max<int64_t>(options_.rows / 64, 1));
  for (size_t first = 0; first < streams.size(); first += group) {
    const size_t count = std::min(group, streams.size() - first);
    RETURN_IF_ERROR(read(streams.subspan(first, count), std::vector<int64_t>(count, until)));
  }
  return {};
}

// Every stream reads the tokens given for it; then `next` is known.
Result<void> PasskeyEvaluation::feed(std::span<Stream> streams, std::span<const std::vector<int32_t>> tokens) {
  const size_t most = static_cast<size_t>(std::max<int64_t>(options_.rows / 64, 1));   // streams of one pass
  for (size_t first = 0; first < streams.size(); first += most) {
    std::vector<Stream*> some;
    std::vector<std::span<const int32_t>> texts;
    for (size_t i = first; i < std::min(first + most, streams.size()); ++i) {
      some.push_back(&streams[i]);
      texts.emplace_back(tokens[i]);
    }
    RETURN_IF_ERROR(forward(some, texts, true));
  }
  return {};
}

// The haystacks of these questions, `before` tokens of each behind the opening. They only grow: one that has been read
// further begins anew.
Result<void> PasskeyEvaluation::read_prefixes(int64_t before, std::span<const int64_t> questions) {
  std::vector<Stream*> streams;
  Streams fresh;
  for (const int64_t question : questions) {
    const int64_t number = question / options_.share;
    const auto kept = prefixes_.find(number);
    if (kept != prefixes_.end() && kept->second.haystack.taken() <= before) continue;
    if (!fresh.empty() && fresh.back().question == number) continue;
    ASSIGN_OR_RETURN(Stream stream, begin(question));
    stream.question = number;
    fresh.push_back(std::move(stream));
  }
  const std::vector<int32_t> opening(text_.opening().begin(), text_.opening().end());
  RETURN_IF_ERROR(feed(fresh, std::vector<std::vector<int32_t>>(fresh.size(), opening)));
  for (Stream& stream : fresh) prefixes_.insert_or_assign(stream.question, std::move(stream));
  for (const int64_t question : questions) {
    Stream* const stream = &prefixes_.at(question / options_.share);
    if (streams.empty() || streams.back() != stream) streams.push_back(stream);
  }
  return read(streams, std::vector<int64_t>(streams.size(), before));
}

// One sequence a question (ascending), up to and with its needle.
Result<PasskeyEvaluation::Streams> PasskeyEvaluation::behind_needle(const PasskeyCell& cell, std::span<const int64_t> questions) {
  const int64_t filler = text_.filler_tokens(cell.tokens), before = text_.filler_before(cell.tokens, cell.depth);
  RETURN_IF_ERROR(read_prefixes(before, questions));
  Streams streams;
  std::vector<std::vector<int32_t>> texts;
  for (const int64_t question : questions) {
    ASSIGN_OR_RETURN(Stream stream, prefixes_.at(question / options_.share).fork(question));
    std::vector<int32_t> text;
    if (before > 0) stream.haystack.take_sentence(text, filler - before);
    const std::vector<int32_t> needle = text_.needle(key(question));
    text.insert(text.end(), needle.begin(), needle.end());
    streams.push_back(std::move(stream));
    texts.push_back(std::move(text));
  }
  RETURN_IF_ERROR(feed(streams, texts));
  return streams;
}

// Tokens after which nothing in the local windows of any layer, of two segments at most, was made with another memory.
int64_t PasskeyEvaluation::window_reach() const {
  int64_t reach = 0;
  for (const LayerConfig& layer : runtime_->model->config().layers) reach += 2 * segment_tokens(layer);
  return reach;
}

Result<void> PasskeyEvaluation::exchange_memories(Streams& streams) const {
  const size_t layers = streams.empty() ? 0 : streams[0].state.layers();
  std::vector<std::vector<std::byte>> kept;
  const auto each_memory = [&](auto&& visit) {
    for (size_t i = 0; i < streams.size(); ++i) {
      for (size_t layer = 0; layer < layers; ++layer) {
        LayerState& state = streams[i].state.layer(layer);
        for (size_t r = 0; r < state.regions(); ++r) {
          if (is_memory(state.region(r).spec.name)) visit(i, state.region(r));
        }
      }
    }
  };
  for (Stream& stream : streams) RETURN_IF_ERROR(stream.state.prepare_append(1));   // pages of its own
  each_memory([&](size_t, RegionState& region) {
    kept.emplace_back(region.pages[0], region.pages[0] + region.page_bytes());
  });
  if (streams.empty() || kept.empty()) return {};
  const size_t per_stream = kept.size() / streams.size();
  size_t number = 0;
  each_memory([&](size_t i, RegionState& region) {
    const size_t in_stream = number++ % per_stream;
    const std::vector<std::byte>& from = kept[(i + 1) % streams.size() * per_stream + in_stream];
    std::memcpy(region.pages[0], from.data(), from.size());
  });
  return {};
}

// Asks, and lets every stream answer digit by digit, each digit read before the next is given.
Result<void> PasskeyEvaluation::answer(Streams& streams, PasskeyAnswers& out) {
  const std::vector<int32_t> question(text_.question_text().begin(), text_.question_text().end());
  RETURN_IF_ERROR(feed(streams, std::vector<std::vector<int32_t>>(streams.size(), question)));
  std::vector<std::vector<int32_t>> given(streams.size());
  for (int64_t digit = 0; digit < text_.kind().digits; ++digit) {
    std::vector<std::vector<int32_t>> last;
    for (size_t i = 0; i < streams.size(); ++i) {
      given[i].push_back(streams[i].next);
      last.push_back({streams[i].next});
    }
    if (digit + 1 < text_.kind().digits) RETURN_IF_ERROR(feed(streams, last));
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    const std::vector<int32_t> own = text_.answer(key(streams[i].question));
    const std::vector<int32_t> foreign = text_.answer(key(streams[(i + 1) % streams.size()].question));
    for (size_t digit = 0; digit < own.size(); ++digit) {
      out.digits_right += given[i][digit] == own[digit];
      out.foreign_right += given[i][digit] == foreign[digit];
    }
    out.answers_right += given[i] == own;
    out.text_bytes += streams[i].bytes / static_cast<double>(streams.size());
    out.digits += static_cast<int64_t>(own.size());
  }
  out.given = std::move(given);
  out.samples = static_cast<int64_t>(streams.size());
  out.state_bytes = streams.empty() ? 0 : streams[0].state.bytes();
  return {};
}

Result<PasskeyAnswers> PasskeyEvaluation::run(const PasskeyCell& cell) {
  if (cell.tokens < text_.shortest() || cell.tokens > kMostContext - text_.kind().digits) {
    return usage_error("a pass key question of " + std::to_string(cell.tokens) + " tokens, expected " +
                       std::to_string(text_.shortest()) + " to " + std::to_string(kMostContext - text_.kind().digits));
  }
  const double start = monotonic_seconds();
  const int64_t filler = text_.filler_tokens(cell.tokens);
  // Where memories are exchanged, or nothing happens.
  const bool foreign = cell.memory == PasskeyMemory::kForeign;
  const int64_t until = foreign ? std::max<int64_t>(filler - window_reach(), 0) : filler;
  PasskeyAnswers out;
  read_tokens_ = 0;
  planned_tokens_ = cell.samples * cell.tokens;   // at most
  std::vector<int64_t> questions(static_cast<size_t>(cell.samples));
  std::iota(questions.begin(), questions.end(), cell.first);
  Streams streams;
  std::vector<Stream*> reading;
  const bool from_start = cell.depth <= 0;
  if (from_start) {
    std::vector<int64_t> missing;
    for (const int64_t question : questions) {
      const auto kept = from_start_.find(question);
      if (kept == from_start_.end() || kept->second.haystack.taken() > until) missing.push_back(question);
    }
    ASSIGN_OR_RETURN(Streams fresh, behind_needle(cell, missing));
    for (Stream& stream : fresh) from_start_.insert_or_assign(stream.question, std::move(stream));
    for (const int64_t question : questions) reading.push_back(&from_start_.at(question));
  } else {
    ASSIGN_OR_RETURN(streams, behind_needle(cell, questions));
    for (Stream& stream : streams) reading.push_back(&stream);
  }
  RETURN_IF_ERROR(read_in_groups(reading, until));
  if (from_start) {   // they read on for the next length
    for (const Stream* stream : reading) {
      ASSIGN_OR_RETURN(Stream copy, stream->fork(stream->question));
      streams.push_back(std::move(copy));
    }
  }
  if (foreign) {
    RETURN_IF_ERROR(exchange_memories(streams));
    reading.clear();
    for (Stream& stream : streams) reading.push_back(&stream);
    RETURN_IF_ERROR(read_in_groups(reading, filler));
  }
  RETURN_IF_ERROR(answer(streams, out));
  out.tokens_read = read_tokens_;
  out.seconds = monotonic_seconds() - start;
  return out;
}

}  // namespace quipu
