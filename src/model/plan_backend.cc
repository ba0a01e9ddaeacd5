#include "model/plan_backend.h"

namespace quipu {
namespace {

class PlannedMatrix final : public PackedMatrix {
 public:
  explicit PlannedMatrix(const MatrixSource& source)
      : PackedMatrix(source.dtype, source.rows, source.cols), bytes_(static_cast<int64_t>(source.bytes.size())) {}
  int64_t bytes() const override { return bytes_; }

 private:
  int64_t bytes_;
};

void no_operation(const char* op) { CHECK(false) << "[" << op << "] a planned model has no weights"; }

}  // namespace

Result<std::unique_ptr<PackedMatrix>> PlanBackend::do_pack(const MatrixSource& source) {
  return std::unique_ptr<PackedMatrix>(std::make_unique<PlannedMatrix>(source));
}

void PlanBackend::do_matmul(std::span<const MatmulOutput>, MatrixView<const float>) { no_operation("matmul"); }
void PlanBackend::do_embed(MatrixView<float>, std::span<const int32_t>, const MatrixSource&, float) { no_operation("embed"); }
void PlanBackend::do_rms_norm(MatrixView<float>, MatrixView<const float>, std::span<const float>, float) {
  no_operation("rms_norm");
}
void PlanBackend::do_layer_norm(MatrixView<float>, MatrixView<const float>, std::span<const float>, std::span<const float>,
                                float) {
  no_operation("layer_norm");
}
void PlanBackend::do_add(MatrixView<float>, MatrixView<const float>) { no_operation("add"); }
void PlanBackend::do_gated_activation(MatrixView<float>, MatrixView<const float>, MatrixView<const float>, GateActivation) {
  no_operation("gated_activation");
}
void PlanBackend::do_rope(MatrixView<float>, int64_t, std::span<const int64_t>, std::span<const float>, const RopeOptions&) {
  no_operation("rope");
}
void PlanBackend::do_store_kv(std::span<const AttendSlice>, MatrixView<const float>, MatrixView<const float>) {
  no_operation("store_kv");
}
void PlanBackend::do_attend(MatrixView<float>, MatrixView<const float>, std::span<const AttendSlice>, const AttendOptions&) {
  no_operation("attend");
}

}  // namespace quipu
