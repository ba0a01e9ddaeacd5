// What a verb tells about its own speed, and the JSON side of the program.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/roof.h"

namespace quipu::cli {

// Prints one JSON object on stdout (bytes that are not UTF-8 become U+FFFD) and checks that it was written.
Result<void> print_json(const nlohmann::ordered_json& value);
// Writes to stdout; kFailed when it cannot (full disk, closed pipe).
Result<void> print_text(std::string_view text);

std::string_view error_class_name(ErrorClass error_class);  // "failed", "usage", "bad_input"

// Speed of one stretch of work, as stated in closing lines, bench tables and JSON.
struct Speed {
  double prompt_tokens_per_second = 0;  // 0: nothing fed
  double generate_tokens_per_second = 0;
  double generate_gigabytes_per_second = 0;
  double roof_share = 0;  // of the read roof, 0..1; 0: no roof measured
};
Speed speed_of(const SessionCounters& counters, const MemoryRoof& roof);

// Measured once per program, on as many threads as the engine has.
const MemoryRoof& measured_roof(int threads);

// "prompt 37 tok 412 tok/s | answer 64 tok 118 tok/s, 10.8 GB/s = 43 % of read roof | state 1.2 MiB | ..."
std::string closing_line(const Engine& engine, const Session& session, const MemoryRoof& roof);
// The same facts as an object.
nlohmann::ordered_json counters_json(const Engine& engine, const Session& session, const MemoryRoof& roof);

std::string hash_text(uint64_t hash);  // sixteen hexadecimal digits

// The line on stderr dimmed on a terminal that has colours.
void print_note(const std::string& line);

}  // namespace quipu::cli
