// verify_room: runs the layer of a golden file on every back end of this machine and every path its room has, and says how
// far each is from the numbers of the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace quipu {

struct VerifyOptions {
  double limit = 1e-5;   // largest relative error that passes
  int threads = 2;
};

// One quantity of one run.
struct RoomRun {
  std::string backend;   // "reference", "cpu avx2"
  std::string path;      // "absorbed, chunks of 3", "token by token", "restored at 16 points"
  std::string quantity;  // "output", "final_memory"
  double error = 0;      // largest |difference| / largest |value of the file|; infinite when something is not a number
  bool passed = false;   // error <= limit
};

struct RoomReport {
  std::string file;
  std::string room;
  std::string source;               // who computed the file's numbers
  int64_t tokens = 0;
  int64_t hidden = 0;
  std::vector<RoomRun> runs;
  std::vector<std::string> notes;   // one line each, printable
  double largest() const;           // error of all runs
  int64_t failures() const;         // runs above the limit
};

// Caches hold F32 and activations are exact, so that an error is the arithmetic's. Paths: in one shot; in chunks of several
// sizes, those around a stride or segment among them; token by token; saved and restored at up to 16 places; for rooms that
// have them each in the absorbed form, the expanded one and the choice between the two.
// kBadInput when the file is no golden file, lacks a tensor or has one of another shape.
Result<RoomReport> verify_room(const std::string& path, const VerifyOptions& options = {});

}  // namespace quipu
