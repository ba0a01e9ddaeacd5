#include "engine/available_memory.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <sstream>

namespace quipu {
namespace {

std::optional<uint64_t> first_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;   // absent, or "max"
}

// The number after `key` in a file of "key value" lines.
std::optional<uint64_t> keyed_number(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// Folder of the memory group this process is in, version 2 first. Inside a container the root is the group itself.
std::optional<uint64_t> left_in_group(const std::string& folder, const char* limit_name, const char* used_name,
                                      const char* cache_key) {
  const auto limit = first_number(folder + "/" + limit_name);
  const auto used = first_number(folder + "/" + used_name);
  if (!limit.has_value() || !used.has_value()) return std::nullopt;
  const uint64_t cache = keyed_number(folder + "/memory.stat", cache_key).value_or(0);
  const uint64_t held = *used > cache ? *used - cache : 0;
  return *limit > held ? *limit - held : 0;
}

std::optional<uint64_t> left_in_groups() {
  std::optional<uint64_t> least;
  const auto take = [&](std::optional<uint64_t> left) {
    if (left.has_value()) least = std::min(least.value_or(UINT64_MAX), *left);
  };
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const size_t colon = line.rfind(':');
    if (line.starts_with("0::")) {
      take(left_in_group("/sys/fs/cgroup" + line.substr(colon + 1), "memory.max", "memory.current", "file"));
    } else if (line.find(":memory:") != std::string::npos) {
      take(left_in_group("/sys/fs/cgroup/memory" + line.substr(colon + 1), "memory.limit_in_bytes", "memory.usage_in_bytes",
                         "total_cache"));
    }
  }
  take(left_in_group("/sys/fs/cgroup", "memory.max", "memory.current", "file"));
  take(left_in_group("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"));
  return least;
}

}  // namespace

std::optional<uint64_t> available_memory() {
  std::optional<uint64_t> result = left_in_groups();
  if (const auto kilobytes = keyed_number("/proc/meminfo", "MemAvailable:"); kilobytes.has_value()) {
    result = std::min(result.value_or(UINT64_MAX), *kilobytes * 1024);
  }
  return result;
}

std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < kUnits.size()) {
    bytes /= 1000;
    ++unit;
  }
  char text[64];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
  return text;
}

Result<void> require_memory(const std::string& what, uint64_t wanted, const std::string& breakdown) {
  const std::optional<uint64_t> available = available_memory();
  if (!available.has_value() || wanted <= *available) return {};
  return failed(what + " needs " + bytes_text(static_cast<double>(wanted)) + " of memory (" + breakdown + "), " +
                bytes_text(static_cast<double>(*available)) + " are available");
}

}  // namespace quipu
