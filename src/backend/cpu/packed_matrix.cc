#include "backend/cpu/packed_matrix.h"

#include <algorithm>

namespace quipu::cpu {

Result<std::unique_ptr<PackedMatrix>> CpuMatrix::pack(const MatrixSource& source, ThreadPool& pool) {
  const bool is_float = source.dtype == DType::kF32 || source.dtype == DType::kF16 || source.dtype == DType::kBF16;
  if (!is_float && !traits(source.dtype).quantised) {
    return bad_input("the cpu back end has no matrix layout for " + std::string(dtype_name(source.dtype)));
  }
  auto matrix = std::unique_ptr<CpuMatrix>(new CpuMatrix(source.dtype, source.rows, source.cols));
  if (is_float) {
    matrix->panel_bytes_ = row_bytes(source.dtype, source.cols) * kPanelRows;
  } else {
    if (source.cols % kBlockCols != 0) return bad_input("a quantised matrix has rows of " + std::to_string(source.cols));
    matrix->format_ = &panel_format(source.dtype);
    matrix->panel_bytes_ = matrix->format_->panel_bytes(source.cols);
  }
  ASSIGN_OR_RETURN(matrix->panels_, Buffer::allocate(static_cast<size_t>(matrix->panel_bytes_ * matrix->panels())));
  const int64_t stride = row_bytes(source.dtype, source.cols);
  CpuMatrix* target = matrix.get();
  pool.parallel_for(matrix->panels(), [&](int64_t index) {
    std::byte* panel = target->panels_.data() + index * target->panel_bytes_;
    const std::byte* rows = source.bytes.data() + index * kPanelRows * stride;
    const int64_t valid = std::min(kPanelRows, source.rows - index * kPanelRows);
    if (is_float) {
      pack_float_panel(panel, rows, stride, valid, source.cols, source.dtype);
    } else {
      pack_quantised_panel(panel, rows, stride, valid, source.cols, *target->format_);
    }
  });
  return std::unique_ptr<PackedMatrix>(std::move(matrix));
}

}  // namespace quipu::cpu
