// The doors of the training operations: shapes are checked here, once for every back end.
#include "ops/training.h"

#include <vector>

namespace quipu {
namespace {

template <class T>
std::string shape_of(const MatrixView<T>& m) {
  return "[" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + "]";
}

template <class A, class B>
bool same_shape(const MatrixView<A>& a, const MatrixView<B>& b) {
  return a.rows == b.rows && a.cols == b.cols;
}

void check_ids(const char* op, std::span<const int32_t> ids, int64_t rows, int64_t limit) {
  CHECK(static_cast<int64_t>(ids.size()) == rows) << "[" << op << "] " << ids.size() << " indices for " << rows << " rows";
  for (const int32_t id : ids) CHECK(id >= 0 && id < limit) << "[" << op << "] index " << id << ", there are " << limit << " rows";
}

template <class Real>
void check_attention(const AttentionInputs<Real>& in, const AttentionPattern& p) {
  CHECK(p.kv_heads > 0 && p.heads % p.kv_heads == 0) << "[attention] heads " << p.heads << ", key heads " << p.kv_heads;
  CHECK(in.q.cols == p.heads * p.key_dim) << "[attention] q is " << shape_of(in.q);
  CHECK(in.k.cols == p.kv_heads * p.key_dim && in.v.cols == p.kv_heads * p.value_dim && in.k.rows == in.v.rows)
      << "[attention] k is " << shape_of(in.k) << ", v is " << shape_of(in.v);
  CHECK((in.self_k.data == nullptr) == (in.self_v.data == nullptr)) << "[attention] self keys without self values";
  if (in.self_k.data != nullptr) {
    CHECK(in.self_k.rows == in.q.rows && in.self_k.cols == in.k.cols && in.self_v.rows == in.q.rows && in.self_v.cols == in.v.cols)
        << "[attention] self keys are " << shape_of(in.self_k) << ", self values " << shape_of(in.self_v);
  }
  CHECK(static_cast<int64_t>(p.visible.size()) == in.q.rows) << "[attention] " << p.visible.size() << " key ranges";
  for (const AttentionSlice& s : p.slices) {
    CHECK(s.query_begin >= 0 && s.query_begin + s.queries <= in.q.rows && s.key_begin >= 0 && s.key_begin + s.keys <= in.k.rows)
        << "[attention] slice of queries " << s.query_begin << "+" << s.queries << ", keys " << s.key_begin << "+" << s.keys;
    KeyRange last;
    for (int64_t row = s.query_begin; row < s.query_begin + s.queries; ++row) {
      const KeyRange range = p.visible[static_cast<size_t>(row)];
      CHECK(range.begin >= last.begin && range.end >= last.end && range.begin <= range.end && range.end <= s.keys)
          << "[attention] row " << row << " sees keys " << range.begin << " to " << range.end << " of " << s.keys;
      last = range;
    }
  }
}

template <class Real>
void check_norm(const char* op, const ResidualNorm<Real>& norm, const MatrixView<const Real>& x) {
  if (norm.weight.empty()) return;
  CHECK(static_cast<int64_t>(norm.weight.size()) == x.cols && static_cast<int64_t>(norm.inverse_rms.size()) == x.rows &&
        (norm.dweight.empty() || norm.dweight.size() == norm.weight.size()))
      << "[" << op << "] norm weight " << norm.weight.size() << ", dweight " << norm.dweight.size() << ", saved " << norm.inverse_rms.size() << ", x " << shape_of(x);
}

// A gradient of a weight's shape, or none wanted.
template <class Real>
bool fits(const MatrixView<Real>& gradient, const MatrixView<const Real>& weight) {
  return gradient.data == nullptr || same_shape(gradient, weight);
}

template <class Real>
void check_loss(const char* op, int64_t count, int64_t vocabulary, const RowLosses<Real>& rows, const LossInputs<Real>& in) {
  const size_t n = static_cast<size_t>(count);
  CHECK(in.targets.size() == n && (in.weights.empty() || in.weights.size() == n) && (rows.losses.empty() || rows.losses.size() == n) &&
        (rows.predictions.empty() || rows.predictions.size() == n))
      << "[" << op << "] logits [" << count << ", " << vocabulary << "], " << in.targets.size() << " targets, " << in.weights.size() << " weights";
  for (const int32_t target : in.targets) {
    CHECK(target >= -1 && target < vocabulary) << "[" << op << "] target " << target << " of " << vocabulary;
  }
}

// What the backward of any part in one piece asks of its rows.
template <class Real>
void check_part_backward(const char* name, Gradient weights, const ResidualNorm<Real>& norm, MatrixView<Real> dx, MatrixView<const Real> dout,
                         MatrixView<const Real> x) {
  CHECK(x.rows > 0 || weights == Gradient::kAdd) << "[" << name << " backward] no rows write a gradient";
  CHECK(norm.weight.empty() || (dx.data == dout.data && dx.stride == dout.stride)) << "[" << name << " backward] dx is not dout";
  CHECK(same_shape(dx, x) && same_shape(dout, x)) << "[" << name << " backward] dx " << shape_of(dx) << ", dout " << shape_of(dout) << ", x " << shape_of(x);
}

template <class Real>
void check_gated(const TrainingOps<Real>& ops, const GatedCall<Real>& call, const MatrixView<const Real>& x) {
  const GatedShape shape{.hidden = x.cols, .inner = call.gate.rows};
  check_norm("gated", call.norm, x);
  CHECK(ops.fuses_gated(shape)) << "[gated] " << ops.name() << " has none for hidden " << shape.hidden << ", inner " << shape.inner;
  CHECK(call.gate.cols == x.cols && same_shape(call.up, call.gate) && call.down.rows == x.cols && call.down.cols == call.gate.rows)
      << "[gated] x " << shape_of(x) << ", gate " << shape_of(call.gate) << ", up " << shape_of(call.up) << ", down " << shape_of(call.down);
  const FusedMemory memory = ops.gated_memory(shape, x.rows);
  CHECK(static_cast<int64_t>(call.saved.size()) >= memory.saved && static_cast<int64_t>(call.scratch.size()) >= memory.scratch)
      << "[gated] " << call.saved.size() << " bytes saved and " << call.scratch.size() << " of scratch, wanted " << memory.saved << " and " << memory.scratch;
}

template <class Real>
void check_self_attention(const TrainingOps<Real>& ops, const SelfAttentionCall<Real>& call, const MatrixView<const Real>& x) {
  const AttentionPattern& p = call.pattern;
  check_attention(AttentionInputs<Real>{{nullptr, x.rows, p.heads * p.key_dim}, {nullptr, x.rows, p.kv_heads * p.key_dim}, {nullptr, x.rows, p.kv_heads * p.value_dim}}, p);
  check_norm("self_attention", call.norm, x);
  const SelfAttentionShape shape{x.cols, p.heads, p.kv_heads, p.key_dim, p.value_dim};
  CHECK(ops.fuses_self_attention(shape)) << "[self_attention] " << ops.name() << " has none for hidden " << x.cols << ", " << p.heads << " heads of "
                                         << p.key_dim << " and " << p.value_dim;
  CHECK(call.query.rows == p.heads * p.key_dim && call.key.rows == p.kv_heads * p.key_dim && call.value.rows == p.kv_heads * p.value_dim &&
        call.query.cols == x.cols && call.key.cols == x.cols && call.value.cols == x.cols && call.output.rows == x.cols &&
        call.output.cols == p.heads * p.value_dim && p.scale > 0)
      << "[self_attention] x " << shape_of(x) << ", query " << shape_of(call.query) << ", key " << shape_of(call.key) << ", value "
      << shape_of(call.value) << ", output " << shape_of(call.output) << ", scale " << p.scale;
  CHECK(static_cast<int64_t>(call.positions.size()) == x.rows && call.rope.rotary_dim % 2 == 0 && call.rope.rotary_dim <= p.key_dim &&
        static_cast<int64_t>(call.inverse_frequency.size()) == call.rope.rotary_dim / 2)
      << "[self_attention] " << call.positions.size() << " positions, " << call.inverse_frequency.size() << " frequencies for x " << shape_of(x)
      << ", rotary_dim " << call.rope.rotary_dim;
  std::vector<int64_t> offsets{0};
  for (const AttentionSlice& s : p.slices) {
    CHECK(s.query_begin == offsets.back() && s.key_begin == s.query_begin && s.keys == s.queries)
        << "[self_attention] slice of queries " << s.query_begin << "+" << s.queries << ", keys " << s.key_begin << "+" << s.keys;
    offsets.push_back(s.query_begin + s.queries);
  }
  CHECK(offsets.back() == x.rows) << "[self_attention] slices of " << offsets.back() << " rows, x " << shape_of(x);
  const FusedMemory memory = ops.self_attention_memory(shape, offsets);
  CHECK(static_cast<int64_t>(call.saved.size()) >= memory.saved && static_cast<int64_t>(call.scratch.size()) >= memory.scratch)
      << "[self_attention] " << call.saved.size() << " bytes saved and " << call.scratch.size() << " of scratch, wanted " << memory.saved << " and " << memory.scratch;
}

}  // namespace

template <class Real>
void TrainingOps<Real>::matmul(std::span<const LinearForward<Real>> outputs, MatrixView<const Real> x) {
  for (const auto& o : outputs) {
    CHECK(o.w.cols == x.cols && o.y.rows == x.rows && o.y.cols == o.w.rows)
        << "[matmul] y " << shape_of(o.y) << " = x " << shape_of(x) << " W " << shape_of(o.w) << "^T";
  }
  if (x.rows > 0) do_matmul(outputs, x);
}

template <class Real>
void TrainingOps<Real>::matmul_backward(MatrixView<Real> dx, std::span<const LinearBackward<Real>> outputs,
                                        MatrixView<const Real> x, Gradient gradient) {
  CHECK(dx.data == nullptr || same_shape(dx, x)) << "[matmul backward] dx " << shape_of(dx) << ", x " << shape_of(x);
  for (const auto& o : outputs) {
    CHECK(o.w.cols == x.cols && o.dy.rows == x.rows && o.dy.cols == o.w.rows && (o.dw.data == nullptr || same_shape(o.dw, o.w)))
        << "[matmul backward] dy " << shape_of(o.dy) << ", x " << shape_of(x) << ", W " << shape_of(o.w) << ", dW " << shape_of(o.dw);
  }
  if (x.rows > 0) do_matmul_backward(dx, outputs, x, gradient);
}

template <class Real>
void TrainingOps<Real>::batched_gemm(const BatchedGemm<Real>& g) {
  CHECK(g.m >= 0 && g.n >= 0 && g.k >= 0 && g.batch >= 0) << "[batched_gemm] " << g.m << " x " << g.n << " x " << g.k;
  CHECK(g.c_ld >= g.n && g.a_ld >= (g.kind == GemmKind::kTN ? g.m : g.k) && g.b_ld >= (g.kind == GemmKind::kNT ? g.k : g.n))
      << "[batched_gemm] rows apart by c " << g.c_ld << ", a " << g.a_ld << ", b " << g.b_ld << " for " << g.m << " x " << g.n
      << " x " << g.k;
  if (g.m > 0 && g.n > 0 && g.batch > 0) do_batched_gemm(g);
}

template <class Real>
void TrainingOps<Real>::embed(MatrixView<Real> out, std::span<const int32_t> ids, MatrixView<const Real> table, Real scale) {
  CHECK(out.cols == table.cols) << "[embed] out " << shape_of(out) << ", table " << shape_of(table);
  check_ids("embed", ids, out.rows, table.rows);
  do_embed(out, ids, table, scale);
}

template <class Real>
void TrainingOps<Real>::embed_backward(MatrixView<Real> dtable, std::span<const int32_t> ids, MatrixView<const Real> dout, Real scale) {
  CHECK(dout.cols == dtable.cols) << "[embed backward] dout " << shape_of(dout) << ", table " << shape_of(dtable);
  check_ids("embed backward", ids, dout.rows, dtable.rows);
  do_embed_backward(dtable, ids, dout, scale);
}

template <class Real>
void TrainingOps<Real>::gather_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index) {
  CHECK(out.cols == x.cols) << "[gather_rows] out " << shape_of(out) << ", x " << shape_of(x);
  check_ids("gather_rows", index, out.rows, x.rows);
  do_gather_rows(out, x, index);
}

