// quipu perplexity MODEL FILE: how well a model predicts a text, in the way llama-perplexity does it so that numbers
// compare.
//
// The text's ids are cut into chunks of --context; each is fed to an empty context (its first id replaced by the begin
// token where the model has one), and every token of the second half, the first of that half excepted, is scored:
//   perplexity = exp(mean of -ln p(token | its chunk before it)),  error = perplexity * standard error of that mean.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "arguments.h"
#include "base/atomic_file.h"
#include "base/byte_reader.h"
#include "base/clock.h"
#include "engine/engine.h"
#include "human_text.h"
#include "interrupt.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "report.h"
#include "text/tokenizer.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct PerplexityFlags {
  ModelFlags model;
  std::string file, file_flag, prompt;
  int64_t chunks = -1;
  int64_t top = 0;
  std::string logits_out;
  bool all_positions = false;
  bool json = false;
};

struct Score {
  double sum = 0, sum_of_squares = 0;  // of negative log-likelihoods
  int64_t count = 0;
  int64_t best_right = 0;  // positions whose likeliest token was the right one

  void add(double loss) {
    sum += loss;
    sum_of_squares += loss * loss;
    ++count;
  }
  double mean() const { return count > 0 ? sum / static_cast<double>(count) : 0; }
  double perplexity() const { return std::exp(mean()); }
  double standard_error() const {
    if (count < 2) return 0;
    const double variance = sum_of_squares / static_cast<double>(count) - mean() * mean();
    return perplexity() * std::sqrt(std::max(variance, 0.0) / static_cast<double>(count - 1));
  }
};

// ln of the sum of exp: subtracting it from a logit gives the logarithm of a probability.
double log_normaliser(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
  return static_cast<double>(largest) + std::log(sum);
}

// Rows of logits as a .npy file: float32 [positions, vocabulary], or with --logits-top K one record per position:
// ids and log-probabilities of the K likeliest, the right token and its log-probability.
class LogitsFile {
 public:
  static Result<LogitsFile> create(const std::string& path, int64_t rows, int64_t vocabulary, int64_t top) {
    ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
    LogitsFile out(std::move(file), std::min(top, vocabulary));
    RETURN_IF_ERROR(out.file_.write(header(rows, vocabulary, out.top_)));
    return out;
  }

  Result<void> write(std::span<const float> logits, int32_t target, double normaliser) {
    if (top_ == 0) return file_.write(std::as_bytes(logits));
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + top_, order_.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)] ||
             (logits[static_cast<size_t>(a)] == logits[static_cast<size_t>(b)] && a < b);
    });
    const auto log_probability = [&](int32_t id) {
      return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - normaliser);
    };
    std::vector<float> values;
    for (int64_t k = 0; k < top_; ++k) values.push_back(log_probability(order_[static_cast<size_t>(k)]));
    const float target_value = log_probability(target);
    RETURN_IF_ERROR(file_.write(std::as_bytes(std::span(order_.data(), static_cast<size_t>(top_)))));
    RETURN_IF_ERROR(file_.write(std::as_bytes(std::span(values))));
    RETURN_IF_ERROR(file_.write(std::as_bytes(std::span(&target, 1))));
    return file_.write(std::as_bytes(std::span(&target_value, 1)));
  }

  Result<void> commit() { return file_.commit(); }

 private:
  LogitsFile(AtomicFile file, int64_t top) : file_(std::move(file)), top_(top) {}

  // The .npy format, version 1.0: magic, header length, a Python dictionary padded to 64 bytes.
  static std::string header(int64_t rows, int64_t vocabulary, int64_t top) {
    std::string dictionary;
    if (top == 0) {
      dictionary = text_f("{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }",
                          static_cast<long long>(rows), static_cast<long long>(vocabulary));
    } else {
      dictionary = text_f(
          "{'descr': [('ids', '<i4', (%lld,)), ('logprobs', '<f4', (%lld,)), ('target', '<i4'), "
          "('target_logprob', '<f4')], 'fortran_order': False, 'shape': (%lld,), }",
          static_cast<long long>(top), static_cast<long long>(top), static_cast<long long>(rows));
    }
    constexpr size_t kPrefix = 10, kAlignment = 64;
    const size_t unpadded = kPrefix + dictionary.size() + 1;
    dictionary.append((kAlignment - unpadded % kAlignment) % kAlignment, ' ');
    dictionary += '\n';
    std::string text("\x93NUMPY\x01\x00", 8);
    text += static_cast<char>(dictionary.size() & 0xff);
    text += static_cast<char>(dictionary.size() >> 8);
    return text + dictionary;
  }

  AtomicFile file_;
  int64_t top_;
  std::vector<int32_t> order_;
};

struct Plan {
  int64_t context = 0;  // tokens of a chunk
  int64_t chunks = 0;
  int64_t first = 0;  // first row of a chunk whose prediction is scored
  int64_t rows() const { return chunks * (context - 1 - first); }
};

Result<Plan> make_plan(const PerplexityFlags& flags, int64_t tokens) {
  constexpr int64_t kUsualContext = 512;
  ASSIGN_OR_RETURN(const int64_t asked, asked_context(flags.model));
  Plan plan;
  plan.context = asked > 0 ? asked : kUsualContext;
  if (flags.all_positions && tokens < plan.context) plan.context = tokens;
  if (plan.context < 4) return usage_error("--context: a chunk needs at least 4 tokens");
  plan.chunks = tokens / plan.context;
  if (plan.chunks < 1) {
    return bad_input(printable(flags.file, 400) + ": " + std::to_string(tokens) +
                     " tokens are fewer than one chunk of --context " + std::to_string(plan.context) +
                     "; choose a smaller one");
  }
  if (flags.chunks > 0) plan.chunks = std::min(plan.chunks, flags.chunks);
  plan.first = flags.all_positions ? 0 : plan.context / 2;
  return plan;
}

