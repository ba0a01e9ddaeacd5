#include "line_plot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/byte_reader.h"
#include "base/text_file.h"
#include "human_text.h"

extern char** environ;

namespace quipu::cli {
namespace {

// Colours that people who do not tell red from green can tell apart.                                       [Okabe, Ito
// 2008]
constexpr std::array<const char*, 12> kPalette = {"#000000", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73",
                                                  "#66c2a5", "#cc79a7", "#8b5fbf", "#999999", "#b5a300", "#7f3b08"};
constexpr double kPanelWidth = 540, kPanelHeight = 360;
constexpr double kLeft = 100, kRight = 18, kTop = 34, kBottom = 52;  // of a panel, around its axes
constexpr double kLegendRow = 19, kNoteRow = 16, kTitleHeight = 40;

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= 32)
      out += c;
  }
  return out;
}

std::string text_at(double x, double y, const char* anchor, int size, std::string_view text, const char* more = "") {
  return text_f("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" %s>", x, y, anchor, size, more) +
         escaped(text) + "</text>\n";
}

std::string trimmed(double value) {
  std::string text = text_f("%.3g", value);
  return text;
}

std::string tick_text(double value, PlotAxis::Unit unit) {
  if (unit == PlotAxis::Unit::kTokens) {
    if (value >= (1 << 20)) return trimmed(value / (1 << 20)) + "M";
    return value >= 1024 ? trimmed(value / 1024) + "k" : trimmed(value);
  }
  if (unit == PlotAxis::Unit::kPlain && value < 1e5) return trimmed(value);
  static constexpr std::array<const char*, 7> kScale = {"", "k", "M", "G", "T", "P", "E"};
  size_t scale = 0;
  while (scale + 1 < kScale.size() && value >= 999.5) {
    value /= 1000;
    ++scale;
  }
  const char* name = unit == PlotAxis::Unit::kBytes ? "B" : unit == PlotAxis::Unit::kOperations ? "FLOP" : "";
  return trimmed(value) + (unit == PlotAxis::Unit::kPlain ? "" : " ") + kScale[scale] + name;
}

// One logarithmic axis.
struct Range {
  double low = 0, high = 0;  // logarithms
  bool empty() const { return !(high > low); }
};

Range range_of(const PlotPanel& panel, bool x) {
  Range range{INFINITY, -INFINITY};
  for (const PlotLine& line : panel.lines) {
    for (const auto& [px, py] : line.points) {
      if (!(px > 0 && py > 0 && std::isfinite(px) && std::isfinite(py))) continue;
      const double value = std::log(x ? px : py);
      range.low = std::min(range.low, value);
      range.high = std::max(range.high, value);
    }
  }
  if (!(range.low <= range.high)) return {};
  const double margin = x ? 0.02 * (range.high - range.low) : 0.06 * (range.high - range.low);
  const double least = range.high - range.low < 0.2 ? 0.7 : 0;  // a flat line gets room, too
  return {range.low - margin - least, range.high + margin + least};
}

// Powers of the base whose number of ticks is readable.
std::vector<double> ticks(const Range& range, double base, size_t most) {
  std::vector<double> values;
  for (double step = 1;; ++step) {
    values.clear();
    const double unit = std::log(base) * step;
    for (double i = std::ceil(range.low / unit); i * unit <= range.high; ++i) values.push_back(std::exp(i * unit));
    if (values.size() <= most) break;
  }
  return values;
}

std::vector<double> value_ticks(const Range& range) {
  std::vector<double> values = ticks(range, 10, 8);
  if (values.size() >= 3) return values;
  // Fewer than two decades: 1, 2, 5.
  values.clear();
  for (double decade = std::floor(range.low / std::log(10)); decade <= range.high / std::log(10); ++decade) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      const double value = digit * std::pow(10, decade);
      if (std::log(value) >= range.low && std::log(value) <= range.high) values.push_back(value);
    }
  }
  if (values.size() >= 3) return values;
  // Less than a factor of five or so: equal steps.
  values.clear();
  const double low = std::exp(range.low), high = std::exp(range.high);
  const double decade = std::pow(10, std::floor(std::log10((high - low) / 4)));
  double step = decade;
  for (const double times : {2.0, 5.0, 10.0}) {
    if ((high - low) / step > 6) step = times * decade;
  }
  for (double value = std::ceil(low / step) * step; value <= high; value += step) values.push_back(value);
  return values;
}

