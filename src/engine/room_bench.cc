#include "engine/room_bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

#include "backend/cpu/cpu_backend.h"
#include "base/clock.h"
#include "base/cpu_features.h"
#include "base/random.h"
#include "model/tensor_list.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

constexpr int64_t kFillChunk = 4096;
constexpr size_t kNoiseElements = size_t{1} << 20;

struct NamedShape {
  std::string_view name;
  int64_t hidden, layers, heads, kv_heads, head_dim, feed_forward, vocabulary;
};
constexpr NamedShape kShapes[] = {
    {"mtla", 512, 9, 8, 8, 64, 2048, 8000},
    {"smollm2", 576, 30, 9, 3, 64, 1536, 49152},
    {"gqa-1b", 2048, 16, 32, 8, 64, 8192, 128256},
    {"infini", 1024, 12, 8, 8, 128, 4096, 32000},
};

Result<std::unique_ptr<Backend>> make_backend(int threads) {
  ASSIGN_OR_RETURN(const Isa isa, chosen_isa());
  CpuBackendOptions options;
  options.threads = threads;
  options.isa = isa;
  return make_cpu_backend(options);
}

uint64_t next_random(uint64_t& state) {  // xorshift64*: quality does not matter here, speed does
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1Dull;
}

// Uniform in [-spread, spread).
float uniform(uint64_t& state, float spread) {
  return (static_cast<float>(next_random(state) >> 40) * (2.0f / 16777216.0f) - 1.0f) * spread;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// What a tensor of that role holds before training: norms 1, biases 0, matrices uniform with the variance 1 / cols,
// those that write to the residual stream smaller, so that it stays close to the embedding whatever the depth.
float spread_of(const ModelTensor& tensor, int64_t layers) {
  if (tensor.shape.size() < 2) return 0;
  const double unit = std::sqrt(3.0 / static_cast<double>(tensor.shape.back()));
  const bool writes = tensor.role == "output" || ends_with(tensor.role, "down");
  if (tensor.role == "token_embedding") return 1.7f;
  return static_cast<float>(writes && tensor.role != "latent_down" && tensor.role != "query_down"
                                ? unit / std::sqrt(2.0 * static_cast<double>(layers)) / 4
                                : unit);
}

}  // namespace

std::string bench_shape_names() {
  std::string names;
  for (const NamedShape& shape : kShapes) names += (names.empty() ? "" : ", ") + std::string(shape.name);
  return names;
}

Result<ModelConfig> bench_shape(std::string_view name) {
  for (const NamedShape& shape : kShapes) {
    if (shape.name != name) continue;
    ModelConfig config;
    config.origin = "shape " + std::string(name);
    config.architecture = "quipu";
    config.name = name;
    config.hidden = shape.hidden;
    config.vocabulary = shape.vocabulary;
    config.trained_context = int64_t{1} << 24;
    config.norm_epsilon = 1e-6;
    config.tied_output = true;
    LayerConfig layer;
    layer.room = "grouped_query";
    layer.attention = HyperParameters(config.origin);
    layer.attention.set("heads", shape.heads);
    layer.attention.set("kv_heads", shape.kv_heads);
    layer.attention.set("head_dim", shape.head_dim);
    layer.attention.set("rope_theta", 1e4);
    layer.feed_forward.inner = shape.feed_forward;
    layer.summary = name;
    config.layers.assign(static_cast<size_t>(shape.layers), layer);
    return config;
  }
  return usage_error("shape " + std::string(name) + " is none of " + bench_shape_names());
}

