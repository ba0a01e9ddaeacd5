// Runtime: what all sessions of one loaded model share. Sessions hold it, so it outlives them whatever its owner does.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/layer_state.h"
#include "formats/state_file/hash128.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace quipu {

struct Runtime {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;   // null: sessions produce tokens without text
  StateOptions state;

  PagePool pages;
  Arena scratch;
  Buffer logits;                                // rows of several sessions or of a whole chunk
  std::vector<BatchSlice> batch_slices;         // of step(): kept, so that a step allocates nothing once warm
  std::vector<int32_t> batch_tokens;
  std::vector<int64_t> batch_wanted;

  int64_t vocabulary() const { return model->config().vocabulary; }
  // Model, tokenizer and layout as a state file records them.
  Hash128 tokenizer_hash() const;
  Hash128 layout_hash() const;
  // One forward pass with scratch made large enough. The states are prepared. logits [batch.wanted, vocabulary].
  Result<void> forward(MatrixView<float> logits_out, const ModelBatch& batch);
  // `rows` rows of logits in the shared buffer, valid until the next call.
  Result<MatrixView<float>> shared_logits(int64_t rows);
};

}  // namespace quipu
