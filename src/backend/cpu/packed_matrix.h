// The CPU back end's packed matrix: panels of 16 rows (panel_format.h), quantised or float.
#pragma once

#include "backend/cpu/panel_format.h"
#include "ops/backend.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

// How the panels of a matrix lie in memory.
enum class PanelKind : uint8_t {
  kQuantised,     // pack_quantised_panel
  kFloat,         // pack_float_panel
  kPairedHalves,  // pack_paired_panel: bf16 only
};

class CpuMatrix final : public PackedMatrix {
 public:
  // Copies the matrix into panels on the pool's threads; bf16 in pairs when `pairs_bf16`.
  static Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, ThreadPool& pool, bool pairs_bf16);

  int64_t bytes() const override { return static_cast<int64_t>(panels_.size()); }
  PanelKind kind() const { return kind_; }
  int64_t panels() const { return (rows() + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int64_t index) const { return panels_.data() + index * panel_bytes_; }
  const PanelFormat& format() const { return *format_; }   // quantised only
  // Whether activations are rounded twice: what the first rounding left over gets 8 bits of its own.
  bool fine() const { return fine_; }

 private:
  CpuMatrix(DType dtype, int64_t rows, int64_t cols) : PackedMatrix(dtype, rows, cols) {}
  void pack_panel(int64_t index, const MatrixSource& source);

  PanelKind kind_ = PanelKind::kFloat;
  Buffer panels_;
  int64_t panel_bytes_ = 0;
  const PanelFormat* format_ = nullptr;
  bool fine_ = false;
};

}  // namespace quipu::cpu
