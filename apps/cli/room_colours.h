// The colour of a kind of memory in every plot of this program.
#pragma once

#include <string>

namespace quipu::cli {

// name: as the engine names rooms, "MTLA s=3 + MoD". A number in the palette of line_plot.h.
int room_colour(const std::string& name);

}  // namespace quipu::cli
