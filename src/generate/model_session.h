// ModelSession: the implementation of Session over a Model.
//
// Between calls the logits after the last token are always there (unless the context is empty), so that a session can be
// saved, forked or continued at any moment, and all of them go on with the same bits.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "generate/runtime.h"
#include "generate/session.h"

namespace quipu {

class ModelSession final : public Session {
 public:
  // context: most tokens it will hold, 1 .. 2^31. Errors: kUsage, or kFailed when memory is refused.
  static Result<std::unique_ptr<ModelSession>> create(std::shared_ptr<Runtime> runtime, int64_t context);

  int64_t tokens() const override { return static_cast<int64_t>(ids_.size()); }
  int64_t context() const override { return state_.context(); }
  std::span<const int32_t> token_ids() const override { return ids_; }
  uint64_t state_bytes() const override { return static_cast<uint64_t>(state_.bytes()); }
  std::vector<RoutedLayer> routed_layers() const override;
  const SessionCounters& counters() const override { return counters_; }
  void clear_counters() override { counters_ = {}; }

  Result<void> feed(std::span<const int32_t> ids, const std::function<void(int64_t, int64_t)>& on_progress,
                    const volatile bool* interrupted) override;
  Result<void> feed_with_logits(std::span<const int32_t> ids,
                                const std::function<void(int64_t, std::span<const float>)>& on_logits) override;
  std::span<const float> logits() const override;
  uint64_t logits_hash() const override;
  Result<GenerateResult> generate(const GenerateOptions& options,
                                  const std::function<void(std::string_view)>& on_piece) override;

  Result<void> rewind(int64_t tokens) override;
  Result<std::unique_ptr<Session>> fork() const override;
  Result<void> reset() override;
  Result<uint64_t> save_state(const std::string& path) const override;
  Result<void> load_state(const std::string& path) override;

  // Appends ids[i] to sessions[i], all in one pass. All sessions share one runtime and are distinct. On error none has
  // changed.
  static Result<void> step(std::span<ModelSession* const> sessions, std::span<const int32_t> ids);

 private:
  ModelSession(std::shared_ptr<Runtime> runtime, SequenceState state);
  Result<void> check_ids(std::span<const int32_t> ids) const;
  // Appends up to max_chunk tokens, given or (one) generated; logits [wanted, vocabulary] of the wanted rows.
  enum class Origin { kGiven, kGenerated };
  Result<void> append(std::span<const int32_t> ids, MatrixView<float> logits, std::span<const int64_t> wanted,
                      Origin origin = Origin::kGiven);
  MatrixView<float> own_logits() { return {logits_.data(), 1, runtime_->vocabulary()}; }
  // Appends one sampled token and counts it.
  Result<void> decode(int32_t id);
  void count_decoded(double seconds, double sharing);

  std::shared_ptr<Runtime> runtime_;
  SequenceState state_;
  std::vector<int32_t> ids_;      // capacity for the whole context up to a bound, see create()
  std::vector<float> logits_;     // [vocabulary]
  SessionCounters counters_;
  int64_t counted_page_ = -1;     // tokens() / kPageRows when state_bytes_read_ was asked for
  double state_bytes_read_ = 0;   // of one more token
};

}  // namespace quipu
