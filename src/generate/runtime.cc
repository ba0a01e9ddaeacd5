#include "generate/runtime.h"

namespace quipu {

Hash128 Runtime::tokenizer_hash() const {
  return tokenizer == nullptr ? Hash128{} : hash128("tokenizer " + std::to_string(tokenizer->fingerprint()));
}

Hash128 Runtime::layout_hash() const {
  Hasher128 hasher;
  for (const StateLayout& layout : model->state_layouts(state)) hasher.add(layout.signature() + "\n");
  return hasher.result();
}

Result<void> Runtime::forward(MatrixView<float> logits_out, const ModelBatch& batch) {
  const int64_t bytes =
      model->scratch_bytes(static_cast<int64_t>(batch.tokens.size()), static_cast<int64_t>(batch.slices.size()),
                           static_cast<int64_t>(batch.wanted.size()));
  RETURN_IF_ERROR(scratch.reserve(static_cast<size_t>(bytes)));
  model->forward(logits_out, batch, scratch);
  return {};
}

Result<MatrixView<float>> Runtime::shared_logits(int64_t rows) {
  const size_t bytes = static_cast<size_t>(rows * vocabulary()) * sizeof(float);
  if (logits.size() < bytes) {
    ASSIGN_OR_RETURN(logits, Buffer::allocate(bytes));
  }
  return MatrixView<float>(logits.as<float>(), rows, vocabulary());
}

}  // namespace quipu
