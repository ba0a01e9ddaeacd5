// Test support for the latent rooms: weights given by role, a sequence run through a room in chunks, and the equations of
// latent/math.md and temporal_latent/math.md in double over the whole context, with no cache and no pages.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention.h"

namespace quipu {

class GivenWeights final : public WeightSource {
 public:
  explicit GivenWeights(Backend& backend) : backend_(backend) {}
  void give(const std::string& role, std::vector<float> values) { values_[role] = std::move(values); }
  const std::vector<float>& values(const std::string& role) const { return values_.at(role); }

  bool has(std::string_view role) const override { return values_.count(std::string(role)) > 0; }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view meaning) override {
    ASSIGN_OR_RETURN(const std::vector<float> values, dense(role, rows, cols, meaning));
    return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override {
    return dense(role, length, 1, meaning);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) override {
    const auto found = values_.find(std::string(role));
    if (found == values_.end()) return bad_input("tensor " + std::string(role) + " is missing");
    if (static_cast<int64_t>(found->second.size()) != rows * cols) {
      return bad_input("tensor " + std::string(role) + ": expected " + std::to_string(rows) + " rows (" +
                       std::string(meaning) + ") of " + std::to_string(cols) + ", found " +
                       std::to_string(found->second.size()) + " elements");
    }
    return found->second;
  }

 private:
  Backend& backend_;
  std::map<std::string, std::vector<float>> values_;
};

// A sequence from its beginning: x in chunks of the given sizes (the last one repeats); the state stays for inspection.
struct SequenceRun {
  std::vector<float> out;
  PagePool pool;
  std::vector<LayerState> state;   // one

  SequenceRun(const Attention& room, Backend& backend, const std::vector<float>& x, int64_t hidden,
              const std::vector<int64_t>& chunks, DType dtype = DType::kF32)
      : out(x.size()) {
    const int64_t tokens = static_cast<int64_t>(x.size()) / hidden;
    state.push_back(std::move(LayerState::create(room.state_layout({dtype, tokens}), tokens, pool)).value());
    Arena arena;
    size_t step = 0;
    for (int64_t begin = 0; begin < tokens; ++step) {
      const int64_t rows = std::min(chunks[std::min(step, chunks.size() - 1)], tokens - begin);
      const Result<void> prepared = state[0].prepare_append(rows);
      CHECK(prepared.ok()) << prepared.error().message;
      std::vector<int64_t> positions;
      for (int64_t i = 0; i < rows; ++i) positions.push_back(begin + i);
      const SequenceSlice slice{&state[0], 0, rows};
      CHECK(arena.reserve(static_cast<size_t>(room.scratch_bytes(rows))).ok());
      room.forward(backend, {out.data() + begin * hidden, rows, hidden}, {x.data() + begin * hidden, rows, hidden},
                   {{&slice, 1}, positions}, arena);
      begin += rows;
    }
  }
};

// The published equations. Roles without an entry in `weights` are left out (no bias, no norm).
struct LatentEquations {
  int64_t hidden, heads, query_rank, rank, nope, rope, value;
  std::string norm = "none";
  double epsilon = 0;
  bool interleaved = false;
  double theta = 1e4;
  int64_t stride = 1;
  bool unit = true;              // every merge weight 1

  using Matrix = std::vector<std::vector<double>>;
  const GivenWeights* weights = nullptr;

