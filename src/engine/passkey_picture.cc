#include "engine/passkey_picture.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

namespace quipu {
namespace {

constexpr int kLabel = 250, kCell = 40, kRow = 34, kGap = 8, kTop = 92, kMargin = 20, kLine = 18;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') out += "&amp;";
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

// Dark red where digits are guessed (10 %), over yellow to dark green where all are right: lightness rises and falls with
// the figure in the cell, so that nobody needs to tell red from green.
std::string colour(double share) {
  struct Stop {
    double at;
    int red, green, blue;
  };
  constexpr Stop kStops[] = {{0.1, 178, 60, 60}, {0.5, 240, 160, 90}, {0.9, 245, 228, 140}, {0.99, 150, 205, 140}, {1.0, 60, 150, 95}};
  const double x = std::clamp(share, kStops[0].at, 1.0);
  size_t i = 1;
  while (i + 1 < std::size(kStops) && x > kStops[i].at) ++i;
  const double t = (x - kStops[i - 1].at) / (kStops[i].at - kStops[i - 1].at);
  const auto mix = [t](int a, int b) { return static_cast<int>(std::lround(a + t * (b - a))); };
  char text[8];
  std::snprintf(text, sizeof(text), "#%02x%02x%02x", mix(kStops[i - 1].red, kStops[i].red), mix(kStops[i - 1].green, kStops[i].green),
                mix(kStops[i - 1].blue, kStops[i].blue));
  return text;
}

std::string figure(double share) {
  char text[16];
  std::snprintf(text, sizeof(text), share >= 0.99995 ? "%.0f" : "%.1f", 100 * share);
  return text;
}

}  // namespace

std::string passkey_picture_svg(const PasskeyPicture& p) {
  const int positions = static_cast<int>(p.positions.size()), lengths = static_cast<int>(p.lengths.size());
  const int group = positions * kCell + kGap;
  const int width = kMargin * 2 + kLabel + lengths * group;
  const int lines = static_cast<int>(std::count(p.note.begin(), p.note.end(), '\n')) + 1;
  const int height = kTop + static_cast<int>(p.rows.size()) * (kRow + kGap) + lines * kLine + kMargin;
  std::ostringstream out;
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << width << "\" height=\"" << height << "\" viewBox=\"0 0 " << width << " "
      << height << "\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n"
      << "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  const auto text = [&](int x, int y, const std::string& words, const std::string& style) {
    out << "<text x=\"" << x << "\" y=\"" << y << "\" " << style << ">" << escaped(words) << "</text>\n";
  };
  text(kMargin, 30, p.title, "font-size=\"17\" font-weight=\"600\"");
  for (int l = 0; l < lengths; ++l) {
    const int x = kMargin + kLabel + l * group;
    text(x + (group - kGap) / 2, kTop - 30, p.lengths[static_cast<size_t>(l)], "text-anchor=\"middle\" font-weight=\"600\"");
    for (int q = 0; q < positions; ++q) {
      text(x + q * kCell + kCell / 2, kTop - 10, p.positions[static_cast<size_t>(q)],
           "text-anchor=\"middle\" font-size=\"11\" fill=\"#555\"");
    }
  }
  int y = kTop;
  for (const PasskeyPictureRow& row : p.rows) {
    text(kMargin, y + 15, row.label, row.published ? "font-style=\"italic\"" : "font-weight=\"600\"");
    text(kMargin, y + 29, row.note, "font-size=\"10.5\" fill=\"#555\"");
    for (const PasskeyPictureCell& cell : row.cells) {
      const auto l = std::find(p.lengths.begin(), p.lengths.end(), cell.length) - p.lengths.begin();
      const auto q = std::find(p.positions.begin(), p.positions.end(), cell.position) - p.positions.begin();
      if (l == lengths || q == positions) continue;
      const int x = kMargin + kLabel + static_cast<int>(l) * group + static_cast<int>(q) * kCell;
      const std::string dark = cell.share < 0.35 || cell.share >= 0.995 ? "white" : "#222";
      out << "<g><title>" << escaped(cell.title) << "</title><rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << kCell - 2
          << "\" height=\"" << kRow << "\" rx=\"3\" fill=\"" << colour(cell.share) << "\"/>";
      out << "<text x=\"" << x + kCell / 2 - 1 << "\" y=\"" << y + 22 << "\" text-anchor=\"middle\" fill=\"" << dark << "\">"
          << figure(cell.share) << "</text></g>\n";
    }
    y += kRow + kGap;
  }
  std::istringstream note(p.note);
  for (std::string line; std::getline(note, line); y += kLine) text(kMargin, y + 16, line, "font-size=\"11.5\" fill=\"#444\"");
  out << "</svg>\n";
  return out.str();
}

}  // namespace quipu
