// Kernels for any machine, no intrinsics. See kernels.h.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "backend/cpu/kernels/kernels.h"
#include "tensor/float16.h"

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_portable.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/panel_body.h"

#include "backend/cpu/kernels/matmul_body.h"

#include "backend/cpu/kernels/rows_body.h"

#include "backend/cpu/kernels/table_body.h"

constexpr KernelTable kTable = make_table("portable");

}  // namespace

const KernelTable& portable_kernels() { return kTable; }

}  // namespace quipu::cpu
