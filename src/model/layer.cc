#include "model/layer.h"

namespace quipu {
namespace {

Error of_origin(const ModelConfig& config, const Error& error) {
  return Error{error.error_class, config.origin + ": " + error.message};
}

Result<std::unique_ptr<FeedForward>> make_feed_forward(const ModelConfig& config, const FeedForwardConfig& feed,
                                                       WeightSource& source, Backend& backend) {
  if (feed.experts.has_value()) return Experts::create(*feed.experts, config.hidden, feed.activation, source, backend);
  return GatedMlp::create({feed.activation, config.hidden, feed.inner, feed.bias}, source);
}

}  // namespace

Result<PreNormBlock> make_layer(const ModelConfig& config, int64_t index, WeightSource& source, Backend& backend) {
  const LayerConfig& layer = config.layers[static_cast<size_t>(index)];
  const auto room = find_room(layer.room);
  if (!room.ok()) return of_origin(config, room.error());
  ASSIGN_OR_RETURN(auto attention, (*room)->create({config.hidden, index}, layer.attention, source, backend));
  ASSIGN_OR_RETURN(auto feed_forward, make_feed_forward(config, layer.feed_forward, source, backend));
  const PreNormBlock::Options options{config.hidden, static_cast<float>(config.norm_epsilon), config.post_norms};
  return PreNormBlock::create(options, std::move(attention), std::move(feed_forward), source);
}

Result<std::optional<MixtureOfDepths>> make_depth_router(const ModelConfig& config, int64_t index, WeightSource& source,
                                                         Backend& backend) {
  const auto& depths = config.layers[static_cast<size_t>(index)].mixture_of_depths;
  if (!depths.has_value()) return std::optional<MixtureOfDepths>();
  ASSIGN_OR_RETURN(const DepthSettings settings, read_depth_settings(depths->settings));
  ASSIGN_OR_RETURN(MixtureOfDepths router, MixtureOfDepths::create(settings, config.hidden, source, backend));
  return std::optional<MixtureOfDepths>(std::move(router));
}

}  // namespace quipu