template <class Real>
void TrainingOps<Real>::scatter_add_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index,
                                         std::span<const Real> factor) {
  CHECK(out.cols == x.cols) << "[scatter_add_rows] out " << shape_of(out) << ", x " << shape_of(x);
  CHECK(factor.empty() || static_cast<int64_t>(factor.size()) == x.rows) << "[scatter_add_rows] " << factor.size() << " factors";
  check_ids("scatter_add_rows", index, x.rows, out.rows);
  do_scatter_add_rows(out, x, index, factor);
}

template <class Real>
void TrainingOps<Real>::add(MatrixView<Real> x, MatrixView<const Real> y, Real scale) {
  CHECK(same_shape(x, y)) << "[add] x " << shape_of(x) << ", y " << shape_of(y);
  do_add(x, y, scale);
}

template <class Real>
void TrainingOps<Real>::rms_norm(MatrixView<Real> out, std::span<Real> inverse_rms, MatrixView<const Real> x,
                                 std::span<const Real> weight, Real epsilon) {
  CHECK(same_shape(out, x) && static_cast<int64_t>(weight.size()) == x.cols &&
        (inverse_rms.empty() || static_cast<int64_t>(inverse_rms.size()) == x.rows))
      << "[rms_norm] out " << shape_of(out) << ", x " << shape_of(x) << ", weight " << weight.size() << ", saved " << inverse_rms.size();
  do_rms_norm(out, inverse_rms, x, weight, epsilon);
}

