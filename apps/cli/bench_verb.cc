// quipu bench: tokens per second of prompts and of generation, at chosen depths of context, with llama-bench's names.
//
// A depth is filled by a real prefill of random tokens, once; repetitions start from there by cutting the context back.
// Every repetition of one measurement must end in the same logits: a fast wrong answer is no result.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/clock.h"
#include "base/median.h"
#include "base/random.h"
#include "engine/engine.h"
#include "human_text.h"
#include "interrupt.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct BenchFlags {
  ModelFlags model;
  std::string prompt = "512", generate = "64", depth = "0", output = "table";
  int64_t repeat = 5;
  uint64_t seed = 1;
  bool json = false;
};

// One measurement: `prompt` tokens fed or `generate` tokens generated (the other is 0), after `depth` tokens.
struct Measurement {
  int64_t prompt = 0, generate = 0, depth = 0;
  std::vector<double> samples;  // tokens per second
  double median = 0, low = 0, high = 0;
  double gigabytes_per_second = 0;  // generation only
  double roof_share = 0;
  uint64_t logits_hash = 0;
  uint64_t state_bytes = 0;
};

std::string test_name(const Measurement& m) {
  std::string name = m.prompt > 0 ? "pp" + std::to_string(m.prompt) : "tg" + std::to_string(m.generate);
  return m.depth > 0 ? name + " @ d" + std::to_string(m.depth) : name;
}

uint64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

// A session that can be brought to any depth, and back to it between repetitions.
class DepthSession {
 public:
  DepthSession(std::unique_ptr<Session> session, int64_t vocabulary, uint64_t seed)
      : session_(std::move(session)), vocabulary_(vocabulary), random_(seed, 0) {}

  Session& session() { return *session_; }

  // The random tokens of positions from .. from + count - 1: the same ones however they are asked for.
  std::vector<int32_t> tokens_at(int64_t from, int64_t count) {
    random_.seek(static_cast<uint64_t>(from));
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(random_.below(static_cast<uint64_t>(vocabulary_)));
    return ids;
  }

  // Cuts back to `depth` tokens, or feeds what is missing.
  Result<void> go_to(int64_t depth) {
    if (session_->tokens() > depth && !session_->rewind(depth).ok()) RETURN_IF_ERROR(session_->reset());
    if (session_->tokens() == depth) return {};
    const std::vector<int32_t> ids = tokens_at(session_->tokens(), depth - session_->tokens());
    ProgressBar bar("filling to depth " + std::to_string(depth), {});
    return session_->feed(
        ids, [&bar](int64_t done, int64_t total) { bar.update(static_cast<double>(done), static_cast<double>(total)); },
        interrupt_flag());
  }

 private:
  std::unique_ptr<Session> session_;
  int64_t vocabulary_;
  RandomStream random_;
};

// Runs one repetition from depth `m.depth`; returns tokens per second.
Result<double> repetition(DepthSession& at, const Measurement& m) {
  Session& session = at.session();
  if (m.prompt > 0) {
    RETURN_IF_ERROR(at.go_to(m.depth));
    const std::vector<int32_t> ids = at.tokens_at(m.depth, m.prompt);
    session.clear_counters();
    const double start = monotonic_seconds();
    RETURN_IF_ERROR(session.feed(ids, {}, interrupt_flag()));
    return static_cast<double>(m.prompt) / (monotonic_seconds() - start);
  }
  // The first token is drawn from logits: an empty context gets one token.
  RETURN_IF_ERROR(at.go_to(std::max<int64_t>(m.depth, 1)));
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = m.generate;
  options.ignore_end = true;
  options.interrupted = interrupt_flag();
  session.clear_counters();
  const double start = monotonic_seconds();
  ASSIGN_OR_RETURN(const GenerateResult result, session.generate(options, {}));
  const double seconds = monotonic_seconds() - start;
  if (interrupted()) return failed("interrupted");
  return static_cast<double>(result.tokens.size()) / seconds;
}

Result<void> measure(DepthSession& at, const BenchFlags& flags, const MemoryRoof& roof, Measurement& m) {
  std::vector<double> bandwidths;
  ProgressBar bar(test_name(m), {.terminal_only = true});
  const double tokens = static_cast<double>(m.prompt + m.generate);
  // Repetition 0 warms caches and page tables and is not counted.
  for (int64_t i = 0; i <= flags.repeat; ++i) {
    ASSIGN_OR_RETURN(const double rate, repetition(at, m));
    bar.update(tokens * static_cast<double>(i + 1), tokens * static_cast<double>(flags.repeat + 1));
    const uint64_t hash = at.session().logits_hash();
    if (i == 0) {
      m.logits_hash = hash;
      m.state_bytes = at.session().state_bytes();
      continue;
    }
    if (hash != m.logits_hash) {
      return failed(test_name(m) + ": repetition " + std::to_string(i) + " gave logits #" + hash_text(hash) +
                    ", the first #" + hash_text(m.logits_hash) + "; equal runs must agree");
    }
    m.samples.push_back(rate);
    bandwidths.push_back(speed_of(at.session().counters(), roof).generate_gigabytes_per_second);
  }
  m.median = median_of(m.samples);
  m.low = *std::min_element(m.samples.begin(), m.samples.end());
  m.high = *std::max_element(m.samples.begin(), m.samples.end());
  if (m.generate > 0) {
    m.gigabytes_per_second = median_of(bandwidths);
    if (roof.gigabytes_per_second > 0) {
      m.roof_share = m.gigabytes_per_second / roof.gigabytes_per_second;
    }
  }
  return {};
}

