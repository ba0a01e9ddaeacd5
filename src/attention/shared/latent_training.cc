#include "attention/shared/latent_training.h"

namespace quipu {

template <class Real>
LatentTraining<Real>::LatentTraining(const LatentSettings& settings, std::span<const std::string> optional_roles) : s_(settings) {
  const auto has = [&](const std::string& role) { return std::ranges::find(optional_roles, role) != optional_roles.end(); };
  const auto add = [&](ParameterSpec spec) {
    specs_.push_back(std::move(spec));
    return static_cast<int64_t>(specs_.size()) - 1;
  };
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols) {
    return add({role, {rows, cols}, Initialisation::normal(kInitialDeviation), ParameterGroup::kMatrix});
  };
  const auto optional_bias = [&](const std::string& role, int64_t length) {
    return has(role) ? add({role, {length}, {}, ParameterGroup::kBias}) : int64_t{-1};
  };
  const auto norm = [&](const std::string& role, int64_t length) {
    Norm place;
    if (s_.norm == LatentNorm::kNone) return place;
    place.weight = add({role, {length}, Initialisation::constant(1), ParameterGroup::kNorm});
    if (s_.norm == LatentNorm::kLayer && has(role + "_bias")) place.bias = add({role + "_bias", {length}, {}, ParameterGroup::kNorm});
    return place;
  };
  if (low_rank()) {
    order_.query_down = matrix("query_down", s_.query_rank, s_.hidden);
    order_.query_down_bias = optional_bias("query_down_bias", s_.query_rank);
    order_.query_norm = norm("query_down_norm", s_.query_rank);
    order_.query_up = matrix("query_up", query_cols(), s_.query_rank);
  } else {
    order_.query = matrix("query", query_cols(), s_.hidden);
    order_.query_bias = optional_bias("query_bias", query_cols());
  }
  order_.latent_down = matrix("latent_down", s_.width(), s_.hidden);
  order_.latent_down_bias = optional_bias("latent_down_bias", s_.width());
  order_.latent_norm = norm("latent_norm", s_.rank);
  if (has("key_up")) {
    order_.key_up = matrix("key_up", s_.heads * s_.rank, s_.nope_dim);
    order_.value_up = matrix("value_up", value_cols(), s_.rank);
  } else {
    order_.latent_up = matrix("latent_up", s_.heads * s_.up_dim(), s_.rank);
  }
  order_.output = add({"output", {s_.hidden, value_cols()}, Initialisation::residual(kInitialDeviation), ParameterGroup::kMatrix});
  order_.output_bias = optional_bias("output_bias", s_.hidden);
  zeros_.assign(static_cast<size_t>(std::max(s_.rank, s_.query_rank)), Real{0});
}

template <class Real>
double LatentTraining<Real>::projection_flops(int64_t rows) const {
  const int64_t query = low_rank() ? s_.query_rank * (s_.hidden + query_cols()) : s_.hidden * query_cols();
  const int64_t each = query + s_.hidden * s_.width() + s_.heads * s_.up_dim() * s_.rank + value_cols() * s_.hidden;
  return 2.0 * static_cast<double>(each) * static_cast<double>(rows);
}

template <class Real>
LatentTraining<Real>::Saved::Saved(Carver& carver, const LatentTraining& core, int64_t rows) {
  const LatentSettings& s = core.s_;
  const bool norms = s.norm != LatentNorm::kNone;
  low_raw = low = carver.matrix<Real>(rows, s.query_rank);
  query = carver.matrix<Real>(rows, core.query_cols());
  raw = carver.matrix<Real>(rows, s.width());
  latent = norms ? carver.matrix<Real>(rows, s.rank) : raw.cols_from(0, s.rank);
  key = carver.matrix<Real>(rows, core.query_cols());
  value = carver.matrix<Real>(rows, core.value_cols());
  attended = carver.matrix<Real>(rows, core.value_cols());
  log_sum_exp = carver.matrix<Real>(rows, s.heads);
  latent_scale = carver.span<Real>(core.scale_elements(rows));
  if (!norms || !core.low_rank()) return;
  low = carver.matrix<Real>(rows, s.query_rank);
  low_scale = carver.span<Real>(core.scale_elements(rows));
}

