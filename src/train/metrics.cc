#include "train/metrics.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/atomic_file.h"
#include "base/byte_reader.h"

namespace quipu {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxLineBytes = 1 << 16;

Error cannot_write(const std::string& path) {
  return failed(printable(path, 400) + ": cannot write: " + std::strerror(errno) + "; checkpoints are not affected");
}

std::string text_of(const MetricsLine& line) {
  ordered_json json = {{"step", line.step}};
  for (const auto& [name, value] : line.values) {
    if (std::isfinite(value))
      json[name] = value;  // JSON has no NaN
    else
      json[name] = nullptr;
  }
  return json.dump() + "\n";
}

// The lines of an earlier run up to last_step.
std::vector<MetricsLine> earlier_lines(const std::string& path, int64_t last_step) {
  std::vector<MetricsLine> out;
  std::ifstream file(path);
  std::string text;
  while (std::getline(file, text)) {
    if (text.size() > kMaxLineBytes) continue;
    const ordered_json json = ordered_json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    MetricsLine line;
    line.step = json["step"].get<int64_t>();
    if (line.step > last_step) continue;
    for (const auto& [name, value] : json.items()) {
      if (name != "step" && value.is_number()) line.values.emplace_back(name, value.get<double>());
    }
    out.push_back(std::move(line));
  }
  return out;
}

void put_varint(std::string& out, uint64_t value) {
  while (value >= 0x80) {
    out += static_cast<char>(value | 0x80);
    value >>= 7;
  }
  out += static_cast<char>(value);
}

template <class T>
void put_fixed(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event_head(double unix_seconds) {
  std::string event;
  event += static_cast<char>(1 << 3 | 1);
  put_fixed(event, unix_seconds);
  return event;
}

}  // namespace

Result<MetricsLog> MetricsLog::open(const std::string& folder, int64_t last_step) {
  const std::string path = folder + "/metrics.jsonl";
  std::vector<MetricsLine> kept;
  if (last_step >= 0) kept = earlier_lines(path, last_step);
  {
    ASSIGN_OR_RETURN(AtomicFile fresh, AtomicFile::create(path));
    for (const MetricsLine& line : kept) RETURN_IF_ERROR(fresh.write(text_of(line)));
    RETURN_IF_ERROR(fresh.commit());
  }
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) return cannot_write(path);
  MetricsLog log(path, file);
  log.history_ = std::move(kept);
  return log;
}

MetricsLog::MetricsLog(MetricsLog&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, nullptr)), history_(std::move(other.history_)) {}

MetricsLog::~MetricsLog() {
  if (file_ != nullptr) std::fclose(file_);
}

Result<void> MetricsLog::add(const MetricsLine& line) {
  history_.push_back(line);
  const std::string text = text_of(line);
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0)
    return cannot_write(path_);
  return {};
}

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? 0x82F63B78u : 0u);
      t[i] = value;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(byte)) & 0xFF];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

Result<TensorBoardLog> TensorBoardLog::create(const std::string& folder, double unix_seconds) {
  char name[64];
  std::snprintf(name, sizeof name, "/events.out.tfevents.%lld.quipu", static_cast<long long>(unix_seconds));
  const std::string path = folder + name;
  std::FILE* file = std::fopen(path.c_str(), "abe");
  if (file == nullptr) return cannot_write(path);
  TensorBoardLog log(path, file);
  std::string event = event_head(unix_seconds);
  put_bytes(event, 3, "brain.Event:2");
  RETURN_IF_ERROR(log.record(event));
  return log;
}

TensorBoardLog::TensorBoardLog(TensorBoardLog&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, nullptr)) {}

TensorBoardLog::~TensorBoardLog() {
  if (file_ != nullptr) std::fclose(file_);
}

Result<void> TensorBoardLog::add(const MetricsLine& line, double unix_seconds) {
  std::string summary;
  for (const auto& [name, number] : line.values) {
    std::string value;
    constexpr std::string_view kHeldOut = "held_out_";
    put_bytes(value, 1, name.starts_with(kHeldOut) ? "held_out/" + name.substr(kHeldOut.size()) : "train/" + name);
    value += static_cast<char>(2 << 3 | 5);
    put_fixed(value, static_cast<float>(number));
    put_bytes(summary, 1, value);
  }
  std::string event = event_head(unix_seconds);
  event += static_cast<char>(2 << 3);
  put_varint(event, static_cast<uint64_t>(line.step));
  put_bytes(event, 5, summary);
  return record(event);
}

Result<void> TensorBoardLog::record(const std::string& event) {
  std::string out;
  put_fixed(out, static_cast<uint64_t>(event.size()));
  put_fixed(out, masked_crc32c(out));
  out += event;
  put_fixed(out, masked_crc32c(event));
  if (std::fwrite(out.data(), 1, out.size(), file_) != out.size() || std::fflush(file_) != 0)
    return cannot_write(path_);
  return {};
}

}  // namespace quipu