nlohmann::ordered_json measurement_json(const Measurement& m) {
  nlohmann::ordered_json json = {
      {"test", test_name(m)}, {"prompt", m.prompt}, {"generate", m.generate}, {"depth", m.depth}};
  json["tokens_per_second"] = {{"median", m.median}, {"min", m.low}, {"max", m.high}};
  json["samples"] = m.samples;
  if (m.generate > 0) {
    json["gigabytes_per_second"] = m.gigabytes_per_second;
    json["roof_share"] = m.roof_share;
  }
  json["state_bytes"] = m.state_bytes;
  json["logits_hash"] = hash_text(m.logits_hash);
  return json;
}

nlohmann::ordered_json setting_json(const Engine& engine, const BenchFlags& flags, const MemoryRoof& roof,
                                    DType cache) {
  const ModelFacts& facts = engine.facts();
  return {{"model", facts.path},
          {"name", facts.name},
          {"quantisation", facts.quantisation},
          {"weight_bytes", facts.weight_bytes},
          {"parameters", facts.parameters},
          {"backend", engine.backend_name()},
          {"threads", engine.threads()},
          {"cache_type", dtype_name(cache)},
          {"batch", flags.model.batch},
          {"repeat", flags.repeat},
          {"load_seconds", engine.load_seconds()},
          {"packed_weight_bytes", engine.packed_weight_bytes()},
          {"memory_roof",
           {{"gigabytes_per_second", roof.gigabytes_per_second},
            {"low", roof.low},
            {"high", roof.high},
            {"threads", roof.threads}}}};
}

std::vector<std::string> table_row(const Measurement& m) {
  return {test_name(m),
          text_f("%.2f", m.median),
          text_f("%.2f..%.2f", m.low, m.high),
          m.generate > 0 ? text_f("%.1f", m.gigabytes_per_second) : "",
          m.generate > 0 ? text_f("%.0f %%", 100 * m.roof_share) : "",
          human_bytes(static_cast<double>(m.state_bytes)),
          "#" + hash_text(m.logits_hash).substr(0, 8) + " ok"};
}

const std::vector<std::string> kColumns = {"test", "tok/s", "min..max", "GB/s", "of roof", "state", "logits"};

std::string heading_text(const Engine& engine, const BenchFlags& flags, const MemoryRoof& roof, DType cache) {
  const ModelFacts& facts = engine.facts();
  return printable(facts.name) + ", " + human_count(static_cast<double>(facts.parameters)) + " parameters, " +
         facts.quantisation + ", " + human_bytes(static_cast<double>(facts.weight_bytes)) +
         text_f(" | %s, %d threads, cache %s | memory roof %.1f GB/s (%.1f..%.1f) | median of %lld",
                engine.backend_name().c_str(), engine.threads(), std::string(dtype_name(cache)).c_str(),
                roof.gigabytes_per_second, roof.low, roof.high, static_cast<long long>(flags.repeat));
}

std::string joined(const std::vector<std::string>& cells, const char* before, const char* between, const char* after) {
  std::string text = before;
  for (size_t i = 0; i < cells.size(); ++i) text += (i == 0 ? "" : between) + cells[i];
  return text + after + "\n";
}

