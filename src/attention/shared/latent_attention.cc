#include "attention/shared/latent_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "attention/shared/latent_expand_tiles.h"
#include "ops/kernels/attention_kernels.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

constexpr int64_t kMost = 1 << 16;
constexpr int64_t kTileRows = 64;   // rows whose absorbed queries are held at once

Result<std::vector<float>> optional_vector(WeightSource& weights, std::string_view role, int64_t length,
                                           std::string_view meaning) {
  if (!weights.has(role)) return std::vector<float>();
  return weights.vector(role, length, meaning);
}

// The product of every head with its matrix: views(head) gives { output, input }.
template <class Views>
void each_head(Backend& backend, std::span<const std::unique_ptr<PackedMatrix>> matrices, const Views& views) {
  constexpr size_t kAtOnce = 128;
  MatmulProduct products[kAtOnce];
  for (size_t begin = 0; begin < matrices.size(); begin += kAtOnce) {
    const size_t count = std::min(kAtOnce, matrices.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      const auto [y, x] = views(static_cast<int64_t>(begin + i));
      products[i] = {y, matrices[begin + i].get(), x};
    }
    backend.matmul_each({products, count});
  }
}

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

std::string term(const char* name, int64_t value) { return std::string(name) + " " + std::to_string(value); }

// Packs floats that came from a file in the narrowest of bf16, f16 and f32 that holds them all exactly.
Result<std::unique_ptr<PackedMatrix>> pack_exactly(Backend& backend, std::span<const float> values, int64_t rows,
                                                   int64_t cols) {
  const auto all = [&](auto same) { return std::all_of(values.begin(), values.end(), same); };
  const auto pack16 = [&](DType dtype, auto encode) {
    std::vector<uint16_t> narrow(values.size());
    std::transform(values.begin(), values.end(), narrow.begin(), encode);
    return backend.pack({dtype, rows, cols, std::as_bytes(std::span(narrow))});
  };
  if (all([](float v) { return (std::bit_cast<uint32_t>(v) & 0xffffu) == 0; })) return pack16(DType::kBF16, f32_to_bf16);
  if (all([](float v) { return std::bit_cast<uint32_t>(f16_to_f32(f32_to_f16(v))) == std::bit_cast<uint32_t>(v); })) {
    return pack16(DType::kF16, f32_to_f16);
  }
  return backend.pack({DType::kF32, rows, cols, std::as_bytes(values)});
}

Result<LatentNorm> read_norm(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string norm, p.text("latent_norm"));
  if (norm == "none") return LatentNorm::kNone;
  if (norm == "rms") return LatentNorm::kRms;
  if (norm == "layer") return LatentNorm::kLayer;
  return bad_input(p.origin() + ": attention setting latent_norm is \"" + norm + "\", expected none, rms or layer");
}

Result<LatentForm> read_form(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string form, p.text_or("form", "prompt"));
  if (form == "prompt") return LatentForm::kPrompt;
  if (form == "absorbed") return LatentForm::kAbsorbed;
  if (form == "expanded") return LatentForm::kExpanded;
  if (form == "auto") return LatentForm::kAuto;
  return bad_input(p.origin() + ": attention setting form is \"" + form + "\", expected prompt, absorbed, expanded or auto");
}

}  // namespace

int64_t LatentSettings::crossover(bool tiles) const {
  // Operations of absorbed ones, against one of the expanded form: tiles multiply both halves of queries and probabilities, at two
  // thirds of the pace.
  const int64_t cost = tiles ? 3 : 1;
  const int64_t saved = cost * (2 * rank + rope_dim) - up_dim() - rope_dim;   // per head, query and row, by expanding
  return saved <= 0 ? std::numeric_limits<int64_t>::max() : (rank * up_dim() + saved - 1) / saved;
}

