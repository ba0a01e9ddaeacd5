#include "backend/reference/reference_training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

namespace quipu {
namespace {

using Matrix = MatrixView<double>;
using ConstMatrix = MatrixView<const double>;

double dot(const double* a, const double* b, int64_t length) {
  double sum = 0.0;
  for (int64_t i = 0; i < length; ++i) sum += a[i] * b[i];
  return sum;
}

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

struct Activated {
  double value, slope;
};
// value and derivative of the gate's activation.
Activated activate(double g, GateActivation activation) {
  if (activation == GateActivation::kSilu) {
    const double s = 1.0 / (1.0 + std::exp(-g));
    return {g * s, s + g * s * (1.0 - s)};
  }
  constexpr double kRoot = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;   // sqrt(2 / pi)
  const double t = std::tanh(kRoot * (g + 0.044715 * g * g * g));
  const double inner_slope = kRoot * (1.0 + 3.0 * 0.044715 * g * g);
  return {0.5 * g * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * inner_slope};
}

// One query row of one head: which keys it sees and where they lie.
struct AttentionRow {
  const AttentionInputs<double>& in;
  const AttentionPattern& pattern;
  const AttentionSlice& slice;
  int64_t row, head;

  KeyRange range() const { return pattern.visible[index_of(row)]; }
  bool has_self() const { return in.self_k.data != nullptr; }
  int64_t kv_head() const { return head / (pattern.heads / pattern.kv_heads); }
  const double* q() const { return in.q.row(row) + head * pattern.key_dim; }
  // Keys begin .. end-1 of the slice, then the row's own.
  int64_t count() const { return range().end - range().begin + (has_self() ? 1 : 0); }
  bool is_self(int64_t i) const { return i == range().end - range().begin; }
  int64_t key_row(int64_t i) const { return is_self(i) ? row : slice.key_begin + range().begin + i; }
  const double* k(int64_t i) const { return (is_self(i) ? in.self_k : in.k).row(key_row(i)) + kv_head() * pattern.key_dim; }
  const double* v(int64_t i) const { return (is_self(i) ? in.self_v : in.v).row(key_row(i)) + kv_head() * pattern.value_dim; }
  double score(int64_t i) const {
    const double s = pattern.scale * dot(q(), k(i), pattern.key_dim);
    return pattern.softcap > 0 ? pattern.softcap * std::tanh(s / pattern.softcap) : s;
  }
};

class ReferenceTrainingOps final : public TrainingOps<double> {
 public:
  explicit ReferenceTrainingOps(int threads)
      : TrainingOps(std::make_unique<ThreadPool>(threads), MatmulPrecision::kFull) {}
  std::string name() const override { return "reference"; }
  int64_t scratch_bytes(int64_t) const override { return 0; }

 private:
  void do_matmul(std::span<const LinearForward<double>> outputs, ConstMatrix x) override {
    for (const auto& o : outputs) {
      pool().parallel_for(x.rows, [&](int64_t row) {
        for (int64_t c = 0; c < o.w.rows; ++c) {
          o.y(row, c) = dot(x.row(row), o.w.row(c), x.cols) + (o.bias == nullptr ? 0.0 : o.bias[c]);
        }
      });
    }
  }

  void do_matmul_backward(Matrix dx, std::span<const LinearBackward<double>> outputs, ConstMatrix x, Gradient gradient) override {
    if (dx.data != nullptr) {
      pool().parallel_for(x.rows, [&](int64_t row) {
        for (int64_t c = 0; c < x.cols; ++c) {
          double sum = gradient == Gradient::kAdd ? dx(row, c) : 0.0;
          for (const auto& o : outputs) {
            for (int64_t r = 0; r < o.w.rows; ++r) sum += o.dy(row, r) * o.w(r, c);
          }
          dx(row, c) = sum;
        }
      });
    }
    for (const auto& o : outputs) {
      pool().parallel_for(o.w.rows, [&](int64_t r) {
        for (int64_t row = 0; row < x.rows; ++row) {
          const double d = o.dy(row, r);
          if (o.dbias != nullptr) o.dbias[r] += d;
          if (o.dw.data == nullptr) continue;
          for (int64_t c = 0; c < x.cols; ++c) o.dw(r, c) += d * x(row, c);
        }
      });
    }
  }

  void do_batched_gemm(const BatchedGemm<double>& g) override {
    pool().parallel_for(g.batch, [&](int64_t member) {
      const double* a = g.a + member * g.a_step;
      const double* b = g.b + member * g.b_step;
      double* c = g.c + member * g.c_step;
      for (int64_t i = 0; i < g.m; ++i) {
        for (int64_t j = 0; j < g.n; ++j) {
          double sum = 0.0;
          for (int64_t l = 0; l < g.k; ++l) {
            const double left = g.kind == GemmKind::kTN ? a[l * g.a_ld + i] : a[i * g.a_ld + l];
            const double right = g.kind == GemmKind::kNT ? b[j * g.b_ld + l] : b[l * g.b_ld + j];
            sum += left * right;
          }
          double& out = c[i * g.c_ld + j];
          out = g.alpha * sum + (g.beta == 0.0 ? 0.0 : g.beta * out);
        }
      }
    });
  }

