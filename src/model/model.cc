#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/layer.h"
#include "model/weights.h"

namespace quipu {
Result<std::unique_ptr<Model>> Model::load(ModelConfig config, const TensorFile& file, NameStyle style, Backend& backend,
                                           const LoadOptions& options) {
  const uint64_t total = file.tensor_bytes();
  uint64_t done = 0;
  const auto on_packed = [&](uint64_t bytes) {
    done = std::min(total, done + bytes);
    if (options.on_progress) options.on_progress(done, total);
  };
  std::unique_ptr<Model> model(new Model(std::move(config), backend));
  const ModelConfig& c = model->config_;
  Weights weights(file, NameTable(style, c.post_norms), c.norm_weight_offset, backend, on_packed);
  if (options.read_ahead) weights.read_ahead();
  const NameTable& names = weights.names();
  model->hash_ = model_hash(c, file);

  const std::string table_shape = "vocabulary " + std::to_string(c.vocabulary) + ", hidden " + std::to_string(c.hidden);
  const Shape shape{c.vocabulary, c.hidden};
  ASSIGN_OR_RETURN(const NamedTensor* embedding, weights.tensor(names.of_model("token_embedding"), shape, table_shape));
  model->embedding_ = *embedding;
  // The output first: packing a tied embedding needs the mapped table and its copy at once, which is the peak of a load
  // when every other matrix is there already.
  const char* output_role = c.tied_output ? "token_embedding" : "logits";
  ASSIGN_OR_RETURN(model->output_, weights.matrix(names.of_model(output_role), c.vocabulary, c.hidden, table_shape,
                                                    Rounding::kBits16));   // one row a token: the finer product is free
  RETURN_IF_ERROR(model->load_layers(weights));
  ASSIGN_OR_RETURN(model->final_norm_, weights.vector(names.of_model("final_norm"), "final_norm", c.hidden, "hidden size"));
  model->warnings_ = weights.warnings();
  if (options.on_progress) options.on_progress(total, total);
  return model;
}

Result<void> Model::load_layers(Weights& weights) {
  blocks_.reserve(config_.layers.size());
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    LayerWeights source(weights, static_cast<int64_t>(i));
    for (const std::string& role : config_.layers[i].required_roles) {
      if (source.has(role)) continue;
      return bad_input(config_.origin + ": tensor " + weights.names().of_layer(static_cast<int64_t>(i), role) +
                       " is missing (the configuration has " + role + ")");
    }
    ASSIGN_OR_RETURN(PreNormBlock block, make_layer(config_, static_cast<int64_t>(i), source, backend_));
    blocks_.push_back(std::move(block));
    ASSIGN_OR_RETURN(auto router, make_depth_router(config_, static_cast<int64_t>(i), source, backend_));
    routers_.push_back(std::move(router));
  }
  return {};
}

std::vector<StateLayout> Model::state_layouts(const StateOptions& options) const {
  std::vector<StateLayout> layouts;
  layouts.reserve(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    layouts.push_back(routers_[i] ? routers_[i]->state_layout(blocks_[i], options)
                                  : blocks_[i].attention().state_layout(options));
  }
  return layouts;
}

int64_t Model::scratch_bytes(int64_t rows, int64_t slices, int64_t wanted) const {
  int64_t block_bytes = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    block_bytes = std::max(block_bytes, routers_[i] ? routers_[i]->scratch_bytes(blocks_[i], rows)
                                                    : blocks_[i].scratch_bytes(rows));
  }
  return Arena::planned<float>(rows * config_.hidden) + Arena::planned<int64_t>(rows) +
         Arena::planned<SequenceSlice>(slices) + 2 * Arena::planned<float>(wanted * config_.hidden) + block_bytes;
}

