#include "attention/grouped_query/grouped_query.h"

#include <cmath>
#include <memory>
#include <string>

namespace quipu {
namespace {

constexpr size_t kKeyRegion = 0;
constexpr size_t kValueRegion = 1;
constexpr int64_t kMostHeads = 1 << 16;
constexpr int64_t kMostHeadDim = 1 << 16;

Result<std::vector<float>> optional_vector(WeightSource& weights, std::string_view role, int64_t length,
                                           std::string_view meaning) {
  if (!weights.has(role)) return std::vector<float>();
  return weights.vector(role, length, meaning);
}

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Result<GroupedQuery::Settings> GroupedQuery::read_settings(const AttentionShape& shape, const HyperParameters& p) {
  Settings s;
  s.hidden = shape.hidden;
  ASSIGN_OR_RETURN(s.heads, p.integer("heads", 1, kMostHeads));
  ASSIGN_OR_RETURN(s.kv_heads, p.integer("kv_heads", 1, s.heads));
  if (s.heads % s.kv_heads != 0) {
    return bad_input(p.origin() + ": attention setting heads is " + std::to_string(s.heads) +
                     ", expected a multiple of kv_heads " + std::to_string(s.kv_heads));
  }
  ASSIGN_OR_RETURN(s.head_dim, p.integer("head_dim", 1, kMostHeadDim));
  ASSIGN_OR_RETURN(s.value_dim, p.integer_or("value_dim", 1, kMostHeadDim, s.head_dim));
  ASSIGN_OR_RETURN(s.rope, rope_settings(p, s.head_dim));
  ASSIGN_OR_RETURN(const double scale, p.number_or("scale", 1e-9, 1e9, 1.0 / std::sqrt(static_cast<double>(s.head_dim))));
  s.scale = static_cast<float>(scale);
  ASSIGN_OR_RETURN(s.window, p.integer_or("window", 0, int64_t{1} << 40, 0));
  ASSIGN_OR_RETURN(const double softcap, p.number_or("softcap", 0.0, 1e9, 0.0));
  s.softcap = static_cast<float>(softcap);
  ASSIGN_OR_RETURN(const std::string norm, p.text_or("qk_norm", "none"));
  if (norm != "none" && norm != "rms") {
    return bad_input(p.origin() + ": attention setting qk_norm is \"" + norm + "\", expected none or rms");
  }
  s.qk_norm = norm == "rms";
  if (s.qk_norm) {
    ASSIGN_OR_RETURN(const double epsilon, p.number("norm_epsilon", 0.0, 1.0));
    s.norm_epsilon = static_cast<float>(epsilon);
  }
  return s;
}

Result<void> GroupedQuery::bind(WeightSource& weights) {
  const auto product = [](const char* count_name, int64_t count, const char* dim_name, int64_t dim) {
    return std::string(count_name) + " " + std::to_string(count) + " * " + dim_name + " " + std::to_string(dim);
  };
  const int64_t query_rows = s_.heads * s_.head_dim;
  const int64_t key_rows = s_.kv_heads * s_.head_dim;
  const int64_t value_rows = s_.kv_heads * s_.value_dim;
  const int64_t output_cols = s_.heads * s_.value_dim;
  const std::string query_meaning = product("heads", s_.heads, "head_dim", s_.head_dim);
  const std::string key_meaning = product("kv_heads", s_.kv_heads, "head_dim", s_.head_dim);
  const std::string value_meaning = product("kv_heads", s_.kv_heads, "value_dim", s_.value_dim);
  const std::string output_meaning = product("columns: heads", s_.heads, "value_dim", s_.value_dim);
  ASSIGN_OR_RETURN(query_, weights.matrix("query", query_rows, s_.hidden, query_meaning));
  ASSIGN_OR_RETURN(key_, weights.matrix("key", key_rows, s_.hidden, key_meaning));
  ASSIGN_OR_RETURN(value_, weights.matrix("value", value_rows, s_.hidden, value_meaning));
  ASSIGN_OR_RETURN(output_, weights.matrix("output", s_.hidden, output_cols, output_meaning));
  ASSIGN_OR_RETURN(query_bias_, optional_vector(weights, "query_bias", query_rows, query_meaning));
  ASSIGN_OR_RETURN(key_bias_, optional_vector(weights, "key_bias", key_rows, key_meaning));
  ASSIGN_OR_RETURN(value_bias_, optional_vector(weights, "value_bias", value_rows, value_meaning));
  ASSIGN_OR_RETURN(output_bias_, optional_vector(weights, "output_bias", s_.hidden, "hidden"));
  if (s_.qk_norm) {
    ASSIGN_OR_RETURN(query_norm_, weights.vector("query_norm", s_.head_dim, "head_dim"));
    ASSIGN_OR_RETURN(key_norm_, weights.vector("key_norm", s_.head_dim, "head_dim"));
  }
  return {};
}

Result<std::unique_ptr<Attention>> GroupedQuery::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                        WeightSource& weights) {
  auto room = std::make_unique<GroupedQuery>();
  ASSIGN_OR_RETURN(room->s_, read_settings(shape, parameters));
  RETURN_IF_ERROR(room->bind(weights));
  return std::unique_ptr<Attention>(std::move(room));
}

StateLayout GroupedQuery::state_layout(const StateOptions& options) const {
  DType dtype = options.cache_dtype;
  CHECK(is_kv_dtype(dtype)) << "cache dtype " << dtype_name(dtype);
  const int64_t block = traits(dtype).block_elements;
  if (s_.head_dim % block != 0 || s_.value_dim % block != 0) dtype = DType::kF16;
  RegionSpec key{.name = "key", .dtype = dtype, .row_elements = s_.kv_heads * s_.head_dim};
  if (s_.window > 0) {
    key.growth = Growth::kRing;
    key.ring_rows = s_.window + options.max_chunk;
    key.ring_history = s_.window - 1;
  }
  RegionSpec value = key;
  value.name = "value";
  value.row_elements = s_.kv_heads * s_.value_dim;
  return {.regions = {key, value}, .rewind = Rewind::kAnyToken};
}

int64_t GroupedQuery::scratch_bytes(int64_t rows) const {
  return Arena::planned<float>(rows * s_.heads * s_.head_dim) + Arena::planned<float>(rows * s_.kv_heads * s_.head_dim) +
         Arena::planned<float>(rows * s_.kv_heads * s_.value_dim) + Arena::planned<float>(rows * s_.heads * s_.value_dim) +
         Arena::planned<AttendSlice>(rows);
}

void GroupedQuery::norm_and_rotate(Backend& backend, MatrixView<float> heads, std::span<const float> norm,
                                   std::span<const int64_t> positions) const {
  if (s_.qk_norm) {
    // The rows of `heads` are contiguous: every head is a row of its own.
    const MatrixView<float> each(heads.data, heads.rows * (heads.cols / s_.head_dim), s_.head_dim);
    backend.rms_norm(each, each, norm, s_.norm_epsilon);
  }
  if (s_.rope.rotary_dim > 0) {
    backend.rope(heads, s_.head_dim, positions, s_.rope.inverse_frequency,
                 {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude});
  }
}

void GroupedQuery::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                           Arena& scratch) const {
  const ArenaMark mark(scratch);
  const int64_t rows = x.rows;
  const MatrixView<float> q = scratch.matrix(rows, s_.heads * s_.head_dim);
  const MatrixView<float> k = scratch.matrix(rows, s_.kv_heads * s_.head_dim);
  const MatrixView<float> v = scratch.matrix(rows, s_.kv_heads * s_.value_dim);
  const MatrixView<float> attended = scratch.matrix(rows, s_.heads * s_.value_dim);
  AttendSlice* slices = scratch.take<AttendSlice>(rows);

  const MatmulOutput projections[] = {{q, query_.get(), data_or_null(query_bias_)},
                                      {k, key_.get(), data_or_null(key_bias_)},
                                      {v, value_.get(), data_or_null(value_bias_)}};
  backend.matmul(projections, x);
  norm_and_rotate(backend, q, query_norm_, batch.positions);
  norm_and_rotate(backend, k, key_norm_, batch.positions);

  size_t count = 0;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.rows == 0) continue;   // so that `rows` entries are enough
    RegionState& keys = slice.state->region(kKeyRegion);
    RegionState& values = slice.state->region(kValueRegion);
    const KvCacheView cache{.dtype = keys.spec.dtype,
                            .kv_heads = s_.kv_heads,
                            .key_dim = s_.head_dim,
                            .value_dim = s_.value_dim,
                            .key_pages = keys.pages,
                            .value_pages = values.pages,
                            .ring_pages = keys.ring_pages()};
    const int64_t first_key = keys.rows;
    std::construct_at(slices + count++, AttendSlice{slice.row_begin, slice.rows, first_key, cache});
    keys.rows += slice.rows;
    values.rows += slice.rows;
    slice.state->advance(slice.rows);
  }
  backend.store_kv({slices, count}, k, v);
  backend.attend(attended, q, {slices, count},
                 {.heads = s_.heads, .scale = s_.scale, .window = s_.window, .logit_softcap = s_.softcap});
  backend.matmul(out, *output_, attended, data_or_null(output_bias_));
}

int64_t GroupedQuery::weight_bytes() const {
  const size_t floats = query_bias_.size() + key_bias_.size() + value_bias_.size() + output_bias_.size() +
                        query_norm_.size() + key_norm_.size() + s_.rope.inverse_frequency.size();
  return query_->bytes() + key_->bytes() + value_->bytes() + output_->bytes() +
         static_cast<int64_t>(floats * sizeof(float));
}

int64_t GroupedQuery::flops_per_token() const {
  return 2 * s_.hidden * (s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim);
}

int64_t GroupedQuery::context_flops(int64_t tokens) const {
  return 2 * s_.heads * (s_.head_dim + s_.value_dim) * visible(tokens);
}

int64_t GroupedQuery::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  int64_t bytes_per_row = 0;
  for (const RegionSpec& region : state_layout(options).regions) bytes_per_row += region.bytes_per_row();
  return bytes_per_row * visible(tokens);
}

Result<std::unique_ptr<Attention>> create_grouped_query(const AttentionShape& shape, const HyperParameters& parameters,
                                                        WeightSource& weights, Backend&) {
  return GroupedQuery::create(shape, parameters, weights);
}

}  // namespace quipu
