// Sessions as state files: sections "tokens" i32 [n], "logits" f32 [1, vocabulary], "layer.<i>" u8 [bytes].
#include <sys/stat.h>

#include <cmath>
#include <cstring>

#include "formats/state_file/state_file.h"
#include "generate/model_session.h"

namespace quipu {
namespace {

std::string layer_section(size_t index) { return "layer." + std::to_string(index); }

StateFileHeader header_of(const Runtime& runtime, int64_t tokens) {
  return {runtime.model->hash(), runtime.layout_hash(), runtime.tokenizer_hash(), static_cast<uint64_t>(tokens)};
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) { return std::as_bytes(std::span(values)); }

struct Loaded {
  SequenceState state;
  std::vector<int32_t> ids;
  std::vector<float> logits;
};

Result<void> read_tokens(Loaded& loaded, const StateFile& file, int64_t tokens, int64_t vocabulary) {
  ASSIGN_OR_RETURN(const StateSection ids, file.require("tokens", DType::kI32, tokens, 1));
  loaded.ids.resize(static_cast<size_t>(tokens));
  if (tokens > 0) std::memcpy(loaded.ids.data(), ids.bytes.data(), ids.bytes.size());
  for (size_t i = 0; i < loaded.ids.size(); ++i) {
    if (loaded.ids[i] >= 0 && loaded.ids[i] < vocabulary) continue;
    return bad_input(file.name + ": section tokens: token " + std::to_string(i) + " is " + std::to_string(loaded.ids[i]) +
                     ", expected 0 to " + std::to_string(vocabulary - 1));
  }
  loaded.logits.resize(static_cast<size_t>(vocabulary));
  if (tokens == 0) return {};
  ASSIGN_OR_RETURN(const StateSection logits, file.require("logits", DType::kF32, 1, vocabulary));
  std::memcpy(loaded.logits.data(), logits.bytes.data(), logits.bytes.size());
  for (size_t i = 0; i < loaded.logits.size(); ++i) {
    if (!std::isnan(loaded.logits[i])) continue;
    return bad_input(file.name + ": section logits: element " + std::to_string(i) + " is NaN");
  }
  return {};
}

Result<void> read_layers(Loaded& loaded, const StateFile& file, int64_t tokens) {
  for (size_t i = 0; i < loaded.state.layers(); ++i) {
    const StateSection* section = file.find(layer_section(i));
    if (section == nullptr) return bad_input(file.name + ": section " + layer_section(i) + " is missing");
    if (section->dtype != DType::kU8) {
      return bad_input(file.name + ": section " + section->name + " has type " + std::string(dtype_name(section->dtype)) +
                       ", expected u8");
    }
    LayerState& layer = loaded.state.layer(i);
    const Result<void> read = layer.load(section->bytes);
    if (!read.ok()) {
      return Error{read.error().error_class, file.name + ": section " + section->name + ": " + read.error().message};
    }
    if (layer.routed() && layer.tokens_before(tokens) != layer.tokens()) {
      return bad_input(file.name + ": section " + section->name + " holds a token at position " +
                       std::to_string(layer.position_of(layer.tokens() - 1)) + ", the header says there are " +
                       std::to_string(tokens));
    }
    if (!layer.routed() && layer.tokens() != tokens) {
      return bad_input(file.name + ": section " + section->name + " holds " + std::to_string(layer.tokens()) +
                       " tokens, the header says " + std::to_string(tokens));
    }
  }
  loaded.state.advance(tokens);
  return {};
}

}  // namespace

Result<uint64_t> ModelSession::save_state(const std::string& path) const {
  std::vector<StateSectionSource> sections;
  sections.push_back({"tokens", DType::kI32, tokens(), 1, {bytes_of(ids_)}});
  if (!ids_.empty()) sections.push_back({"logits", DType::kF32, 1, runtime_->vocabulary(), {bytes_of(logits_)}});
  std::vector<std::vector<std::byte>> layers(state_.layers());
  for (size_t i = 0; i < layers.size(); ++i) {
    state_.layer(i).save(layers[i]);
    sections.push_back({layer_section(i), DType::kU8, static_cast<int64_t>(layers[i].size()), 1, {bytes_of(layers[i])}});
  }
  RETURN_IF_ERROR(write_state_file(path, header_of(*runtime_, tokens()), sections));
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return failed(path + ": written, but cannot be found again");
  return static_cast<uint64_t>(facts.st_size);
}

Result<void> ModelSession::load_state(const std::string& path) {
  ASSIGN_OR_RETURN(const StateFile file, read_state_file(path));
  RETURN_IF_ERROR(require_same_origin(file, header_of(*runtime_, 0)));
  if (file.header.tokens > static_cast<uint64_t>(context())) {
    return usage_error(file.name + ": holds " + std::to_string(file.header.tokens) + " tokens, the context only " +
                       std::to_string(context()) + "; ask for a larger context");
  }
  const int64_t count = static_cast<int64_t>(file.header.tokens);
  const std::vector<StateLayout> layouts = runtime_->model->state_layouts(runtime_->state);
  ASSIGN_OR_RETURN(SequenceState fresh, SequenceState::create(layouts, context(), runtime_->pages));
  Loaded loaded{std::move(fresh), {}, {}};
  RETURN_IF_ERROR(read_tokens(loaded, file, count, runtime_->vocabulary()));
  RETURN_IF_ERROR(read_layers(loaded, file, count));
  // Everything was checked: from here on nothing can fail.
  state_ = std::move(loaded.state);
  ids_.assign(loaded.ids.begin(), loaded.ids.end());
  logits_ = std::move(loaded.logits);
  return {};
}

}  // namespace quipu
