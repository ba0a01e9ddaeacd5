#include "attention/training.h"

namespace quipu {

std::string_view parameter_group_name(ParameterGroup group) {
  switch (group) {
    case ParameterGroup::kMatrix: return "matrix";
    case ParameterGroup::kEmbedding: return "embedding";
    case ParameterGroup::kNorm: return "norm";
    case ParameterGroup::kBias: return "bias";
    case ParameterGroup::kGate: return "gate";
    case ParameterGroup::kRouter: return "router";
  }
  return "matrix";
}

void causal_ranges(std::span<KeyRange> visible, const PackedBatch& batch, int64_t window) {
  CHECK(static_cast<int64_t>(visible.size()) == batch.rows()) << visible.size() << " ranges for " << batch.rows() << " rows";
  for (int64_t sequence = 0; sequence < batch.sequences(); ++sequence) {
    const int64_t begin = batch.offsets[static_cast<size_t>(sequence)];
    const int64_t rows = batch.offsets[static_cast<size_t>(sequence) + 1] - begin;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t first = window > 0 && i >= window ? i - window + 1 : 0;
      visible[static_cast<size_t>(begin + i)] = {static_cast<int32_t>(first), static_cast<int32_t>(i + 1)};
    }
  }
}

void sequence_slices(std::span<AttentionSlice> slices, const PackedBatch& batch) {
  CHECK(static_cast<int64_t>(slices.size()) == batch.sequences()) << slices.size() << " slices for " << batch.sequences() << " sequences";
  for (size_t i = 0; i < slices.size(); ++i) {
    const int64_t begin = batch.offsets[i], rows = batch.offsets[i + 1] - begin;
    slices[i] = {begin, rows, begin, rows};
  }
}

}  // namespace quipu
