// Where tests find the default model: QUIPU_SMOLLM2_GGUF, else where ./quickstart puts it.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "base/user_folders.h"

namespace quipu {

inline constexpr const char* kNoDefaultModel = "the default model is not in the cache folder; ./quickstart fetches it";

inline std::optional<std::string> default_model_for_test() {
  const char* named = std::getenv("QUIPU_SMOLLM2_GGUF");
  const std::string path = named != nullptr ? named : user_cache_folder() + "/models/" + kDefaultModelFile;
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path;
}

}  // namespace quipu
