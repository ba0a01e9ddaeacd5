#include "formats/recognise.h"

#include <algorithm>
#include <string_view>

namespace quipu {
namespace {

// Lower-case copy of the first bytes with leading white space removed: HTML comes in all spellings.
std::string text_start(std::string_view start) {
  const size_t first = start.find_first_not_of(" \t\r\n");
  std::string text(first == std::string_view::npos ? std::string_view() : start.substr(first));
  std::transform(text.begin(), text.end(), text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  return text;
}

}  // namespace

std::string recognise_content(std::span<const std::byte> bytes) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 256));
  if (start.empty()) return "an empty file";
  if (start.starts_with("version https://git-lfs")) {
    return "a Git LFS pointer, not the file itself (git lfs pull fetches it)";
  }
  if (start.starts_with("PK\x03\x04")) return "a zip archive (a PyTorch checkpoint?), which is not loaded";
  if (start.starts_with("GGUF")) return "a GGUF file";
  if (start.starts_with("FUGG")) return "a big-endian GGUF file, which is not supported";
  for (const std::string_view old : {"lmgg", "fmgg", "tjgg", "algg", "GGML", "ggml"}) {
    if (start.starts_with(old)) return "a GGML file from before GGUF (convert the original model again)";
  }
  if (start.starts_with("QUIPUCTX")) return "a saved context of quipu";
  if (start.size() >= 2 && start[0] == '\x80' && start[1] >= 2 && start[1] <= 5) {
    return "a Python pickle, which is never loaded (it can run code)";
  }
  if (start.starts_with("\x1f\x8b")) return "a gzip file";
  const std::string text = text_start(start);
  if (text.starts_with("<!doctype") || text.starts_with("<html")) return "an HTML page (a failed download?)";
  if (text.starts_with("<?xml")) return "an XML document (a failed download?)";
  if (text.starts_with("{\"error\"")) return "a JSON error message (a failed download?)";
  if (text.starts_with("{")) return "JSON text";
  if (start.size() > 10 && start[8] == '{' && start[9] == '"') return "a safetensors file";
  return "";
}

std::string looks_like(std::span<const std::byte> bytes) {
  const std::string what = recognise_content(bytes);
  return what.empty() ? "" : ": it looks like " + what;
}

}  // namespace quipu