Result<std::unique_ptr<RandomModel>> RandomModel::create(const ModelConfig& config, Backend& backend, uint64_t seed) {
  ASSIGN_OR_RETURN(const std::vector<ModelTensor> list, model_tensors(config, NameStyle::kHuggingFace));
  std::unique_ptr<RandomModel> made(new RandomModel);
  std::vector<NamedTensor> named;
  double router_square = 0;  // squared length of the last router
  for (const ModelTensor& tensor : list) {
    const int64_t count = element_count(tensor.shape);
    const bool matrix = tensor.shape.size() >= 2;
    const DType dtype = matrix ? DType::kBF16 : DType::kF32;
    ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(static_cast<size_t>(count) * (matrix ? 2 : 4)));
    uint64_t state = mix64(seed ^ mix64(static_cast<uint64_t>(named.size()) + 1)) | 1;
    const float spread = spread_of(tensor, static_cast<int64_t>(config.layers.size()));
    if (matrix) {
      auto* values = buffer.as<uint16_t>();
      for (int64_t i = 0; i < count; ++i) values[i] = f32_to_bf16(uniform(state, spread));
    } else {
      const bool norm = ends_with(tensor.role, "norm");
      std::fill_n(buffer.as<float>(), count, norm ? 1.0f : 0.0f);
    }
    if (tensor.role == "mixture_of_depths.router") {
      router_square = 0;
      for (int64_t i = 0; i < count; ++i) {
        const double value = bf16_to_f32(buffer.as<uint16_t>()[i]);
        router_square += value * value;
      }
    }
    // A router's score of a row of random direction and RMS 1 is normal with the router's length as spread.
    if (tensor.role == "mixture_of_depths.router_threshold") {
      constexpr double kUpperEighth = 1.15034938;  // of a normal number: 12.5 % are above
      buffer.as<float>()[0] = static_cast<float>(kUpperEighth * std::sqrt(router_square));
    }
    named.push_back(
        {tensor.name, {dtype, tensor.shape, {buffer.data(), static_cast<size_t>(count) * (matrix ? 2 : 4)}}, nullptr});
    made->tensors_.push_back(std::move(buffer));
  }
  const TensorFile file(config.origin, std::move(named));
  Model::LoadOptions load;
  load.read_ahead = false;
  ASSIGN_OR_RETURN(made->model_, Model::load(config, file, NameStyle::kHuggingFace, backend, load));
  // Only the embedding is read where it lies; everything else has been packed.
  made->tensors_.resize(1);
  return made;
}

RandomModel::~RandomModel() = default;

RoomRunner::~RoomRunner() { states_.clear(); }

Result<std::unique_ptr<RoomRunner>> RoomRunner::create(const ModelConfig& config, const RunnerOptions& options) {
  std::unique_ptr<RoomRunner> runner(new RoomRunner);
  runner->random_state_ = mix64(options.seed) | 1;
  ASSIGN_OR_RETURN(runner->runtime_.backend, make_backend(options.threads));
  ASSIGN_OR_RETURN(runner->weights_, RandomModel::create(config, *runner->runtime_.backend, options.seed));
  runner->runtime_.model = runner->weights_->take_model();
  runner->runtime_.state = {options.cache_dtype, options.max_chunk};
  return runner;
}

uint64_t RoomRunner::weight_bytes() const {
  const ModelConfig& config = runtime_.model->config();
  return static_cast<uint64_t>(runtime_.model->packed_bytes() + 2 * config.vocabulary * config.hidden);
}

uint64_t RoomRunner::state_bytes_needed(int64_t batch, int64_t context) const {
  int64_t bytes = 0;
  for (const StateLayout& layout : runtime_.model->state_layouts(runtime_.state)) {
    bytes += state_bytes_allocated(layout, context);
  }
  return static_cast<uint64_t>(bytes * batch);
}

uint64_t RoomRunner::state_bytes(int64_t tokens) const {
  int64_t bytes = 0;
  for (const StateLayout& layout : runtime_.model->state_layouts(runtime_.state))
    bytes += quipu::state_bytes(layout, tokens);
  return static_cast<uint64_t>(bytes);
}

bool RoomRunner::grows() const {
  for (const StateLayout& layout : runtime_.model->state_layouts(runtime_.state)) {
    for (const RegionSpec& region : layout.regions) {
      if (region.growth != Growth::kFixed && region.name != position_region().name) return true;
    }
  }
  return false;
}

