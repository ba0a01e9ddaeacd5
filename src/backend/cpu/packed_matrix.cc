#include "backend/cpu/packed_matrix.h"

#include <algorithm>

namespace quipu::cpu {

Result<WeightMemory::Part> WeightMemory::take(int64_t bytes) {
  constexpr int64_t kStretch = int64_t{64} << 20;   // what is never touched takes no memory
  if (stretch_ == nullptr || used_ + bytes > static_cast<int64_t>(stretch_->size())) {
    ASSIGN_OR_RETURN(Buffer stretch, Buffer::allocate(static_cast<size_t>(std::max(bytes, kStretch))));
    stretch_ = std::make_shared<const Buffer>(std::move(stretch));
    used_ = 0;
  }
  Part part{stretch_, stretch_->data() + used_, bytes};
  used_ += (bytes + 63) / 64 * 64;
  return part;
}

Result<std::unique_ptr<PackedMatrix>> CpuMatrix::pack(const MatrixSource& source, ThreadPool& pool, WeightMemory& memory,
                                                      bool pairs_bf16) {
  const bool is_float = source.dtype == DType::kF32 || source.dtype == DType::kF16 || source.dtype == DType::kBF16;
  if (!is_float && !traits(source.dtype).quantised) {
    return bad_input("the cpu back end has no matrix layout for " + std::string(dtype_name(source.dtype)));
  }
  auto matrix = std::unique_ptr<CpuMatrix>(new CpuMatrix(source.dtype, source.rows, source.cols));
  if (source.dtype == DType::kBF16 && pairs_bf16) {
    matrix->kind_ = PanelKind::kPairedHalves;
    matrix->panel_bytes_ = paired_blocks(source.cols) * kPairedBlockBytes;
  } else if (is_float) {
    matrix->panel_bytes_ = row_bytes(source.dtype, source.cols) * kPanelRows;
  } else if (source.dtype == DType::kQ8_0 && pairs_bf16 && source.rounding == Rounding::kBits8 && source.cols % kBlockCols == 0) {
    matrix->kind_ = PanelKind::kCodedHalves;
    matrix->panel_bytes_ = source.cols / kBlockCols * kCodedBlockBytes;
  } else {
    if (source.cols % kBlockCols != 0) return bad_input("a quantised matrix has rows of " + std::to_string(source.cols));
    matrix->kind_ = PanelKind::kQuantised;
    matrix->fine_ = source.rounding == Rounding::kBits16;
    matrix->format_ = &panel_format(source.dtype);
    matrix->panel_bytes_ = matrix->format_->panel_bytes(source.cols);
  }
  ASSIGN_OR_RETURN(matrix->panels_, memory.take(matrix->panel_bytes_ * matrix->panels()));
  pool.parallel_for(matrix->panels(), [&](int64_t index) { matrix->pack_panel(index, source); });
  return std::unique_ptr<PackedMatrix>(std::move(matrix));
}

void CpuMatrix::pack_panel(int64_t index, const MatrixSource& source) {
  const int64_t stride = row_bytes(source.dtype, source.cols);
  std::byte* panel = panels_.data + index * panel_bytes_;
  const std::byte* rows = source.bytes.data() + index * kPanelRows * stride;
  const int64_t valid = std::min(kPanelRows, source.rows - index * kPanelRows);
  switch (kind_) {
    case PanelKind::kQuantised: return pack_quantised_panel(panel, rows, stride, valid, source.cols, *format_);
    case PanelKind::kFloat: return pack_float_panel(panel, rows, stride, valid, source.cols, source.dtype);
    case PanelKind::kPairedHalves: return pack_paired_panel(panel, rows, stride, valid, source.cols);
    case PanelKind::kCodedHalves: return pack_coded_panel(panel, rows, stride, valid, source.cols);
  }
}

}  // namespace quipu::cpu
