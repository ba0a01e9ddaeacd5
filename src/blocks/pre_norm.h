// PreNormBlock: one layer of a decoder.                               [pre-norm: Xiong et al. 2020; post norms: Gemma 3]
//
//   x += post(attention(norm(x)))        post: an RMS norm where the model has post norms, else nothing
//   x += post(feed_forward(norm(x)))
//
// Attention and feed-forward part are plugged in; the block owns the wiring and the norms.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "blocks/feed_forward.h"

namespace quipu {

class PreNormBlock {
 public:
  struct Options {
    int64_t hidden = 0;
    float epsilon = 0;
    bool post_norms = false;
  };
  // Takes the norms attention_norm, feed_forward_norm and, with post norms, attention_post_norm, feed_forward_post_norm.
  static Result<PreNormBlock> create(const Options& options, std::unique_ptr<Attention> attention,
                                     std::unique_ptr<FeedForward> feed_forward, WeightSource& weights);

  const Attention& attention() const { return *attention_; }
  const FeedForward& feed_forward() const { return *feed_forward_; }

  int64_t scratch_bytes(int64_t rows) const;
  // The two halves, in place on the residual stream x [rows, hidden]. The second may be given fewer rows: of a prompt's
  // last layer only rows whose logits are wanted need it.
  void attend(Backend& backend, MatrixView<float> x, const RaggedBatch& batch, Arena& scratch) const;
  void feed(Backend& backend, MatrixView<float> x, Arena& scratch) const;
  // What they add: out [rows, hidden], which must not overlap x. Within scratch_bytes(), too.
  void attention_update(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                        Arena& scratch) const;
  void feed_forward_update(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const;

 private:
  explicit PreNormBlock(const Options& options) : options_(options) {}
  Options options_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<FeedForward> feed_forward_;
  std::vector<float> attention_norm_, feed_forward_norm_;
  std::vector<float> attention_post_norm_, feed_forward_post_norm_;   // empty without post norms
};

}  // namespace quipu