template <class Real>
void TrainingOps<Real>::rms_norm_backward(MatrixView<Real> dx, std::span<Real> dweight, MatrixView<const Real> dy,
                                          const NormSaved<Real>& saved, Gradient gradient) {
  CHECK(same_shape(dx, dy) && same_shape(dx, saved.x) && static_cast<int64_t>(saved.scale.size()) == dx.rows &&
        static_cast<int64_t>(saved.weight.size()) == dx.cols && (dweight.empty() || dweight.size() == saved.weight.size()))
      << "[rms_norm backward] dx " << shape_of(dx) << ", dy " << shape_of(dy) << ", x " << shape_of(saved.x) << ", saved "
      << saved.scale.size() << ", weight " << saved.weight.size() << ", dweight " << dweight.size();
  do_rms_norm_backward(dx, dweight, dy, saved, gradient);
}

template <class Real>
void TrainingOps<Real>::layer_norm(MatrixView<Real> out, MatrixView<Real> moments, MatrixView<const Real> x,
                                   const NormWeights<Real>& norm) {
  CHECK(same_shape(out, x) && moments.rows == x.rows && moments.cols == 2 && moments.stride == 2 &&
        static_cast<int64_t>(norm.weight.size()) == x.cols && norm.bias.size() == norm.weight.size())
      << "[layer_norm] out " << shape_of(out) << ", x " << shape_of(x) << ", moments " << shape_of(moments) << ", weight "
      << norm.weight.size() << ", bias " << norm.bias.size();
  do_layer_norm(out, moments, x, norm);
}