Result<LatentSettings> read_latent_settings(const AttentionShape& shape, const HyperParameters& p) {
  LatentSettings s;
  s.hidden = shape.hidden;
  ASSIGN_OR_RETURN(s.heads, p.integer("heads", 1, kMost));
  ASSIGN_OR_RETURN(s.query_rank, p.integer_or("query_rank", 0, kMost, 0));
  ASSIGN_OR_RETURN(s.rank, p.integer("latent_rank", 1, kMost));
  ASSIGN_OR_RETURN(s.nope_dim, p.integer("nope_dim", 1, kMost));
  ASSIGN_OR_RETURN(s.rope_dim, p.integer("rope_dim", 0, kMost));
  if (s.rope_dim % 2 != 0) {
    return bad_input(p.origin() + ": attention setting rope_dim is " + std::to_string(s.rope_dim) +
                     ", expected an even number");
  }
  ASSIGN_OR_RETURN(s.value_dim, p.integer("value_dim", 1, kMost));
  ASSIGN_OR_RETURN(s.norm, read_norm(p));
  if (s.norm != LatentNorm::kNone) {
    ASSIGN_OR_RETURN(const double epsilon, p.number("norm_epsilon", 0.0, 1.0));
    s.norm_epsilon = static_cast<float>(epsilon);
  }
  ASSIGN_OR_RETURN(s.form, read_form(p));
  ASSIGN_OR_RETURN(s.rope, rope_settings(p, s.rope_dim));
  double usual = 1.0 / std::sqrt(static_cast<double>(s.query_dim()));
  if (s.rope.scaling.kind == RopeScalingKind::kYarn && p.has("rope_mscale_all_dim")) {
    ASSIGN_OR_RETURN(const double multiplier, p.number("rope_mscale_all_dim", 0.0, 1e3));
    const double magnitude = multiplier > 0.0 ? yarn_magnitude(s.rope.scaling.factor, multiplier) : 1.0;
    usual *= magnitude * magnitude;   // on both parts of the key                                [DeepSeek-V2 code]
  }
  ASSIGN_OR_RETURN(const double scale, p.number_or("scale", 1e-9, 1e9, usual));
  s.scale = static_cast<float>(scale);
  return s;
}

Result<void> LatentAttention::bind(WeightSource& weights) {
  const int64_t query_rows = s_.heads * s_.query_dim();
  const std::string query_meaning =
      term("heads", s_.heads) + " * (" + term("nope_dim", s_.nope_dim) + " + " + term("rope_dim", s_.rope_dim) + ")";
  const std::string row_meaning = term("latent_rank", s_.rank) + " + " + term("rope_dim", s_.rope_dim);
  const bool norms = s_.norm != LatentNorm::kNone;
  const auto bind_norm = [&](const char* role, int64_t length, const char* meaning, std::vector<float>& weight,
                             std::vector<float>& bias) -> Result<void> {
    if (!norms) return {};
    ASSIGN_OR_RETURN(weight, weights.vector(role, length, meaning));
    if (s_.norm != LatentNorm::kLayer) return {};
    ASSIGN_OR_RETURN(bias, optional_vector(weights, std::string(role) + "_bias", length, meaning));
    if (bias.empty()) bias.assign(static_cast<size_t>(length), 0.0f);
    return {};
  };
  if (s_.query_rank > 0) {
    const std::string rank_meaning = term("query_rank", s_.query_rank);
    ASSIGN_OR_RETURN(query_down_, weights.matrix("query_down", s_.query_rank, s_.hidden, rank_meaning));
    ASSIGN_OR_RETURN(query_down_bias_, optional_vector(weights, "query_down_bias", s_.query_rank, rank_meaning));
    RETURN_IF_ERROR(bind_norm("query_down_norm", s_.query_rank, "query_rank", query_down_norm_, query_down_norm_bias_));
    ASSIGN_OR_RETURN(query_up_, weights.matrix("query_up", query_rows, s_.query_rank, query_meaning));
  } else {
    ASSIGN_OR_RETURN(query_, weights.matrix("query", query_rows, s_.hidden, query_meaning));
    ASSIGN_OR_RETURN(query_bias_, optional_vector(weights, "query_bias", query_rows, query_meaning));
  }
  ASSIGN_OR_RETURN(latent_down_, weights.matrix("latent_down", s_.width(), s_.hidden, row_meaning));
  ASSIGN_OR_RETURN(latent_down_bias_, optional_vector(weights, "latent_down_bias", s_.width(), row_meaning));
  RETURN_IF_ERROR(bind_norm("latent_norm", s_.rank, "latent_rank", latent_norm_, latent_norm_bias_));
  ASSIGN_OR_RETURN(output_, weights.matrix("output", s_.hidden, s_.heads * s_.value_dim,
                                           "columns: " + term("heads", s_.heads) + " * " + term("value_dim", s_.value_dim)));
  ASSIGN_OR_RETURN(output_bias_, optional_vector(weights, "output_bias", s_.hidden, "hidden"));
  return {};
}

