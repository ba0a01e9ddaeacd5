// The CPU back end's packed matrix: panels of 16 rows (panel_format.h), quantised or float.
#pragma once

#include "backend/cpu/panel_format.h"
#include "ops/backend.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

class CpuMatrix final : public PackedMatrix {
 public:
  // Copies the matrix into panels on the pool's threads.
  static Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, ThreadPool& pool);

  int64_t bytes() const override { return static_cast<int64_t>(panels_.size()); }
  bool quantised() const { return traits(source_dtype()).quantised; }
  int64_t panels() const { return (rows() + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int64_t index) const { return panels_.data() + index * panel_bytes_; }
  const PanelFormat& format() const { return *format_; }   // quantised only

 private:
  CpuMatrix(DType dtype, int64_t rows, int64_t cols) : PackedMatrix(dtype, rows, cols) {}
  Buffer panels_;
  int64_t panel_bytes_ = 0;
  const PanelFormat* format_ = nullptr;
};

}  // namespace quipu::cpu
