#include "backend/cpu/cpu_training.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/scratch.h"
#include "backend/cpu/training_attention.h"
#include "backend/cpu/training_gated.h"
#include "backend/cpu/training_gemm.h"
#include "backend/cpu/training_output_loss.h"
#include "backend/cpu/training_pair_attention.h"
#include "backend/cpu/training_self_attention.h"

namespace quipu {
namespace {

using cpu::GemmColumns;
using cpu::GemmRows;
using cpu::TrainingKernels;
using Matrix = MatrixView<float>;
using ConstMatrix = MatrixView<const float>;

// Rows whose sum over rows (bias, norm weight) is made by one task, in order; the parts are then folded in order.
constexpr int64_t kFoldRows = 128;
// Elements below which an operation is not worth waking the other threads.
constexpr int64_t kParallelElements = 16384;
constexpr int64_t kFlatElements = 1 << 14;   // of a task over a flat array

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

const TrainingKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return cpu::amx_training_kernels();
  if (isa >= Isa::kAvx512) return cpu::avx512_training_kernels();
  if (isa == Isa::kAvx2) return cpu::avx2_training_kernels();
#endif
  (void)isa;
  return cpu::portable_training_kernels();
}

class CpuTrainingOps final : public TrainingOps<float> {
 public:
  explicit CpuTrainingOps(const CpuTrainingOptions& options)
      : TrainingOps(std::make_unique<ThreadPool>(options.threads), options.precision),
        kernels_(kernels_of(options.isa)),
        isa_(options.isa),
        gemm_(kernels_, pool(), options.precision == MatmulPrecision::kBfloat16),
        gated_(kernels_, pool()),
        attention_(kernels_, pool()),
        pair_attention_(kernels_, pool()),
        self_attention_(kernels_, pool()),
        output_loss_(kernels_, pool()) {}

  std::string name() const override {
    return "cpu " + std::string(isa_name(isa_)) + (gemm_.rounds() ? " bf16" : " fp32");
  }
  int64_t scratch_bytes(int64_t weight_elements) const override { return gemm_.scratch_bytes(weight_elements); }
  bool fuses_gated(const GatedShape& shape) const override { return gemm_.rounds() && gated_.takes(shape); }
  FusedMemory gated_memory(const GatedShape& shape, int64_t rows) const override { return gated_.memory(shape, rows); }
  bool fuses_self_attention(const SelfAttentionShape& shape) const override { return gemm_.rounds() && self_attention_.takes(shape); }
  FusedMemory self_attention_memory(const SelfAttentionShape& shape, std::span<const int64_t> offsets) const override {
    return self_attention_.memory(shape, offsets);
  }
  bool fuses_output_loss(const OutputLossShape& shape) const override { return gemm_.rounds() && output_loss_.takes(shape); }
  int64_t output_loss_bytes(const OutputLossShape& shape, int64_t rows, bool backward) const override {
    return output_loss_.memory(shape, rows, backward);
  }