// The up-projection in the shapes that the form multiplies by.
Result<void> LatentAttention::bind_up(WeightSource& weights, Backend& backend) {
  const int64_t rank = s_.rank, nope = s_.nope_dim, value = s_.value_dim, up = s_.up_dim();
  std::vector<float> joint;   // [heads][nope | value][rank]
  if (weights.has("key_up")) {
    ASSIGN_OR_RETURN(const std::vector<float> keys,
                     weights.dense("key_up", s_.heads * rank, nope, term("heads", s_.heads) + " * " + term("latent_rank", rank)));
    ASSIGN_OR_RETURN(const std::vector<float> values,
                     weights.dense("value_up", s_.heads * value, rank, term("heads", s_.heads) + " * " + term("value_dim", value)));
    joint.resize(static_cast<size_t>(s_.heads * up * rank));
    for (int64_t head = 0; head < s_.heads; ++head) {
      float* target = joint.data() + head * up * rank;
      const float* key = keys.data() + head * rank * nope;
      for (int64_t r = 0; r < rank; ++r) {
        for (int64_t c = 0; c < nope; ++c) target[c * rank + r] = key[r * nope + c];
      }
      std::copy_n(values.data() + head * value * rank, value * rank, target + nope * rank);
    }
  } else {
    ASSIGN_OR_RETURN(joint, weights.dense("latent_up", s_.heads * up, rank,
                                          term("heads", s_.heads) + " * (" + term("nope_dim", nope) + " + " +
                                              term("value_dim", value) + ")"));
  }
  if (s_.form == LatentForm::kExpanded || s_.form == LatentForm::kAuto || s_.keeps_up) {
    ASSIGN_OR_RETURN(latent_up_, pack_exactly(backend, joint, s_.heads * up, rank));
  }
  if (s_.form != LatentForm::kAbsorbed) RETURN_IF_ERROR(bind_expanding(joint, backend));
  if (s_.form == LatentForm::kExpanded) return {};
  std::vector<float> transposed(static_cast<size_t>(rank * nope));
  for (int64_t head = 0; head < s_.heads; ++head) {
    const float* block = joint.data() + head * up * rank;
    for (int64_t c = 0; c < nope; ++c) {
      for (int64_t r = 0; r < rank; ++r) transposed[static_cast<size_t>(r * nope + c)] = block[c * rank + r];
    }
    ASSIGN_OR_RETURN(auto key, pack_exactly(backend, transposed, rank, nope));
    key_up_.push_back(std::move(key));
    const std::span<const float> values(block + nope * rank, static_cast<size_t>(value * rank));
    ASSIGN_OR_RETURN(auto value_matrix, pack_exactly(backend, values, value, rank));
    value_up_.push_back(std::move(value_matrix));
  }
  return {};
}

