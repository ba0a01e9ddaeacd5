// Where this program keeps its files in a user's home, by the XDG base directory specification.
#pragma once

#include <string>

namespace quipu {

// Downloaded models and what can be made again: $XDG_CACHE_HOME/quipu, else ~/.cache/quipu. No slash at the end.
std::string user_cache_folder();
// Histories and saved conversations: $XDG_STATE_HOME/quipu, else ~/.local/state/quipu.
std::string user_state_folder();

// The file tools/fetch_default_model puts into user_cache_folder() + "/models/".
inline constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

}  // namespace quipu
