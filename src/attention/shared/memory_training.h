// One memory over one sequence, as something that learns: reads and writes of every segment, and their derivatives through
// all segments. Equations: infini/math.md; the letters are those. segment_memory_training.h runs it for a whole batch.
//
// Features are computed again in backward; of the memory itself the state before every segment is kept.
#pragma once

#include <cstdint>
#include <span>

#include "attention/shared/segment_memory.h"
#include "tensor/carver.h"
#include "tensor/view.h"

namespace quipu {

// Consecutive rows of the batch that lie in one segment of their sequence.
struct SegmentRun {
  int64_t row_begin = 0, rows = 0;
  int64_t segment = 0;
};

// What goes to the memories, of all rows of the batch: before any rotation (as MemoryInput). The gradients of these rows
// are laid out alike; where key and value are the same rows, so are their gradients.
template <class Real>
struct MemoryRows {
  MatrixView<Real> query;                // head h of a row begins at h * query_stride
  MatrixView<Real> key, value;           // memory m of a row begins at m * key_stride, m * value_stride
  int64_t query_stride = 0, key_stride = 0, value_stride = 0;
};

// One memory and the heads that read it, in one sequence.
template <class Real>
struct MemoryTask {
  const MemorySettings* settings = nullptr;
  std::span<const SegmentRun> runs;      // of the sequence, in order
  int64_t memory = 0;
  MemoryRows<const Real> rows;
  MatrixView<const Real> weight;         // [rows, memories]: how much of a token is written (b_t in delta_true)
  std::span<const Real> read_norm;       // [value_dim]; empty: ones

  // [runs + 1] states: before each run, and after the last. A state is M [features, value_dim], then z [features].
  Real* states = nullptr;
  MatrixView<Real> written;              // [rows, memories * value_dim]: u_t of delta_true; data null with other rules
  MatrixView<Real> read;                 // [rows, heads * value_dim]: what came out, normalised
};

template <class Real>
struct MemoryTaskGradients {
  MatrixView<const Real> dread;          // [rows, heads * value_dim]
  MemoryRows<Real> rows;                 // added to
  MatrixView<Real> dweight;              // [rows, memories], written
  std::span<Real> dread_norm;            // [value_dim] of this task, added to; empty: not wanted
};

int64_t memory_state_elements(const MemorySettings& settings);   // of one memory

// Elements of scratch a task takes whose longest run has `rows` rows.
int64_t memory_task_scratch(const MemorySettings& settings, int64_t rows);

// states[0] holds the memory at the beginning. Fills the other states, written and read.
template <class Real>
void memory_forward(const MemoryTask<Real>& task, std::span<Real> scratch);
// No gradient is kept of the memory at the beginning.
template <class Real>
void memory_backward(const MemoryTask<Real>& task, const MemoryTaskGradients<Real>& gradients, std::span<Real> scratch);

}  // namespace quipu
