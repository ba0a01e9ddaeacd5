#include "engine/engine.h"

#include <algorithm>

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/clock.h"
#include "engine/available_memory.h"
#include "engine/facts.h"
#include "engine/load_runtime.h"
#include "engine/model_source.h"
#include "generate/model_session.h"
#include "model/plan_backend.h"
#include "text/chat_template.h"

namespace quipu {
namespace {

constexpr int64_t kDefaultContext = 8192;
constexpr int64_t kMaxChunk = 8192;

Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options) {
  if (options.reference_backend) return make_reference_backend(options.threads);
  ASSIGN_OR_RETURN(const Isa isa, chosen_isa());
  CpuBackendOptions cpu;
  cpu.threads = options.threads;
  cpu.isa = isa;
  cpu.activations = options.exact_activations ? Activations::kExact : Activations::kFast;
  return make_cpu_backend(cpu);
}

Result<void> check_options(const EngineOptions& options) {
  if (options.threads < 0 || options.threads > 4096) {
    return usage_error("threads is " + std::to_string(options.threads) + ", expected 0 (one per core) to 4096");
  }
  if (options.max_chunk < 1 || options.max_chunk > kMaxChunk) {
    return usage_error("chunk is " + std::to_string(options.max_chunk) + ", expected 1 to " + std::to_string(kMaxChunk));
  }
  if (!is_kv_dtype(options.cache_dtype)) {
    return usage_error("cache type " + std::string(dtype_name(options.cache_dtype)) + ", expected f32, f16, bf16 or q8_0");
  }
  return {};
}

// A template that cannot be used is a warning: the model can still be run on plain text.
std::unique_ptr<ChatTemplate> read_template(const ModelSource& source, std::vector<std::string>& warnings) {
  const auto text = chat_template_text(source);
  if (!text.ok()) {
    warnings.push_back(text.error().message + "; going on without a chat template");
    return nullptr;
  }
  if (!text->has_value()) return nullptr;
  auto parsed = ChatTemplate::parse(**text);
  if (!parsed.ok()) {
    warnings.push_back(source.path + ": " + parsed.error().message + "; going on without a chat template");
    return nullptr;
  }
  return std::make_unique<ChatTemplate>(std::move(*parsed));
}

Result<std::shared_ptr<const Tokenizer>> checked_tokenizer(ModelSource& source) {
  ASSIGN_OR_RETURN(auto tokenizer, load_tokenizer(source));
  if (tokenizer->vocab_size() > source.config.vocabulary) {
    return bad_input(source.path + ": the tokenizer has " + std::to_string(tokenizer->vocab_size()) +
                     " tokens, the embedding only " + std::to_string(source.config.vocabulary) + " rows");
  }
  return tokenizer;
}

std::string tokenizer_text(const ModelSource& source, const Tokenizer& tokenizer) {
  return source.tokenizer_kind + ", " + std::to_string(tokenizer.vocab_size()) + " tokens";
}

class LoadedEngine final : public Engine {
 public:
  LoadedEngine(std::shared_ptr<Runtime> runtime, ModelFacts facts, std::unique_ptr<ChatTemplate> chat_template, double seconds)
      : runtime_(std::move(runtime)), facts_(std::move(facts)), chat_template_(std::move(chat_template)), load_seconds_(seconds) {}

  const ModelFacts& facts() const override { return facts_; }
  bool has_tokenizer() const override { return runtime_->tokenizer != nullptr; }
  const Tokenizer& tokenizer() const override {
    CHECK(has_tokenizer()) << "asked for the tokenizer of a model that has none";
    return *runtime_->tokenizer;
  }
  const ChatTemplate* chat_template() const override { return chat_template_.get(); }
  std::string backend_name() const override { return runtime_->backend->name(); }
  int threads() const override { return runtime_->backend->threads(); }
  ContextCost cost_at(int64_t tokens) const override { return context_cost(*runtime_->model, runtime_->state, tokens); }
  double load_seconds() const override { return load_seconds_; }
  uint64_t packed_weight_bytes() const override { return static_cast<uint64_t>(runtime_->model->packed_bytes()); }
  uint64_t working_bytes() const override {
    return static_cast<uint64_t>(runtime_->model->scratch_bytes(runtime_->state.max_chunk, 1, 1));
  }

  Result<std::unique_ptr<Session>> new_session(int64_t context) override {
    if (context == 0) context = std::min(facts_.trained_context, kDefaultContext);
    if (context < 1 || context > kMaxContext) {
      return usage_error("context of " + std::to_string(context) + " tokens, expected 1 to " + std::to_string(kMaxContext));
    }
    const uint64_t state = allocated_state_bytes(*runtime_->model, runtime_->state, context);
    RETURN_IF_ERROR(require_memory("a context of " + std::to_string(context) + " tokens", state,
                                   bytes_text(facts_.state_bytes_per_token) + " a token"));
    ASSIGN_OR_RETURN(auto session, ModelSession::create(runtime_, context));
    return std::unique_ptr<Session>(std::move(session));
  }

