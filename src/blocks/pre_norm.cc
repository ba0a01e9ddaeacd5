#include "blocks/pre_norm.h"

#include <algorithm>

namespace quipu {

Result<PreNormBlock> PreNormBlock::create(const Options& options, std::unique_ptr<Attention> attention,
                                          std::unique_ptr<FeedForward> feed_forward, WeightSource& weights) {
  PreNormBlock block(options);
  block.attention_ = std::move(attention);
  block.feed_forward_ = std::move(feed_forward);
  ASSIGN_OR_RETURN(block.attention_norm_, weights.vector("attention_norm", options.hidden, "hidden size"));
  ASSIGN_OR_RETURN(block.feed_forward_norm_, weights.vector("feed_forward_norm", options.hidden, "hidden size"));
  if (options.post_norms) {
    ASSIGN_OR_RETURN(block.attention_post_norm_, weights.vector("attention_post_norm", options.hidden, "hidden size"));
    ASSIGN_OR_RETURN(block.feed_forward_post_norm_, weights.vector("feed_forward_post_norm", options.hidden, "hidden size"));
  }
  return block;
}

int64_t PreNormBlock::scratch_bytes(int64_t rows) const {
  return 2 * Arena::planned<float>(rows * options_.hidden) +
         std::max(attention_->scratch_bytes(rows), feed_forward_->scratch_bytes(rows));
}

void PreNormBlock::attention_update(Backend& backend, MatrixView<float> out, MatrixView<const float> x,
                                    const RaggedBatch& batch, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> normed = scratch.matrix(x.rows, options_.hidden);
  backend.rms_norm(normed, x, attention_norm_, options_.epsilon);
  attention_->forward(backend, out, normed, batch, scratch);
  if (options_.post_norms) backend.rms_norm(out, out, attention_post_norm_, options_.epsilon);
}

void PreNormBlock::feed_forward_update(Backend& backend, MatrixView<float> out, MatrixView<const float> x,
                                       Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> normed = scratch.matrix(x.rows, options_.hidden);
  backend.rms_norm(normed, x, feed_forward_norm_, options_.epsilon);
  feed_forward_->forward(backend, out, normed, scratch);
  if (options_.post_norms) backend.rms_norm(out, out, feed_forward_post_norm_, options_.epsilon);
}

void PreNormBlock::attend(Backend& backend, MatrixView<float> x, const RaggedBatch& batch, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> out = scratch.matrix(x.rows, options_.hidden);
  attention_update(backend, out, x, batch, scratch);
  backend.add(x, out);
}

void PreNormBlock::feed(Backend& backend, MatrixView<float> x, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> out = scratch.matrix(x.rows, options_.hidden);
  feed_forward_update(backend, out, x, scratch);
  backend.add(x, out);
}

}  // namespace quipu
