// What the processor and the operating system allow, and the instruction set the engine uses.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

// Ordered: each level includes the ones before it.
//   kPortable  baseline x86-64 or any other machine, plain C++
//   kAvx2      AVX2, FMA, F16C
//   kAvx512    AVX-512 F BW CD DQ VL, VNNI, BF16
//   kAmx       kAvx512 plus AMX tile, int8, bf16, permitted by the kernel for this process
enum class Isa { kPortable, kAvx2, kAvx512, kAmx };

std::string_view isa_name(Isa isa);                       // "portable", "avx2", "avx512", "amx"
Result<Isa> isa_from_name(std::string_view name);         // kUsage, listing the names

// The best level this machine has. CPUID is not enough: XCR0 must show that the system saves the registers, and AMX
// needs the kernel's permission, which the first call asks for.
Isa best_isa();

// The level to use: QUIPU_ISA if set (an error when unknown or absent on this machine), else best_isa().
Result<Isa> chosen_isa();

// Levels this machine can run, lowest first: what tests walk.
std::vector<Isa> available_isas();

std::string cpu_model_name();                             // as the processor states it

}  // namespace quipu
