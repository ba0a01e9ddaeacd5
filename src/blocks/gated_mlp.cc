#include "blocks/feed_forward.h"

namespace quipu {
namespace {

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Result<std::unique_ptr<FeedForward>> GatedMlp::create(const Options& options, WeightSource& weights) {
  const int64_t hidden = options.hidden, inner = options.inner;
  const std::string wide = "feed-forward " + std::to_string(inner) + ", hidden " + std::to_string(hidden);
  const std::string narrow = "hidden " + std::to_string(hidden) + ", feed-forward " + std::to_string(inner);
  std::unique_ptr<GatedMlp> mlp(new GatedMlp(options));
  ASSIGN_OR_RETURN(mlp->gate_, weights.matrix("gate", inner, hidden, wide));
  ASSIGN_OR_RETURN(mlp->up_, weights.matrix("up", inner, hidden, wide));
  ASSIGN_OR_RETURN(mlp->down_, weights.matrix("down", hidden, inner, narrow));
  if (options.bias || weights.has("gate_bias")) {
    ASSIGN_OR_RETURN(mlp->gate_bias_, weights.vector("gate_bias", inner, "feed-forward size"));
  }
  if (options.bias || weights.has("up_bias")) {
    ASSIGN_OR_RETURN(mlp->up_bias_, weights.vector("up_bias", inner, "feed-forward size"));
  }
  if (options.bias || weights.has("down_bias")) {
    ASSIGN_OR_RETURN(mlp->down_bias_, weights.vector("down_bias", hidden, "hidden size"));
  }
  return std::unique_ptr<FeedForward>(std::move(mlp));
}

int64_t GatedMlp::scratch_bytes(int64_t rows) const { return 2 * Arena::planned<float>(rows * options_.inner); }

void GatedMlp::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> gate = scratch.matrix(x.rows, options_.inner);
  const MatrixView<float> up = scratch.matrix(x.rows, options_.inner);
  const MatmulOutput outputs[] = {{gate, gate_.get(), data_or_null(gate_bias_)}, {up, up_.get(), data_or_null(up_bias_)}};
  backend.matmul(outputs, x);
  backend.gated_activation(gate, gate, up, options_.activation);
  backend.matmul(out, *down_, gate, data_or_null(down_bias_));
}

}  // namespace quipu
