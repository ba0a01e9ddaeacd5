#include "model/tensor_list.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include "model/layer.h"
#include "model/plan_backend.h"

namespace quipu {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 40;  // of one tensor
constexpr int64_t kMostFloats = int64_t{1} << 28;    // of one that a room wants as floats: 1 GiB

class ListedMatrix final : public PackedMatrix {
 public:
  ListedMatrix(int64_t rows, int64_t cols) : PackedMatrix(DType::kF32, rows, cols) {}
  int64_t bytes() const override { return rows() * cols() * static_cast<int64_t>(sizeof(float)); }
};

class RecordingSource final : public WeightSource {
 public:
  RecordingSource(const ModelConfig& config, int64_t layer, const NameTable& names,
                  std::set<std::string, std::less<>>* optional_roles)
      : config_(config), layer_(layer), names_(names), optional_roles_(optional_roles) {}

  bool has(std::string_view role) const override {
    if (optional_roles_ != nullptr) optional_roles_->emplace(role);
    const auto& promised = config_.layers[static_cast<size_t>(layer_)].required_roles;
    return std::find(promised.begin(), promised.end(), role) != promised.end();
  }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view meaning) override {
    RETURN_IF_ERROR(record(role, {rows, cols}, kMostElements, meaning));
    return std::unique_ptr<PackedMatrix>(std::make_unique<ListedMatrix>(rows, cols));
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override {
    RETURN_IF_ERROR(record(role, {length}, kMostFloats, meaning));
    return std::vector<float>(static_cast<size_t>(length));
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols,
                                   std::string_view meaning) override {
    RETURN_IF_ERROR(record(role, {rows, cols}, kMostFloats, meaning));
    return std::vector<float>(static_cast<size_t>(rows * cols));
  }

  std::vector<ModelTensor> take() { return std::move(tensors_); }

 private:
  Result<void> record(std::string_view role, Shape shape, int64_t most, std::string_view meaning) {
    // Rooms bound their settings so that products of two fit; the product of rows and columns may not.
    __int128 elements = 1;
    for (const int64_t length : shape) elements *= length;
    std::string name = names_.of_layer(layer_, role);
    if (elements < 1 || elements > most) {
      return bad_input(config_.origin + ": tensor " + name + " would be " + shape_text(shape) + " (" +
                       std::string(meaning) + "), expected 1 to " + std::to_string(most) + " elements");
    }
    tensors_.push_back({std::move(name), std::string(role), layer_, std::move(shape)});
    return {};
  }

  const ModelConfig& config_;
  int64_t layer_;
  const NameTable& names_;
  std::set<std::string, std::less<>>* optional_roles_;
  std::vector<ModelTensor> tensors_;
};

}  // namespace

Result<std::vector<ModelTensor>> layer_tensors(const ModelConfig& config, int64_t layer, const NameTable& names,
                                               std::set<std::string, std::less<>>* optional_roles) {
  RecordingSource source(config, layer, names, optional_roles);
  PlanBackend nothing;
  ASSIGN_OR_RETURN(const PreNormBlock block, make_layer(config, layer, source, nothing));
  ASSIGN_OR_RETURN(const auto router, make_depth_router(config, layer, source, nothing));
  static_cast<void>(block), static_cast<void>(router);
  return source.take();
}

Result<std::vector<ModelTensor>> model_tensors(const ModelConfig& config, NameStyle style) {
  const NameTable names(style, config.post_norms);
  std::vector<ModelTensor> all;
  const auto add = [&](const char* role, Shape shape) {
    all.push_back({names.of_model(role), role, -1, std::move(shape)});
  };
  add("token_embedding", {config.vocabulary, config.hidden});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    ASSIGN_OR_RETURN(std::vector<ModelTensor> part, layer_tensors(config, static_cast<int64_t>(i), names));
    std::move(part.begin(), part.end(), std::back_inserter(all));
  }
  add("final_norm", {config.hidden});
  if (!config.tied_output) add("logits", {config.vocabulary, config.hidden});
  return all;
}

}  // namespace quipu