std::string stroke(const PlotLine& line) {
  const auto colour = kPalette[static_cast<size_t>(line.colour < 0 ? 0 : line.colour) % kPalette.size()];
  return text_f("stroke=\"%s\" stroke-width=\"2\" fill=\"none\"%s", colour,
                line.dashed ? " stroke-dasharray=\"6 4\"" : "");
}

std::string panel_svg(const PlotPanel& panel, double left, double top) {
  const double x0 = left + kLeft, x1 = left + kPanelWidth - kRight;
  const double y0 = top + kPanelHeight - kBottom, y1 = top + kTop;
  std::string svg = text_at((x0 + x1) / 2, y1 - 12, "middle", 15, panel.title, "font-weight=\"bold\"");
  const Range x = range_of(panel, true), y = range_of(panel, false);
  svg += text_f("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" stroke=\"#444\"/>\n", x0, y1,
                x1 - x0, y0 - y1);
  if (x.empty() || y.empty()) return svg + text_at((x0 + x1) / 2, (y0 + y1) / 2, "middle", 13, "nothing measured");
  const auto at_x = [&](double value) { return x0 + (std::log(value) - x.low) / (x.high - x.low) * (x1 - x0); };
  const auto at_y = [&](double value) { return y0 - (std::log(value) - y.low) / (y.high - y.low) * (y0 - y1); };
  for (const double value : value_ticks(y)) {
    svg += text_f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", x0, at_y(value), x1,
                  at_y(value));
    svg += text_at(x0 - 7, at_y(value) + 4, "end", 12, tick_text(value, panel.y.unit));
  }
  const bool tokens = panel.x.unit == PlotAxis::Unit::kTokens;
  for (const double value : tokens ? ticks(x, 2, 11) : value_ticks(x)) {
    svg += text_f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#eee\"/>\n", at_x(value), y0,
                  at_x(value), y1);
    svg += text_at(at_x(value), y0 + 17, "middle", 12, tick_text(value, panel.x.unit));
  }
  svg += text_at((x0 + x1) / 2, y0 + 37, "middle", 13, panel.x.label);
  svg += text_f("<g transform=\"translate(%.1f,%.1f) rotate(-90)\">", left + 16, (y0 + y1) / 2) +
         text_at(0, 0, "middle", 13, panel.y.label) + "</g>\n";
  for (const PlotLine& line : panel.lines) {
    std::string path;
    for (const auto& [px, py] : line.points) {
      if (!(px > 0 && py > 0 && std::isfinite(px) && std::isfinite(py))) continue;
      path += text_f("%s%.1f,%.1f", path.empty() ? "M" : " L", at_x(px), at_y(py));
      svg += text_f("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>", at_x(px), at_y(py),
                    kPalette[static_cast<size_t>(line.colour < 0 ? 0 : line.colour) % kPalette.size()]);
    }
    if (!path.empty()) svg += "<path d=\"" + path + "\" " + stroke(line) + "/>\n";
  }
  return svg;
}

// The lines of all panels, each label once, in order.
std::vector<PlotLine> legend_of(const LinePlot& plot) {
  std::vector<PlotLine> legend;
  for (const PlotPanel& panel : plot.panels) {
    for (const PlotLine& line : panel.lines) {
      const auto same = [&](const PlotLine& known) { return known.label == line.label; };
      if (std::none_of(legend.begin(), legend.end(), same))
        legend.push_back({line.label, line.colour, line.dashed, {}});
    }
  }
  return legend;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

bool is_png(const std::string& path) { return path.ends_with(".png"); }

}  // namespace

