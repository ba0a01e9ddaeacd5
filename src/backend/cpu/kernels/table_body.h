// The finished table. Included last.
inline void hold_nothing() {}

// The sizes of kRegisterTileRows that this set has registers for.
constexpr const int* kTableTileRows = kTileRows >= 12 ? kRegisterTileRows : kRegisterTileRows + 2;

constexpr KernelTable make_table(const char* name) {
  return {.name = name,
          .integer_tiles = {kTableTileRows, 4},
          .few_rows = 2,
          .float_tiles = {kTableTileRows, 1},
          .paired_tiles = {},
          .tile_scratch_bytes = kTilePanels * kTileRows * 64,
          .end_products = hold_nothing,
          .quantise_row = quantise_row,
          .quantised_gemv = quantised_gemv,
          .widen_panel = widen_panel,
          .quantised_tile = quantised_tile,
          .float_gemv = float_gemv,
          .float_tile = float_tile,
          .round_row = nullptr,
          .paired_gemv = nullptr,
          .paired_tile = nullptr,
          .round_coded_row = nullptr,
          .expand_coded = nullptr,
          .coded_gemv = nullptr,
          .rms_norm_row = rms_norm_row,
          .add_row = add_row,
          .silu_gate_row = silu_gate_row,
          .gelu_gate_row = gelu_gate_row,
          .rope_row = rope_row};
}