template <class Real>
void TrainingOps<Real>::layer_norm_backward(MatrixView<Real> dx, const NormGradients<Real>& gradients,
                                            MatrixView<const Real> dy, const NormSaved<Real>& saved, Gradient gradient) {
  CHECK(same_shape(dx, dy) && same_shape(dx, saved.x) && static_cast<int64_t>(saved.scale.size()) == 2 * dx.rows &&
        static_cast<int64_t>(saved.weight.size()) == dx.cols &&
        (gradients.dweight.empty() || gradients.dweight.size() == saved.weight.size()) &&
        (gradients.dbias.empty() || gradients.dbias.size() == saved.weight.size()))
      << "[layer_norm backward] dx " << shape_of(dx) << ", dy " << shape_of(dy) << ", x " << shape_of(saved.x) << ", saved "
      << saved.scale.size() << ", weight " << saved.weight.size();
  do_layer_norm_backward(dx, gradients, dy, saved, gradient);
}

template <class Real>
void TrainingOps<Real>::rope(MatrixView<Real> x, int64_t head_dim, std::span<const int64_t> positions,
                             std::span<const float> inverse_frequency, const RopeOptions& options, Direction direction) {
  CHECK(head_dim > 0 && x.cols % head_dim == 0 && options.rotary_dim % 2 == 0 && options.rotary_dim <= head_dim)
      << "[rope] x " << shape_of(x) << ", head_dim " << head_dim << ", rotary_dim " << options.rotary_dim;
  CHECK(static_cast<int64_t>(positions.size()) == x.rows && static_cast<int64_t>(inverse_frequency.size()) == options.rotary_dim / 2)
      << "[rope] " << positions.size() << " positions, " << inverse_frequency.size() << " frequencies for x " << shape_of(x);
  if (options.rotary_dim > 0) do_rope(x, head_dim, positions, inverse_frequency, options, direction);
}