template <class Real>
LatentTraining<Real>::Scratch::Scratch(Carver& carver, const LatentTraining& core, int64_t rows) {
  const LatentSettings& s = core.s_;
  up = carver.matrix<Real>(rows, s.heads * s.up_dim());
  rotary = carver.matrix<Real>(rows, (s.heads + 1) * s.rope_dim);
  if (core.split()) {
    joint = carver.matrix<Real>(s.heads * s.up_dim(), s.rank);
    djoint = carver.matrix<Real>(s.heads * s.up_dim(), s.rank);
  }
  dattended = carver.matrix<Real>(rows, core.value_cols());
  dquery = carver.matrix<Real>(rows, core.query_cols());
  dkey = carver.matrix<Real>(rows, core.query_cols());
  dvalue = carver.matrix<Real>(rows, core.value_cols());
  dlatent = carver.matrix<Real>(rows, s.rank);
  draw = carver.matrix<Real>(rows, s.width());
  dlow = carver.matrix<Real>(rows, s.query_rank);
}

template <class Real>
void LatentTraining<Real>::norm(Matrix out, std::span<Real> scale, ConstMatrix x, Norm place, const Call& call) const {
  const size_t length = static_cast<size_t>(x.cols);
  const Real epsilon = static_cast<Real>(s_.norm_epsilon);
  if (s_.norm == LatentNorm::kNone) return;
  const std::span<const Real> w{weight(call, place.weight).data, length};
  if (s_.norm == LatentNorm::kRms) return call.ops.rms_norm(out, scale, x, w, epsilon);
  const std::span<const Real> b = place.bias < 0 ? std::span<const Real>(zeros_.data(), length)
                                                 : std::span<const Real>(weight(call, place.bias).data, length);
  call.ops.layer_norm(out, {scale.data(), x.rows, 2}, x, {w, b, epsilon});
}

template <class Real>
void LatentTraining<Real>::norm_backward(Matrix dx, ConstMatrix dy, std::span<Real> scale, ConstMatrix x, Norm place,
                                         const Call& call) const {
  const size_t length = static_cast<size_t>(x.cols);
  const auto frozen_or = [&](int64_t at) {
    Real* data = dbias(call, at);
    return data == nullptr ? std::span<Real>() : std::span<Real>(data, length);
  };
  const NormSaved<Real> saved{x, scale, {weight(call, place.weight).data, length}};
  if (s_.norm == LatentNorm::kRms) {
    call.ops.rms_norm_backward(dx, frozen_or(place.weight), dy, saved);
  } else {
    call.ops.layer_norm_backward(dx, {frozen_or(place.weight), frozen_or(place.bias)}, dy, saved);
  }
}

template <class Real>
void LatentTraining<Real>::turn(Matrix rotary, const Call& call, Direction direction) const {
  call.ops.rope(rotary, s_.rope_dim, call.batch.positions, s_.rope.inverse_frequency,
                {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope_dim, .magnitude = s_.rope.magnitude}, direction);
}

template <class Real>
void LatentTraining<Real>::project(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const {
  const LinearForward<Real> projections[] = {
      low_rank() ? LinearForward<Real>{saved.low_raw, weight(call, order_.query_down), bias(call, order_.query_down_bias)}
                 : LinearForward<Real>{saved.query, weight(call, order_.query), bias(call, order_.query_bias)},
      {saved.raw, weight(call, order_.latent_down), bias(call, order_.latent_down_bias)}};
  call.ops.matmul(projections, x);
  if (low_rank()) {
    norm(saved.low, saved.low_scale, saved.low_raw, order_.query_norm, call);
    call.ops.matmul(saved.query, saved.low, weight(call, order_.query_up));
  }
  norm(saved.latent, saved.latent_scale, saved.raw.cols_from(0, s_.rank), order_.latent_norm, call);
  const int64_t dim = s_.rope_dim;
  if (dim == 0) return;
  // All that turns, side by side: one call, one sine per row and pair.
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
    Real* to = scratch.rotary.row(row);
    for (int64_t head = 0; head < s_.heads; ++head, to += dim) {
      std::copy_n(saved.query.row(row) + head * s_.query_dim() + s_.nope_dim, dim, to);
    }
    std::copy_n(saved.raw.row(row) + s_.rank, dim, to);
  });
  turn(scratch.rotary, call, Direction::kForward);
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
    const Real* from = scratch.rotary.row(row);
    for (int64_t head = 0; head < s_.heads; ++head, from += dim) {
      std::copy_n(from, dim, saved.query.row(row) + head * s_.query_dim() + s_.nope_dim);
    }
  });
}

