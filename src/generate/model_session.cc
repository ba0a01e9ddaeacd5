#include "generate/model_session.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/clock.h"
#include "generate/sampler.h"
#include "generate/stop_text.h"

namespace quipu {
namespace {

constexpr int64_t kLogitBytesAtOnce = int64_t{64} << 20;   // of feed_with_logits
constexpr int64_t kReservedIds = 1 << 16;

bool is_set(const volatile bool* flag) { return flag != nullptr && *flag; }

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kContextFull: return "context";
    case FinishReason::kInterrupted: return "interrupted";
  }
  return "";
}

ModelSession::ModelSession(std::shared_ptr<Runtime> runtime, SequenceState state)
    : runtime_(std::move(runtime)), state_(std::move(state)), logits_(static_cast<size_t>(runtime_->vocabulary())) {
  ids_.reserve(static_cast<size_t>(std::min(state_.context(), kReservedIds)));
}

Result<std::unique_ptr<ModelSession>> ModelSession::create(std::shared_ptr<Runtime> runtime, int64_t context) {
  if (context < 1 || context > kMaxContext) {
    return usage_error("context of " + std::to_string(context) + " tokens, expected 1 to " + std::to_string(kMaxContext));
  }
  const std::vector<StateLayout> layouts = runtime->model->state_layouts(runtime->state);
  ASSIGN_OR_RETURN(SequenceState state, SequenceState::create(layouts, context, runtime->pages));
  return std::unique_ptr<ModelSession>(new ModelSession(std::move(runtime), std::move(state)));
}

std::vector<RoutedLayer> ModelSession::routed_layers() const {
  std::vector<RoutedLayer> layers;
  for (const RoutedTokens& r : state_.routed_tokens()) layers.push_back({r.layer, r.seen, r.taken, r.reserved, r.passed_full});
  return layers;
}

std::span<const float> ModelSession::logits() const {
  return ids_.empty() ? std::span<const float>() : std::span<const float>(logits_);
}

uint64_t ModelSession::logits_hash() const {
  const std::span<const float> bits = logits();
  return XXH3_64bits(bits.data(), bits.size_bytes());
}

Result<void> ModelSession::check_ids(std::span<const int32_t> ids) const {
  const int64_t count = static_cast<int64_t>(ids.size());
  if (count > context() - tokens()) {
    return usage_error(std::to_string(count) + " tokens do not fit: the context holds " + std::to_string(context()) + " and has " +
                       std::to_string(tokens()) + "; ask for a larger context");
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= runtime_->vocabulary()) {
      return usage_error("token id " + std::to_string(id) + ", expected 0 to " + std::to_string(runtime_->vocabulary() - 1));
    }
  }
  return {};
}

Result<void> ModelSession::append(std::span<const int32_t> ids, MatrixView<float> logits, std::span<const int64_t> wanted,
                                  Origin origin) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  RETURN_IF_ERROR(state_.prepare_append(rows));
  const BatchSlice slice{&state_, rows, origin == Origin::kGiven};
  RETURN_IF_ERROR(runtime_->forward(logits, {ids, {&slice, 1}, wanted}));
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  return {};
}

