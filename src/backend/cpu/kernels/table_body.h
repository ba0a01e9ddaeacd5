// The finished table. Included last.
constexpr KernelTable make_table(const char* name) {
  return {name,          quantise_row,     quantised_gemv, widen_panel,    quantised_tile, float_gemv,   float_tile,
          widen_key_page, widen_value_page, page_scores,    page_scores_q8, softmax_page,   page_values,  merge_partial,
          rms_norm_row,  add_row,          silu_gate_row,  gelu_gate_row,  rope_row};
}