// The rows [nope | value] of every head from key_up, which is transposed per head, and value_up.
template <class Real>
MatrixView<const Real> LatentTraining<Real>::up_weight(const Scratch& scratch, const Call& call) const {
  if (!split()) return weight(call, order_.latent_up);
  const ConstMatrix key = weight(call, order_.key_up), value = weight(call, order_.value_up);
  for (int64_t head = 0; head < s_.heads; ++head) {
    for (int64_t c = 0; c < s_.nope_dim; ++c) {
      Real* to = scratch.joint.row(head * s_.up_dim() + c);
      for (int64_t r = 0; r < s_.rank; ++r) to[r] = key(head * s_.rank + r, c);
    }
    for (int64_t c = 0; c < s_.value_dim; ++c) {
      std::copy_n(value.row(head * s_.value_dim + c), s_.rank, scratch.joint.row(head * s_.up_dim() + s_.nope_dim + c));
    }
  }
  return scratch.joint;
}

template <class Real>
MatrixView<Real> LatentTraining<Real>::begin_up_gradient(const Scratch& scratch, const Call& call) const {
  if (!split()) return gradient(call, order_.latent_up);
  if (gradient(call, order_.key_up).data == nullptr && gradient(call, order_.value_up).data == nullptr) return {};
  std::fill_n(scratch.djoint.data, scratch.djoint.rows * scratch.djoint.cols, Real{0});
  return scratch.djoint;
}

template <class Real>
void LatentTraining<Real>::end_up_gradient(const Scratch& scratch, const Call& call) const {
  if (!split()) return;
  const Matrix key = gradient(call, order_.key_up), value = gradient(call, order_.value_up);
  for (int64_t head = 0; head < s_.heads; ++head) {
    for (int64_t c = 0; key.data != nullptr && c < s_.nope_dim; ++c) {
      const Real* from = scratch.djoint.row(head * s_.up_dim() + c);
      for (int64_t r = 0; r < s_.rank; ++r) key(head * s_.rank + r, c) += from[r];
    }
    for (int64_t c = 0; value.data != nullptr && c < s_.value_dim; ++c) {
      const Real* from = scratch.djoint.row(head * s_.up_dim() + s_.nope_dim + c);
      for (int64_t r = 0; r < s_.rank; ++r) value(head * s_.value_dim + c, r) += from[r];
    }
  }
}

template <class Real>
void LatentTraining<Real>::expand(const Saved& saved, const Scratch& scratch, ConstMatrix latents, const Call& call) const {
  call.ops.matmul(scratch.up, latents, up_weight(scratch, call));
  for_rows(call.ops.pool(), latents.rows, [&](int64_t row) {
    const Real* up = scratch.up.row(row);
    const Real* shared = scratch.rotary.row(row) + s_.heads * s_.rope_dim;
    for (int64_t head = 0; head < s_.heads; ++head, up += s_.up_dim()) {
      Real* key = saved.key.row(row) + head * s_.query_dim();
      std::copy_n(up, s_.nope_dim, key);
      std::copy_n(shared, s_.rope_dim, key + s_.nope_dim);
      std::copy_n(up + s_.nope_dim, s_.value_dim, saved.value.row(row) + head * s_.value_dim);
    }
  });
}

template <class Real>
void LatentTraining<Real>::finish(Matrix out, ConstMatrix heads, const Call& call) const {
  call.ops.matmul(out, heads, weight(call, order_.output), bias(call, order_.output_bias));
}