std::vector<int32_t> RoomRunner::random_tokens(int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids)
    id = static_cast<int32_t>((next_random(random_state_) >> 33) % static_cast<uint64_t>(runtime_.vocabulary()));
  return ids;
}

Result<void> RoomRunner::begin(int64_t batch, int64_t context) {
  states_.clear();
  pages_ = std::make_unique<PagePool>();
  const std::vector<StateLayout> layouts = runtime_.model->state_layouts(runtime_.state);
  for (int64_t i = 0; i < batch; ++i) {
    ASSIGN_OR_RETURN(SequenceState state, SequenceState::create(layouts, context, *pages_));
    states_.push_back(std::move(state));
  }
  return {};
}

Result<void> RoomRunner::append(std::span<const int32_t> ids, std::span<const BatchSlice> slices,
                                std::span<const int64_t> wanted) {
  last_rows_ = static_cast<int64_t>(wanted.size());
  ASSIGN_OR_RETURN(const MatrixView<float> logits, runtime_.shared_logits(std::max<int64_t>(1, last_rows_)));
  return runtime_.forward({logits.data, last_rows_, runtime_.vocabulary()}, {ids, slices, wanted});
}

Result<double> RoomRunner::feed(const Feed& feed) {
  const size_t count = feed.all_sequences ? states_.size() : 1;
  double seconds = 0;
  for (size_t i = 0; i < count; ++i) {
    for (int64_t done = 0; done < feed.tokens;) {
      if (feed.interrupted != nullptr && *feed.interrupted) return failed("interrupted");
      const int64_t rows = std::min(feed.tokens - done, runtime_.state.max_chunk);
      const std::vector<int32_t> ids = random_tokens(rows);
      const double start = monotonic_seconds();
      RETURN_IF_ERROR(states_[i].prepare_append(rows));
      const BatchSlice slice{&states_[i], rows, true};
      const int64_t last = rows - 1;
      done += rows;
      RETURN_IF_ERROR(append(ids, {&slice, 1}, {&last, done == feed.tokens ? size_t{1} : size_t{0}}));
      seconds += monotonic_seconds() - start;
    }
  }
  return seconds;
}

Result<void> RoomRunner::copy_first() {
  for (size_t i = 1; i < states_.size(); ++i) {
    ASSIGN_OR_RETURN(states_[i], states_[0].fork());
  }
  return {};
}

Result<void> RoomRunner::fill(int64_t tokens) {
  for (SequenceState& state : states_) {
    while (state.tokens() < tokens) {
      const int64_t rows = std::min(tokens - state.tokens(), kFillChunk);
      for (size_t layer = 0; layer < state.layers(); ++layer) {
        RETURN_IF_ERROR(fill_layer(state.layer(layer), state.tokens(), rows));
      }
      state.advance(rows);
    }
  }
  return {};
}

// Random values of a type, kNoiseElements of them.
static std::vector<std::byte> noise_of(DType dtype, uint64_t& state) {
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, static_cast<int64_t>(kNoiseElements))));
  if (dtype == DType::kF32) {
    for (size_t i = 0; i < kNoiseElements; ++i) {
      const float value = uniform(state, 1.0f);
      std::memcpy(bytes.data() + 4 * i, &value, sizeof(value));
    }
  } else if (dtype == DType::kF16 || dtype == DType::kBF16) {
    for (size_t i = 0; i < kNoiseElements; ++i) {
      const uint16_t value =
          dtype == DType::kF16 ? f32_to_f16(uniform(state, 1.0f)) : f32_to_bf16(uniform(state, 1.0f));
      std::memcpy(bytes.data() + 2 * i, &value, sizeof(value));
    }
  }
  return bytes;  // q8_0: zeros, which take as long to read
}