template <class Real>
void TrainingOps<Real>::gated_activation(MatrixView<Real> out, MatrixView<const Real> gate, MatrixView<const Real> up,
                                         GateActivation activation) {
  CHECK(same_shape(out, gate) && same_shape(out, up)) << "[gated_activation] out " << shape_of(out) << ", gate " << shape_of(gate)
                                                       << ", up " << shape_of(up);
  do_gated_activation(out, gate, up, activation);
}

template <class Real>
void TrainingOps<Real>::gated_activation_backward(MatrixView<Real> dgate, MatrixView<Real> dup, MatrixView<const Real> dout,
                                                  const GatedSaved<Real>& saved, GateActivation activation) {
  CHECK(same_shape(dgate, dout) && same_shape(dup, dout) && same_shape(saved.gate, dout) && same_shape(saved.up, dout))
      << "[gated_activation backward] dout " << shape_of(dout) << ", dgate " << shape_of(dgate) << ", dup " << shape_of(dup);
  do_gated_activation_backward(dgate, dup, dout, saved, activation);
}

template <class Real>
void TrainingOps<Real>::gated(MatrixView<Real> out, MatrixView<const Real> x, const GatedCall<Real>& call) {
  check_gated(*this, call, x);
  CHECK(same_shape(out, x)) << "[gated] out " << shape_of(out) << ", x " << shape_of(x);
  if (x.rows > 0) do_gated(out, x, call);
}

template <class Real>
void TrainingOps<Real>::gated_backward(MatrixView<Real> dx, const GatedGradients<Real>& gradients, MatrixView<const Real> dout,
                                       MatrixView<const Real> x, const GatedCall<Real>& call) {
  check_gated(*this, call, x);
  check_part_backward("gated", gradients.gradient, call.norm, dx, dout, x);
  CHECK(fits(gradients.gate, call.gate) && fits(gradients.up, call.up) && fits(gradients.down, call.down))
      << "[gated backward] gradients " << shape_of(gradients.gate) << ", " << shape_of(gradients.up) << ", " << shape_of(gradients.down);
  if (x.rows > 0) do_gated_backward(dx, gradients, dout, x, call);
}

// Never reached: gated() asks fuses_gated() first.
template <class Real>
void TrainingOps<Real>::do_gated(MatrixView<Real>, MatrixView<const Real>, const GatedCall<Real>&) {
  CHECK(false) << "[gated] " << name();
}
template <class Real>
void TrainingOps<Real>::do_gated_backward(MatrixView<Real>, const GatedGradients<Real>&, MatrixView<const Real>, MatrixView<const Real>,
                                          const GatedCall<Real>&) {
  CHECK(false) << "[gated backward] " << name();
}

template <class Real>
void TrainingOps<Real>::attention(MatrixView<Real> out, MatrixView<Real> log_sum_exp, const AttentionInputs<Real>& in,
                                  const AttentionPattern& pattern) {
  check_attention(in, pattern);
  CHECK(out.rows == in.q.rows && out.cols == pattern.heads * pattern.value_dim && log_sum_exp.rows == in.q.rows &&
        log_sum_exp.cols == pattern.heads)
      << "[attention] out " << shape_of(out) << ", log_sum_exp " << shape_of(log_sum_exp);
  do_attention(out, log_sum_exp, in, pattern);
}

template <class Real>
void TrainingOps<Real>::attention_backward(const AttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                                           const AttentionInputs<Real>& in, const AttentionSaved<Real>& saved,
                                           const AttentionPattern& pattern) {
  check_attention(in, pattern);
  CHECK(same_shape(gradients.dq, in.q) && same_shape(gradients.dk, in.k) && same_shape(gradients.dv, in.v))
      << "[attention backward] dq " << shape_of(gradients.dq) << ", dk " << shape_of(gradients.dk) << ", dv " << shape_of(gradients.dv);
  if (in.self_k.data != nullptr) {
    CHECK(same_shape(gradients.dself_k, in.self_k) && same_shape(gradients.dself_v, in.self_v))
        << "[attention backward] dself_k " << shape_of(gradients.dself_k) << ", dself_v " << shape_of(gradients.dself_v);
  }
  CHECK(same_shape(dout, saved.out) && dout.rows == in.q.rows && dout.cols == pattern.heads * pattern.value_dim &&
        saved.log_sum_exp.rows == in.q.rows && saved.log_sum_exp.cols == pattern.heads)
      << "[attention backward] dout " << shape_of(dout) << ", log_sum_exp " << shape_of(saved.log_sum_exp);
  do_attention_backward(gradients, dout, in, saved, pattern);
}