  void do_embed(Matrix out, std::span<const int32_t> ids, ConstMatrix table, double scale) override {
    for (int64_t row = 0; row < out.rows; ++row) {
      for (int64_t c = 0; c < out.cols; ++c) out(row, c) = scale * table(ids[index_of(row)], c);
    }
  }
  void do_embed_backward(Matrix dtable, std::span<const int32_t> ids, ConstMatrix dout, double scale) override {
    for (int64_t row = 0; row < dout.rows; ++row) {
      for (int64_t c = 0; c < dout.cols; ++c) dtable(ids[index_of(row)], c) += scale * dout(row, c);
    }
  }
  void do_gather_rows(Matrix out, ConstMatrix x, std::span<const int32_t> index) override {
    for (int64_t row = 0; row < out.rows; ++row) {
      for (int64_t c = 0; c < out.cols; ++c) out(row, c) = x(index[index_of(row)], c);
    }
  }
  void do_scatter_add_rows(Matrix out, ConstMatrix x, std::span<const int32_t> index, std::span<const double> factor) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const double f = factor.empty() ? 1.0 : factor[index_of(row)];
      for (int64_t c = 0; c < x.cols; ++c) out(index[index_of(row)], c) += f * x(row, c);
    }
  }
  void do_add(Matrix x, ConstMatrix y, double scale) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t c = 0; c < x.cols; ++c) x(row, c) += scale * y(row, c);
    }
  }

  void do_rms_norm(Matrix out, std::span<double> inverse_rms, ConstMatrix x, std::span<const double> weight, double epsilon) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      const double inverse = 1.0 / std::sqrt(dot(x.row(row), x.row(row), x.cols) / static_cast<double>(x.cols) + epsilon);
      if (!inverse_rms.empty()) inverse_rms[index_of(row)] = inverse;
      for (int64_t c = 0; c < x.cols; ++c) out(row, c) = x(row, c) * inverse * weight[index_of(c)];
    }
  }
  void do_rms_norm_backward(Matrix dx, std::span<double> dweight, ConstMatrix dy, const NormSaved<double>& saved,
                            Gradient gradient) override {
    const double n = static_cast<double>(dx.cols);
    for (int64_t row = 0; row < dx.rows; ++row) {
      const double inverse = saved.scale[index_of(row)];
      double mean = 0.0;
      for (int64_t c = 0; c < dx.cols; ++c) mean += dy(row, c) * saved.weight[index_of(c)] * saved.x(row, c) * inverse / n;
      for (int64_t c = 0; c < dx.cols; ++c) {
        const double xhat = saved.x(row, c) * inverse;
        const double d = dy(row, c);
        if (!dweight.empty()) dweight[index_of(c)] += d * xhat;
        const double value = inverse * (d * saved.weight[index_of(c)] - xhat * mean);
        dx(row, c) = gradient == Gradient::kAdd ? dx(row, c) + value : value;
      }
    }
  }

  void do_layer_norm(Matrix out, Matrix moments, ConstMatrix x, const NormWeights<double>& norm) override {
    const double n = static_cast<double>(x.cols);
    for (int64_t row = 0; row < x.rows; ++row) {
      double mean = 0.0, variance = 0.0;
      for (int64_t c = 0; c < x.cols; ++c) mean += x(row, c) / n;
      for (int64_t c = 0; c < x.cols; ++c) variance += (x(row, c) - mean) * (x(row, c) - mean) / n;
      const double inverse = 1.0 / std::sqrt(variance + norm.epsilon);
      moments(row, 0) = mean;
      moments(row, 1) = inverse;
      for (int64_t c = 0; c < x.cols; ++c) {
        out(row, c) = (x(row, c) - mean) * inverse * norm.weight[index_of(c)] + norm.bias[index_of(c)];
      }
    }
  }
  void do_layer_norm_backward(Matrix dx, const NormGradients<double>& gradients, ConstMatrix dy, const NormSaved<double>& saved,
                              Gradient gradient) override {
    const double n = static_cast<double>(dx.cols);
    for (int64_t row = 0; row < dx.rows; ++row) {
      const double mean = saved.scale[index_of(2 * row)], inverse = saved.scale[index_of(2 * row + 1)];
      double mean_g = 0.0, mean_gx = 0.0;
      for (int64_t c = 0; c < dx.cols; ++c) {
        const double g = dy(row, c) * saved.weight[index_of(c)];
        mean_g += g / n;
        mean_gx += g * (saved.x(row, c) - mean) * inverse / n;
      }
      for (int64_t c = 0; c < dx.cols; ++c) {
        const double xhat = (saved.x(row, c) - mean) * inverse;
        const double d = dy(row, c);
        if (!gradients.dweight.empty()) gradients.dweight[index_of(c)] += d * xhat;
        if (!gradients.dbias.empty()) gradients.dbias[index_of(c)] += d;
        const double value = inverse * (d * saved.weight[index_of(c)] - mean_g - xhat * mean_gx);
        dx(row, c) = gradient == Gradient::kAdd ? dx(row, c) + value : value;
      }
    }
  }

  void do_rope(Matrix x, int64_t head_dim, std::span<const int64_t> positions, std::span<const float> inverse_frequency,
               const RopeOptions& options, Direction direction) override {
    const int64_t pairs = options.rotary_dim / 2;
    const double sign = direction == Direction::kForward ? 1.0 : -1.0;
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const double angle = static_cast<double>(positions[index_of(row)]) * static_cast<double>(inverse_frequency[index_of(pair)]);
        const double cosine = std::cos(angle) * static_cast<double>(options.magnitude);
        const double sine = sign * std::sin(angle) * static_cast<double>(options.magnitude);
        const int64_t first = options.interleaved ? 2 * pair : pair;
        const int64_t second = options.interleaved ? 2 * pair + 1 : pair + pairs;
        for (double* head = x.row(row); head < x.row(row) + x.cols; head += head_dim) {
          const double a = head[first], b = head[second];
          head[first] = a * cosine - b * sine;
          head[second] = a * sine + b * cosine;
        }
      }
    }
  }

  void do_gated_activation(Matrix out, ConstMatrix gate, ConstMatrix up, GateActivation activation) override {
    for (int64_t row = 0; row < out.rows; ++row) {
      for (int64_t c = 0; c < out.cols; ++c) out(row, c) = activate(gate(row, c), activation).value * up(row, c);
    }
  }
  void do_gated_activation_backward(Matrix dgate, Matrix dup, ConstMatrix dout, const GatedSaved<double>& saved,
                                    GateActivation activation) override {
    for (int64_t row = 0; row < dout.rows; ++row) {
      for (int64_t c = 0; c < dout.cols; ++c) {
        const Activated a = activate(saved.gate(row, c), activation);
        const double d = dout(row, c), u = saved.up(row, c);
        dgate(row, c) = d * u * a.slope;
        dup(row, c) = d * a.value;
      }
    }
  }

  void do_attention(Matrix out, Matrix log_sum_exp, const AttentionInputs<double>& in, const AttentionPattern& pattern) override;
  void do_attention_backward(const AttentionGradients<double>& gradients, ConstMatrix dout, const AttentionInputs<double>& in,
                             const AttentionSaved<double>& saved, const AttentionPattern& pattern) override;
  LossSums do_softmax_cross_entropy(Matrix logits, const RowLosses<double>& rows, const LossInputs<double>& in,
                                    const LossOptions& options) override;

  double do_squared_norm(std::span<const double> values) override {
    return dot(values.data(), values.data(), static_cast<int64_t>(values.size()));
  }
  void do_adamw(std::span<double> weights, const AdamState<double>& state, const AdamSettings& s) override {
    const double correction1 = 1.0 - std::pow(s.beta1, static_cast<double>(s.step));
    const double correction2 = 1.0 - std::pow(s.beta2, static_cast<double>(s.step));
    for (size_t i = 0; i < weights.size(); ++i) {
      const double g = s.gradient_scale * state.gradients[i];
      state.first[i] = s.beta1 * state.first[i] + (1.0 - s.beta1) * g;
      state.second[i] = s.beta2 * state.second[i] + (1.0 - s.beta2) * g * g;
      const double direction = (state.first[i] / correction1) / (std::sqrt(state.second[i] / correction2) + s.epsilon);
      weights[i] -= s.rate * (direction + s.decay * weights[i]);
    }
  }
};