Result<void> ModelSession::feed(std::span<const int32_t> ids, const std::function<void(int64_t, int64_t)>& on_progress,
                                const volatile bool* interrupted) {
  RETURN_IF_ERROR(check_ids(ids));
  const int64_t total = static_cast<int64_t>(ids.size());
  for (int64_t done = 0; done < total;) {
    if (is_set(interrupted)) {
      return failed("interrupted after " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
    }
    const double start = monotonic_seconds();
    const int64_t rows = std::min(total - done, runtime_->state.max_chunk);
    const int64_t last = rows - 1;   // of every chunk: an interrupted session stays usable
    RETURN_IF_ERROR(append(ids.subspan(static_cast<size_t>(done), static_cast<size_t>(rows)), own_logits(), {&last, 1}));
    done += rows;
    counters_.prompt_tokens += rows;
    counters_.prompt_seconds += monotonic_seconds() - start;
    if (on_progress) on_progress(done, total);
  }
  return {};
}

Result<void> ModelSession::feed_with_logits(std::span<const int32_t> ids,
                                            const std::function<void(int64_t, std::span<const float>)>& on_logits) {
  RETURN_IF_ERROR(check_ids(ids));
  const int64_t total = static_cast<int64_t>(ids.size());
  const int64_t row_limit = kLogitBytesAtOnce / (runtime_->vocabulary() * static_cast<int64_t>(sizeof(float)));
  const int64_t chunk = std::max<int64_t>(1, std::min(runtime_->state.max_chunk, row_limit));
  std::vector<int64_t> wanted(static_cast<size_t>(std::min(chunk, total)));
  std::iota(wanted.begin(), wanted.end(), 0);
  for (int64_t done = 0; done < total;) {
    const double start = monotonic_seconds();
    const int64_t rows = std::min(total - done, chunk);
    ASSIGN_OR_RETURN(const MatrixView<float> logits, runtime_->shared_logits(rows));
    RETURN_IF_ERROR(append(ids.subspan(static_cast<size_t>(done), static_cast<size_t>(rows)), logits,
                           std::span<const int64_t>(wanted).first(static_cast<size_t>(rows))));
    std::memcpy(logits_.data(), logits.row(rows - 1), logits_.size() * sizeof(float));
    counters_.prompt_tokens += rows;
    counters_.prompt_seconds += monotonic_seconds() - start;
    for (int64_t row = 0; row < rows; ++row) on_logits(done + row, {logits.row(row), logits_.size()});
    done += rows;
  }
  return {};
}

void ModelSession::count_decoded(double seconds, double sharing) {
  const Model& model = *runtime_->model;
  counters_.generated_tokens += 1;
  counters_.generate_seconds += seconds;
  // Asking every layer costs an allocation: once a page is often enough.
  const int64_t page = tokens() / kPageRows;
  if (page != counted_page_) {
    counted_page_ = page;
    state_bytes_read_ = model.state_bytes_read_per_token(tokens(), runtime_->state);
  }
  counters_.generate_bytes += model.weight_bytes_read_per_token() / sharing + state_bytes_read_;
}

Result<void> ModelSession::decode(int32_t id) {
  const double start = monotonic_seconds();
  const int64_t row = 0;
  RETURN_IF_ERROR(append({&id, 1}, own_logits(), {&row, 1}, Origin::kGenerated));
  count_decoded(monotonic_seconds() - start, 1);
  return {};
}

Result<void> ModelSession::step(std::span<ModelSession* const> sessions, std::span<const int32_t> ids) {
  CHECK(sessions.size() == ids.size()) << sessions.size() << " sessions, " << ids.size() << " tokens";
  if (sessions.empty()) return {};
  const double start = monotonic_seconds();
  Runtime& runtime = *sessions[0]->runtime_;
  runtime.batch_slices.clear();
  runtime.batch_wanted.clear();
  runtime.batch_tokens.assign(ids.begin(), ids.end());
  for (size_t i = 0; i < sessions.size(); ++i) {
    CHECK(sessions[i]->runtime_.get() == &runtime) << "sessions of different engines";
    RETURN_IF_ERROR(sessions[i]->check_ids(ids.subspan(i, 1)));
    RETURN_IF_ERROR(sessions[i]->state_.prepare_append(1));
    runtime.batch_slices.push_back({&sessions[i]->state_, 1});
    runtime.batch_wanted.push_back(static_cast<int64_t>(i));
  }
  const int64_t rows = static_cast<int64_t>(sessions.size());
  ASSIGN_OR_RETURN(const MatrixView<float> logits, runtime.shared_logits(rows));
  RETURN_IF_ERROR(runtime.forward(logits, {runtime.batch_tokens, runtime.batch_slices, runtime.batch_wanted}));
  const double seconds = monotonic_seconds() - start;
  for (size_t i = 0; i < sessions.size(); ++i) {
    ModelSession& session = *sessions[i];
    std::memcpy(session.logits_.data(), logits.row(static_cast<int64_t>(i)), session.logits_.size() * sizeof(float));
    session.ids_.push_back(ids[i]);
    session.count_decoded(seconds, static_cast<double>(rows));
  }
  return {};
}

Result<GenerateResult> ModelSession::generate(const GenerateOptions& options,
                                              const std::function<void(std::string_view)>& on_piece) {
  RETURN_IF_ERROR(check_sampling(options.sampling));
  if (ids_.empty()) return usage_error("nothing to continue: the context is empty; feed a prompt first");
  ASSIGN_OR_RETURN(StopText stop, StopText::create(options.stop));
  Sampler sampler(options.sampling, runtime_->vocabulary());
  const Tokenizer* tokenizer = runtime_->tokenizer.get();
  std::unique_ptr<StreamingDetokenizer> detokenizer;
  if (tokenizer != nullptr) {
    detokenizer = std::make_unique<StreamingDetokenizer>(*tokenizer, DetokenizerOptions{.starts_text = false});
  }
  GenerateResult result;
  const auto show = [&](const std::string& text) {
    result.text += text;
    if (!text.empty() && on_piece) on_piece(text);
  };
  for (;;) {
    if (is_set(options.interrupted)) {
      result.finish = FinishReason::kInterrupted;
      break;
    }
    if (options.max_tokens >= 0 && static_cast<int64_t>(result.tokens.size()) >= options.max_tokens) {
      result.finish = FinishReason::kLength;
      break;
    }
    if (tokens() >= context()) {
      result.finish = FinishReason::kContextFull;
      break;
    }
    const double start = monotonic_seconds();
    ASSIGN_OR_RETURN(const int32_t id, sampler.sample(logits_, ids_, tokens()));
    counters_.generate_seconds += monotonic_seconds() - start;
    if (tokenizer != nullptr && tokenizer->ends_generation(id) && !options.ignore_end) break;   // kStop
    result.tokens.push_back(id);
    if (detokenizer != nullptr) show(stop.push(detokenizer->push(id)));
    if (stop.stopped()) break;                                                                  // kStop
    RETURN_IF_ERROR(decode(id));
  }
  if (!stop.stopped()) {
    if (detokenizer != nullptr) show(stop.push(detokenizer->finish()));
    if (!stop.stopped()) show(stop.flush());
  }
  return result;
}

Result<void> ModelSession::reset() {
  const std::vector<StateLayout> layouts = runtime_->model->state_layouts(runtime_->state);
  ASSIGN_OR_RETURN(state_, SequenceState::create(layouts, context(), runtime_->pages));
  ids_.clear();
  return {};
}

Result<void> ModelSession::rewind(int64_t wanted) {
  if (wanted < 0 || wanted > tokens()) {
    return usage_error("cannot cut back to " + std::to_string(wanted) + " tokens: the context has " + std::to_string(tokens()));
  }
  if (wanted == tokens()) return {};
  if (wanted == 0) return reset();
  // The last token that stays is computed again: its logits are not kept, its state is written with the same
  // bits (a generated token's as if it had been given: within rounding where a room tells the two apart).
  RETURN_IF_ERROR(state_.rewind(wanted - 1));
  const int32_t last = ids_[static_cast<size_t>(wanted - 1)];
  ids_.resize(static_cast<size_t>(wanted - 1));
  const int64_t row = 0;
  return append({&last, 1}, own_logits(), {&row, 1});
}

Result<std::unique_ptr<Session>> ModelSession::fork() const {
  ASSIGN_OR_RETURN(SequenceState state, state_.fork());
  std::unique_ptr<ModelSession> copy(new ModelSession(runtime_, std::move(state)));
  copy->ids_.assign(ids_.begin(), ids_.end());
  copy->logits_ = logits_;
  return std::unique_ptr<Session>(std::move(copy));
}

}  // namespace quipu
