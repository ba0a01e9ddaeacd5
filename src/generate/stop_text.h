// StopText: finds stop strings in a stream of text and never lets a part of one through.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

class StopText {
 public:
  // kUsage for an empty stop string or one that is not UTF-8.
  static Result<StopText> create(std::vector<std::string> stops);

  // Takes the next piece (whole UTF-8 characters) and returns what may be shown now: everything before a stop string that
  // is now complete, or everything but an end that could become one. Empty once stopped.
  std::string push(std::string_view piece);
  // The end of generation: what was held back.
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  std::vector<std::string> stops_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace quipu