Result<void> RoomRunner::fill_layer(LayerState& layer, int64_t first, int64_t tokens) {
  const StateLayout& layout = layer.layout();
  const double capacity = layout.routed ? layout.routed->expected : 1.0;
  std::vector<int64_t> positions;  // of the tokens let in, evenly spread
  for (int64_t p = first; p < first + tokens; ++p) {
    const auto at = [&](int64_t position) { return std::floor(static_cast<double>(position) * capacity); };
    if (at(p + 1) > at(p)) positions.push_back(p);
  }
  const int64_t room = layer.context() - layer.tokens();
  if (static_cast<int64_t>(positions.size()) > room) positions.resize(static_cast<size_t>(room));
  const int64_t count = static_cast<int64_t>(positions.size());
  RETURN_IF_ERROR(layer.prepare_append(count));
  for (size_t r = 0; r < layer.regions(); ++r) {
    RegionState& region = layer.region(r);
    if (region.spec.growth == Growth::kFixed || (layer.routed() && r + 1 == layer.regions())) continue;
    const int64_t from = region.rows / kPageRows;
    region.rows = region.spec.rows_after(layer.tokens() + count);
    const size_t bytes = static_cast<size_t>(region.page_bytes());
    if (noise_.size() < bytes) noise_ = noise_of(region.spec.dtype, random_state_);
    CHECK(noise_.size() >= bytes) << "pages of " << bytes << " bytes";
    // Rings keep their pages: they are written anew, wherever they are.
    const int64_t pages = static_cast<int64_t>(region.pages.size());
    for (int64_t page = region.ring_pages() > 0 ? 0 : from; page < pages; ++page) {
      const size_t index = static_cast<size_t>(page);
      if (region.pages[index] == nullptr) continue;
      const size_t start = (next_random(random_state_) >> 20) % (noise_.size() - bytes + 1) / 64 * 64;
      std::memcpy(region.pages[index], noise_.data() + start, bytes);
    }
  }
  if (layer.routed()) {
    for (const int64_t position : positions) layer.note_position(position);
  }
  layer.advance(count);
  return {};
}

Result<double> RoomRunner::step() {
  const std::vector<int32_t> ids = random_tokens(static_cast<int64_t>(states_.size()));
  std::vector<BatchSlice> slices;
  std::vector<int64_t> wanted;
  const double start = monotonic_seconds();
  for (SequenceState& state : states_) {
    RETURN_IF_ERROR(state.prepare_append(1));
    wanted.push_back(static_cast<int64_t>(slices.size()));
    slices.push_back({&state, 1});
  }
  RETURN_IF_ERROR(append(ids, slices, wanted));
  return monotonic_seconds() - start;
}

int64_t RoomRunner::tokens() const { return states_.empty() ? 0 : states_.front().tokens(); }

int64_t RoomRunner::held_bytes() const {
  int64_t bytes = 0;
  for (const SequenceState& state : states_) bytes += state.bytes();
  return bytes;
}

double RoomRunner::routed_share() const {
  double seen = 0, taken = 0;
  for (const SequenceState& state : states_) {
    for (const RoutedTokens& routed : state.routed_tokens()) {
      seen += static_cast<double>(routed.seen);
      taken += static_cast<double>(routed.taken);
    }
  }
  return seen == 0 ? 1.0 : taken / seen;
}

bool RoomRunner::logits_finite() const {
  const float* logits = runtime_.logits.as<float>();
  for (int64_t i = 0; i < last_rows_ * runtime_.vocabulary(); ++i) {
    if (!std::isfinite(logits[i])) return false;
  }
  return true;
}

std::string RoomRunner::backend_name() const { return runtime_.backend->name(); }
int RoomRunner::threads() const { return runtime_.backend->threads(); }

uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    std::istringstream fields(line.substr(6));
    uint64_t kibibytes = 0;
    fields >> kibibytes;
    return kibibytes * 1024;
  }
  return 0;
}

bool reset_peak_memory() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

}  // namespace quipu