void ReferenceTrainingOps::do_attention(Matrix out, Matrix log_sum_exp, const AttentionInputs<double>& in,
                                        const AttentionPattern& pattern) {
  for (const AttentionSlice& slice : pattern.slices) {
    pool().parallel_for(slice.queries * pattern.heads, [&](int64_t task) {
      const AttentionRow a{in, pattern, slice, slice.query_begin + task / pattern.heads, task % pattern.heads};
      double* result = out.row(a.row) + a.head * pattern.value_dim;
      std::fill(result, result + pattern.value_dim, 0.0);
      double maximum = -std::numeric_limits<double>::infinity(), total = 0.0;
      for (int64_t i = 0; i < a.count(); ++i) maximum = std::max(maximum, a.score(i));
      for (int64_t i = 0; i < a.count(); ++i) total += std::exp(a.score(i) - maximum);
      log_sum_exp(a.row, a.head) = a.count() == 0 ? maximum : maximum + std::log(total);
      for (int64_t i = 0; i < a.count(); ++i) {
        const double p = std::exp(a.score(i) - maximum) / total;
        for (int64_t c = 0; c < pattern.value_dim; ++c) result[c] += p * a.v(i)[c];
      }
    });
  }
}

void ReferenceTrainingOps::do_attention_backward(const AttentionGradients<double>& g, ConstMatrix dout,
                                                 const AttentionInputs<double>& in, const AttentionSaved<double>& saved,
                                                 const AttentionPattern& pattern) {
  for (const Matrix& m : {g.dq, g.dk, g.dv, g.dself_k, g.dself_v}) {
    if (m.data == nullptr) continue;
    for (int64_t row = 0; row < m.rows; ++row) std::fill(m.row(row), m.row(row) + m.cols, 0.0);
  }
  for (const AttentionSlice& slice : pattern.slices) {
    for (int64_t task = 0; task < slice.queries * pattern.heads; ++task) {
      const AttentionRow a{in, pattern, slice, slice.query_begin + task / pattern.heads, task % pattern.heads};
      const double* d = dout.row(a.row) + a.head * pattern.value_dim;
      const double delta = dot(d, saved.out.row(a.row) + a.head * pattern.value_dim, pattern.value_dim);
      double* dq = g.dq.row(a.row) + a.head * pattern.key_dim;
      for (int64_t i = 0; i < a.count(); ++i) {
        const double s = a.score(i);
        const double p = std::exp(s - saved.log_sum_exp(a.row, a.head));
        double ds = p * (dot(d, a.v(i), pattern.value_dim) - delta);
        if (pattern.softcap > 0) ds *= 1.0 - (s / pattern.softcap) * (s / pattern.softcap);
        double* dk = (a.is_self(i) ? g.dself_k : g.dk).row(a.key_row(i)) + a.kv_head() * pattern.key_dim;
        double* dv = (a.is_self(i) ? g.dself_v : g.dv).row(a.key_row(i)) + a.kv_head() * pattern.value_dim;
        for (int64_t c = 0; c < pattern.key_dim; ++c) {
          dq[c] += pattern.scale * ds * a.k(i)[c];
          dk[c] += pattern.scale * ds * a.q()[c];
        }
        for (int64_t c = 0; c < pattern.value_dim; ++c) dv[c] += p * d[c];
      }
    }
  }
}