// What the expanded form multiplies by in tiles: the up-projection in bf16, every head's keys and values filled up to whole blocks.
Result<void> LatentAttention::bind_expanding(std::span<const float> joint, Backend& backend) {
  if (backend.activations() == Activations::kExact || !attention_kernels(backend.isa()).has_tiles()) return {};
  const int64_t head_rows = head_up_rows(s_.nope_dim, s_.value_dim), key_rows = paired_blocks(s_.nope_dim) * kBlockCols;
  std::vector<uint16_t> halves(static_cast<size_t>(s_.heads * head_rows * s_.rank));
  for (int64_t head = 0; head < s_.heads; ++head) {
    const float* from = joint.data() + head * s_.up_dim() * s_.rank;
    uint16_t* to = halves.data() + head * head_rows * s_.rank;
    std::transform(from, from + s_.nope_dim * s_.rank, to, f32_to_bf16);
    std::transform(from + s_.nope_dim * s_.rank, from + s_.up_dim() * s_.rank, to + key_rows * s_.rank, f32_to_bf16);
  }
  ASSIGN_OR_RETURN(tile_up_, backend.pack({DType::kBF16, s_.heads * head_rows, s_.rank, std::as_bytes(std::span(halves))}));
  CHECK(tile_up_->tile_pairs() != nullptr) << backend.name() << " has tiles, and bf16 weights otherwise";
  return {};
}

Result<LatentAttention> LatentAttention::create(const LatentSettings& settings, WeightSource& weights, Backend& backend) {
  LatentAttention attention;
  attention.s_ = settings;
  attention.threads_ = backend.threads();
  RETURN_IF_ERROR(attention.bind(weights));
  RETURN_IF_ERROR(attention.bind_up(weights, backend));
  return attention;
}

DType LatentAttention::cache_dtype(DType wanted) const {
  CHECK(is_kv_dtype(wanted)) << "cache dtype " << dtype_name(wanted);
  return s_.width() % traits(wanted).block_elements == 0 ? wanted : DType::kF16;
}

bool LatentAttention::expands_in_tiles(const Backend& backend, DType dtype) const {
  return tile_up_ != nullptr && dtype != DType::kF32 && backend.activations() == Activations::kFast;
}

bool LatentAttention::expands(const Backend& backend, const SequenceSlice& slice, DType dtype) const {
  switch (s_.form) {
    case LatentForm::kPrompt: return slice.prompt && expands_in_tiles(backend, dtype);
    case LatentForm::kAuto: return slice.rows >= s_.crossover(expands_in_tiles(backend, dtype));
    case LatentForm::kExpanded: return true;
    case LatentForm::kAbsorbed: return false;
  }
  return false;
}

int64_t LatentAttention::scratch_bytes(int64_t rows) const {
  const int64_t tile = std::min(rows, kTileRows);
  const ExpandedShape shape = kernel_shape(DType::kF32, Isa::kPortable);
  int64_t bytes = Arena::planned<float>(rows * s_.heads * s_.query_dim()) + Arena::planned<float>(rows * s_.width()) +
                  Arena::planned<float>(rows * s_.query_rank) +
                  Arena::planned<float>(rows * s_.heads * s_.value_dim);
  if (s_.form != LatentForm::kExpanded) {
    bytes += Arena::planned<float>(tile * s_.heads * s_.width()) + Arena::planned<float>(tile * s_.heads * s_.rank) +
             Arena::planned<float>(absorbed_scratch_floats(shape.latent, tile, threads_));
  }
  ExpandedShape tiles = shape;
  tiles.tiles = true;
  int64_t expanding = latent_up_ == nullptr ? 0 : expanded_scratch_floats(shape, rows, threads_);
  if (tile_up_ != nullptr) expanding = std::max(expanding, expanded_scratch_floats(tiles, rows, threads_));
  return bytes + Arena::planned<float>(expanding);
}

void LatentAttention::norm(Backend& backend, MatrixView<float> x, const std::vector<float>& weight,
                           const std::vector<float>& bias) const {
  if (s_.norm == LatentNorm::kRms) backend.rms_norm(x, x, weight, s_.norm_epsilon);
  if (s_.norm == LatentNorm::kLayer) backend.layer_norm(x, x, weight, bias, s_.norm_epsilon);
}

