// Training kernels for any machine, no intrinsics. See training_kernels.h.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "backend/cpu/kernels/training_kernels.h"
#include "tensor/dtype.h"
#include "tensor/float16.h"

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_portable.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/training_gemm_body.h"

#include "backend/cpu/kernels/training_body.h"

constexpr TrainingKernels kTable = make_training_table("portable");

}  // namespace

const TrainingKernels& portable_training_kernels() { return kTable; }

}  // namespace quipu::cpu