template <class Real>
void TrainingOps<Real>::self_attention(MatrixView<Real> out, MatrixView<const Real> x, const SelfAttentionCall<Real>& call) {
  check_self_attention(*this, call, x);
  CHECK(same_shape(out, x)) << "[self_attention] out " << shape_of(out) << ", x " << shape_of(x);
  if (x.rows > 0) do_self_attention(out, x, call);
}

template <class Real>
void TrainingOps<Real>::self_attention_backward(MatrixView<Real> dx, const SelfAttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                                                MatrixView<const Real> x, const SelfAttentionCall<Real>& call) {
  check_self_attention(*this, call, x);
  check_part_backward("self_attention", gradients.gradient, call.norm, dx, dout, x);
  CHECK(fits(gradients.query, call.query) && fits(gradients.key, call.key) && fits(gradients.value, call.value) && fits(gradients.output, call.output))
      << "[self_attention backward] gradients " << shape_of(gradients.query) << ", " << shape_of(gradients.key) << ", " << shape_of(gradients.value)
      << ", " << shape_of(gradients.output);
  if (x.rows > 0) do_self_attention_backward(dx, gradients, dout, x, call);
}

// Never reached: self_attention() asks fuses_self_attention() first.
template <class Real>
void TrainingOps<Real>::do_self_attention(MatrixView<Real>, MatrixView<const Real>, const SelfAttentionCall<Real>&) {
  CHECK(false) << "[self_attention] " << name();
}
template <class Real>
void TrainingOps<Real>::do_self_attention_backward(MatrixView<Real>, const SelfAttentionGradients<Real>&, MatrixView<const Real>,
                                                   MatrixView<const Real>, const SelfAttentionCall<Real>&) {
  CHECK(false) << "[self_attention backward] " << name();
}

template <class Real>
LossSums TrainingOps<Real>::softmax_cross_entropy(MatrixView<Real> logits, const RowLosses<Real>& rows,
                                                  const LossInputs<Real>& in, const LossOptions& options) {
  check_loss("softmax_cross_entropy", logits.rows, logits.cols, rows, in);
  return do_softmax_cross_entropy(logits, rows, in, options);
}

template <class Real>
LossSums TrainingOps<Real>::output_loss(const OutputLossCall<Real>& call, const RowLosses<Real>& rows, MatrixView<const Real> x,
                                        const LossInputs<Real>& in, const LossOptions& options) {
  const OutputLossShape shape{x.cols, call.w.rows, options.logit_scale, options.softcap};
  CHECK(fuses_output_loss(shape) && x.rows > 0 && call.w.cols == x.cols && (!options.backward || (same_shape(call.dx, x) && fits(call.dw, call.w))))
      << "[output_loss] " << name() << ": x " << shape_of(x) << ", w " << shape_of(call.w) << ", dx " << shape_of(call.dx) << ", dw " << shape_of(call.dw);
  CHECK(static_cast<int64_t>(call.scratch.size()) >= output_loss_bytes(shape, x.rows, options.backward)) << "[output_loss] " << call.scratch.size() << " bytes of scratch";
  check_loss("output_loss", x.rows, call.w.rows, rows, in);
  return do_output_loss(call, rows, x, in, options);
}

// Never reached: output_loss() asks fuses_output_loss() first.
template <class Real>
LossSums TrainingOps<Real>::do_output_loss(const OutputLossCall<Real>&, const RowLosses<Real>&, MatrixView<const Real>, const LossInputs<Real>&,
                                           const LossOptions&) {
  CHECK(false) << "[output_loss] " << name();
  return {};
}

template <class Real>
double TrainingOps<Real>::squared_norm(std::span<const Real> values) {
  return do_squared_norm(values);
}

template <class Real>
void TrainingOps<Real>::adamw(std::span<Real> weights, const AdamState<Real>& state, const AdamSettings& settings) {
  CHECK(state.gradients.size() == weights.size() && state.first.size() == weights.size() && state.second.size() == weights.size() &&
        settings.step >= 1)
      << "[adamw] " << weights.size() << " weights, " << state.gradients.size() << " gradients, step " << settings.step;
  do_adamw(weights, state, settings);
}

template class TrainingOps<float>;
template class TrainingOps<double>;

}  // namespace quipu