  Matrix project(const std::string& role, const Matrix& x, const std::string& bias) const {
    const std::vector<float>& w = weights->values(role);
    const size_t cols = x[0].size(), rows = w.size() / cols;
    Matrix y(x.size(), std::vector<double>(rows));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t r = 0; r < rows; ++r) {
        y[t][r] = weights->has(bias) ? double{weights->values(bias)[r]} : 0.0;
        for (size_t c = 0; c < cols; ++c) y[t][r] += double{w[r * cols + c]} * x[t][c];
      }
    }
    return y;
  }
  void normalise(std::vector<double>& row, size_t count, const std::string& role) const {
    if (norm == "none") return;
    const std::vector<float>& w = weights->values(role);
    double mean = 0, squares = 0;
    for (size_t c = 0; c < count; ++c) mean += norm == "layer" ? row[c] / static_cast<double>(count) : 0.0;
    for (size_t c = 0; c < count; ++c) squares += (row[c] - mean) * (row[c] - mean) / static_cast<double>(count);
    const bool bias = weights->has(role + "_bias");
    for (size_t c = 0; c < count; ++c) {
      row[c] = (row[c] - mean) / std::sqrt(squares + epsilon) * double{w[c]} + (bias ? double{weights->values(role + "_bias")[c]} : 0.0);
    }
  }
  void rotate(double* x, size_t position) const {
    const size_t pairs = static_cast<size_t>(rope / 2);
    for (size_t j = 0; j < pairs; ++j) {
      const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(rope));
      double& a = x[interleaved ? 2 * j : j];
      double& b = x[interleaved ? 2 * j + 1 : j + pairs];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
  // Merge weights of the rows, from their latents.
  std::vector<double> merge_weights(const Matrix& latents) const {
    std::vector<double> w(latents.size(), 1.0);
    if (unit) return w;
    Matrix codes;
    for (size_t t = 0; t < latents.size(); ++t) {
      const double chunk = std::floor(static_cast<double>(t) / static_cast<double>(stride));
      std::vector<double> code;
      for (int64_t i = 0; i < rank; ++i) {
        const double angle = chunk * std::pow(10000.0, -static_cast<double>(i / 2 * 2) / static_cast<double>(rank));
        code.push_back(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
      codes.push_back(code);
    }
    const Matrix e = project("hypernet_fc_c", codes, "hypernet_fc_c_bias");
    const Matrix p = project("hypernet_fc_p", latents, "hypernet_fc_p_bias");
    for (size_t t = 0; t < w.size(); ++t) {
      double dot = 0;
      for (size_t c = 0; c < e[t].size(); ++c) dot += e[t][c] * p[t][c];
      w[t] = 1 / (1 + std::exp(-dot));
    }
    return w;
  }

  Matrix output(const Matrix& x) const {
    const size_t r = static_cast<size_t>(rank), dn = static_cast<size_t>(nope), dr = static_cast<size_t>(rope),
                 dv = static_cast<size_t>(value), h = static_cast<size_t>(heads), s = static_cast<size_t>(stride);
    Matrix q;
    if (query_rank > 0) {
      Matrix low = project("query_down", x, "query_down_bias");
      for (auto& row : low) normalise(row, row.size(), "query_down_norm");
      q = project("query_up", low, "");
    } else {
      q = project("query", x, "query_bias");
    }
    const Matrix z = project("latent_down", x, "latent_down_bias");
    Matrix latents, rotary;
    for (size_t t = 0; t < x.size(); ++t) {
      std::vector<double> row = z[t];
      normalise(row, r, "latent_norm");
      latents.emplace_back(row.begin(), row.begin() + rank);
      rotary.emplace_back(row.begin() + rank, row.end());
      rotate(rotary[t].data(), t);
      for (size_t i = 0; i < h; ++i) rotate(q[t].data() + i * (dn + dr) + dn, t);
    }
    const std::vector<double> w = merge_weights(latents);
    Matrix merged(x.size(), std::vector<double>(r));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t k = t / s * s; k <= t; ++k) {
        for (size_t c = 0; c < r; ++c) merged[t][c] += w[k] * latents[k][c];
      }
    }
    const Matrix up = project("latent_up", merged, "");
    Matrix attended(x.size(), std::vector<double>(h * dv));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < h; ++i) {
        std::vector<double> p(t + 1, 0.0);
        double total = 0;
        for (size_t u = 0; u <= t; ++u) {
          if (u != t && (u + 1) % s != 0) continue;
          double score = 0;
          for (size_t c = 0; c < dn; ++c) score += q[t][i * (dn + dr) + c] * up[u][i * (dn + dv) + c];
          for (size_t c = 0; c < dr; ++c) score += q[t][i * (dn + dr) + dn + c] * rotary[u][c];
          p[u] = std::exp(score / std::sqrt(static_cast<double>(dn + dr)));   // scores of the tests are far below 700
          total += p[u];
        }
        for (size_t u = 0; u <= t; ++u) {
          for (size_t c = 0; c < dv; ++c) attended[t][i * dv + c] += p[u] / total * up[u][i * (dn + dv) + dn + c];
        }
      }
    }
    return project("output", attended, "output_bias");
  }

  HyperParameters parameters(const std::string& form) const {
    HyperParameters p("test");
    p.set("heads", heads);
    if (query_rank > 0) p.set("query_rank", query_rank);
    p.set("latent_rank", rank);
    p.set("nope_dim", nope);
    p.set("rope_dim", rope);
    p.set("value_dim", value);
    p.set("latent_norm", norm);
    if (norm != "none") p.set("norm_epsilon", epsilon);
    p.set("rope_theta", theta);
    p.set("rope_interleaved", interleaved);
    p.set("form", form);
    return p;
  }
};

// Largest |a - b| over the largest |b|.
inline double largest_relative_error(const std::vector<float>& got, const LatentEquations::Matrix& wanted) {
  double error = 0, largest = 0;
  size_t at = 0;
  for (const auto& row : wanted) {
    for (const double value : row) {
      error = std::max(error, std::fabs(double{got.at(at++)} - value));
      largest = std::max(largest, std::fabs(value));
    }
  }
  return at == got.size() && largest > 0 ? error / largest : INFINITY;
}

// Weights and inputs of the worked examples: M_a[i][j] = (((a + 7 i + 3 j) mod 11) - 5) / 10.
inline std::vector<float> worked_matrix(int64_t a, int64_t rows, int64_t cols) {
  std::vector<float> m;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) m.push_back(static_cast<float>((a + 7 * i + 3 * j) % 11 - 5) / 10.0f);
  }
  return m;
}
inline std::vector<float> worked_input() {
  std::vector<float> x;
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t j = 0; j < 4; ++j) x.push_back(static_cast<float>((2 * t + 5 * j) % 7 - 3) / 4.0f);
  }
  return x;
}

}  // namespace quipu