  Result<void> step(std::span<Session* const> sessions, std::span<const int32_t> ids) override {
    model_sessions_.clear();
    for (Session* session : sessions) {
      auto* own = dynamic_cast<ModelSession*>(session);
      CHECK(own != nullptr) << "a session of another kind of engine";
      model_sessions_.push_back(own);
    }
    return ModelSession::step(model_sessions_, ids);
  }

 private:
  std::shared_ptr<Runtime> runtime_;
  ModelFacts facts_;
  std::unique_ptr<ChatTemplate> chat_template_;
  double load_seconds_;
  std::vector<ModelSession*> model_sessions_;   // of step(): kept, so that it allocates nothing once warm
};

// Weights, scratch and the logits of a full chunk; the state is checked when a session asks for its context.
Result<void> check_memory(const ModelSource& source, const Model& plan, const EngineOptions& options) {
  const uint64_t weights = static_cast<uint64_t>(plan.packed_bytes());
  const uint64_t scratch = static_cast<uint64_t>(plan.scratch_bytes(options.max_chunk, 1, 1));
  return require_memory(source.path, weights + scratch,
                        "weights " + bytes_text(static_cast<double>(weights)) + ", scratch " +
                            bytes_text(static_cast<double>(scratch)));
}

}  // namespace

Result<std::shared_ptr<Runtime>> load_runtime(ModelSource& source, const EngineOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  auto runtime = std::make_shared<Runtime>();
  runtime->state = {options.cache_dtype, options.max_chunk};
  {
    PlanBackend nothing;
    ASSIGN_OR_RETURN(const auto plan, plan_model(source, nothing));
    RETURN_IF_ERROR(check_memory(source, *plan, options));
  }
  if (quipu::has_tokenizer(source)) {
    ASSIGN_OR_RETURN(runtime->tokenizer, checked_tokenizer(source));
  }
  ASSIGN_OR_RETURN(runtime->backend, make_backend(options));
  Model::LoadOptions load;
  if (options.on_progress) {
    load.on_progress = [&](uint64_t done, uint64_t total) {
      options.on_progress(total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total));
    };
  }
  ASSIGN_OR_RETURN(runtime->model, Model::load(source.config, source.tensors(), source.style(), *runtime->backend, load));
  return runtime;
}

Result<std::unique_ptr<Engine>> Engine::load(const std::string& path, const EngineOptions& options) {
  const double start = monotonic_seconds();
  ASSIGN_OR_RETURN(ModelSource source, open_model(path));
  ASSIGN_OR_RETURN(std::shared_ptr<Runtime> runtime, load_runtime(source, options));
  ModelFacts facts = model_facts(source, *runtime->model, runtime->state);
  facts.tokenizer = runtime->tokenizer == nullptr ? "none" : tokenizer_text(source, *runtime->tokenizer);
  const auto& warnings = runtime->model->warnings();
  facts.warnings.insert(facts.warnings.end(), warnings.begin(), warnings.end());
  auto chat_template = read_template(source, facts.warnings);
  facts.has_chat_template = chat_template != nullptr;
  return std::unique_ptr<Engine>(std::make_unique<LoadedEngine>(std::move(runtime), std::move(facts), std::move(chat_template),
                                                                monotonic_seconds() - start));
}

Result<ModelFacts> Engine::inspect(const std::string& path, DType cache_dtype) {
  ASSIGN_OR_RETURN(ModelSource source, open_model(path));
  PlanBackend nothing;
  ASSIGN_OR_RETURN(const auto plan, plan_model(source, nothing));
  const EngineOptions defaults;
  ModelFacts facts = model_facts(source, *plan, {cache_dtype, defaults.max_chunk});
  facts.warnings.insert(facts.warnings.end(), plan->warnings().begin(), plan->warnings().end());
  // A file whose tokenizer cannot be used can still be looked at.
  if (!quipu::has_tokenizer(source)) {
    facts.tokenizer = "none";
  } else if (const auto tokenizer = checked_tokenizer(source); tokenizer.ok()) {
    facts.tokenizer = tokenizer_text(source, **tokenizer);
  } else {
    facts.tokenizer = "unusable";
    facts.warnings.push_back(tokenizer.error().message);
  }
  facts.has_chat_template = read_template(source, facts.warnings) != nullptr;
  return facts;
}

Result<std::vector<ContextCost>> Engine::cost(const std::string& path, std::span<const int64_t> contexts, DType cache_dtype) {
  ASSIGN_OR_RETURN(const ModelSource source, open_model(path));
  PlanBackend nothing;
  ASSIGN_OR_RETURN(const auto plan, plan_model(source, nothing));
  const EngineOptions defaults;
  std::vector<ContextCost> costs;
  for (const int64_t tokens : contexts) costs.push_back(context_cost(*plan, {cache_dtype, defaults.max_chunk}, tokens));
  return costs;
}

Result<std::shared_ptr<const Tokenizer>> Engine::load_tokenizer(const std::string& path) {
  ASSIGN_OR_RETURN(ModelSource source, open_for_tokenizer(path));
  return quipu::load_tokenizer(source);
}

}  // namespace quipu
