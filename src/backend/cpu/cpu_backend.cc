#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cpu/attention_plan.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/matmul_plan.h"
#include "backend/cpu/packed_matrix.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

using cpu::KernelTable;

// Elements below which a row operation is not worth waking the other threads.
constexpr int64_t kParallelElements = 8192;
constexpr int64_t kRowsOfSmallProduct = 64;

// AMX multiplies bf16 and int8 only, so exact activations are AVX-512's business.
const KernelTable& kernels_of(Isa isa, Activations activations) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx && activations == Activations::kFast) return cpu::amx_kernels();
  if (isa >= Isa::kAvx512) return cpu::avx512_kernels();
  if (isa == Isa::kAvx2) return cpu::avx2_kernels();
#endif
  return cpu::portable_kernels();
}

// Nor does attention round what it reads then.
const AttentionKernels& attention_of(Isa isa, Activations activations) {
  return attention_kernels(isa == Isa::kAmx && activations == Activations::kExact ? Isa::kAvx512 : isa);
}

// Cosines and sines of a step's positions, shared by queries, keys and all layers with the same frequencies.
class RotationTable {
 public:
  // [positions][2 * pairs]: cosines then sines of each position.
  const float* rows(std::span<const int64_t> positions, std::span<const float> inverse_frequency, float magnitude,
                    ThreadPool& pool) {
    const bool same = magnitude == magnitude_ && std::ranges::equal(positions, positions_) &&
                      std::ranges::equal(inverse_frequency, inverse_frequency_);
    if (!same) {
      magnitude_ = magnitude;
      positions_.assign(positions.begin(), positions.end());
      inverse_frequency_.assign(inverse_frequency.begin(), inverse_frequency.end());
      const size_t pairs = inverse_frequency.size();
      table_.resize(positions.size() * 2 * pairs);
      const auto fill = [&](int64_t row) {
        float* out = table_.data() + static_cast<size_t>(row) * 2 * pairs;
        for (size_t i = 0; i < pairs; ++i) {
          const double angle = static_cast<double>(positions_[static_cast<size_t>(row)]) * inverse_frequency_[i];
          out[i] = static_cast<float>(std::cos(angle)) * magnitude;
          out[pairs + i] = static_cast<float>(std::sin(angle)) * magnitude;
        }
      };
      if (positions.size() < 8) {
        for (int64_t row = 0; row < static_cast<int64_t>(positions.size()); ++row) fill(row);
      } else {
        pool.parallel_for(static_cast<int64_t>(positions.size()), fill);
      }
    }
    return table_.data();
  }

