// LinePlot: line charts as SVG, written by hand, and as PNG through rsvg-convert.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace quipu::cli {

struct PlotAxis {
  enum class Unit { kPlain, kTokens, kBytes, kOperations };
  std::string label;
  Unit unit = Unit::kPlain;  // of the labels beside the ticks
};

struct PlotLine {
  std::string label;  // equal labels in several panels share one entry of the legend
  int colour = 0;     // number in the palette; any number is good
  bool dashed = false;
  std::vector<std::pair<double, double>> points;  // x ascending; points that are not above zero are left out
};

// Both axes are logarithmic. A panel without points says so.
struct PlotPanel {
  std::string title;
  PlotAxis x, y;
  std::vector<PlotLine> lines;
};

struct LinePlot {
  std::string title, note;  // note: small print under the legend, lines separated by '\n'
  std::vector<PlotPanel> panels;
};

std::string plot_svg(const LinePlot& plot);

// Writes `path`, whole or not at all: SVG, or PNG when it ends in .png, for which the program rsvg-convert must be
// installed (kFailed with the package's name otherwise). kUsage for other endings.
Result<void> write_plot(const std::string& path, const LinePlot& plot);
// The SVG file `svg` as `png`, by the program rsvg-convert. kFailed where that is not installed, or refuses.
Result<void> convert_to_png(const std::string& svg, const std::string& png);
// kUsage unless `path` ends in .svg or .png: to be asked before long work.
Result<void> check_plot_path(const std::string& path);

}  // namespace quipu::cli