template <class Real>
void LatentTraining<Real>::unfinish(const Scratch& scratch, ConstMatrix dout, ConstMatrix heads, const Call& call) const {
  const LinearBackward<Real> output{dout, weight(call, order_.output), gradient(call, order_.output), dbias(call, order_.output_bias)};
  call.ops.matmul_backward(scratch.dattended, output, heads);
}

// The products of every head with its part of the up-projection: rows [UK_i | UV_i] of head i.
template <class Real>
void LatentTraining<Real>::absorb(Matrix out, const Saved& saved, const Scratch& scratch, const Call& call) const {
  const ConstMatrix up = up_weight(scratch, call);
  call.ops.batched_gemm({.kind = GemmKind::kNN, .m = out.rows, .n = s_.rank, .k = s_.nope_dim, .c = out.data, .a = saved.query.data,
                         .b = up.data, .c_ld = out.stride, .a_ld = saved.query.stride, .b_ld = up.stride, .c_step = s_.rank,
                         .a_step = s_.query_dim(), .b_step = s_.up_dim() * up.stride, .batch = s_.heads});
}

template <class Real>
void LatentTraining<Real>::raise_values(Matrix out, const Scratch& scratch, ConstMatrix sums, const Call& call) const {
  const ConstMatrix up = up_weight(scratch, call);
  call.ops.batched_gemm({.kind = GemmKind::kNT, .m = out.rows, .n = s_.value_dim, .k = s_.rank, .c = out.data, .a = sums.data,
                         .b = up.row(s_.nope_dim), .c_ld = out.stride, .a_ld = sums.stride, .b_ld = up.stride, .c_step = s_.value_dim,
                         .a_step = s_.rank, .b_step = s_.up_dim() * up.stride, .batch = s_.heads});
}

template <class Real>
void LatentTraining<Real>::raise_backward(Matrix dsums, const Scratch& scratch, ConstMatrix draised, const Call& call) const {
  const ConstMatrix up = up_weight(scratch, call);
  call.ops.batched_gemm({.kind = GemmKind::kNN, .m = dsums.rows, .n = s_.rank, .k = s_.value_dim, .c = dsums.data, .a = draised.data,
                         .b = up.row(s_.nope_dim), .c_ld = dsums.stride, .a_ld = draised.stride, .b_ld = up.stride, .c_step = s_.rank,
                         .a_step = s_.value_dim, .b_step = s_.up_dim() * up.stride, .batch = s_.heads});
}

template <class Real>
void LatentTraining<Real>::absorbed_backward(const Saved& saved, const Scratch& scratch, ConstMatrix dabsorbed, ConstMatrix draised,
                                             ConstMatrix sums, const Call& call) const {
  const ConstMatrix up = up_weight(scratch, call);
  call.ops.batched_gemm({.kind = GemmKind::kNT, .m = dabsorbed.rows, .n = s_.nope_dim, .k = s_.rank, .c = scratch.dquery.data,
                         .a = dabsorbed.data, .b = up.data, .c_ld = scratch.dquery.stride, .a_ld = dabsorbed.stride, .b_ld = up.stride,
                         .c_step = s_.query_dim(), .a_step = s_.rank, .b_step = s_.up_dim() * up.stride, .batch = s_.heads, .beta = 1});
  const Matrix dup = begin_up_gradient(scratch, call);
  if (dup.data == nullptr) return;
  // dUK_i += qN_i^T dabsorbed_i;  dUV_i += draised_i^T sums_i
  call.ops.batched_gemm({.kind = GemmKind::kTN, .m = s_.nope_dim, .n = s_.rank, .k = dabsorbed.rows, .c = dup.data,
                         .a = saved.query.data, .b = dabsorbed.data, .c_ld = dup.stride, .a_ld = saved.query.stride, .b_ld = dabsorbed.stride,
                         .c_step = s_.up_dim() * dup.stride, .a_step = s_.query_dim(), .b_step = s_.rank, .batch = s_.heads, .beta = 1});
  call.ops.batched_gemm({.kind = GemmKind::kTN, .m = s_.value_dim, .n = s_.rank, .k = sums.rows, .c = dup.row(s_.nope_dim),
                         .a = draised.data, .b = sums.data, .c_ld = dup.stride, .a_ld = draised.stride, .b_ld = sums.stride,
                         .c_step = s_.up_dim() * dup.stride, .a_step = s_.value_dim, .b_step = s_.rank, .batch = s_.heads, .beta = 1});
  end_up_gradient(scratch, call);
}