void Model::forward(MatrixView<float> logits, const ModelBatch& batch, Arena& scratch) const {
  const int64_t rows = static_cast<int64_t>(batch.tokens.size());
  const int64_t wanted = static_cast<int64_t>(batch.wanted.size());
  CHECK(logits.rows == wanted && (wanted == 0 || logits.cols == config_.vocabulary))
      << "logits [" << logits.rows << ", " << logits.cols << "] for " << wanted << " rows";
  scratch.reset();
  int64_t* positions = scratch.take<int64_t>(rows);
  SequenceSlice* slices = scratch.take<SequenceSlice>(static_cast<int64_t>(batch.slices.size()));
  int64_t row = 0;
  for (size_t i = 0; i < batch.slices.size(); ++i) {
    const BatchSlice& slice = batch.slices[i];
    slices[i] = {nullptr, row, slice.rows, slice.prompt};
    for (int64_t r = 0; r < slice.rows; ++r) positions[row++] = slice.state->tokens() + r;
  }
  CHECK(row == rows) << "slices cover " << row << " of " << rows << " rows";

  const MatrixView<float> x = scratch.matrix(rows, config_.hidden);
  const MatrixSource table{embedding_.view.dtype, config_.vocabulary, config_.hidden, embedding_.view.bytes};
  backend_.embed(x, batch.tokens, table, static_cast<float>(config_.embedding_scale));
  give_back_embedding(rows);
  const MatrixView<float> last = scratch.matrix(wanted, config_.hidden);
  const RaggedBatch ragged{{slices, batch.slices.size()}, {positions, static_cast<size_t>(rows)}};
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const bool is_last = layer + 1 == blocks_.size();
    for (size_t i = 0; i < batch.slices.size(); ++i) slices[i].state = &batch.slices[i].state->layer(layer);
    if (routers_[layer]) {
      routers_[layer]->forward(backend_, x, blocks_[layer], ragged, scratch);
    } else {
      blocks_[layer].attend(backend_, x, ragged, scratch);
      if (!is_last) blocks_[layer].feed(backend_, x, scratch);
    }
    if (!is_last || wanted == 0) continue;
    // Nothing reads the other rows after the last layer's attention.
    for (int64_t i = 0; i < wanted; ++i) {
      std::memcpy(last.row(i), x.row(batch.wanted[static_cast<size_t>(i)]), static_cast<size_t>(config_.hidden) * sizeof(float));
    }
    if (!routers_[layer]) blocks_[layer].feed(backend_, last, scratch);
  }
  for (const BatchSlice& slice : batch.slices) slice.state->advance(slice.rows);
  if (wanted > 0) write_logits(logits, last, scratch);
}

// The system maps up to 16 pages around each row that is read; after some thousand tokens the whole table would count as
// this process's memory. The pages stay in the system's file cache.
void Model::give_back_embedding(int64_t rows) const {
  constexpr int64_t kRowsBetween = 256;
  if (embedding_.file == nullptr) return;
  const int64_t before = rows_embedded_.fetch_add(rows, std::memory_order_relaxed);
  if (before / kRowsBetween != (before + rows) / kRowsBetween) embedding_.file->drop(embedding_.view.bytes);
}

void Model::write_logits(MatrixView<float> logits, MatrixView<float> x, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> normed = scratch.matrix(x.rows, x.cols);
  backend_.rms_norm(normed, x, final_norm_, static_cast<float>(config_.norm_epsilon));
  backend_.matmul(logits, *output_, normed);
  const float scale = static_cast<float>(config_.logit_scale);
  const float cap = static_cast<float>(config_.logit_softcap);
  if (scale == 1.0f && cap == 0.0f) return;
  for (int64_t r = 0; r < logits.rows; ++r) {
    for (int64_t c = 0; c < logits.cols; ++c) {
      const float value = logits(r, c) * scale;
      logits(r, c) = cap > 0 ? cap * std::tanh(value / cap) : value;
    }
  }
}

int64_t Model::packed_bytes() const {
  int64_t total = output_->bytes();
  for (const PreNormBlock& block : blocks_) total += block.attention().weight_bytes() + block.feed_forward().weight_bytes();
  for (const auto& router : routers_) total += router ? router->weight_bytes() : 0;
  return total;
}

double Model::flops_per_token(int64_t tokens) const {
  double total = 2.0 * static_cast<double>(config_.vocabulary) * static_cast<double>(config_.hidden);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const PreNormBlock& block = blocks_[i];
    const int64_t context = static_cast<int64_t>(share(i) * static_cast<double>(tokens));
    total += share(i) * static_cast<double>(block.attention().flops_per_token() + block.attention().context_flops(context) +
                                            block.feed_forward().flops_per_token());
    total += routers_[i] ? static_cast<double>(routers_[i]->flops_per_token()) : 0.0;
  }
  return total;
}

double Model::weight_bytes_read_per_token() const {
  double total = static_cast<double>(output_->bytes_read() + row_bytes(embedding_.view.dtype, config_.hidden));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    total += share(i) * static_cast<double>(blocks_[i].attention().weight_bytes_read() + blocks_[i].feed_forward().bytes_read_per_token());
    total += routers_[i] ? static_cast<double>(routers_[i]->weight_bytes()) : 0.0;
  }
  return total;
}

double Model::state_bytes_read_per_token(int64_t tokens, const StateOptions& options) const {
  double total = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const int64_t context = static_cast<int64_t>(share(i) * static_cast<double>(tokens));
    total += share(i) * static_cast<double>(blocks_[i].attention().context_bytes_read(context, options));
  }
  return total;
}

double Model::bytes_read_per_token(int64_t tokens, const StateOptions& options) const {
  return weight_bytes_read_per_token() + state_bytes_read_per_token(tokens, options);
}

}  // namespace quipu