// Without a shell.
Result<void> convert_to_png(const std::string& svg, const std::string& png) {
  std::vector<std::string> words = {"rsvg-convert", "--zoom", "1.5", "--output", png, svg};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = 0;
  const int code = posix_spawnp(&child, words[0].c_str(), nullptr, nullptr, arguments.data(), environ);
  if (code != 0) {
    return failed(printable(png, 400) + ": PNG needs the program rsvg-convert (" + std::strerror(code) +
                  "); install the Debian package librsvg2-bin, or ask for a .svg file");
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return failed(
      printable(png, 400) + ": rsvg-convert could not write it" +
      (WIFEXITED(status) && WEXITSTATUS(status) == 127 ? "; is the Debian package librsvg2-bin installed?" : ""));
}

std::string plot_svg(const LinePlot& plot) {
  const size_t columns = plot.panels.size() > 1 ? 2 : 1;
  const size_t rows = (plot.panels.size() + columns - 1) / columns;
  const double width = kPanelWidth * static_cast<double>(columns);
  const std::vector<PlotLine> legend = legend_of(plot);
  size_t longest = 0;
  for (const PlotLine& line : legend) longest = std::max(longest, display_width(line.label));
  constexpr double kCharacter = 7.2;  // of text of size 12, about
  const double legend_column = 48 + kCharacter * static_cast<double>(longest);
  const auto legend_columns = std::max<size_t>(1, static_cast<size_t>((width - 30) / legend_column));
  const size_t legend_rows = (legend.size() + legend_columns - 1) / legend_columns;
  const std::vector<std::string> notes = lines_of(plot.note);
  const double legend_top = kTitleHeight + kPanelHeight * static_cast<double>(rows) + 10;
  const double notes_top = legend_top + kLegendRow * static_cast<double>(legend_rows) + 12;
  const double height = notes_top + kNoteRow * static_cast<double>(notes.size()) + 8;
  std::string svg = text_f(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f "
      "%.0f\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n",
      width, height, width, height);
  svg += "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  svg += text_at(width / 2, 26, "middle", 18, plot.title, "font-weight=\"bold\"");
  for (size_t i = 0; i < plot.panels.size(); ++i) {
    svg += panel_svg(plot.panels[i], kPanelWidth * static_cast<double>(i % columns),
                     kTitleHeight + kPanelHeight * static_cast<double>(i / columns));
  }
  for (size_t i = 0; i < legend.size(); ++i) {
    // Down the columns: neighbours of the list stay neighbours.
    const double x = 24 + legend_column * static_cast<double>(i / legend_rows);
    const double y = legend_top + kLegendRow * static_cast<double>(i % legend_rows) + 6;
    svg += text_f("<path d=\"M%.1f,%.1f h28\" ", x, y) + stroke(legend[i]) + "/>";
    svg += text_at(x + 34, y + 4, "start", 12, legend[i].label);
  }
  for (size_t i = 0; i < notes.size(); ++i) {
    svg += text_at(24, notes_top + kNoteRow * static_cast<double>(i) + 6, "start", 11, notes[i], "fill=\"#555\"");
  }
  return svg + "</svg>\n";
}

Result<void> check_plot_path(const std::string& path) {
  if (path.ends_with(".svg") || is_png(path)) return {};
  return usage_error(printable(path, 400) + ": a plot is written as .svg or .png");
}

Result<void> write_plot(const std::string& path, const LinePlot& plot) {
  RETURN_IF_ERROR(check_plot_path(path));
  const std::string svg = plot_svg(plot);
  if (!is_png(path)) return write_text_file(path, svg);
  const std::string draft = path + ".draft.svg", picture = path + ".draft";
  RETURN_IF_ERROR(write_text_file(draft, svg));
  Result<void> outcome = convert_to_png(draft, picture);
  unlink(draft.c_str());
  if (!outcome.ok()) {
    unlink(picture.c_str());
    return outcome;
  }
  if (rename(picture.c_str(), path.c_str()) == 0) return {};
  const int code = errno;
  unlink(picture.c_str());
  return failed(printable(path, 400) + ": " + std::strerror(code));
}

}  // namespace quipu::cli
