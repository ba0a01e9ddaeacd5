// The memory of one key head over one sequence, as something that learns: reads and writes of every segment, and their
// derivatives through all segments. Equations: math.md; the letters are those.
//
// Features are computed again in backward; of the memory itself the state before every segment is kept.
#pragma once

#include <cstdint>
#include <span>

#include "attention/infini/infini.h"
#include "tensor/carver.h"
#include "tensor/view.h"

namespace quipu {

// Consecutive rows of the batch that lie in one segment of their sequence.
struct SegmentRun {
  int64_t row_begin = 0, rows = 0;
  int64_t segment = 0;
};

// One key head and its query heads in one sequence.
template <class Real>
struct MemoryTask {
  const Infini::Settings* settings = nullptr;
  std::span<const SegmentRun> runs;      // of the sequence, in order
  int64_t kv_head = 0;
  MatrixView<const Real> q, k, v;        // [rows of the batch, heads or kv_heads * dim], not rotated
  MatrixView<const Real> weight;         // [rows, kv_heads]: how much of a token is written (b_t in delta_true)
  std::span<const Real> read_norm;       // [value_dim]; empty: ones

  // [runs + 1] states: before each run, and after the last. A state is M [features, value_dim], then z [features].
  Real* states = nullptr;
  MatrixView<Real> written;              // [rows, kv_heads * value_dim]: u_t of delta_true; data null with other rules
  MatrixView<Real> read;                 // [rows, heads * value_dim]: what came out, normalised
};

template <class Real>
struct MemoryTaskGradients {
  MatrixView<const Real> dread;          // [rows, heads * value_dim]
  MatrixView<Real> dq, dk, dv;           // added to
  MatrixView<Real> dweight;              // [rows, kv_heads], written
  std::span<Real> dread_norm;            // [value_dim] of this task, added to; empty: not wanted
};

int64_t memory_state_elements(const Infini::Settings& settings);   // of one key head

// Elements of scratch a task takes whose longest run has `rows` rows.
int64_t memory_task_scratch(const Infini::Settings& settings, int64_t rows);

// states[0] holds the memory at the beginning. Fills the other states, written and read.
template <class Real>
void memory_forward(const MemoryTask<Real>& task, std::span<Real> scratch);
// No gradient is kept of the memory at the beginning.
template <class Real>
void memory_backward(const MemoryTask<Real>& task, const MemoryTaskGradients<Real>& gradients, std::span<Real> scratch);

}  // namespace quipu
