// Small JSON files from outside (config.json and its neighbours): bounded in size and depth, exceptions kept inside.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace quipu {

// The object that `text` is; at most 16 MiB, nested at most 128 levels. file: its name in messages. Of keys that come twice
// the last one counts, as in Python.
Result<nlohmann::json> parse_bounded_json(const std::string& file, std::string_view text);

}  // namespace quipu
