// The CPU back end's packed matrix: panels of 16 rows (panel_format.h), quantised or float.
#pragma once

#include <memory>

#include "backend/cpu/panel_format.h"
#include "ops/backend.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

// How the panels of a matrix lie in memory.
enum class PanelKind : uint8_t {
  kQuantised,     // pack_quantised_panel
  kFloat,         // pack_float_panel
  kPairedHalves,  // pack_paired_panel: bf16 only
  kCodedHalves,   // pack_coded_panel: Q8_0 only
};

// Memory of packed matrices, many in one large stretch: each in huge pages of its own would leave the last one half empty,
// which was 100 MB of a model of 1.2 billion weights.
class WeightMemory {
 public:
  struct Part {
    std::shared_ptr<const Buffer> stretch;   // given back when all its parts are gone
    std::byte* data = nullptr;               // zeros
    int64_t bytes = 0;
  };
  Result<Part> take(int64_t bytes);

 private:
  std::shared_ptr<const Buffer> stretch_;
  int64_t used_ = 0;
};

class CpuMatrix final : public PackedMatrix {
 public:
  // Copies the matrix into panels in `memory` on the pool's threads; when `pairs_bf16`, bf16 in pairs and Q8_0 so that it
  // becomes bf16.
  static Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, ThreadPool& pool, WeightMemory& memory, bool pairs_bf16);

  int64_t bytes() const override { return panels_.bytes; }
  const std::byte* tile_pairs() const override { return kind_ == PanelKind::kPairedHalves ? panels_.data : nullptr; }
  PanelKind kind() const { return kind_; }
  int64_t panels() const { return (rows() + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int64_t index) const { return panels_.data + index * panel_bytes_; }
  const PanelFormat& format() const { return *format_; }   // quantised only
  // Whether activations are rounded twice: what the first rounding left over gets 8 bits of its own.
  bool fine() const { return fine_; }

 private:
  CpuMatrix(DType dtype, int64_t rows, int64_t cols) : PackedMatrix(dtype, rows, cols) {}
  void pack_panel(int64_t index, const MatrixSource& source);

  PanelKind kind_ = PanelKind::kFloat;
  WeightMemory::Part panels_;
  int64_t panel_bytes_ = 0;
  const PanelFormat* format_ = nullptr;
  bool fine_ = false;
};

}  // namespace quipu::cpu