 private:
  float magnitude_ = 0.0f;
  std::vector<int64_t> positions_;
  std::vector<float> inverse_frequency_;
  std::vector<float> table_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuBackendOptions& options)
      : Backend(std::make_unique<ThreadPool>(options.threads), options.activations),
        isa_(options.isa),
        kernels_(kernels_of(options.isa, options.activations)),
        matmul_(kernels_, pool()),
        attention_(kernels_, attention_of(options.isa, options.activations), pool()) {
    for (int worker = 0; worker < threads(); ++worker) {
      own_matmuls_.push_back(std::make_unique<cpu::MatmulPlan>(kernels_, one_thread_));
    }
  }

  std::string name() const override { return "cpu " + std::string(isa_name(isa_)); }
  Isa isa() const override { return isa_; }

 private:
  // Calls body(row) for every row, on several threads when there is enough to do.
  template <class Body>
  void for_rows(int64_t rows, int64_t cols, const Body& body) {
    if (rows * cols < kParallelElements) {
      for (int64_t row = 0; row < rows; ++row) body(row);
      return;
    }
    constexpr int64_t kRowsPerTask = 8;
    pool().parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
    });
  }

  Result<std::unique_ptr<PackedMatrix>> do_pack(const MatrixSource& source) override {
    if (activations() == Activations::kFast || !traits(source.dtype).quantised) {
      return cpu::CpuMatrix::pack(source, pool(), weights_, kernels_.pairs_bf16());
    }
    // Exact: the numbers a quantised matrix stands for, in float.
    ASSIGN_OR_RETURN(Buffer floats, Buffer::allocate(static_cast<size_t>(source.rows * source.cols) * 4));
    const int64_t stride = row_bytes(source.dtype, source.cols);
    pool().parallel_for(source.rows, [&](int64_t row) {
      dequantise_row(floats.as<float>() + row * source.cols, source.dtype, source.bytes.data() + row * stride, source.cols);
    });
    return cpu::CpuMatrix::pack({DType::kF32, source.rows, source.cols, {floats.data(), floats.size()}}, pool(), weights_, false);
  }

  void do_matmul(std::span<const MatmulOutput> outputs, MatrixView<const float> x) override { matmul_.run(outputs, x); }

  // Whole products to threads: no waiting for each other after every small one, and as they are made alone.
  void do_matmul_each(std::span<const MatmulProduct> products) override {
    if (std::ssize(products) < 2 * threads() && products.front().x.rows > kRowsOfSmallProduct) {
      for (const MatmulProduct& product : products) matmul(product.y, *product.w, product.x);
      return;
    }
    pool().parallel_for_worker(std::ssize(products), [&](int64_t index, int worker) {
      const MatmulProduct& product = products[static_cast<size_t>(index)];
      const MatmulOutput output{product.y, product.w, nullptr};
      if (product.x.rows > 0) own_matmuls_[static_cast<size_t>(worker)]->run({&output, 1}, product.x);
    });
  }

  void do_embed(MatrixView<float> out, std::span<const int32_t> ids, const MatrixSource& table, float scale) override {
    const int64_t stride = row_bytes(table.dtype, table.cols);
    for_rows(out.rows, out.cols, [&](int64_t row) {
      float* target = out.row(row);
      dequantise_row(target, table.dtype, table.bytes.data() + ids[static_cast<size_t>(row)] * stride, table.cols);
      if (scale != 1.0f) {
        for (int64_t i = 0; i < out.cols; ++i) target[i] *= scale;
      }
    });
  }

  void do_rms_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight, float epsilon) override {
    for_rows(x.rows, x.cols, [&](int64_t row) { kernels_.rms_norm_row(out.row(row), x.row(row), weight.data(), x.cols, epsilon); });
  }

  void do_layer_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                     std::span<const float> bias, float epsilon) override {
    for_rows(x.rows, x.cols, [&](int64_t row) {
      const float* in = x.row(row);
      double sum = 0.0, squares = 0.0;
      for (int64_t i = 0; i < x.cols; ++i) sum += in[i];
      const double mean = sum / static_cast<double>(x.cols);
      for (int64_t i = 0; i < x.cols; ++i) squares += (in[i] - mean) * (in[i] - mean);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(x.cols) + epsilon);
      float* target = out.row(row);
      for (int64_t i = 0; i < x.cols; ++i) {
        target[i] = static_cast<float>((in[i] - mean) * inverse) * weight[static_cast<size_t>(i)] + bias[static_cast<size_t>(i)];
      }
    });
  }

  void do_add(MatrixView<float> x, MatrixView<const float> y) override {
    for_rows(x.rows, x.cols, [&](int64_t row) { kernels_.add_row(x.row(row), y.row(row), x.cols); });
  }

  void do_gated_activation(MatrixView<float> out, MatrixView<const float> gate, MatrixView<const float> up,
                           GateActivation activation) override {
    const auto kernel = activation == GateActivation::kSilu ? kernels_.silu_gate_row : kernels_.gelu_gate_row;
    for_rows(out.rows, out.cols, [&](int64_t row) { kernel(out.row(row), gate.row(row), up.row(row), out.cols); });
  }

  void do_rope(MatrixView<float> x, int64_t head_dim, std::span<const int64_t> positions,
               std::span<const float> inverse_frequency, const RopeOptions& options) override {
    const int64_t pairs = options.rotary_dim / 2;
    if (pairs == 0) return;
    const float* table = rotations_.rows(positions, inverse_frequency, options.magnitude, pool());
    const int64_t step = options.interleaved ? 2 : 1;
    const int64_t offset = options.interleaved ? 1 : pairs;
    for_rows(x.rows, x.cols, [&](int64_t row) {
      for (int64_t head = 0; head < x.cols; head += head_dim) {
        kernels_.rope_row(x.row(row) + head, table + row * 2 * pairs, pairs, step, offset);
      }
    });
  }

  void do_store_kv(std::span<const AttendSlice> slices, MatrixView<const float> k, MatrixView<const float> v) override {
    // What the rows of a slice put on one page of one head, by page: the rows of one page share cache lines.
    const auto store_page = [&](const AttendSlice& slice, int64_t index) {
      const KvCacheView& cache = slice.cache;
      const int64_t page = slice.first_key / kPageRows + index / cache.kv_heads, head = index % cache.kv_heads;
      std::byte* key_page = cache.key_page(page) + head * kv_head_page_bytes(cache.dtype, cache.key_dim);
      std::byte* value_page = cache.value_page(page) + head * kv_head_page_bytes(cache.dtype, cache.value_dim);
      const int64_t begin = std::max(slice.first_key, page * kPageRows);
      const int64_t end = std::min(slice.first_key + slice.rows, (page + 1) * kPageRows);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t in_page = row - page * kPageRows, from = slice.row_begin + row - slice.first_key;
        save_key_row(key_page, cache.dtype, cache.key_dim, in_page, k.row(from) + head * cache.key_dim);
        save_value_row(value_page, cache.dtype, cache.value_dim, in_page, v.row(from) + head * cache.value_dim);
      }
    };
    const auto tasks = [](const AttendSlice& slice) {
      const int64_t pages = (slice.first_key + slice.rows + kPageRows - 1) / kPageRows - slice.first_key / kPageRows;
      return slice.rows == 0 ? 0 : pages * slice.cache.kv_heads;
    };
    const auto is_long = [&](const AttendSlice& slice) { return slice.rows * k.cols >= kParallelElements; };
    for (const AttendSlice& slice : slices) {
      if (is_long(slice)) pool().parallel_for(tasks(slice), [&](int64_t task) { store_page(slice, task); });
    }
    // Short ones, a sequence a task: its own thread attends to it next.
    const auto store_short = [&](int64_t number) {
      const AttendSlice& slice = slices[static_cast<size_t>(number)];
      for (int64_t task = is_long(slice) ? tasks(slice) : 0; task < tasks(slice); ++task) store_page(slice, task);
    };
    const int64_t count = static_cast<int64_t>(slices.size());
    if (count * k.cols < kParallelElements) {
      for (int64_t i = 0; i < count; ++i) store_short(i);
    } else {
      pool().parallel_for(count, store_short);
    }
  }

  void do_attend(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
                 const AttendOptions& options) override {
    attention_.run(out, q, slices, options);
  }

  Isa isa_;
  const KernelTable& kernels_;
  cpu::WeightMemory weights_;
  cpu::MatmulPlan matmul_;
  ThreadPool one_thread_{1};
  std::vector<std::unique_ptr<cpu::MatmulPlan>> own_matmuls_;   // one a worker
  cpu::AttentionPlan attention_;
  RotationTable rotations_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options) {
  if (options.isa > best_isa() && !options.isa_is_emulated) {
    return usage_error("this machine cannot run " + std::string(isa_name(options.isa)) + " kernels; its best is " +
                       std::string(isa_name(best_isa())));
  }
  return std::unique_ptr<Backend>(new CpuBackend(options));
}

}  // namespace quipu