template <class Real>
void LatentTraining<Real>::unexpand(Matrix dlatents, const Scratch& scratch, ConstMatrix latents, const Call& call) const {
  for_rows(call.ops.pool(), latents.rows, [&](int64_t row) {
    Real* up = scratch.up.row(row);
    Real* shared = scratch.rotary.row(row) + s_.heads * s_.rope_dim;
    std::fill_n(shared, s_.rope_dim, Real{0});
    for (int64_t head = 0; head < s_.heads; ++head, up += s_.up_dim()) {
      const Real* key = scratch.dkey.row(row) + head * s_.query_dim();
      std::copy_n(key, s_.nope_dim, up);
      for (int64_t c = 0; c < s_.rope_dim; ++c) shared[c] += key[s_.nope_dim + c];
      std::copy_n(scratch.dvalue.row(row) + head * s_.value_dim, s_.value_dim, up + s_.nope_dim);
    }
  });
  const Matrix dweight = begin_up_gradient(scratch, call);
  call.ops.matmul_backward(dlatents, LinearBackward<Real>{scratch.up, up_weight(scratch, call), dweight}, latents);
  if (dweight.data != nullptr) end_up_gradient(scratch, call);
}

template <class Real>
void LatentTraining<Real>::unproject(Matrix dx, const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const {
  const int64_t dim = s_.rope_dim;
  if (dim > 0) {
    for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
      Real* to = scratch.rotary.row(row);   // behind the heads lies the shared key's gradient
      for (int64_t head = 0; head < s_.heads; ++head, to += dim) {
        std::copy_n(scratch.dquery.row(row) + head * s_.query_dim() + s_.nope_dim, dim, to);
      }
    });
    turn(scratch.rotary, call, Direction::kBackward);
    for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
      const Real* from = scratch.rotary.row(row);
      for (int64_t head = 0; head < s_.heads; ++head, from += dim) {
        std::copy_n(from, dim, scratch.dquery.row(row) + head * s_.query_dim() + s_.nope_dim);
      }
      std::copy_n(from, dim, scratch.draw.row(row) + s_.rank);
    });
  }
  const Matrix draw_latent = scratch.draw.cols_from(0, s_.rank);
  if (s_.norm == LatentNorm::kNone) {
    for_rows(call.ops.pool(), x.rows, [&](int64_t row) { std::copy_n(scratch.dlatent.row(row), s_.rank, draw_latent.row(row)); });
  } else {
    norm_backward(draw_latent, scratch.dlatent, saved.latent_scale, saved.raw.cols_from(0, s_.rank), order_.latent_norm, call);
  }
  if (low_rank()) {
    call.ops.matmul_backward(scratch.dlow, LinearBackward<Real>{scratch.dquery, weight(call, order_.query_up), gradient(call, order_.query_up)},
                             saved.low);
    if (s_.norm != LatentNorm::kNone) norm_backward(scratch.dlow, scratch.dlow, saved.low_scale, saved.low_raw, order_.query_norm, call);
  }
  const LinearBackward<Real> projections[] = {
      low_rank() ? LinearBackward<Real>{scratch.dlow, weight(call, order_.query_down), gradient(call, order_.query_down),
                                        dbias(call, order_.query_down_bias)}
                 : LinearBackward<Real>{scratch.dquery, weight(call, order_.query), gradient(call, order_.query), dbias(call, order_.query_bias)},
      {scratch.draw, weight(call, order_.latent_down), gradient(call, order_.latent_down), dbias(call, order_.latent_down_bias)}};
  call.ops.matmul_backward(dx, projections, x);
}

template class LatentTraining<float>;
template class LatentTraining<double>;

}  // namespace quipu
