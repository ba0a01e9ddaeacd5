#include "backend/cpu/amx_emulator_for_test.h"

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

namespace quipu {
namespace {

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  uint8_t data[16][64] = {};
};

struct TileState {
  bool configured = false;
  uint8_t config[64] = {};
  Tile tiles[8];
};

thread_local TileState state;
std::atomic<int64_t> products = 0;
bool installed = false;

// Why an instruction cannot be executed; null: done.
using Fault = const char*;

enum Prefix { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };

// A three-byte VEX instruction of map 0F38 with W = 0 and 128 bits, which all of AMX is.
struct Instruction {
  int opcode = 0;
  int prefix = kNone;
  int third = 0;                // VEX.vvvv
  int mod = 0, reg = 0, rm = 0;
  bool has_sib = false;
  uint64_t address = 0;         // base + displacement; the index is a stride here
  int64_t stride = 0;
  int length = 0;
};

uint64_t general_register(const mcontext_t& machine, int number) {
  constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(machine.gregs[kOrder[number]]);
}

void decode_memory(Instruction& out, const mcontext_t& machine, const uint8_t* code, bool index_high, bool base_high) {
  const uint8_t* at = code + out.length;
  int base = out.rm + (base_high ? 8 : 0);
  bool has_base = true;
  if (out.rm == 4) {
    const uint8_t sib = *at++;
    out.has_sib = true;
    base = (sib & 7) + (base_high ? 8 : 0);
    has_base = !((sib & 7) == 5 && out.mod == 0);
    const int index = (sib >> 3 & 7) + (index_high ? 8 : 0);
    if (index != 4) out.stride = static_cast<int64_t>(general_register(machine, index) << (sib >> 6));
  }
  const bool relative = out.rm == 5 && out.mod == 0;   // to the next instruction
  int64_t displacement = 0;
  if (out.mod == 1) {
    displacement = static_cast<int8_t>(*at++);
  } else if (out.mod == 2 || relative || !has_base) {
    int32_t word;
    std::memcpy(&word, at, 4);
    displacement = word;
    at += 4;
  }
  out.length = static_cast<int>(at - code);
  uint64_t start = 0;
  if (relative) {
    start = reinterpret_cast<uint64_t>(at);
  } else if (has_base) {
    start = general_register(machine, base);
  }
  out.address = start + static_cast<uint64_t>(displacement);
}

bool decode(Instruction& out, const mcontext_t& machine) {
  const uint8_t* code = reinterpret_cast<const uint8_t*>(machine.gregs[REG_RIP]);
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;
  out.opcode = code[3];
  if (out.opcode != 0x49 && out.opcode != 0x4b && out.opcode != 0x5c && out.opcode != 0x5e) return false;
  const bool reg_high = (code[1] & 0x80) == 0, index_high = (code[1] & 0x40) == 0, base_high = (code[1] & 0x20) == 0;
  out.third = ~code[2] >> 3 & 15;
  out.prefix = code[2] & 3;
  out.mod = code[4] >> 6;
  out.reg = (code[4] >> 3 & 7) + (reg_high ? 8 : 0);
  out.rm = code[4] & 7;
  out.length = 5;
  if (out.mod != 3) {
    decode_memory(out, machine, code, index_high, base_high);
  } else if (base_high) {
    out.rm += 8;
  }
  return true;
}

// ---- configuration ------------------------------------------------------------------------------------------------

Fault load_config(const uint8_t* bytes) {
  const int palette = bytes[0];
  if (palette > 1) return "palette is neither 0 nor 1";
  for (int i = 2; i < 16; ++i) {
    if (bytes[i] != 0) return "reserved bytes of the configuration are not zero";
  }
  TileState next;
  for (int tile = 0; tile < 16 && palette == 1; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
    const int rows = bytes[48 + tile];
    if (tile >= 8 && (rows != 0 || row_bytes != 0)) return "the palette has 8 tiles only";
    if (rows > 16) return "a tile of more than 16 rows";
    if (row_bytes > 64) return "a tile of more than 64 bytes a row";
    if ((rows == 0) != (row_bytes == 0)) return "a tile with rows or bytes a row of zero, but not both";
    if (tile < 8) {
      next.tiles[tile].rows = rows;
      next.tiles[tile].row_bytes = row_bytes;
    }
  }
  next.configured = palette == 1;
  if (next.configured) std::memcpy(next.config, bytes, 64);
  state = next;
  return nullptr;
}

Fault configure(const Instruction& in) {
  if (in.third != 0) return "VEX.vvvv is not 1111b";
  if (in.mod == 3) {
    if (in.prefix == kNone && in.reg == 0 && in.rm == 0) {
      state = TileState();   // TILERELEASE
      return nullptr;
    }
    if (in.prefix == kF2 && in.rm == 0) {   // TILEZERO
      if (in.reg >= 8 || state.tiles[in.reg].rows == 0) return "the tile is not configured";
      std::memset(state.tiles[in.reg].data, 0, sizeof(Tile::data));
      return nullptr;
    }
    return "no such instruction";
  }
  if (in.reg != 0) return "no such instruction";
  if (in.prefix == kNone) return load_config(reinterpret_cast<const uint8_t*>(in.address));
  if (in.prefix != k66) return "no such instruction";
  std::memcpy(reinterpret_cast<void*>(in.address), state.config, 64);   // STTILECFG
  return nullptr;
}

// ---- loads and stores ---------------------------------------------------------------------------------------------

Fault move_tile(const Instruction& in) {
  if (in.third != 0) return "VEX.vvvv is not 1111b";
  if (in.mod == 3 || !in.has_sib) return "a tile's address needs base and stride";
  if (in.reg >= 8 || state.tiles[in.reg].rows == 0) return "the tile is not configured";
  if (in.prefix == kNone) return "no such instruction";
  Tile& tile = state.tiles[in.reg];
  const bool store = in.prefix == kF3;
  if (!store) std::memset(tile.data, 0, sizeof(Tile::data));
  for (int row = 0; row < tile.rows; ++row) {
    void* memory = reinterpret_cast<void*>(in.address + static_cast<uint64_t>(row * in.stride));
    const size_t bytes = static_cast<size_t>(tile.row_bytes);
    store ? std::memcpy(memory, tile.data[row], bytes) : std::memcpy(tile.data[row], memory, bytes);
  }
  return nullptr;
}

// ---- products -----------------------------------------------------------------------------------------------------

Fault check_shapes(const Instruction& in) {
  if (in.mod != 3) return "a product takes tiles only";
  if (in.reg >= 8 || in.rm >= 8 || in.third >= 8) return "the palette has 8 tiles only";
  if (in.reg == in.rm || in.reg == in.third || in.rm == in.third) return "an operand is named twice";
  const Tile &sums = state.tiles[in.reg], &a = state.tiles[in.rm], &b = state.tiles[in.third];
  if (sums.rows == 0 || a.rows == 0 || b.rows == 0) return "the tile is not configured";
  if (sums.row_bytes % 4 != 0 || a.row_bytes % 4 != 0 || b.row_bytes % 4 != 0) return "bytes a row are not whole dwords";
  if (sums.rows != a.rows) return "rows of the sums and of the first factor differ";
  if (a.row_bytes / 4 != b.rows) return "columns of the first factor and rows of the second differ";
  if (sums.row_bytes != b.row_bytes) return "columns of the sums and of the second factor differ";
  return nullptr;
}

template <class A, class B>
void multiply_bytes(Tile& sums, const Tile& a, const Tile& b) {
  for (int m = 0; m < sums.rows; ++m) {
    uint32_t row[16];   // wraps around, as the instruction does
    std::memcpy(row, sums.data[m], 64);
    for (int k = 0; k < a.row_bytes / 4; ++k) {
      for (int n = 0; n < sums.row_bytes / 4; ++n) {
        int32_t dot = 0;
        for (int i = 0; i < 4; ++i) dot += static_cast<A>(a.data[m][4 * k + i]) * static_cast<B>(b.data[k][4 * n + i]);
        row[n] += static_cast<uint32_t>(dot);
      }
    }
    std::memcpy(sums.data[m], row, 64);
  }
}

float half_at(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void multiply_halves(Tile& sums, const Tile& a, const Tile& b) {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0);   // no exceptions, round to nearest even, subnormals in and out are zero
  float b_floats[16][32];
  for (int k = 0; k < b.rows; ++k) {
    for (int n = 0; n < 32; ++n) b_floats[k][n] = half_at(b.data[k] + 2 * n);
  }
  for (int m = 0; m < sums.rows; ++m) {
    float parts[32] = {};
    for (int k = 0; k < b.rows; ++k) {
      const float even = half_at(a.data[m] + 4 * k), odd = half_at(a.data[m] + 4 * k + 2);
      for (int n = 0; n < 16; ++n) {
        parts[2 * n] += even * b_floats[k][2 * n];
        parts[2 * n + 1] += odd * b_floats[k][2 * n + 1];
      }
    }
    float row[16];
    std::memcpy(row, sums.data[m], 64);
    for (int n = 0; n < sums.row_bytes / 4; ++n) row[n] += parts[2 * n] + parts[2 * n + 1];
    std::memcpy(sums.data[m], row, 64);
  }
  _mm_setcsr(saved);
}

Fault multiply(const Instruction& in) {
  if (const Fault fault = check_shapes(in)) return fault;
  Tile& sums = state.tiles[in.reg];
  const Tile &a = state.tiles[in.rm], &b = state.tiles[in.third];
  products.fetch_add(1, std::memory_order_relaxed);
  if (in.opcode == 0x5c) {
    if (in.prefix != kF3) return "no such instruction";
    multiply_halves(sums, a, b);
    return nullptr;
  }
  switch (in.prefix) {
    case kNone: multiply_bytes<uint8_t, uint8_t>(sums, a, b); break;
    case k66: multiply_bytes<uint8_t, int8_t>(sums, a, b); break;
    case kF3: multiply_bytes<int8_t, uint8_t>(sums, a, b); break;
    default: multiply_bytes<int8_t, int8_t>(sums, a, b); break;
  }
  return nullptr;
}

// ---- the trap -----------------------------------------------------------------------------------------------------

// Returning then runs into the same instruction, and the process ends as it would have.
void give_up(Fault fault) {
  const char* const parts[] = {"amx emulator: ", fault, "\n"};
  for (const char* part : parts) {
    if (write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  }
  signal(SIGILL, SIG_DFL);
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  Instruction in;
  if (!decode(in, machine)) return give_up("not a tile instruction");
  Fault fault = nullptr;
  if (in.opcode == 0x49) {
    fault = configure(in);
  } else if (in.opcode == 0x4b) {
    fault = move_tile(in);
  } else {
    fault = multiply(in);
  }
  if (fault != nullptr) return give_up(fault);
  machine.gregs[REG_RIP] += in.length;
}

bool install() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace

std::vector<Isa> isas_under_test() {
  std::vector<Isa> list = available_isas();
  if (list.back() != Isa::kAvx512) return list;   // lower: the other half of the AMX kernels cannot run
  static const bool done = installed = install();
  if (done) list.push_back(Isa::kAmx);
  return list;
}

bool amx_is_emulated() { return installed; }
int64_t emulated_tile_products() { return products.load(std::memory_order_relaxed); }

}  // namespace quipu

#else

namespace quipu {

std::vector<Isa> isas_under_test() { return available_isas(); }
bool amx_is_emulated() { return false; }
int64_t emulated_tile_products() { return 0; }

}  // namespace quipu

#endif
