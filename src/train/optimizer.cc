#include "train/optimizer.h"

#include <cmath>

namespace quipu {

Result<Optimizer> Optimizer::create(TrainableModel<float>& model, const OptimizerSection& settings) {
  Optimizer out(model, settings);
  ASSIGN_OR_RETURN(out.first_, Buffer::allocate(model.weights().size_bytes()));
  ASSIGN_OR_RETURN(out.second_, Buffer::allocate(model.weights().size_bytes()));
  for (const NamedParameter& parameter : model.parameters()) {
    const ParameterGroup group = parameter.group;
    const bool decayed =
        group == ParameterGroup::kMatrix || group == ParameterGroup::kEmbedding || group == ParameterGroup::kRouter;
    const bool gate = group == ParameterGroup::kGate;
    const int64_t end = parameter.offset + parameter.elements;
    std::vector<Stretch>& all = out.stretches_;
    if (!all.empty() && all.back().decayed == decayed && all.back().gate == gate) {
      all.back().end = end;  // padding between them is zero and stays zero
    } else {
      all.push_back({parameter.offset, end, decayed, gate});
    }
  }
  return out;
}

double Optimizer::gradient_norm() const { return std::sqrt(model_.ops().squared_norm(model_.gradients())); }

void Optimizer::apply(int64_t step, double factor, double gradient_norm) {
  const double clip = settings_.clip;
  for (const Stretch& stretch : stretches_) {
    AdamSettings adam;
    adam.rate = factor * (stretch.gate ? settings_.gate_learning_rate : settings_.learning_rate);
    adam.beta1 = settings_.beta1;
    adam.beta2 = settings_.beta2;
    adam.epsilon = settings_.epsilon;
    adam.decay = stretch.decayed ? settings_.weight_decay : 0;
    adam.gradient_scale = clip > 0 && gradient_norm > clip ? clip / gradient_norm : 1;
    adam.step = step + 1;
    const size_t begin = static_cast<size_t>(stretch.begin), count = static_cast<size_t>(stretch.end - stretch.begin);
    model_.ops().adamw(model_.weights().subspan(begin, count),
                       {.gradients = model_.gradients().subspan(begin, count),
                        .first = first().subspan(begin, count),
                        .second = second().subspan(begin, count)},
                       adam);
  }
}

}  // namespace quipu
