// Metrics of a run as files people already read: metrics.jsonl (one object a line), TensorBoard event files, and a
// self-contained HTML page with the curves.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

// One line: the step and named numbers, such as {"loss", 2.31}. Names are lower_case; JSONL and HTML show them as they
// are.
struct MetricsLine {
  int64_t step = 0;
  std::vector<std::pair<std::string, double>> values;
};

class MetricsLog {
 public:
  // Appends to folder/metrics.jsonl. Lines of steps after `last_step` (from a run that was stopped between checkpoints)
  // are dropped first, unreadable ones too; a fresh run (last_step < 0) begins anew.
  static Result<MetricsLog> open(const std::string& folder, int64_t last_step);
  MetricsLog(MetricsLog&& other) noexcept;
  ~MetricsLog();
  Result<void> add(const MetricsLine& line);
  const std::vector<MetricsLine>& history() const { return history_; }

 private:
  MetricsLog(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  std::string path_;
  std::FILE* file_ = nullptr;
  std::vector<MetricsLine> history_;
};

// TensorBoard's event files: TFRecord framing (length, masked CRC-32C, bytes, masked CRC-32C) around Event messages in
// protocol-buffer encoding, written by hand: wall_time = 1, step = 2, file_version = 3, summary = 5 { value = 1 { tag =
// 1, simple_value = 2 } }.
class TensorBoardLog {
 public:
  // A new file in `folder`, named as TensorBoard expects; unix_seconds goes into the name and the first event.
  static Result<TensorBoardLog> create(const std::string& folder, double unix_seconds);
  TensorBoardLog(TensorBoardLog&& other) noexcept;
  ~TensorBoardLog();
  // Tags are "train/<name>", for names that begin with "held_out_" "held_out/<rest>".
  Result<void> add(const MetricsLine& line, double unix_seconds);

 private:
  TensorBoardLog(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  Result<void> record(const std::string& event);
  std::string path_;
  std::FILE* file_ = nullptr;
};

// CRC-32C (Castagnoli), and the masked form TFRecord stores.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

// What the page says above its curves: pairs of heading and text.
struct ReportFacts {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;
};
// Writes a page without scripts or outside references: facts, then a curve for every metric there is.
Result<void> write_html_report(const std::string& path, const ReportFacts& facts,
                               const std::vector<MetricsLine>& history);

}  // namespace quipu
