#include "model/training_layer.h"

#include "blocks/mixture_of_depths_training.h"

namespace quipu {

template <class Real>
Result<std::unique_ptr<TrainableBlock<Real>>> make_trainable_layer(const ModelConfig& config, int64_t index, const TrainingOps<Real>& ops) {
  const LayerConfig& layer = config.layers[static_cast<size_t>(index)];
  ASSIGN_OR_RETURN(auto attention,
                   create_training<Real>(layer.room, {config.hidden, index}, layer.attention, layer.required_roles));
  attention->plan_for(ops);
  const FeedForwardConfig& feed = layer.feed_forward;
  auto feed_forward = make_trainable_gated_mlp<Real>({feed.activation, config.hidden, feed.inner, feed.bias}, ops);
  auto block = make_trainable_pre_norm<Real>({config.hidden, config.norm_epsilon}, std::move(attention), std::move(feed_forward));
  if (!layer.mixture_of_depths.has_value()) return block;
  ASSIGN_OR_RETURN(const DepthSettings depths, read_depth_settings(layer.mixture_of_depths->settings));
  return make_trainable_mixture_of_depths<Real>(depths, config.hidden, std::move(block), layer.required_roles);
}

template Result<std::unique_ptr<TrainableBlock<float>>> make_trainable_layer(const ModelConfig&, int64_t, const TrainingOps<float>&);
template Result<std::unique_ptr<TrainableBlock<double>>> make_trainable_layer(const ModelConfig&, int64_t, const TrainingOps<double>&);

}  // namespace quipu
