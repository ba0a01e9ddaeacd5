#include "ops/backend.h"

namespace quipu {
namespace {

// Stops on a view whose rows would overlap or that has no memory.
template <class T>
void check_view(const char* op, const char* name, const MatrixView<T>& view, int64_t rows, int64_t cols) {
  CHECK(view.rows == rows && view.cols == cols && (view.stride >= cols || rows <= 1) &&
        (view.data != nullptr || rows * cols == 0))
      << "[" << op << "] " << name << ": expected [" << rows << ", " << cols << "], got [" << view.rows << ", "
      << view.cols << "] with stride " << view.stride;
}

template <class T>
void check_length(const char* op, const char* name, std::span<T> values, int64_t length) {
  CHECK(static_cast<int64_t>(values.size()) == length)
      << "[" << op << "] " << name << ": expected " << length << " elements, got " << values.size();
}

void check_cache(const char* op, const KvCacheView& cache, int64_t rows) {
  CHECK(is_kv_dtype(cache.dtype) && cache.kv_heads > 0 && cache.key_dim > 0 && cache.value_dim > 0)
      << "[" << op << "] cache of " << dtype_name(cache.dtype) << ", " << cache.kv_heads << " heads of " << cache.key_dim
      << "/" << cache.value_dim;
  const int64_t pages = (rows + kPageRows - 1) / kPageRows;
  const int64_t held = cache.ring_pages > 0 ? cache.ring_pages : pages;
  CHECK(static_cast<int64_t>(cache.key_pages.size()) >= held && static_cast<int64_t>(cache.value_pages.size()) >= held)
      << "[" << op << "] " << rows << " rows need " << held << " pages, the cache has " << cache.key_pages.size() << " and "
      << cache.value_pages.size();
}

}  // namespace

Result<std::unique_ptr<PackedMatrix>> Backend::pack(const MatrixSource& source) {
  CHECK(source.rows > 0 && source.cols > 0 &&
        static_cast<int64_t>(source.bytes.size()) == row_bytes(source.dtype, source.cols) * source.rows)
      << "[pack] " << dtype_name(source.dtype) << " [" << source.rows << ", " << source.cols << "] of "
      << source.bytes.size() << " bytes";
  return do_pack(source);
}

void Backend::matmul(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  for (const MatmulOutput& output : outputs) {
    CHECK(output.w != nullptr && output.w->cols() == x.cols)
        << "[matmul] x has " << x.cols << " columns, the weight " << (output.w == nullptr ? 0 : output.w->cols());
    check_view("matmul", "y", output.y, x.rows, output.w->rows());
  }
  if (x.rows > 0 && !outputs.empty()) do_matmul(outputs, x);
}

void Backend::matmul_each(std::span<const MatmulProduct> products) {
  for (const MatmulProduct& product : products) {
    CHECK(product.w != nullptr && product.w->cols() == product.x.cols)
        << "[matmul_each] x has " << product.x.cols << " columns, the weight " << (product.w == nullptr ? 0 : product.w->cols());
    check_view("matmul_each", "y", product.y, product.x.rows, product.w->rows());
  }
  if (!products.empty()) do_matmul_each(products);
}

void Backend::do_matmul_each(std::span<const MatmulProduct> products) {
  for (const MatmulProduct& product : products) matmul(product.y, *product.w, product.x);
}

void Backend::embed(MatrixView<float> out, std::span<const int32_t> ids, const MatrixSource& table, float scale) {
  check_view("embed", "out", out, static_cast<int64_t>(ids.size()), table.cols);
  for (const int32_t id : ids) CHECK(id >= 0 && id < table.rows) << "[embed] id " << id << " of " << table.rows;
  do_embed(out, ids, table, scale);
}

void Backend::rms_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight, float epsilon) {
  check_view("rms_norm", "out", out, x.rows, x.cols);
  check_length("rms_norm", "weight", weight, x.cols);
  do_rms_norm(out, x, weight, epsilon);
}

void Backend::layer_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                         std::span<const float> bias, float epsilon) {
  check_view("layer_norm", "out", out, x.rows, x.cols);
  check_length("layer_norm", "weight", weight, x.cols);
  check_length("layer_norm", "bias", bias, x.cols);
  do_layer_norm(out, x, weight, bias, epsilon);
}

void Backend::add(MatrixView<float> x, MatrixView<const float> y) {
  check_view("add", "y", y, x.rows, x.cols);
  do_add(x, y);
}

void Backend::gated_activation(MatrixView<float> out, MatrixView<const float> gate, MatrixView<const float> up,
                               GateActivation activation) {
  check_view("gated_activation", "gate", gate, out.rows, out.cols);
  check_view("gated_activation", "up", up, out.rows, out.cols);
  do_gated_activation(out, gate, up, activation);
}

void Backend::rope(MatrixView<float> x, int64_t head_dim, std::span<const int64_t> positions,
                   std::span<const float> inverse_frequency, const RopeOptions& options) {
  CHECK(head_dim > 0 && x.cols % head_dim == 0) << "[rope] " << x.cols << " columns in heads of " << head_dim;
  CHECK(options.rotary_dim % 2 == 0 && options.rotary_dim >= 0 && options.rotary_dim <= head_dim)
      << "[rope] rotary_dim " << options.rotary_dim << " of " << head_dim;
  check_length("rope", "positions", positions, x.rows);
  check_length("rope", "inverse_frequency", inverse_frequency, options.rotary_dim / 2);
  do_rope(x, head_dim, positions, inverse_frequency, options);
}

void Backend::store_kv(std::span<const AttendSlice> slices, MatrixView<const float> k, MatrixView<const float> v) {
  for (const AttendSlice& slice : slices) {
    const KvCacheView& cache = slice.cache;
    check_cache("store_kv", cache, slice.first_key + slice.rows);
    CHECK(slice.rows >= 0 && slice.row_begin >= 0 && slice.row_begin + slice.rows <= k.rows && slice.first_key >= 0)
        << "[store_kv] slice of rows " << slice.row_begin << "+" << slice.rows << " of " << k.rows;
    check_view("store_kv", "k", k, k.rows, cache.kv_heads * cache.key_dim);
    check_view("store_kv", "v", v, k.rows, cache.kv_heads * cache.value_dim);
  }
  do_store_kv(slices, k, v);
}

void Backend::attend(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
                     const AttendOptions& options) {
  for (const AttendSlice& slice : slices) {
    const KvCacheView& cache = slice.cache;
    check_cache("attend", cache, slice.first_key + slice.rows);
    CHECK(slice.rows >= 0 && slice.row_begin >= 0 && slice.row_begin + slice.rows <= q.rows && slice.first_key >= 0)
        << "[attend] slice of rows " << slice.row_begin << "+" << slice.rows << " of " << q.rows;
    CHECK(options.heads > 0 && options.heads % cache.kv_heads == 0)
        << "[attend] " << options.heads << " heads over " << cache.kv_heads << " key heads";
    check_view("attend", "q", q, q.rows, options.heads * cache.key_dim);
    check_view("attend", "out", out, q.rows, options.heads * cache.value_dim);
  }
  do_attend(out, q, slices, options);
}

}  // namespace quipu