// Only the last rope_dim entries of a head turn: heads that begin nope_dim later, of which the first entries turn.
void LatentAttention::rotate_queries(Backend& backend, MatrixView<float> query, std::span<const int64_t> positions) const {
  MatrixView<float> rotary = query;
  rotary.data += s_.nope_dim;
  backend.rope(rotary, s_.query_dim(), positions, s_.rope.inverse_frequency,
               {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope_dim, .magnitude = s_.rope.magnitude});
}

LatentAttention::Projected LatentAttention::project(Backend& backend, MatrixView<const float> x,
                                                    std::span<const int64_t> positions, Arena& scratch) const {
  const Projected result{scratch.matrix(x.rows, s_.heads * s_.query_dim()), scratch.matrix(x.rows, s_.width())};
  const ArenaMark mark(scratch);
  const MatrixView<float> low = scratch.matrix(x.rows, s_.query_rank);
  const bool low_rank = s_.query_rank > 0;
  const MatmulOutput projections[] = {
      {low_rank ? low : result.query, low_rank ? query_down_.get() : query_.get(),
       data_or_null(low_rank ? query_down_bias_ : query_bias_)},
      {result.latent, latent_down_.get(), data_or_null(latent_down_bias_)}};
  backend.matmul(projections, x);
  if (low_rank) {
    norm(backend, low, query_down_norm_, query_down_norm_bias_);
    backend.matmul(result.query, *query_up_, low);
  }
  norm(backend, result.latent.cols_from(0, s_.rank), latent_norm_, latent_norm_bias_);
  if (s_.rope_dim > 0) {
    backend.rope(result.latent.cols_from(s_.rank, s_.rope_dim), s_.rope_dim, positions, s_.rope.inverse_frequency,
                 {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope_dim, .magnitude = s_.rope.magnitude});
    rotate_queries(backend, result.query, positions);
  }
  return result;
}

void LatentAttention::absorbed(Backend& backend, MatrixView<float> heads, MatrixView<const float> query,
                               std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const LatentShape shape = kernel_shape(dtype, backend.isa()).latent;
  const int64_t tile = std::min(query.rows, kTileRows);
  const MatrixView<float> inward = scratch.matrix(tile, s_.heads * s_.width());
  const MatrixView<float> summed = scratch.matrix(tile, s_.heads * s_.rank);
  float* work = scratch.take<float>(absorbed_scratch_floats(shape, tile, backend.threads()));
  for (int64_t begin = 0; begin < query.rows; begin += tile) {
    const int64_t rows = std::min(tile, query.rows - begin);
    const MatrixView<float> q = inward.rows_from(0, rows), sums = summed.rows_from(0, rows);
    const MatrixView<const float> from = query.rows_from(begin, rows);
    const MatrixView<float> to = heads.rows_from(begin, rows);
    absorb(backend, q, from, s_.width());
    backend.pool().parallel_for(rows, [&](int64_t row) {
      for (int64_t head = 0; head < s_.heads; ++head) {
        std::copy_n(from.row(row) + head * s_.query_dim() + s_.nope_dim, s_.rope_dim,
                    q.row(row) + head * s_.width() + s_.rank);
      }
    });
    attend_absorbed(backend.pool(), sums, q, contexts.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows)), shape,
                    work);
    raise_values(backend, to, sums);
  }
}

void LatentAttention::absorb(Backend& backend, MatrixView<float> out, MatrixView<const float> query, int64_t stride) const {
  each_head(backend, key_up_, [&](int64_t head) {
    return std::pair{out.cols_from(head * stride, s_.rank), query.cols_from(head * s_.query_dim(), s_.nope_dim)};
  });
}

void LatentAttention::raise_values(Backend& backend, MatrixView<float> heads, MatrixView<const float> sums) const {
  each_head(backend, value_up_, [&](int64_t head) {
    return std::pair{heads.cols_from(head * s_.value_dim, s_.value_dim), sums.cols_from(head * s_.rank, s_.rank)};
  });
}

