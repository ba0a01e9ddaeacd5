// What the trainable forms of MLA and MTLA share: from hidden rows to rotated queries and latents, from latents to the keys
// and values of every head, and both ways back. What lies between (merging) and attention itself are the rooms' business.
// Mathematics: latent/math.md, expanded form. Parameters: the roles of latent_attention.h.
//
// Forward:   project() -> [the room makes other latents of saved.latent] -> expand() -> ops.attention -> finish()
// Backward:  unfinish() -> ops.attention_backward -> unexpand() -> [the room undoes its part] -> unproject()
// Rooms that read latents elsewhere absorb queries and raise what they read: absorb(), raise_values(), absorbed_backward().
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/shared/latent_attention.h"
#include "attention/training.h"
#include "base/thread_pool.h"

namespace quipu {

// task(row) for every row, in tasks of 32 neighbours.
template <class Task>
void for_rows(ThreadPool& pool, int64_t rows, const Task& task) {
  constexpr int64_t kRows = 32;
  pool.parallel_for((rows + kRows - 1) / kRows, [&](int64_t block) {
    for (int64_t row = block * kRows; row < std::min(rows, (block + 1) * kRows); ++row) task(row);
  });
}

template <class Real>
class LatentTraining {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  LatentTraining(const LatentSettings& settings, std::span<const std::string> optional_roles);

  const LatentSettings& settings() const { return s_; }
  std::vector<ParameterSpec>& specs() { return specs_; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }

  int64_t query_cols() const { return s_.heads * s_.query_dim(); }
  int64_t value_cols() const { return s_.heads * s_.value_dim; }
  // Of one forward, without attention.
  double projection_flops(int64_t rows) const;
  // Of one query row of all heads with one key.
  double pair_flops() const { return 2.0 * static_cast<double>(s_.heads * (s_.query_dim() + s_.value_dim)); }

  struct Saved {
    Saved(Carver& carver, const LatentTraining& core, int64_t rows);
    Matrix low_raw, low;             // with a query rank: the query's latent before and after its norm
    Matrix query;                    // [n, heads * query_dim], rotated
    Matrix raw;                      // [n, width]: before norm and rotation
    Matrix latent;                   // [n, latent_rank]: after the norm
    Matrix key, value;               // of every head: [n, heads * query_dim], [n, heads * value_dim]
    Matrix attended, log_sum_exp;
    std::span<Real> low_scale, latent_scale;   // of the norms
  };
  struct Scratch {
    Scratch(Carver& carver, const LatentTraining& core, int64_t rows);
    Matrix up;                       // [n, heads * up_dim], or its gradient
    Matrix rotary;                   // [n, (heads + 1) * rope_dim]: what turns in every head, then the shared key; or gradients
    Matrix joint, djoint;            // the up-projection in one piece, when the weights have it in two
    Matrix dattended, dquery, dkey, dvalue, dlatent, draw, dlow;   // backward only
  };

  // Fills query, raw, latent (of saved) and the rotated shared key (in scratch.rotary).
  void project(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const;
  // saved.key and saved.value from latents [n, latent_rank] and the shared key that project() left.
  void expand(const Saved& saved, const Scratch& scratch, ConstMatrix latents, const Call& call) const;
  // The output projection of heads [n, value_cols()]: saved.attended, or what the room mixed into it.
  void finish(Matrix out, ConstMatrix heads, const Call& call) const;

  // dout -> scratch.dattended, the gradient of heads.
  void unfinish(const Scratch& scratch, ConstMatrix dout, ConstMatrix heads, const Call& call) const;
  // scratch.dkey, scratch.dvalue -> dlatents, and the shared key's gradient (in scratch.rotary). latents: as in expand().
  void unexpand(Matrix dlatents, const Scratch& scratch, ConstMatrix latents, const Call& call) const;
  // scratch.dquery, the gradient of saved.latent in scratch.dlatent and the shared key's -> dx.
  void unproject(Matrix dx, const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const;

  // out [n, heads * rank]: every query's position-free part in the space of latents, UK_i^T qN_i.
  void absorb(Matrix out, const Saved& saved, const Scratch& scratch, const Call& call) const;
  // out [n, value_cols()] = UV_i of sums [n, heads * rank].
  void raise_values(Matrix out, const Scratch& scratch, ConstMatrix sums, const Call& call) const;
  // dsums = UV_i^T draised.
  void raise_backward(Matrix dsums, const Scratch& scratch, ConstMatrix draised, const Call& call) const;
  // dabsorbed -> added to scratch.dquery; both products' share of the up-projection's gradient. After unexpand().
  void absorbed_backward(const Saved& saved, const Scratch& scratch, ConstMatrix dabsorbed, ConstMatrix draised, ConstMatrix sums,
                         const Call& call) const;
  double absorbed_flops(int64_t rows) const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(s_.heads * s_.rank * s_.up_dim());
  }

  AttentionPattern pattern(std::span<const AttentionSlice> slices, std::span<const KeyRange> visible) const {
    return {.slices = slices, .visible = visible, .heads = s_.heads, .kv_heads = s_.heads, .key_dim = s_.query_dim(),
            .value_dim = s_.value_dim, .scale = static_cast<double>(s_.scale)};
  }

  // Parameters by place; a vector's is [1, length]. Place -1: the model has none.
  static ConstMatrix weight(const Call& call, int64_t place) { return call.weights[static_cast<size_t>(place)]; }
  static Matrix gradient(const Call& call, int64_t place) { return call.gradients[static_cast<size_t>(place)]; }
  static const Real* bias(const Call& call, int64_t place) { return place < 0 ? nullptr : weight(call, place).data; }
  static Real* dbias(const Call& call, int64_t place) { return place < 0 ? nullptr : gradient(call, place).data; }

 private:
  struct Norm {
    int64_t weight = -1, bias = -1;  // places
  };
  struct Order {
    int64_t query = -1, query_bias = -1, query_down = -1, query_down_bias = -1, query_up = -1;
    int64_t latent_down = -1, latent_down_bias = -1, latent_up = -1, key_up = -1, value_up = -1;
    int64_t output = -1, output_bias = -1;
    Norm query_norm, latent_norm;
  };

  bool low_rank() const { return s_.query_rank > 0; }
  bool split() const { return order_.key_up >= 0; }
  int64_t scale_elements(int64_t rows) const {
    return s_.norm == LatentNorm::kNone ? 0 : s_.norm == LatentNorm::kRms ? rows : 2 * rows;
  }
  // out = norm(x), in no place of x.
  void norm(Matrix out, std::span<Real> scale, ConstMatrix x, Norm place, const Call& call) const;
  // dx = gradient of x from dy; dx may be dy.
  void norm_backward(Matrix dx, ConstMatrix dy, std::span<Real> scale, ConstMatrix x, Norm place, const Call& call) const;
  void turn(Matrix rotary, const Call& call, Direction direction) const;
  ConstMatrix up_weight(const Scratch& scratch, const Call& call) const;
  // Where the up-projection's gradient is added up (zeroed when it is in two pieces), and how it gets to them. Data null: frozen.
  Matrix begin_up_gradient(const Scratch& scratch, const Call& call) const;
  void end_up_gradient(const Scratch& scratch, const Call& call) const;

  LatentSettings s_;
  std::vector<ParameterSpec> specs_;
  Order order_;
  std::vector<Real> zeros_;          // bias of a layer norm that has none
};

extern template class LatentTraining<float>;
extern template class LatentTraining<double>;

}  // namespace quipu
