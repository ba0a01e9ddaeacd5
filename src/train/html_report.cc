// The page of curves: inline SVG, no scripts, nothing loaded from elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <map>

#include "base/atomic_file.h"
#include "train/metrics.h"

namespace quipu {
namespace {

constexpr double kWidth = 720, kHeight = 260, kLeft = 64, kRight = 14, kTop = 14, kBottom = 34;
constexpr size_t kMostPoints = 1200;  // of one curve; more is thinned, the eye sees no difference

std::string text_f(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text_f(const char* format, ...) {
  char out[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(out, sizeof out, format, arguments);
  va_end(arguments);
  return out;
}

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
    else
      out += c;
  }
  return out;
}

struct Point {
  double step, value;
};
struct Curve {
  std::string name, colour;
  std::vector<Point> points;
};
struct Chart {
  std::string title;
  std::vector<Curve> curves;
};

std::vector<Point> points_of(const std::vector<MetricsLine>& history, const std::string& name) {
  std::vector<Point> out;
  for (const MetricsLine& line : history) {
    for (const auto& [key, value] : line.values) {
      if (key == name && std::isfinite(value)) out.push_back({static_cast<double>(line.step), value});
    }
  }
  return out;
}

// Means over neighbouring points when there are too many to see.
std::vector<Point> thinned(const std::vector<Point>& points) {
  if (points.size() <= kMostPoints) return points;
  std::vector<Point> out;
  const size_t group = (points.size() + kMostPoints - 1) / kMostPoints;
  for (size_t i = 0; i < points.size(); i += group) {
    const size_t end = std::min(i + group, points.size());
    Point mean{0, 0};
    for (size_t j = i; j < end; ++j) {
      mean.step += points[j].step / static_cast<double>(end - i);
      mean.value += points[j].value / static_cast<double>(end - i);
    }
    out.push_back(mean);
  }
  return out;
}

// Round numbers inside [low, high], about five.
std::vector<double> ticks(double low, double high) {
  const double rough = (high - low) / 5;
  if (!(rough > 0)) return {low};
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double lead = rough / power;
  const double step = power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
  std::vector<double> out;
  for (double t = std::ceil(low / step) * step; t <= high + step * 1e-9; t += step)
    out.push_back(std::abs(t) < step * 1e-9 ? 0 : t);
  return out;
}

std::string svg(const Chart& chart) {
  double x_high = 1, low = INFINITY, high = -INFINITY;
  for (const Curve& curve : chart.curves) {
    for (const Point& point : curve.points) {
      x_high = std::max(x_high, point.step);
      low = std::min(low, point.value);
      high = std::max(high, point.value);
    }
  }
  if (!(low <= high)) return {};
  if (low == high) {
    const double room = low == 0 ? 1 : std::abs(low) * 0.1;
    low -= room;
    high += room;
  } else {
    const double room = (high - low) * 0.05;
    if (low < 0 || low - room > 0) low -= room;
    high += room;
  }
  const auto x = [&](double step) { return kLeft + step / x_high * (kWidth - kLeft - kRight); };
  const auto y = [&](double value) { return kTop + (high - value) / (high - low) * (kHeight - kTop - kBottom); };
  std::string out = text_f("<svg viewBox=\"0 0 %g %g\" role=\"img\">\n", kWidth, kHeight);
  for (const double t : ticks(low, high)) {
    out += text_f(
        "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"y\" x=\"%.1f\" "
        "y=\"%.1f\">%g</text>\n",
        kLeft, kWidth - kRight, y(t), y(t), kLeft - 8, y(t) + 4, t);
  }
  for (const double t : ticks(0, x_high)) {
    out += text_f("<text class=\"x\" x=\"%.1f\" y=\"%.1f\">%g</text>\n", x(t), kHeight - kBottom + 18, t);
  }
  for (const Curve& curve : chart.curves) {
    if (curve.points.empty()) continue;
    out += "<polyline stroke=\"" + curve.colour + "\" points=\"";
    for (const Point& point : thinned(curve.points)) out += text_f("%.1f,%.1f ", x(point.step), y(point.value));
    out += "\"/>\n";
    const Point& last = curve.points.back();
    if (curve.points.size() < 30) {
      for (const Point& point : curve.points)
        out += text_f("<circle r=\"2.5\" cx=\"%.1f\" cy=\"%.1f\" fill=\"%s\"/>", x(point.step), y(point.value),
                      curve.colour.c_str());
    } else {
      out += text_f("<circle r=\"2.5\" cx=\"%.1f\" cy=\"%.1f\" fill=\"%s\"/>", x(last.step), y(last.value),
                    curve.colour.c_str());
    }
  }
  return out + "</svg>\n";
}

std::string section(const Chart& chart) {
  const std::string picture = svg(chart);
  if (picture.empty()) return {};
  std::string out = "<section><h2>" + escaped(chart.title) + "</h2><p class=\"legend\">";
  for (const Curve& curve : chart.curves) {
    if (curve.points.empty()) continue;
    out += text_f("<span><i style=\"background:%s\"></i>", curve.colour.c_str()) + escaped(curve.name) +
           text_f(" <b>%.5g</b></span>", curve.points.back().value);
  }
  return out + "</p>\n" + picture + "</section>\n";
}

constexpr char kStyle[] = R"(<style>
:root { color-scheme: light dark; --ink: #1c2733; --soft: #66788a; --line: #dde4ea; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4ebf1; --soft: #93a4b4; --line: #2d3a46; --paper: #141b22; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 780px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 1.6rem 0 0; }
table { border-collapse: collapse; margin: 1rem 0; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; } td:first-child { color: var(--soft); white-space: nowrap; }
.legend { margin: .2rem 0; color: var(--soft); } .legend span { margin-right: 1.2rem; } .legend b { color: var(--ink); font-weight: 600; }
.legend i { display: inline-block; width: .9rem; height: .2rem; margin-right: .4rem; vertical-align: middle; }
svg { width: 100%; height: auto; } polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.grid { stroke: var(--line); } svg text { font-size: 12px; fill: var(--soft); } .y { text-anchor: end; } .x { text-anchor: middle; }
</style>)";

}  // namespace

Result<void> write_html_report(const std::string& path, const ReportFacts& facts,
                               const std::vector<MetricsLine>& history) {
  const char* blue = "#2f7fd6";
  const char* orange = "#e2711d";
  const auto curve = [&](const char* name, const char* shown, const char* colour) {
    return Curve{shown, colour, points_of(history, name)};
  };
  std::vector<Chart> charts = {
      {"Loss by step", {curve("loss", "training", blue), curve("held_out_loss", "held out", orange)}},
      {"Answers, held out",
       {curve("held_out_answer_accuracy", "tokens right", blue),
        curve("held_out_exact", "whole answers right", orange)}},
      {"Learning rate", {curve("learning_rate", "learning rate", blue)}},
      {"Norm of the gradient", {curve("gradient_norm", "before clipping", blue)}},
      {"Tokens per second", {curve("tokens_per_second", "tokens per second", blue)}},
      {"Share of the roof of products", {curve("roof_share", "share", blue)}},
  };
  std::string out =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\">\n<title>" +
      escaped(facts.title) + "</title>\n" + kStyle + "\n</head><body>\n<h1>" + escaped(facts.title) +
      "</h1>\n<table>\n";
  for (const auto& [heading, text] : facts.rows)
    out += "<tr><td>" + escaped(heading) + "</td><td>" + escaped(text) + "</td></tr>\n";
  out += "</table>\n";
  for (const Chart& chart : charts) out += section(chart);
  out += "</body></html>\n";
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(out));
  return file.commit();
}

}  // namespace quipu