void LatentAttention::expand(Backend& backend, MatrixView<float> out, MatrixView<const float> latent) const {
  backend.matmul(out, *latent_up_, latent);
}

void LatentAttention::project_output(Backend& backend, MatrixView<float> out, MatrixView<const float> heads) const {
  backend.matmul(out, *output_, heads, data_or_null(output_bias_));
}

void LatentAttention::attend(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
                             std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> heads = scratch.matrix(query.rows, s_.heads * s_.value_dim);
  attend_heads(backend, heads, query, contexts, dtype, scratch);
  project_output(backend, out, heads);
}

void LatentAttention::attend_heads(Backend& backend, MatrixView<float> heads, MatrixView<const float> query,
                                   std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const {
  CHECK(static_cast<int64_t>(contexts.size()) == query.rows) << contexts.size() << " contexts of " << query.rows << " rows";
  CHECK(backend.threads() <= threads_) << "a back end of " << backend.threads() << " threads, weights packed for " << threads_;
  for (int64_t begin = 0; begin < query.rows;) {
    const LatentContext& first = contexts[static_cast<size_t>(begin)];
    // Absorbed rows of all sequences together; expanded ones by sequence.
    int64_t end = begin + 1;
    for (; end < query.rows; ++end) {
      const LatentContext& next = contexts[static_cast<size_t>(end)];
      if (next.expand != first.expand || (first.expand && next.pages.data() != first.pages.data())) break;
    }
    const auto part = contexts.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    const MatrixView<float> to = heads.rows_from(begin, end - begin);
    const MatrixView<const float> from = query.rows_from(begin, end - begin);
    if (first.expand) {
      const ArenaMark inner(scratch);
      ExpandedShape shape = kernel_shape(dtype, backend.isa());
      shape.tiles = expands_in_tiles(backend, dtype);
      float* work = scratch.take<float>(expanded_scratch_floats(shape, to.rows, backend.threads()));
      attend_expanded(backend, to, from, part, shape.tiles ? *tile_up_ : *latent_up_, shape, work);
    } else {
      absorbed(backend, to, from, part, dtype, scratch);
    }
    begin = end;
  }
}

int64_t LatentAttention::weight_bytes() const {
  int64_t bytes = latent_down_->bytes() + output_->bytes();
  for (const auto* matrix : {&query_, &query_down_, &query_up_, &latent_up_, &tile_up_}) bytes += *matrix ? (*matrix)->bytes() : 0;
  for (const auto& matrix : key_up_) bytes += matrix->bytes();
  for (const auto& matrix : value_up_) bytes += matrix->bytes();
  size_t floats = s_.rope.inverse_frequency.size();
  for (const auto* values : {&query_bias_, &query_down_bias_, &latent_down_bias_, &output_bias_, &query_down_norm_,
                             &query_down_norm_bias_, &latent_norm_, &latent_norm_bias_}) {
    floats += values->size();
  }
  return bytes + static_cast<int64_t>(floats * sizeof(float));
}

int64_t LatentAttention::weight_bytes_read() const {
  if (s_.form == LatentForm::kExpanded) return weight_bytes();
  int64_t bytes = weight_bytes() - (tile_up_ ? tile_up_->bytes() : 0);
  if (!s_.keeps_up && latent_up_) bytes -= latent_up_->bytes();
  return bytes;
}

int64_t LatentAttention::flops_per_token() const {
  const int64_t queries = s_.heads * s_.query_dim();
  const int64_t query = s_.query_rank > 0 ? s_.query_rank * (s_.hidden + queries) : s_.hidden * queries;
  return 2 * (query + s_.hidden * s_.width() + s_.heads * s_.rank * s_.up_dim() + s_.heads * s_.value_dim * s_.hidden);
}

int64_t LatentAttention::flops_per_row() const {
  return 2 * s_.heads * (s_.form == LatentForm::kExpanded ? s_.query_dim() + s_.value_dim : 2 * s_.rank + s_.rope_dim);
}

}  // namespace quipu
