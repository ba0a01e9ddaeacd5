#include "base/cpu_features.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace quipu {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(uint32_t word, int index) { return (word >> index & 1) != 0; }

uint64_t enabled_register_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux hands out the 8 KiB tile registers only to processes that ask (ARCH_REQ_XCOMP_PERM, feature 18); without it the
// first tile instruction is SIGILL. Threads started later inherit the permission.
bool request_tile_permission() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa detect() {
  const Registers leaf1 = cpuid(1, 0);
  if (!bit(leaf1.c, 27)) return Isa::kPortable;  // OSXSAVE
  const uint64_t states = enabled_register_states();
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = cpuid(7, 1);
  const bool avx_states = (states & 0x6) == 0x6;
  const bool avx2 = avx_states && bit(leaf1.c, 28) && bit(leaf1.c, 12) && bit(leaf1.c, 29) && bit(leaf7.b, 5) &&
                    bit(leaf7.b, 8);
  if (!avx2) return Isa::kPortable;
  const bool avx512_states = (states & 0xe6) == 0xe6;
  const bool avx512 = avx512_states && bit(leaf7.b, 16) && bit(leaf7.b, 17) && bit(leaf7.b, 28) && bit(leaf7.b, 30) &&
                      bit(leaf7.b, 31) && bit(leaf7.c, 11) && bit(leaf7_1.a, 5);
  if (!avx512) return Isa::kAvx2;
  const bool tile_states = (states & 0x60000) == 0x60000;
  const bool amx = tile_states && bit(leaf7.d, 24) && bit(leaf7.d, 25) && bit(leaf7.d, 22);
  return amx && request_tile_permission() ? Isa::kAmx : Isa::kAvx512;
}

#else

Isa detect() { return Isa::kPortable; }

#endif

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAmx: return "amx";
  }
  return "unknown";
}

Result<Isa> isa_from_name(std::string_view name) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa_name(isa) == name) return isa;
  }
  return usage_error("instruction set \"" + std::string(name) + "\" is unknown; choose portable, avx2, avx512 or amx");
}

Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

Result<Isa> chosen_isa() {
  const char* wanted = std::getenv("QUIPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  const Result<Isa> named = isa_from_name(wanted);
  if (!named.ok()) return usage_error("QUIPU_ISA: " + named.error().message);
  const Isa isa = *named;
  if (isa > best_isa()) {
    return usage_error("QUIPU_ISA=" + std::string(wanted) + ", but this machine's best is " +
                       std::string(isa_name(best_isa())));
  }
  return isa;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> list;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa <= best_isa()) list.push_back(isa);
  }
  return list;
}

std::string cpu_model_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace quipu
