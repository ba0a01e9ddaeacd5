#include "base/user_folders.h"

#include <cstdlib>

namespace quipu {
namespace {

// The specification says to ignore a relative path in the variable.
std::string xdg_folder(const char* variable, const char* fallback) {
  const char* value = std::getenv(variable);
  if (value != nullptr && value[0] == '/') return std::string(value) + "/quipu";
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + fallback + "/quipu";
}

}  // namespace

std::string user_cache_folder() { return xdg_folder("XDG_CACHE_HOME", "/.cache"); }
std::string user_state_folder() { return xdg_folder("XDG_STATE_HOME", "/.local/state"); }

}  // namespace quipu
