#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

class ReferenceMatrix final : public PackedMatrix {
 public:
  ReferenceMatrix(const MatrixSource& source, Buffer values)
      : PackedMatrix(source.dtype, source.rows, source.cols), values_(std::move(values)) {}
  int64_t bytes() const override { return static_cast<int64_t>(values_.size()); }
  const float* row(int64_t r) const { return values_.as<float>() + r * cols(); }

 private:
  Buffer values_;   // [rows, cols] float
};

double dot(const float* a, const float* b, int64_t length) {
  double sum = 0.0;
  for (int64_t i = 0; i < length; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// What one worker needs while it attends: one cache row and, for each query head of a group, a running softmax.
struct AttendScratch {
  std::vector<float> key, value;
  std::vector<double> maximum, total, weighted;   // [group], [group], [group, value_dim]
};

// One slice of an attend() call.
struct AttendCall {
  MatrixView<float> out;
  MatrixView<const float> q;
  const AttendSlice& slice;
  const AttendOptions& options;
};

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(int threads)
      : Backend(std::make_unique<ThreadPool>(threads), Activations::kExact),
        scratch_(static_cast<size_t>(pool().threads())) {}
  std::string name() const override { return "reference"; }

 private:
  Result<std::unique_ptr<PackedMatrix>> do_pack(const MatrixSource& source) override {
    ASSIGN_OR_RETURN(Buffer values, Buffer::allocate(static_cast<size_t>(source.rows * source.cols) * sizeof(float)));
    const int64_t stride = row_bytes(source.dtype, source.cols);
    float* out = values.as<float>();
    pool().parallel_for(source.rows, [&](int64_t row) {
      dequantise_row(out + row * source.cols, source.dtype, source.bytes.data() + row * stride, source.cols);
    });
    return std::unique_ptr<PackedMatrix>(std::make_unique<ReferenceMatrix>(source, std::move(values)));
  }

  void do_matmul(std::span<const MatmulOutput> outputs, MatrixView<const float> x) override {
    for (const MatmulOutput& output : outputs) {
      const auto* w = dynamic_cast<const ReferenceMatrix*>(output.w);
      CHECK(w != nullptr) << "[matmul] the weight was packed by another back end";
      pool().parallel_for(w->rows(), [&](int64_t column) {
        const double bias = output.bias == nullptr ? 0.0 : static_cast<double>(output.bias[column]);
        for (int64_t row = 0; row < x.rows; ++row) {
          output.y(row, column) = static_cast<float>(dot(x.row(row), w->row(column), x.cols) + bias);
        }
      });
    }
  }

  void do_embed(MatrixView<float> out, std::span<const int32_t> ids, const MatrixSource& table, float scale) override {
    const int64_t stride = row_bytes(table.dtype, table.cols);
    for (int64_t row = 0; row < out.rows; ++row) {
      dequantise_row(out.row(row), table.dtype, table.bytes.data() + ids[static_cast<size_t>(row)] * stride, table.cols);
      for (int64_t c = 0; c < out.cols; ++c) out(row, c) *= scale;
    }
  }

  void do_rms_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                   float epsilon) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const double mean_square = dot(x.row(row), x.row(row), x.cols) / static_cast<double>(x.cols);
      const double inverse = 1.0 / std::sqrt(mean_square + static_cast<double>(epsilon));
      for (int64_t c = 0; c < x.cols; ++c) {
        out(row, c) = static_cast<float>(static_cast<double>(x(row, c)) * inverse * static_cast<double>(weight[c]));
      }
    }
  }

  void do_layer_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                     std::span<const float> bias, float epsilon) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      double mean = 0.0;
      for (int64_t c = 0; c < x.cols; ++c) mean += static_cast<double>(x(row, c));
      mean /= static_cast<double>(x.cols);
      double variance = 0.0;
      for (int64_t c = 0; c < x.cols; ++c) {
        const double deviation = static_cast<double>(x(row, c)) - mean;
        variance += deviation * deviation;
      }
      variance /= static_cast<double>(x.cols);
      const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(epsilon));
      for (int64_t c = 0; c < x.cols; ++c) {
        const double normal = (static_cast<double>(x(row, c)) - mean) * inverse;
        out(row, c) = static_cast<float>(normal * static_cast<double>(weight[c]) + static_cast<double>(bias[c]));
      }
    }
  }

  void do_add(MatrixView<float> x, MatrixView<const float> y) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t c = 0; c < x.cols; ++c) x(row, c) += y(row, c);
    }
  }

  void do_gated_activation(MatrixView<float> out, MatrixView<const float> gate, MatrixView<const float> up,
                           GateActivation activation) override {
    for (int64_t row = 0; row < out.rows; ++row) {
      for (int64_t c = 0; c < out.cols; ++c) {
        const double g = static_cast<double>(gate(row, c));
        double activated = 0.0;
        if (activation == GateActivation::kSilu) {
          activated = g / (1.0 + std::exp(-g));
        } else {
          constexpr double kRoot = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;   // sqrt(2 / pi)
          activated = 0.5 * g * (1.0 + std::tanh(kRoot * (g + 0.044715 * g * g * g)));
        }
        out(row, c) = static_cast<float>(activated * static_cast<double>(up(row, c)));
      }
    }
  }

  void do_rope(MatrixView<float> x, int64_t head_dim, std::span<const int64_t> positions,
               std::span<const float> inverse_frequency, const RopeOptions& options) override {
    const int64_t pairs = options.rotary_dim / 2;
    const double magnitude = static_cast<double>(options.magnitude);
    for (int64_t row = 0; row < x.rows; ++row) {
      const double position = static_cast<double>(positions[static_cast<size_t>(row)]);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const double angle = position * static_cast<double>(inverse_frequency[static_cast<size_t>(pair)]);
        const double cosine = std::cos(angle) * magnitude;
        const double sine = std::sin(angle) * magnitude;
        const int64_t first = options.interleaved ? 2 * pair : pair;
        const int64_t second = options.interleaved ? 2 * pair + 1 : pair + pairs;
        for (float* head = x.row(row); head < x.row(row) + x.cols; head += head_dim) {
          const double a = static_cast<double>(head[first]);
          const double b = static_cast<double>(head[second]);
          head[first] = static_cast<float>(a * cosine - b * sine);
          head[second] = static_cast<float>(a * sine + b * cosine);
        }
      }
    }
  }

  void do_store_kv(std::span<const AttendSlice> slices, MatrixView<const float> k, MatrixView<const float> v) override {
    for (const AttendSlice& slice : slices) {
      const KvCacheView& cache = slice.cache;
      const int64_t key_bytes = kv_head_page_bytes(cache.dtype, cache.key_dim);
      const int64_t value_bytes = kv_head_page_bytes(cache.dtype, cache.value_dim);
      for (int64_t i = 0; i < slice.rows; ++i) {
        const int64_t page = (slice.first_key + i) / kPageRows, row = (slice.first_key + i) % kPageRows, from = slice.row_begin + i;
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
          save_key_row(cache.key_page(page) + head * key_bytes, cache.dtype, cache.key_dim, row, k.row(from) + head * cache.key_dim);
          save_value_row(cache.value_page(page) + head * value_bytes, cache.dtype, cache.value_dim, row,
                         v.row(from) + head * cache.value_dim);
        }
      }
    }
  }

  void do_attend(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
                 const AttendOptions& options) override {
    for (const AttendSlice& slice : slices) {
      const KvCacheView& cache = slice.cache;
      const int64_t group = options.heads / cache.kv_heads;
      for (AttendScratch& scratch : scratch_) {
        scratch.key.resize(static_cast<size_t>(cache.key_dim));
        scratch.value.resize(static_cast<size_t>(cache.value_dim));
        scratch.maximum.resize(static_cast<size_t>(group));
        scratch.total.resize(static_cast<size_t>(group));
        scratch.weighted.resize(static_cast<size_t>(group * cache.value_dim));
      }
      pool().parallel_for_worker(slice.rows * cache.kv_heads, [&](int64_t task, int worker) {
        attend_group({out, q, slice, options}, task / cache.kv_heads, task % cache.kv_heads,
                     scratch_[static_cast<size_t>(worker)]);
      });
    }
  }

  // One query row, all heads that read key head `kv_head`.
  static void attend_group(const AttendCall& call, int64_t row, int64_t kv_head, AttendScratch& scratch);

  std::vector<AttendScratch> scratch_;   // one a worker
};