Result<Score> score_text(const PerplexityFlags& flags, const Engine& engine, Session& session, const Plan& plan,
                         std::vector<int32_t>& ids) {
  std::unique_ptr<LogitsFile> out;
  if (!flags.logits_out.empty()) {
    ASSIGN_OR_RETURN(LogitsFile file,
                     LogitsFile::create(flags.logits_out, plan.rows(), engine.facts().vocabulary, flags.top));
    out = std::make_unique<LogitsFile>(std::move(file));
  }
  Score score;
  ProgressBar bar("perplexity", {.keep = true, .silent = flags.json && !stream_is_terminal(stderr)});
  const Tokenizer& tokenizer = engine.tokenizer();
  const bool begin = tokenizer.adds_bos() && tokenizer.bos().has_value();
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    if (interrupted()) return failed("interrupted after " + std::to_string(chunk) + " chunks");
    const std::span<int32_t> part(ids.data() + chunk * plan.context, static_cast<size_t>(plan.context));
    if (begin) part[0] = *tokenizer.bos();
    RETURN_IF_ERROR(session.reset());
    Result<void> written;
    RETURN_IF_ERROR(session.feed_with_logits(part, [&](int64_t row, std::span<const float> logits) {
      if (row < plan.first || row + 1 >= plan.context || !written.ok()) return;
      const int32_t target = part[static_cast<size_t>(row) + 1];
      const auto best = std::max_element(logits.begin(), logits.end());
      const double normaliser = log_normaliser(logits, *best);
      score.add(normaliser - static_cast<double>(logits[static_cast<size_t>(target)]));
      score.best_right += best - logits.begin() == target;
      if (out) written = out->write(logits, target, normaliser);
    }));
    RETURN_IF_ERROR(written);
    bar.update(static_cast<double>((chunk + 1) * plan.context), static_cast<double>(plan.chunks * plan.context),
               text_f("ppl %.4f", score.perplexity()));
  }
  if (out) RETURN_IF_ERROR(out->commit());
  return score;
}

Result<void> perplexity(PerplexityFlags flags) {
  if (flags.file.empty()) flags.file = flags.file_flag;
  if (flags.file.empty()) return usage_error("perplexity needs a text: quipu perplexity MODEL FILE");
  if (flags.top > 0 && flags.logits_out.empty()) return usage_error("--logits-top needs --logits-out FILE");
  ASSIGN_OR_RETURN(const std::string text, read_text(flags.file));
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, load_engine(flags.model, flags.json));
  RETURN_IF_ERROR(require_tokenizer(*engine));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, engine->tokenizer().encode(text));
  ASSIGN_OR_RETURN(const Plan plan, make_plan(flags, static_cast<int64_t>(ids.size())));
  ASSIGN_OR_RETURN(const auto session, engine->new_session(plan.context));
  const double start = monotonic_seconds();
  ASSIGN_OR_RETURN(const Score score, score_text(flags, *engine, *session, plan, ids));
  const double seconds = monotonic_seconds() - start;
  const double rate = static_cast<double>(plan.chunks * plan.context) / seconds;
  const double right = static_cast<double>(score.best_right) / static_cast<double>(score.count);
  if (!std::isfinite(score.mean())) {
    return failed("the loss is not finite: weights or activations hold NaN or infinity");
  }
  if (flags.json) {
    return print_json({{"model", engine->facts().path},
                       {"file", flags.file},
                       {"perplexity", score.perplexity()},
                       {"error", score.standard_error()},
                       {"mean_loss", score.mean()},
                       {"scored_tokens", score.count},
                       {"top1_accuracy", right},
                       {"chunks", plan.chunks},
                       {"context", plan.context},
                       {"all_positions", flags.all_positions},
                       {"seconds", seconds},
                       {"tokens_per_second", rate},
                       {"backend", engine->backend_name()},
                       {"threads", engine->threads()}});
  }
  return print_text(text_f("Final estimate: PPL = %.4f +/- %.5f\n", score.perplexity(), score.standard_error()) +
                    text_f("%s tokens scored in %lld chunks of %lld, likeliest token right %.1f %%, %.4g tok/s, %s\n",
                           grouped_count(score.count).c_str(), static_cast<long long>(plan.chunks),
                           static_cast<long long>(plan.context), 100 * right, rate, human_seconds(seconds).c_str()));
}

}  // namespace

Action declare_perplexity(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  add_model_flags(app, flags->model, /*with_context=*/true);
  app.add_option("FILE", flags->file, "the text; - is standard input");
  app.add_option("-f,--file", flags->file_flag, "the same as FILE");
  app.add_option("--chunks", flags->chunks, "score at most so many chunks (default: all)")->check(whole_number(-1));
  app.add_flag("--all-positions", flags->all_positions, "score every token of a chunk, not only the second half");
  app.add_option("--logits-out", flags->logits_out, "write the logits of every scored position as a NumPy file");
  app.add_option("--logits-top", flags->top, "with --logits-out: only the K likeliest, as log-probabilities")
      ->check(whole_number(1, 1 << 20));
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return perplexity(*flags); };
}

}  // namespace quipu::cli
