#include "room_colours.h"

#include <array>
#include <string_view>

namespace quipu::cli {

int room_colour(const std::string& name) {
  // Longer prefixes before shorter ones.
  static constexpr std::array<std::string_view, 13> kRooms = {"MHA",          "GQA",           "MQA",
                                                              "MLA",          "MTLA s=2",      "MTLA s=3",
                                                              "MTLA s=4",     "Infini linear", "Infini delta_true",
                                                              "Infini delta", "MTLA",          "Infini",
                                                              "hybrid"};
  static constexpr std::array<int, 13> kColours = {0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 10, 7, 9};
  const bool window = name.find("+window") != std::string::npos;
  for (size_t i = 0; i < kRooms.size(); ++i) {
    if (std::string_view(name).substr(0, kRooms[i].size()) == kRooms[i]) return window ? 9 : kColours[i];
  }
  return 10;
}

}  // namespace quipu::cli
