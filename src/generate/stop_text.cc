#include "generate/stop_text.h"

#include <algorithm>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu {

Result<StopText> StopText::create(std::vector<std::string> stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) return usage_error("a stop string is empty");
    if (!utf8_is_valid(stop)) return usage_error("stop string " + printable(stop) + " is not UTF-8");
  }
  return StopText(std::move(stops));
}

std::string StopText::push(std::string_view piece) {
  if (stopped_) return {};
  pending_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, pending_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    std::string shown = pending_.substr(0, first);
    pending_.clear();
    return shown;
  }
  // The longest end of the text that begins a stop string stays back.
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, pending_.size()); length > held; --length) {
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  std::string shown = pending_.substr(0, pending_.size() - held);
  pending_.erase(0, shown.size());
  return shown;
}

std::string StopText::flush() {
  std::string shown;
  shown.swap(pending_);
  return shown;
}

}  // namespace quipu
