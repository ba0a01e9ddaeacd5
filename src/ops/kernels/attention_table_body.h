// The finished table. Included last.
constexpr AttentionKernels kAttentionTable = {
    .widen_key_page = widen_key_page,
    .widen_value_page = widen_value_page,
    .page_scores = page_scores,
    .page_scores_q8 = page_scores_q8,
    .softmax_page = softmax_page,
    .page_values = page_values,
    .merge_partial = merge_partial,
    .widen_run = widen_run,
    .row_scores = row_scores,
    .widen_row_scores = widen_row_scores,
    .row_values = row_values,
    .turn_rows = turn_rows};
