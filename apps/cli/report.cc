#include "report.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "human_text.h"
#include "progress_bar.h"

namespace quipu::cli {

Result<void> print_text(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return failed(std::string("cannot write to standard output: ") + std::strerror(errno));
  }
  return {};
}

Result<void> print_json(const nlohmann::ordered_json& value) {
  return print_text(value.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

std::string_view error_class_name(ErrorClass error_class) {
  switch (error_class) {
    case ErrorClass::kFailed: return "failed";
    case ErrorClass::kUsage: return "usage";
    case ErrorClass::kBadInput: return "bad_input";
  }
  return "failed";
}

Speed speed_of(const SessionCounters& counters, const MemoryRoof& roof) {
  const auto per_second = [](double amount, double seconds) { return seconds > 0 ? amount / seconds : 0.0; };
  Speed speed;
  speed.prompt_tokens_per_second = per_second(static_cast<double>(counters.prompt_tokens), counters.prompt_seconds);
  speed.generate_tokens_per_second =
      per_second(static_cast<double>(counters.generated_tokens), counters.generate_seconds);
  speed.generate_gigabytes_per_second = per_second(counters.generate_bytes / 1e9, counters.generate_seconds);
  if (roof.gigabytes_per_second > 0) {
    speed.roof_share = speed.generate_gigabytes_per_second / roof.gigabytes_per_second;
  }
  return speed;
}

const MemoryRoof& measured_roof(int threads) {
  // Long enough for a figure good to a few per cent, short enough not to be waited for after an answer.
  constexpr double kSeconds = 0.15;
  static const MemoryRoof roof = measure_memory_roof(threads, kSeconds);
  return roof;
}

std::string hash_text(uint64_t hash) { return text_f("%016llx", static_cast<unsigned long long>(hash)); }

std::string closing_line(const Engine& engine, const Session& session, const MemoryRoof& roof) {
  const SessionCounters& counters = session.counters();
  const Speed speed = speed_of(counters, roof);
  std::string line;
  if (counters.prompt_tokens > 0) {
    line += text_f("prompt %s tok %.4g tok/s | ", grouped_count(counters.prompt_tokens).c_str(),
                   speed.prompt_tokens_per_second);
  }
  if (counters.generated_tokens > 0) {
    line += text_f("answer %s tok %.4g tok/s", grouped_count(counters.generated_tokens).c_str(),
                   speed.generate_tokens_per_second);
    line += text_f(" %.1f GB/s", speed.generate_gigabytes_per_second);
    if (speed.roof_share > 1.05) {
      // The roof is measured after the answer: what else ran then, held it down.
      line += text_f(" (the memory roof measured only %.1f: busy machine)", roof.gigabytes_per_second);
    } else if (speed.roof_share > 0) {
      line += text_f(" = %.0f %% of the memory roof", 100 * speed.roof_share);
    }
    line += " | ";
  }
  line += "state " + human_bytes(static_cast<double>(session.state_bytes()));
  if (!session.logits().empty()) line += " | logits #" + hash_text(session.logits_hash());
  line +=
      text_f(" | %s, %d thread%s", engine.backend_name().c_str(), engine.threads(), engine.threads() == 1 ? "" : "s");
  return line;
}

nlohmann::ordered_json counters_json(const Engine& engine, const Session& session, const MemoryRoof& roof) {
  const SessionCounters& counters = session.counters();
  const Speed speed = speed_of(counters, roof);
  nlohmann::ordered_json json;
  json["prompt"] = {{"tokens", counters.prompt_tokens},
                    {"seconds", counters.prompt_seconds},
                    {"tokens_per_second", speed.prompt_tokens_per_second}};
  json["generation"] = {{"tokens", counters.generated_tokens},
                        {"seconds", counters.generate_seconds},
                        {"tokens_per_second", speed.generate_tokens_per_second},
                        {"gigabytes_per_second", speed.generate_gigabytes_per_second},
                        {"roof_share", speed.roof_share}};
  json["memory_roof"] = {{"gigabytes_per_second", roof.gigabytes_per_second},
                         {"low", roof.low},
                         {"high", roof.high},
                         {"threads", roof.threads}};
  json["state"] = {{"tokens", session.tokens()}, {"context", session.context()}, {"bytes", session.state_bytes()}};
  json["logits_hash"] = session.logits().empty() ? nlohmann::ordered_json(nullptr)
                                                 : nlohmann::ordered_json(hash_text(session.logits_hash()));
  json["backend"] = engine.backend_name();
  json["threads"] = engine.threads();
  return json;
}

void print_note(const std::string& line) {
  const bool colour = colour_wanted(stderr);
  std::fprintf(stderr, "%s%s%s\n", colour ? "\033[2m" : "", line.c_str(), colour ? "\033[0m" : "");
}

}  // namespace quipu::cli
