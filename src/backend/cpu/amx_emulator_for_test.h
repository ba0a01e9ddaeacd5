// Runs AMX machine code where the processor has no AMX: every tile instruction is an illegal one there, and a SIGILL
// handler decodes it, does what Intel's manual says (Software Developer's Manual, volume 2, TDP*, TILE*, LDTILECFG), and
// steps over it. So the tests execute the very bytes that run elsewhere. For tests only; x86-64 Linux.
//
// What the manual forbids ends the process with SIGILL and a line on standard error that names the rule: a configuration
// with an unknown palette, more than 16 rows or 64 bytes a row, rows without bytes, or reserved bytes; a tile that is not
// configured; tiles whose shapes do not fit each other; an operand named twice. (LDTILECFG raises SIGSEGV on hardware.)
//
// TDPBF16PS: the manual sums the even and the odd products of a tile row apart, each with FMA, adds the two and then the
// sum so far. Products of two bf16 are exact in float, so a multiplication and an addition do the same. Subnormals count
// as zero. Tests do not rely on that order: they allow each of the K + 2 roundings (K products, two additions) half an ulp
// of the sum of magnitudes, so that they hold for hardware that sums otherwise.
#pragma once

#include <cstdint>
#include <vector>

#include "base/cpu_features.h"

namespace quipu {

// The levels to test: what the machine has, and kAmx by emulation (installed by the first call) where it has AVX-512 only.
std::vector<Isa> isas_under_test();

bool amx_is_emulated();
int64_t emulated_tile_products();   // TDP* instructions emulated so far, in all threads

}  // namespace quipu