 private:
  // Calls body(row) for every row, on several threads when there is enough to do.
  template <class Body>
  void for_rows(int64_t rows, int64_t cols, const Body& body) {
    constexpr int64_t kRowsPerTask = 16;
    if (rows * cols < kParallelElements) {
      for (int64_t row = 0; row < rows; ++row) body(row);
      return;
    }
    pool().parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
    });
  }

  // sums[0 .. count) += the sum over rows of what body(row, partial) adds to its partial, in an order set by `rows` alone.
  template <class Body>
  void fold_rows(std::span<const std::span<float>> sums, int64_t rows, int64_t cols, const Body& body) {
    const int64_t parts = (rows + kFoldRows - 1) / kFoldRows;
    const int64_t part_floats = static_cast<int64_t>(sums.size()) * cols;
    cpu::grow(fold_, parts * part_floats * static_cast<int64_t>(sizeof(float)));
    pool().parallel_for(parts, [&](int64_t part) {
      float* partial = fold_.as<float>() + part * part_floats;
      std::fill_n(partial, part_floats, 0.0f);
      const int64_t end = std::min(rows, (part + 1) * kFoldRows);
      for (int64_t row = part * kFoldRows; row < end; ++row) body(row, partial);
    });
    for (size_t i = 0; i < sums.size(); ++i) {
      if (sums[i].empty()) continue;
      for (int64_t part = 0; part < parts; ++part) {
        kernels_.add_row(sums[i].data(), fold_.as<float>() + part * part_floats + static_cast<int64_t>(i) * cols, cols, 1.0f);
      }
    }
  }

  void do_matmul(std::span<const LinearForward<float>> outputs, ConstMatrix x) override {
    columns_.clear();
    for (const auto& o : outputs) columns_.push_back({o.w.data, o.w.stride, o.w.rows, o.y.data, o.y.stride, o.bias});
    const GemmRows rows{x.data, x.stride, x.rows, nullptr, 0};
    gemm_.run({.rows = {&rows, 1}, .columns = columns_, .depth = x.cols, .b_transposed = true});
  }

  void do_matmul_backward(Matrix dx, std::span<const LinearBackward<float>> outputs, ConstMatrix x, Gradient gradient) override {
    if (dx.data != nullptr) {
      terms_.clear();
      for (const auto& o : outputs) terms_.push_back({o.dy.data, o.dy.stride, o.w.data, o.w.stride, o.w.rows});
      const GemmRows rows{nullptr, 0, dx.rows, nullptr, 0};
      const GemmColumns columns{nullptr, 0, dx.cols, dx.data, dx.stride, nullptr};
      gemm_.run({.rows = {&rows, 1}, .columns = {&columns, 1}, .terms = terms_, .add = gradient == Gradient::kAdd});
    }
    rows_.clear();
    for (const auto& o : outputs) {
      if (o.dw.data != nullptr) rows_.push_back({o.dy.data, o.dy.stride, o.dy.cols, o.dw.data, o.dw.stride});
    }
    if (!rows_.empty()) {
      const GemmColumns columns{x.data, x.stride, x.cols, nullptr, 0, nullptr};
      gemm_.run({.rows = rows_, .columns = {&columns, 1}, .depth = x.rows, .a_by_columns = true, .add = true});
    }
    for (const auto& o : outputs) {
      if (o.dbias == nullptr) continue;
      const std::span<float> sum(o.dbias, index_of(o.dy.cols));
      fold_rows({&sum, 1}, o.dy.rows, o.dy.cols,
                [&](int64_t row, float* partial) { kernels_.add_row(partial, o.dy.row(row), o.dy.cols, 1.0f); });
    }
  }

  void do_batched_gemm(const BatchedGemm<float>& gemm) override { gemm_.run_batch(gemm); }

  void do_embed(Matrix out, std::span<const int32_t> ids, ConstMatrix table, float scale) override {
    for_rows(out.rows, out.cols, [&](int64_t row) {
      const float* from = table.row(ids[index_of(row)]);
      for (int64_t c = 0; c < out.cols; ++c) out(row, c) = scale * from[c];
    });
  }
  // Every task owns a stripe of columns and walks all rows: equal tokens add up in their order.
  void do_embed_backward(Matrix dtable, std::span<const int32_t> ids, ConstMatrix dout, float scale) override {
    constexpr int64_t kStripe = 64;
    pool().parallel_for((dout.cols + kStripe - 1) / kStripe, [&](int64_t stripe) {
      const int64_t first = stripe * kStripe, cols = std::min(kStripe, dout.cols - first);
      for (int64_t row = 0; row < dout.rows; ++row) {
        kernels_.add_row(dtable.row(ids[index_of(row)]) + first, dout.row(row) + first, cols, scale);
      }
    });
  }
  void do_gather_rows(Matrix out, ConstMatrix x, std::span<const int32_t> index) override {
    for_rows(out.rows, out.cols, [&](int64_t row) {
      std::memcpy(out.row(row), x.row(index[index_of(row)]), index_of(out.cols) * sizeof(float));
    });
  }
  void do_scatter_add_rows(Matrix out, ConstMatrix x, std::span<const int32_t> index, std::span<const float> factor) override {
    for_rows(x.rows, x.cols, [&](int64_t row) {
      kernels_.add_row(out.row(index[index_of(row)]), x.row(row), x.cols, factor.empty() ? 1.0f : factor[index_of(row)]);
    });
  }
  void do_add(Matrix x, ConstMatrix y, float scale) override {
    for_rows(x.rows, x.cols, [&](int64_t row) { kernels_.add_row(x.row(row), y.row(row), x.cols, scale); });
  }

  void do_rms_norm(Matrix out, std::span<float> inverse_rms, ConstMatrix x, std::span<const float> weight, float epsilon) override {
    for_rows(x.rows, x.cols, [&](int64_t row) {
      const float inverse = kernels_.rms_norm_row(out.row(row), x.row(row), weight.data(), x.cols, epsilon);
      if (!inverse_rms.empty()) inverse_rms[index_of(row)] = inverse;
    });
  }
  void do_rms_norm_backward(Matrix dx, std::span<float> dweight, ConstMatrix dy, const NormSaved<float>& saved, Gradient gradient) override {
    const auto row_of = [&](int64_t row) {
      return cpu::NormRow{.dx = dx.row(row), .dy = dy.row(row), .x = saved.x.row(row), .weight = saved.weight.data(), .n = dx.cols,
                          .scale = saved.scale[index_of(row)], .add = gradient == Gradient::kAdd};
    };
    fold_rows({&dweight, 1}, dx.rows, dx.cols, [&](int64_t row, float* partial) {
      cpu::NormRow r = row_of(row);
      r.dweight = dweight.empty() ? nullptr : partial;
      kernels_.norm_backward_row(r);
    });
  }
  void do_layer_norm(Matrix out, Matrix moments, ConstMatrix x, const NormWeights<float>& norm) override {
    for_rows(x.rows, x.cols, [&](int64_t row) {
      kernels_.layer_norm_row(out.row(row), moments.row(row), x.row(row), norm.weight.data(), norm.bias.data(), x.cols, norm.epsilon);
    });
  }
  void do_layer_norm_backward(Matrix dx, const NormGradients<float>& gradients, ConstMatrix dy, const NormSaved<float>& saved,
                              Gradient gradient) override {
    const std::span<float> sums[] = {gradients.dweight, gradients.dbias};
    fold_rows(sums, dx.rows, dx.cols, [&](int64_t row, float* partial) {
      kernels_.norm_backward_row({.dx = dx.row(row), .dweight = gradients.dweight.empty() ? nullptr : partial,
                                  .dbias = gradients.dbias.empty() ? nullptr : partial + dx.cols, .dy = dy.row(row), .x = saved.x.row(row),
                                  .weight = saved.weight.data(), .n = dx.cols, .mean = saved.scale[index_of(2 * row)],
                                  .scale = saved.scale[index_of(2 * row + 1)], .centred = true, .add = gradient == Gradient::kAdd});
    });
  }

  void do_rope(Matrix x, int64_t head_dim, std::span<const int64_t> positions, std::span<const float> inverse_frequency,
               const RopeOptions& options, Direction direction) override {
    const int64_t pairs = options.rotary_dim / 2;
    const float* table = rotations(positions, inverse_frequency, options.magnitude, direction);
    const int64_t step = options.interleaved ? 2 : 1, offset = options.interleaved ? 1 : pairs;
    for_rows(x.rows, x.cols, [&](int64_t row) {
      const float* cos_sin = table + positions[index_of(row)] * 2 * pairs;
      for (int64_t head = 0; head < x.cols; head += head_dim) kernels_.rotate_row(x.row(row) + head, cos_sin, pairs, step, offset);
    });
  }

  void do_gated_activation(Matrix out, ConstMatrix gate, ConstMatrix up, GateActivation activation) override {
    const bool gelu = activation == GateActivation::kGeluTanh;
    for_rows(out.rows, out.cols, [&](int64_t row) { kernels_.gate_row(out.row(row), gate.row(row), up.row(row), out.cols, gelu); });
  }
  void do_gated_activation_backward(Matrix dgate, Matrix dup, ConstMatrix dout, const GatedSaved<float>& saved,
                                    GateActivation activation) override {
    const bool gelu = activation == GateActivation::kGeluTanh;
    for_rows(dout.rows, dout.cols, [&](int64_t row) {
      kernels_.gate_backward_row(dgate.row(row), dup.row(row), dout.row(row), saved.gate.row(row), saved.up.row(row), dout.cols, gelu);
    });
  }

  void do_gated(Matrix out, ConstMatrix x, const GatedCall<float>& call) override { gated_.forward(out, x, call); }
  void do_gated_backward(Matrix dx, const GatedGradients<float>& gradients, ConstMatrix dout, ConstMatrix x,
                         const GatedCall<float>& call) override {
    gated_.backward(dx, gradients, dout, x, call);
  }

  void do_attention(Matrix out, Matrix log_sum_exp, const AttentionInputs<float>& in, const AttentionPattern& pattern) override {
    if (gemm_.rounds() && pair_attention_.takes(pattern)) return pair_attention_.forward(out, log_sum_exp, in, pattern);
    attention_.forward(out, log_sum_exp, in, pattern);
  }
  void do_attention_backward(const AttentionGradients<float>& gradients, ConstMatrix dout, const AttentionInputs<float>& in,
                             const AttentionSaved<float>& saved, const AttentionPattern& pattern) override {
    if (gemm_.rounds() && pair_attention_.takes(pattern)) return pair_attention_.backward(gradients, dout, in, saved, pattern);
    attention_.backward(gradients, dout, in, saved, pattern);
  }

  void do_self_attention(Matrix out, ConstMatrix x, const SelfAttentionCall<float>& call) override {
    self_attention_.forward(out, x, call, rotation_of(call, Direction::kForward));
  }
  void do_self_attention_backward(Matrix dx, const SelfAttentionGradients<float>& gradients, ConstMatrix dout, ConstMatrix x,
                                  const SelfAttentionCall<float>& call) override {
    self_attention_.backward(dx, gradients, dout, x, call, rotation_of(call, Direction::kBackward));
  }
  cpu::RotationTable rotation_of(const SelfAttentionCall<float>& call, Direction direction) {
    if (call.rope.rotary_dim == 0) return {};
    const int64_t pairs = call.rope.rotary_dim / 2;
    return {rotations(call.positions, call.inverse_frequency, call.rope.magnitude, direction), pairs, call.rope.interleaved ? 2 : 1,
            call.rope.interleaved ? 1 : pairs};
  }

  LossSums do_softmax_cross_entropy(Matrix logits, const RowLosses<float>& rows, const LossInputs<float>& in,
                                    const LossOptions& options) override {
    begin_loss_rows(logits.rows, in, options);
    for_rows(logits.rows, logits.cols, [&](int64_t row) {
      cpu::LossRow& r = loss_rows_[index_of(row)];
      r.logits = logits.row(row), r.n = logits.cols;
      r.backward = options.backward && r.target >= 0;
      kernels_.loss_row(r);
      if (options.backward && r.target < 0) std::fill_n(r.logits, r.n, 0.0f);
    });
    return sum_loss_rows(rows, options);
  }

  LossSums do_output_loss(const OutputLossCall<float>& call, const RowLosses<float>& rows, ConstMatrix x, const LossInputs<float>& in,
                          const LossOptions& options) override {
    begin_loss_rows(x.rows, in, options);
    output_loss_.run(call, x, loss_rows_, options.backward);
    return sum_loss_rows(rows, options);
  }

  void begin_loss_rows(int64_t count, const LossInputs<float>& in, const LossOptions& options) {
    loss_rows_.resize(index_of(count));
    for (size_t row = 0; row < loss_rows_.size(); ++row) {
      loss_rows_[row] = {.target = in.targets[row], .weight = in.weights.empty() ? 1.0f : in.weights[row],
                         .z_loss = static_cast<float>(options.z_loss), .logit_scale = static_cast<float>(options.logit_scale),
                         .softcap = static_cast<float>(options.softcap)};
    }
  }
  LossSums sum_loss_rows(const RowLosses<float>& rows, const LossOptions& options) const {
    LossSums sums;
    for (int64_t row = 0; row < static_cast<int64_t>(loss_rows_.size()); ++row) {
      const cpu::LossRow& r = loss_rows_[index_of(row)];
      const float loss = r.target < 0 ? 0.0f : r.log_sum_exp - r.target_value;
      if (!rows.losses.empty()) rows.losses[index_of(row)] = loss;
      if (!rows.predictions.empty()) rows.predictions[index_of(row)] = r.best;
      if (r.target < 0) continue;
      const double weight = static_cast<double>(r.weight), lse = static_cast<double>(r.log_sum_exp);
      sums.weighted += weight * static_cast<double>(loss);
      sums.z += weight * options.z_loss * lse * lse;
      sums.weight += weight;
      sums.rows += 1;
      sums.correct += r.best == r.target;
    }
    return sums;
  }

  double do_squared_norm(std::span<const float> values) override {
    // Short runs in float, folded in double.
    constexpr int64_t kRun = 1024;
    const int64_t count = static_cast<int64_t>(values.size()), tasks = (count + kFlatElements - 1) / kFlatElements;
    parts_.assign(index_of(tasks), 0.0);
    pool().parallel_for(tasks, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * kFlatElements);
      double sum = 0.0;
      for (int64_t i = task * kFlatElements; i < end; i += kRun) {
        sum += static_cast<double>(kernels_.dot(values.data() + i, values.data() + i, std::min(kRun, end - i)));
      }
      parts_[index_of(task)] = sum;
    });
    double total = 0.0;
    for (const double part : parts_) total += part;
    return total;
  }

  void do_adamw(std::span<float> weights, const AdamState<float>& state, const AdamSettings& s) override {
    const int64_t count = static_cast<int64_t>(weights.size());
    const double correction1 = 1.0 - std::pow(s.beta1, static_cast<double>(s.step));
    const double correction2 = 1.0 - std::pow(s.beta2, static_cast<double>(s.step));
    pool().parallel_for((count + kFlatElements - 1) / kFlatElements, [&](int64_t task) {
      const int64_t first = task * kFlatElements;
      kernels_.adam_row({.w = weights.data() + first, .g = state.gradients.data() + first, .m = state.first.data() + first,
                         .v = state.second.data() + first, .n = std::min(kFlatElements, count - first),
                         .beta1 = static_cast<float>(s.beta1), .beta2 = static_cast<float>(s.beta2),
                         .gradient_scale = static_cast<float>(s.gradient_scale), .step = static_cast<float>(s.rate / correction1),
                         .inverse_root = static_cast<float>(1.0 / std::sqrt(correction2)), .epsilon = static_cast<float>(s.epsilon),
                         .shrink = static_cast<float>(1.0 - s.rate * s.decay)});
    });
  }

  // [largest position + 1][2 * pairs]: cosines then sines; kept while frequencies and direction alternate between the two
  // tables.
  struct Rotation {
    std::vector<float> frequency, table;
    float magnitude = 0.0f;
    int64_t positions = 0;
  };
  const float* rotations(std::span<const int64_t> positions, std::span<const float> frequency, float magnitude, Direction direction) {
    Rotation& r = rotations_[direction == Direction::kForward ? 0 : 1];
    const double sign = direction == Direction::kForward ? 1.0 : -1.0;
    int64_t needed = 0;
    for (const int64_t position : positions) needed = std::max(needed, position + 1);
    const bool same = std::ranges::equal(frequency, r.frequency) && magnitude == r.magnitude;
    if (same && needed <= r.positions) return r.table.data();
    const int64_t first = same ? r.positions : 0;
    r.frequency.assign(frequency.begin(), frequency.end());
    r.magnitude = magnitude;
    r.positions = needed;
    const int64_t pairs = static_cast<int64_t>(frequency.size());
    r.table.resize(index_of(needed * 2 * pairs));
    pool().parallel_for(needed - first, [&](int64_t i) {
      float* out = r.table.data() + (first + i) * 2 * pairs;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const double angle = static_cast<double>(first + i) * static_cast<double>(frequency[index_of(pair)]);
        out[pair] = static_cast<float>(std::cos(angle) * static_cast<double>(magnitude));
        out[pairs + pair] = static_cast<float>(sign * std::sin(angle) * static_cast<double>(magnitude));
      }
    });
    return r.table.data();
  }

  const TrainingKernels& kernels_;
  Isa isa_;
  cpu::TrainingGemm gemm_;
  cpu::GatedPairs gated_;
  cpu::TrainingAttention attention_;
  cpu::PairAttention pair_attention_;
  cpu::SelfAttentionPairs self_attention_;
  cpu::OutputLossPairs output_loss_;
  std::vector<GemmColumns> columns_;
  std::vector<GemmRows> rows_;
  std::vector<cpu::GemmTerm> terms_;
  std::vector<cpu::LossRow> loss_rows_;
  std::vector<double> parts_;
  Buffer fold_;
  Rotation rotations_[2];
};

}  // namespace

Result<std::unique_ptr<TrainingOps<float>>> make_cpu_training_ops(const CpuTrainingOptions& options) {
  if (options.isa > best_isa() && !options.isa_is_emulated) {
    return usage_error("this machine cannot run " + std::string(isa_name(options.isa)) + " kernels; its best is " +
                       std::string(isa_name(best_isa())));
  }
  return std::unique_ptr<TrainingOps<float>>(new CpuTrainingOps(options));
}

}  // namespace quipu
