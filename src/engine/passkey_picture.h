// Accuracy of pass key retrieval by length and position, as a table of coloured cells in SVG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quipu {

struct PasskeyPictureCell {
  std::string length;       // "32K"
  std::string position;     // "start"
  double share = 0;         // of digits, 0 to 1
  std::string title;        // shown when pointed at
};

struct PasskeyPictureRow {
  std::string label, note;  // note: small print under the label
  bool published = false;   // somebody else's figures: set apart
  std::vector<PasskeyPictureCell> cells;
};

struct PasskeyPicture {
  std::string title, note;  // note: lines under the table, separated by '\n'
  std::vector<std::string> lengths, positions;   // columns: positions within lengths
  std::vector<PasskeyPictureRow> rows;
};

std::string passkey_picture_svg(const PasskeyPicture& picture);

}  // namespace quipu