void ReferenceBackend::attend_group(const AttendCall& call, int64_t row, int64_t kv_head, AttendScratch& scratch) {
  const AttendSlice& slice = call.slice;
  const AttendOptions& options = call.options;
  const KvCacheView& cache = slice.cache;
  const int64_t group = options.heads / cache.kv_heads;
  const int64_t value_dim = cache.value_dim;
  const int64_t last = slice.first_key + row;
  const int64_t first = options.window > 0 ? std::max<int64_t>(0, last - options.window + 1) : 0;
  const double cap = static_cast<double>(options.logit_softcap);
  std::fill(scratch.maximum.begin(), scratch.maximum.end(), -std::numeric_limits<double>::infinity());
  std::fill(scratch.total.begin(), scratch.total.end(), 0.0);
  std::fill(scratch.weighted.begin(), scratch.weighted.end(), 0.0);

  for (int64_t key = first; key <= last; ++key) {
    const int64_t page = key / kPageRows;
    load_key_row(scratch.key.data(), cache.dtype,
                 cache.key_page(page) + kv_head * kv_head_page_bytes(cache.dtype, cache.key_dim), cache.key_dim,
                 key % kPageRows);
    load_value_row(scratch.value.data(), cache.dtype,
                   cache.value_page(page) + kv_head * kv_head_page_bytes(cache.dtype, value_dim), value_dim,
                   key % kPageRows);
    for (int64_t member = 0; member < group; ++member) {
      const float* query = call.q.row(slice.row_begin + row) + (kv_head * group + member) * cache.key_dim;
      double score = dot(query, scratch.key.data(), cache.key_dim) * static_cast<double>(options.scale);
      if (cap > 0.0) score = cap * std::tanh(score / cap);
      double& maximum = scratch.maximum[static_cast<size_t>(member)];
      double& total = scratch.total[static_cast<size_t>(member)];
      double* weighted = scratch.weighted.data() + member * value_dim;
      if (score > maximum) {
        const double shrink = std::exp(maximum - score);   // 0 for the first key
        total *= shrink;
        for (int64_t c = 0; c < value_dim; ++c) weighted[c] *= shrink;
        maximum = score;
      }
      const double weight = std::exp(score - maximum);
      total += weight;
      for (int64_t c = 0; c < value_dim; ++c) weighted[c] += weight * static_cast<double>(scratch.value[c]);
    }
  }
  for (int64_t member = 0; member < group; ++member) {
    float* result = call.out.row(slice.row_begin + row) + (kv_head * group + member) * value_dim;
    for (int64_t c = 0; c < value_dim; ++c) {
      result[c] = static_cast<float>(scratch.weighted[static_cast<size_t>(member * value_dim + c)] /
                                     scratch.total[static_cast<size_t>(member)]);
    }
  }
}

}  // namespace

std::unique_ptr<Backend> make_reference_backend(int threads) { return std::make_unique<ReferenceBackend>(threads); }

}  // namespace quipu
