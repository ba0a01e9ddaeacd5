// PlanBackend: a back end that packs nothing and computes nothing. A model loaded with it has checked shapes, state layouts
// and costs, but no weights: for inspect, cost tables and the memory check before the real load. Operations are CHECK
// failures.
#pragma once

#include "ops/backend.h"

namespace quipu {

class PlanBackend final : public Backend {
 public:
  PlanBackend() : Backend(std::make_unique<ThreadPool>(1), Activations::kExact) {}
  std::string name() const override { return "plan"; }

 private:
  Result<std::unique_ptr<PackedMatrix>> do_pack(const MatrixSource& source) override;
  void do_matmul(std::span<const MatmulOutput>, MatrixView<const float>) override;
  void do_embed(MatrixView<float>, std::span<const int32_t>, const MatrixSource&, float) override;
  void do_rms_norm(MatrixView<float>, MatrixView<const float>, std::span<const float>, float) override;
  void do_layer_norm(MatrixView<float>, MatrixView<const float>, std::span<const float>, std::span<const float>, float) override;
  void do_add(MatrixView<float>, MatrixView<const float>) override;
  void do_gated_activation(MatrixView<float>, MatrixView<const float>, MatrixView<const float>, GateActivation) override;
  void do_rope(MatrixView<float>, int64_t, std::span<const int64_t>, std::span<const float>, const RopeOptions&) override;
  void do_store_kv(std::span<const AttendSlice>, MatrixView<const float>, MatrixView<const float>) override;
  void do_attend(MatrixView<float>, MatrixView<const float>, std::span<const AttendSlice>, const AttendOptions&) override;
};

}  // namespace quipu