LossSums ReferenceTrainingOps::do_softmax_cross_entropy(Matrix logits, const RowLosses<double>& rows, const LossInputs<double>& in,
                                                        const LossOptions& options) {
  LossSums sums;
  std::vector<double> z(index_of(logits.cols));
  for (int64_t row = 0; row < logits.rows; ++row) {
    double* at = logits.row(row);
    const int32_t target = in.targets[index_of(row)];
    double maximum = -std::numeric_limits<double>::infinity(), total = 0.0;
    int32_t best = 0;
    for (int64_t c = 0; c < logits.cols; ++c) {
      const double scaled = options.logit_scale * at[c];
      z[index_of(c)] = options.softcap > 0 ? options.softcap * std::tanh(scaled / options.softcap) : scaled;
      if (z[index_of(c)] > maximum) best = static_cast<int32_t>(c);
      maximum = std::max(maximum, z[index_of(c)]);
    }
    for (const double value : z) total += std::exp(value - maximum);
    const double lse = maximum + std::log(total);
    const double weight = in.weights.empty() ? 1.0 : in.weights[index_of(row)];
    const double loss = target < 0 ? 0.0 : lse - z[index_of(target)];
    if (!rows.losses.empty()) rows.losses[index_of(row)] = loss;
    if (!rows.predictions.empty()) rows.predictions[index_of(row)] = best;
    if (target >= 0) {
      sums.weighted += weight * loss;
      sums.z += weight * options.z_loss * lse * lse;
      sums.weight += weight;
      sums.rows += 1;
      sums.correct += best == target;
    }
    if (!options.backward) continue;
    for (int64_t c = 0; c < logits.cols; ++c) {
      const double value = z[index_of(c)];
      double d = std::exp(value - lse) * (1.0 + 2.0 * options.z_loss * lse) - (c == target ? 1.0 : 0.0);
      if (options.softcap > 0) d *= 1.0 - (value / options.softcap) * (value / options.softcap);
      at[c] = target < 0 ? 0.0 : weight * options.logit_scale * d;
    }
  }
  return sums;
}

}  // namespace

std::unique_ptr<TrainingOps<double>> make_reference_training_ops(int threads) {
  return std::make_unique<ReferenceTrainingOps>(threads);
}

}  // namespace quipu
