// AMX tile registers and the 2 x 2 square of them that the kernels share. Included inside the target region and namespace of
// one instruction set, after math_body.h: no include guard, no namespace.

// ---- tile registers -----------------------------------------------------------------------------------------------

#include "ops/kernels/amx_tile_registers.h"

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  void set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// What this thread's tiles are configured for: a number for each configuration below, 0 for none. Loading one takes about as
// long as ten tile products, so it is done when the shape changes, and end_products() gives the registers back.
thread_local int configured = 0;

void load_config(const TileConfig& config, int shape) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  configured = shape;
}

// Sums of row half h and panel p in tile 2 h + p; activations of half h in 4 + h; weights of panel p in 6 + p. A step
// multiplies step_bytes of every row.
void configure_square(int rows, int step_bytes) {
  const int shape = rows * 128 + step_bytes;
  if (shape == configured) return;
  TileConfig config;
  for (int half = 0; half < 2; ++half) {
    const int half_rows = half == 0 ? (rows < 16 ? rows : 16) : rows - 16;
    if (half_rows <= 0) continue;
    config.set(2 * half, half_rows, 64);
    config.set(2 * half + 1, half_rows, 64);
    config.set(4 + half, half_rows, step_bytes);
  }
  config.set(6, step_bytes / 4, 64);
  config.set(7, step_bytes / 4, 64);
  load_config(config, shape);
}

// Tiles in use make the system save 8 KiB at every switch of threads.
void release_tiles() {
  if (configured == 0) return;
  __asm__ volatile("tilerelease");
  configured = 0;
}

template <int H, int P>
[[gnu::always_inline]] inline void zero_square() {
  tile_zero<0>();
  if constexpr (P == 2) tile_zero<1>();
  if constexpr (H == 2) tile_zero<2>();
  if constexpr (H == 2 && P == 2) tile_zero<3>();
}

// The square to or from memory: rows row_bytes apart, panel 1 beside panel 0.
template <int H, int P>
[[gnu::always_inline]] inline void store_square(void* to, int64_t row_bytes) {
  std::byte* at = static_cast<std::byte*>(to);
  tile_store<0>(at, row_bytes);
  if constexpr (P == 2) tile_store<1>(at + 64, row_bytes);
  if constexpr (H == 2) tile_store<2>(at + 16 * row_bytes, row_bytes);
  if constexpr (H == 2 && P == 2) tile_store<3>(at + 16 * row_bytes + 64, row_bytes);
}

// Calls action.template operator()<H, P>() for the halves and panels there are.
template <class Action>
void for_square(int rows, int panels, const Action& action) {
  if (rows > 16) {
    return panels == 2 ? action.template operator()<2, 2>() : action.template operator()<2, 1>();
  }
  return panels == 2 ? action.template operator()<1, 2>() : action.template operator()<1, 1>();
}