Result<void> print_results(const Engine& engine, const BenchFlags& flags, const MemoryRoof& roof,
                           const std::vector<Measurement>& results) {
  ASSIGN_OR_RETURN(const DType cache, cache_type(flags.model));
  if (flags.output == "json") {
    nlohmann::ordered_json json = setting_json(engine, flags, roof, cache);
    json["peak_memory_bytes"] = peak_memory_bytes();
    json["results"] = nlohmann::ordered_json::array();
    for (const Measurement& m : results) json["results"].push_back(measurement_json(m));
    return print_json(json);
  }
  std::string text;
  if (flags.output == "jsonl") {
    const nlohmann::ordered_json setting = setting_json(engine, flags, roof, cache);
    for (const Measurement& m : results) {
      nlohmann::ordered_json line = setting;
      line.update(measurement_json(m));
      text += line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    }
    return print_text(text);
  }
  if (flags.output == "csv") {
    text =
        "model,quantisation,threads,cache_type,prompt,generate,depth,median,min,max,gigabytes_per_second,roof_share,"
        "logits_hash\n";
    for (const Measurement& m : results) {
      text += text_f("\"%s\",\"%s\",%d,%s,%lld,%lld,%lld,%.4f,%.4f,%.4f,%.3f,%.4f,%s\n",
                     printable(engine.facts().name).c_str(), engine.facts().quantisation.c_str(), engine.threads(),
                     std::string(dtype_name(cache)).c_str(), static_cast<long long>(m.prompt),
                     static_cast<long long>(m.generate), static_cast<long long>(m.depth), m.median, m.low, m.high,
                     m.gigabytes_per_second, m.roof_share, hash_text(m.logits_hash).c_str());
    }
    return print_text(text);
  }
  text = heading_text(engine, flags, roof, cache) + "\n\n";
  std::vector<std::vector<std::string>> rows = {kColumns};
  for (const Measurement& m : results) rows.push_back(table_row(m));
  if (flags.output == "md") {
    text += joined(kColumns, "| ", " | ", " |") + "| --- | ---: | ---: | ---: | ---: | ---: | --- |\n";
    for (size_t i = 1; i < rows.size(); ++i) text += joined(rows[i], "| ", " | ", " |");
  } else {
    text += aligned_table(rows, {false, true, true, true, true, true, false});
  }
  return print_text(text + "peak memory " + human_bytes(static_cast<double>(peak_memory_bytes())) +
                    text_f(", loaded in %.2f s\n", engine.load_seconds()));
}

Measurement planned_one(int64_t prompt, int64_t generate, int64_t depth) {
  Measurement m;
  m.prompt = prompt;
  m.generate = generate;
  m.depth = depth;
  return m;
}

Result<std::vector<Measurement>> planned(const BenchFlags& flags) {
  constexpr int64_t kMost = int64_t{1} << 24;
  ASSIGN_OR_RETURN(const std::vector<int64_t> prompts, parse_counts(flags.prompt, "--prompt", 0, kMost));
  ASSIGN_OR_RETURN(const std::vector<int64_t> generates, parse_counts(flags.generate, "--generate", 0, kMost));
  ASSIGN_OR_RETURN(std::vector<int64_t> depths, parse_counts(flags.depth, "--depth", 0, kMost));
  std::sort(depths.begin(), depths.end());  // so that each depth only adds to the one before
  std::vector<Measurement> plan;
  for (const int64_t depth : depths) {
    for (const int64_t prompt : prompts) {
      if (prompt > 0) plan.push_back(planned_one(prompt, 0, depth));
    }
    for (const int64_t generate : generates) {
      if (generate > 0) plan.push_back(planned_one(0, generate, depth));
    }
  }
  if (plan.empty()) return usage_error("nothing to measure: --prompt and --generate are both 0");
  return plan;
}

Result<void> bench(BenchFlags flags) {
  if (flags.json) flags.output = "json";
  constexpr std::array<std::string_view, 5> kOutputs = {"table", "md", "csv", "json", "jsonl"};
  if (std::find(kOutputs.begin(), kOutputs.end(), flags.output) == kOutputs.end()) {
    return usage_error("--output: '" + printable(flags.output) + "' is not one of table, md, csv, json, jsonl");
  }
  ASSIGN_OR_RETURN(std::vector<Measurement> plan, planned(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, load_engine(flags.model, flags.output == "json"));
  int64_t context = 0;
  for (const Measurement& m : plan) {
    context = std::max(context, std::max<int64_t>(m.depth, 1) + m.prompt + m.generate + 1);
  }
  ASSIGN_OR_RETURN(auto session, engine->new_session(context));
  const MemoryRoof& roof = measured_roof(engine->threads());
  DepthSession at(std::move(session), engine->facts().vocabulary, flags.seed);
  for (Measurement& m : plan) {
    RETURN_IF_ERROR(at.go_to(m.depth));
    RETURN_IF_ERROR(measure(at, flags, roof, m));
  }
  return print_results(*engine, flags, roof, plan);
}

}  // namespace

Action declare_bench(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  add_model_flags(app, flags->model, /*with_context=*/false);
  app.add_option("-p,--prompt,--n-prompt", flags->prompt, "prompt lengths, separated by commas; 0: none (default 512)");
  app.add_option("-n,--generate,--n-gen", flags->generate, "numbers of tokens to generate; 0: none (default 64)");
  app.add_option("-d,--depth,--n-depth", flags->depth, "tokens in the context before that (default 0; 4k is 4096)");
  app.add_option("-r,--repeat,--repetitions", flags->repeat, "counted repetitions of each (default 5)")
      ->check(whole_number(1, 10000));
  app.add_option("--seed", flags->seed, "of the random tokens (default 1)")->check(whole_number(0));
  app.add_option("-o,--output", flags->output, "table (default), md, csv, json or jsonl");
  app.add_flag("--json", flags->json, "the same as --output json");
  return [flags] { return bench(*flags); };
}

}  // namespace quipu::cli
