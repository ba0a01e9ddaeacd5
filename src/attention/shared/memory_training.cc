#include "attention/shared/memory_training.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/shared/memory_features.h"
#include "attention/shared/small_gemm.h"

namespace quipu {
namespace {

constexpr double kLeastDenominator = 1e-6;
constexpr double kRmsEpsilon = 1e-6;

// Tokens of delta_true written together: what they take of one another is a matrix of that size, about as much work as the memory
// itself where keys and values are so wide. Rows of it that are solved one after the other.
constexpr int64_t kChunk = 32, kSolveRows = 8;

// Sixteen sums, so that the compiler may use vectors; added up in order.
template <class Real>
Real dot(const Real* a, const Real* b, int64_t count) {
  constexpr int64_t kSums = 16;
  Real sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[i % kSums] += a[i] * b[i];
  Real sum = 0;
  for (const Real part : sums) sum += part;
  return sum;
}

template <class Real>
void add_scaled(Real* to, const Real* from, Real factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// sigma . z, kept from zero; `clamped` says whether it was.
template <class Real>
Real denominator(const Real* feature, const Real* z, int64_t features, bool& clamped) {
  const Real sum = dot(feature, z, features);
  clamped = !(sum > static_cast<Real>(kLeastDenominator));
  return clamped ? static_cast<Real>(kLeastDenominator) : sum;
}

// Matrices of one run in the scratch of a task. [n, F]: one row a token; query features head after head.
template <class Real>
struct RunBuffers {
  RunBuffers(std::span<Real> scratch, const MemorySettings& s, int64_t rows)
      : features(s.map.count()), value_dim(s.value_dim) {
    const auto take = [&](int64_t count) {
      Real* taken = scratch.empty() ? nullptr : scratch.data() + elements;   // empty: only measured
      elements += (count + 15) / 16 * 16;
      return taken;
    };
    key = take(rows * features);
    dkey = take(rows * features);
    query = take(rows * features);
    dquery = take(rows * features);
    value_a = take(rows * value_dim);
    value_b = take(rows * value_dim);
    value_c = take(rows * value_dim);
    dm = take(features * value_dim);
    dz = take(features);
    state = take(features * value_dim);
    row = take(std::max(features, value_dim));
    const int64_t chunk = s.rule == MemoryRule::kDeltaTrue ? std::min(rows, kChunk) : 0;
    overlap = take(chunk * kChunk);
    doverlap = take(chunk * kChunk);
  }
  int64_t features, value_dim;
  Real *key, *dkey, *query, *dquery, *value_a, *value_b, *value_c, *dm, *dz, *state, *row;
  Real *overlap, *doverlap;        // of a chunk: k_t . k_s, rows kChunk apart
  int64_t elements = 0;

  // [n, value_dim] = f [n, F] m [F, value_dim]
  void through(Real* out, const Real* f, const Real* m, int64_t rows) const {
    small_gemm<Real>({.kind = GemmKind::kNN, .m = rows, .n = value_dim, .k = features, .c = out, .a = f, .b = m,
                      .c_ld = value_dim, .a_ld = features, .b_ld = value_dim});
  }
  // df [n, F] (+)= g [n, value_dim] m^T
  void back(Real* df, const Real* g, const Real* m, int64_t rows, Real beta) const {
    small_gemm<Real>({.kind = GemmKind::kNT, .m = rows, .n = features, .k = value_dim, .c = df, .a = g, .b = m,
                      .c_ld = features, .a_ld = value_dim, .b_ld = value_dim, .beta = beta});
  }
  // m [F, value_dim] += f^T g
  void outer(Real* m, const Real* f, const Real* g, int64_t rows) const {
    small_gemm<Real>({.kind = GemmKind::kTN, .m = features, .n = value_dim, .k = rows, .c = m, .a = f, .b = g,
                      .c_ld = value_dim, .a_ld = features, .b_ld = value_dim, .beta = 1});
  }
};

template <class Real>
class MemoryScan {
 public:
  MemoryScan(const MemoryTask<Real>& task, std::span<Real> scratch)
      : t_(task), s_(*task.settings), b_(scratch, s_, longest(task.runs)), features_(b_.features), dim_(s_.value_dim) {
    CHECK(b_.elements <= static_cast<int64_t>(scratch.size())) << b_.elements << " of " << scratch.size();
  }

  void forward() {
    for (size_t i = 0; i < t_.runs.size(); ++i) {
      const SegmentRun& run = t_.runs[i];
      map_keys(run);
      for (int64_t g = 0; g < s_.group(); ++g) read(run, head(g), memory(i), sums(i));
      std::memcpy(memory(i + 1), memory(i), static_cast<size_t>(memory_state_elements(s_)) * sizeof(Real));
      if (s_.rule == MemoryRule::kDeltaTrue) {
        write_in_order(run, memory(i + 1));
      } else {
        write_at_once(run, i);
      }
    }
  }

  void backward(const MemoryTaskGradients<Real>& gradients) {
    std::fill(b_.dm, b_.dm + features_ * dim_, Real{0});
    std::fill(b_.dz, b_.dz + features_, Real{0});
    for (size_t i = t_.runs.size(); i-- > 0;) {
      const SegmentRun& run = t_.runs[i];
      map_keys(run);
      std::fill(b_.dkey, b_.dkey + run.rows * features_, Real{0});
      if (s_.rule == MemoryRule::kDeltaTrue) {
        undo_write_in_order(run, i, gradients);
      } else {
        undo_write_at_once(run, i, gradients);
      }
      for (int64_t g = 0; g < s_.group(); ++g) undo_read(run, i, head(g), gradients);
      for (int64_t t = 0; t < run.rows; ++t) {
        apply_features_backward(s_.map, gradients.rows.key.row(run.row_begin + t) + key_offset(), b_.dkey + t * features_, key_row(run, t),
                                b_.row);
      }
    }
  }

 private:
  static int64_t longest(std::span<const SegmentRun> runs) {
    int64_t rows = 0;
    for (const SegmentRun& run : runs) rows = std::max(rows, run.rows);
    return rows;
  }
  int64_t head(int64_t g) const { return t_.memory * s_.group() + g; }
  Real* memory(size_t run) const { return t_.states + static_cast<int64_t>(run) * memory_state_elements(s_); }
  Real* sums(size_t run) const { return s_.has_sum() ? memory(run) + features_ * dim_ : nullptr; }
  // Where this memory's part of a row begins.
  int64_t key_offset() const { return t_.memory * t_.rows.key_stride; }
  int64_t value_offset() const { return t_.memory * t_.rows.value_stride; }
  const Real* key_row(const SegmentRun& run, int64_t t) const { return t_.rows.key.row(run.row_begin + t) + key_offset(); }
  const Real* value_row(const SegmentRun& run, int64_t t) const { return t_.rows.value.row(run.row_begin + t) + value_offset(); }
  Real weight(const SegmentRun& run, int64_t t) const { return t_.weight(run.row_begin + t, t_.memory); }
  void map_keys(const SegmentRun& run) {
    for (int64_t t = 0; t < run.rows; ++t) apply_features(s_.map, b_.key + t * features_, key_row(run, t));
  }
  void map_queries(const SegmentRun& run, int64_t head) {
    for (int64_t t = 0; t < run.rows; ++t) {
      apply_features(s_.map, b_.query + t * features_, t_.rows.query.row(run.row_begin + t) + head * t_.rows.query_stride);
    }
  }

  // --- reading: forward, then its reverse ---------------------------------------------------------------------------
  void read(const SegmentRun& run, int64_t head, const Real* m, const Real* z) {
    map_queries(run, head);
    b_.through(b_.value_a, b_.query, m, run.rows);
    for (int64_t t = 0; t < run.rows; ++t) {
      const Real* in = b_.value_a + t * dim_;
      Real* out = t_.read.row(run.row_begin + t) + head * dim_;
      if (s_.norm == ReadNorm::kNone) {
        std::copy(in, in + dim_, out);
      } else if (s_.norm == ReadNorm::kSum) {
        bool clamped = false;
        const Real norm = denominator(b_.query + t * features_, z, features_, clamped);
        for (int64_t c = 0; c < dim_; ++c) out[c] = in[c] / norm;
      } else {
        const Real factor = inverse_rms(in);
        for (int64_t c = 0; c < dim_; ++c) out[c] = in[c] * factor * norm_weight(c);
      }
    }
  }

  void undo_read(const SegmentRun& run, size_t i, int64_t head, const MemoryTaskGradients<Real>& gradients) {
    map_queries(run, head);
    const Real* m = memory(i);
    if (s_.norm == ReadNorm::kRms) b_.through(b_.value_a, b_.query, m, run.rows);
    // value_b: the gradient of what came out of M.
    for (int64_t t = 0; t < run.rows; ++t) {
      const Real* dread = gradients.dread.row(run.row_begin + t) + head * dim_;
      Real* dout = b_.value_b + t * dim_;
      if (s_.norm == ReadNorm::kNone) {
        std::copy(dread, dread + dim_, dout);
      } else if (s_.norm == ReadNorm::kSum) {
        bool clamped = false;
        const Real norm = denominator(b_.query + t * features_, sums(i), features_, clamped);
        for (int64_t c = 0; c < dim_; ++c) dout[c] = dread[c] / norm;
      } else {
        undo_rms(dout, dread, b_.value_a + t * dim_, gradients.dread_norm);
      }
    }
    b_.back(b_.dquery, b_.value_b, m, run.rows, 0);
    b_.outer(b_.dm, b_.query, b_.value_b, run.rows);
    for (int64_t t = 0; t < run.rows; ++t) {
      const int64_t row = run.row_begin + t;
      const Real* query = b_.query + t * features_;
      if (s_.norm == ReadNorm::kSum) {
        bool clamped = false;
        denominator(query, sums(i), features_, clamped);
        if (!clamped) {   // d (num / den) / d den = - read / den
          const Real dnorm = -dot(b_.value_b + t * dim_, t_.read.row(row) + head * dim_, dim_);
          add_scaled(b_.dquery + t * features_, sums(i), dnorm, features_);
          add_scaled(b_.dz, query, dnorm, features_);
        }
      }
      const int64_t offset = head * t_.rows.query_stride;
      apply_features_backward(s_.map, gradients.rows.query.row(row) + offset, b_.dquery + t * features_,
                              t_.rows.query.row(row) + offset, b_.row);
    }
  }

  Real norm_weight(int64_t c) const { return t_.read_norm.empty() ? Real{1} : t_.read_norm[static_cast<size_t>(c)]; }
  Real inverse_rms(const Real* in) const {
    return 1 / std::sqrt(dot(in, in, dim_) / static_cast<Real>(dim_) + static_cast<Real>(kRmsEpsilon));
  }
  void undo_rms(Real* din, const Real* dout, const Real* in, std::span<Real> dweight) const {
    const Real factor = inverse_rms(in);
    Real mean = 0;
    for (int64_t c = 0; c < dim_; ++c) {
      mean += dout[c] * norm_weight(c) * in[c] * factor;
      if (!dweight.empty()) dweight[static_cast<size_t>(c)] += dout[c] * in[c] * factor;
    }
    mean /= static_cast<Real>(dim_);
    for (int64_t c = 0; c < dim_; ++c) din[c] = factor * (dout[c] * norm_weight(c) - in[c] * factor * mean);
  }

  // --- linear and delta: all tokens of a segment see the memory before it ---------------------------------------------
  // value_a: what a token adds, e_t: v_t, or with the delta rule v_t - known_t / norm_t; value_c: known_t.
  void differences(const SegmentRun& run, size_t i) {
    if (s_.rule == MemoryRule::kDelta) b_.through(b_.value_c, b_.key, memory(i), run.rows);
    for (int64_t t = 0; t < run.rows; ++t) {
      const Real* value = value_row(run, t);
      Real* e = b_.value_a + t * dim_;
      std::copy(value, value + dim_, e);
      if (s_.rule != MemoryRule::kDelta) continue;
      bool clamped = false;
      const Real norm = denominator(b_.key + t * features_, sums(i), features_, clamped);
      add_scaled(e, b_.value_c + t * dim_, -1 / norm, dim_);
    }
  }

  void write_at_once(const SegmentRun& run, size_t i) {
    differences(run, i);
    for (int64_t t = 0; t < run.rows; ++t) {
      const Real w = weight(run, t);
      for (int64_t c = 0; c < dim_; ++c) b_.value_a[t * dim_ + c] *= w;
      if (s_.has_sum()) add_scaled(sums(i + 1), b_.key + t * features_, w, features_);
    }
    b_.outer(memory(i + 1), b_.key, b_.value_a, run.rows);
  }

  void undo_write_at_once(const SegmentRun& run, size_t i, const MemoryTaskGradients<Real>& gradients) {
    differences(run, i);
    b_.through(b_.value_b, b_.key, b_.dm, run.rows);   // G_t = sigma(k_t) dM
    for (int64_t t = 0; t < run.rows; ++t) {
      const int64_t row = run.row_begin + t;
      const Real w = weight(run, t);
      const Real* key = b_.key + t * features_;
      Real* e = b_.value_a + t * dim_;
      Real* de = b_.value_b + t * dim_;
      Real dw = dot(de, e, dim_);
      if (s_.has_sum()) {
        dw += dot(key, b_.dz, features_);
        add_scaled(b_.dkey + t * features_, b_.dz, w, features_);
      }
      gradients.dweight(row, t_.memory) = dw;
      Real* dv = gradients.rows.value.row(row) + value_offset();
      for (int64_t c = 0; c < dim_; ++c) {
        e[c] *= w;
        de[c] *= w;
        dv[c] += de[c];
      }
    }
    b_.back(b_.dkey, b_.value_a, b_.dm, run.rows, 1);
    if (s_.rule != MemoryRule::kDelta) return;
    // e = v - known / norm
    for (int64_t t = 0; t < run.rows; ++t) {
      const Real* key = b_.key + t * features_;
      Real* de = b_.value_b + t * dim_;
      bool clamped = false;
      const Real norm = denominator(key, sums(i), features_, clamped);
      if (!clamped) {
        const Real dnorm = dot(de, b_.value_c + t * dim_, dim_) / (norm * norm);
        add_scaled(b_.dkey + t * features_, sums(i), dnorm, features_);
        add_scaled(b_.dz, key, dnorm, features_);
      }
      for (int64_t c = 0; c < dim_; ++c) de[c] = -de[c] / norm;
    }
    b_.back(b_.dkey, b_.value_b, memory(i), run.rows, 1);
    b_.outer(b_.dm, b_.key, b_.value_b, run.rows);
  }

  // --- delta_true: every token sees what those before it wrote -----------------------------------------------------------
  // Of a chunk of tokens at once (Yang et al., arXiv 2406.06484, section 3): with S the memory before the chunk and A the strictly lower
  // part of K K^T, u_t = w_t e_t, e = V - K S - A U, and the memory after it is S + K^T U. math.md has the derivatives.
  struct Chunk {
    const SegmentRun& run;
    int64_t first, rows;           // of the run
  };
  const Real* keys(const Chunk& c) const { return b_.key + c.first * features_; }
  Real* written(const Chunk& c, int64_t t) const { return t_.written.row(c.run.row_begin + c.first + t) + t_.memory * dim_; }
  Real written_weight(const Chunk& c, int64_t t) const { return weight(c.run, c.first + t); }

  // A into `overlap`.
  void overlaps(const Chunk& c) {
    small_gemm<Real>({.kind = GemmKind::kNT, .m = c.rows, .n = c.rows, .k = features_, .c = b_.overlap, .a = keys(c), .b = keys(c),
                      .c_ld = kChunk, .a_ld = features_, .b_ld = features_});
    keep_lower(b_.overlap, c.rows);
  }
  static void keep_lower(Real* square, int64_t rows) {
    for (int64_t t = 0; t < rows; ++t) std::fill(square + t * kChunk + t, square + t * kChunk + rows, Real{0});
  }
  // known [count, value_dim] += A[first .. first + count, 0 .. seen] U[0 .. seen]
  void add_known(Real* known, const Chunk& c, int64_t first, int64_t count, int64_t seen) {
    small_gemm<Real>({.kind = GemmKind::kNN, .m = count, .n = dim_, .k = seen, .c = known + first * dim_, .a = b_.overlap + first * kChunk,
                      .b = written(c, 0), .c_ld = dim_, .a_ld = kChunk, .b_ld = t_.written.stride, .beta = 1});
  }

  void write_in_order(const SegmentRun& run, Real* m) {
    for (int64_t first = 0; first < run.rows; first += kChunk) write_chunk({run, first, std::min(kChunk, run.rows - first)}, m);
  }
  void write_chunk(const Chunk& c, Real* m) {
    Real* known = b_.value_a;      // K S + A U
    overlaps(c);
    b_.through(known, keys(c), m, c.rows);
    for (int64_t block = 0; block < c.rows; block += kSolveRows) {
      const int64_t end = std::min(block + kSolveRows, c.rows);
      if (block > 0) add_known(known, c, block, end - block, block);
      for (int64_t t = block; t < end; ++t) {
        for (int64_t s = block; s < t; ++s) add_scaled(known + t * dim_, written(c, s), b_.overlap[t * kChunk + s], dim_);
        const Real w = written_weight(c, t);
        const Real* value = value_row(c.run, c.first + t);
        for (int64_t i = 0; i < dim_; ++i) written(c, t)[i] = w * (value[i] - known[t * dim_ + i]);
      }
    }
    small_gemm<Real>({.kind = GemmKind::kTN, .m = features_, .n = dim_, .k = c.rows, .c = m, .a = keys(c), .b = written(c, 0),
                      .c_ld = dim_, .a_ld = features_, .b_ld = t_.written.stride, .beta = 1});
  }

  void undo_write_in_order(const SegmentRun& run, size_t i, const MemoryTaskGradients<Real>& gradients) {
    std::copy(memory(i + 1), memory(i + 1) + features_ * dim_, b_.state);
    for (int64_t first = (run.rows - 1) / kChunk * kChunk; first >= 0; first -= kChunk) {
      undo_chunk({run, first, std::min(kChunk, run.rows - first)}, gradients);
    }
  }
  // state: after the chunk, then before it; dm: the gradient of either.
  void undo_chunk(const Chunk& c, const MemoryTaskGradients<Real>& gradients) {
    Real *e = b_.value_a, *z = b_.value_b, *minus = b_.value_c;
    for (int64_t t = 0; t < c.rows; ++t) {
      for (int64_t i = 0; i < dim_; ++i) minus[t * dim_ + i] = -written(c, t)[i];
    }
    b_.outer(b_.state, keys(c), minus, c.rows);
    overlaps(c);
    b_.through(e, keys(c), b_.state, c.rows);
    add_known(e, c, 0, c.rows, c.rows);
    for (int64_t t = 0; t < c.rows; ++t) {
      const Real* value = value_row(c.run, c.first + t);
      for (int64_t i = 0; i < dim_; ++i) e[t * dim_ + i] = value[i] - e[t * dim_ + i];
    }
    // Z, the gradient of w e: Z_t = dM^T k_t - sum over s > t of A[s, t] w_s Z_s, the last token first; minus: -W Z.
    b_.through(z, keys(c), b_.dm, c.rows);
    for (int64_t end = c.rows; end > 0;) {
      const int64_t block = (end - 1) / kSolveRows * kSolveRows;
      for (int64_t t = end; t-- > block;) {
        Real* z_t = z + t * dim_;
        for (int64_t s = t + 1; s < end; ++s) add_scaled(z_t, minus + s * dim_, b_.overlap[s * kChunk + t], dim_);
        const int64_t row = c.run.row_begin + c.first + t;
        const Real w = written_weight(c, t);
        gradients.dweight(row, t_.memory) = dot(z_t, e + t * dim_, dim_);
        Real* dv = gradients.rows.value.row(row) + value_offset();
        for (int64_t i = 0; i < dim_; ++i) {
          dv[i] += w * z_t[i];
          minus[t * dim_ + i] = -w * z_t[i];
        }
      }
      if (block > 0) {
        small_gemm<Real>({.kind = GemmKind::kTN, .m = block, .n = dim_, .k = end - block, .c = z, .a = b_.overlap + block * kChunk,
                          .b = minus + block * dim_, .c_ld = dim_, .a_ld = kChunk, .b_ld = dim_, .beta = 1});
      }
      end = block;
    }
    // Keys: by M after the chunk, by A, by M before it.
    Real* dkey = b_.dkey + c.first * features_;
    small_gemm<Real>({.kind = GemmKind::kNT, .m = c.rows, .n = features_, .k = dim_, .c = dkey, .a = written(c, 0), .b = b_.dm,
                      .c_ld = features_, .a_ld = t_.written.stride, .b_ld = dim_, .beta = 1});
    small_gemm<Real>({.kind = GemmKind::kNT, .m = c.rows, .n = c.rows, .k = dim_, .c = b_.doverlap, .a = minus, .b = written(c, 0),
                      .c_ld = kChunk, .a_ld = dim_, .b_ld = t_.written.stride});
    keep_lower(b_.doverlap, c.rows);
    for (const GemmKind kind : {GemmKind::kNN, GemmKind::kTN}) {
      small_gemm<Real>({.kind = kind, .m = c.rows, .n = features_, .k = c.rows, .c = dkey, .a = b_.doverlap, .b = keys(c),
                        .c_ld = features_, .a_ld = kChunk, .b_ld = features_, .beta = 1});
    }
    b_.back(dkey, minus, b_.state, c.rows, 1);
    b_.outer(b_.dm, keys(c), minus, c.rows);
  }

  const MemoryTask<Real>& t_;
  const MemorySettings& s_;
  RunBuffers<Real> b_;
  int64_t features_, dim_;
};

}  // namespace

int64_t memory_state_elements(const MemorySettings& s) {
  return s.map.count() * s.value_dim + (s.has_sum() ? s.map.count() : 0);
}

int64_t memory_task_scratch(const MemorySettings& s, int64_t rows) {
  return RunBuffers<double>({}, s, std::max<int64_t>(rows, 1)).elements;
}

template <class Real>
void memory_forward(const MemoryTask<Real>& task, std::span<Real> scratch) {
  MemoryScan<Real>(task, scratch).forward();
}

template <class Real>
void memory_backward(const MemoryTask<Real>& task, const MemoryTaskGradients<Real>& gradients, std::span<Real> scratch) {
  MemoryScan<Real>(task, scratch).backward(gradients);
}

template void memory_forward<float>(const MemoryTask<float>&, std::span<float>);
template void memory_forward<double>(const MemoryTask<double>&, std::span<double>);
template void memory_backward<float>(const MemoryTask<float>&, const MemoryTaskGradients<float>&, std::span<float>);
template void memory_backward<double>(const MemoryTask<double>&, const MemoryTaskGradients<double>&, std::span<double>);

}  // namespace quipu
