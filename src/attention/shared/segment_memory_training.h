// What Infini-attention does beside the local attention, as something that learns: gates, writes, reads and the mixture, with
// full backpropagation through the memory over all segments. What goes to the memory and what local attention is are the
// rooms' business. Mathematics: infini/math.md. Parameters: the roles of segment_memory.h.
//
// Forward:   begin() -> [local attention over visible] -> read_and_write() -> mix()
// Backward:  find_runs() -> mix_backward() -> [local attention] -> read_and_write_backward() -> [projections] -> gates_backward()
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/shared/memory_training.h"
#include "attention/shared/segment_memory.h"
#include "attention/training.h"

namespace quipu {

template <class Real>
class SegmentMemoryTraining {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  // Appends its parameters to the room's.
  SegmentMemoryTraining(const MemorySettings& settings, int64_t hidden, std::vector<ParameterSpec>& specs);

  int64_t state_elements() const { return s_.memories * memory_state_elements(s_); }
  int64_t read_cols() const { return s_.heads * s_.value_dim; }
  // Of one forward: gates, reads and writes.
  double flops(const PackedBatch& batch) const;
  // Pairs of a query row and a key row of the local attention, of one head.
  double local_pairs(const PackedBatch& batch) const;

  // Without positions in the batch, every sequence is taken for 0, 1, 2, ...
  struct Saved {
    Saved(Carver& carver, const SegmentMemoryTraining& memory, const PackedBatch& batch);
    Matrix read;                     // [n, read_cols()]: from the memory, normalised
    Matrix gate, write, strength;    // logits
    Matrix weight;                   // [n, memories]: how much of a token is written
    Matrix written;
    Real* states = nullptr;          // sequence after sequence, in each memory after memory, in each runs + 1 states
  };
  struct Scratch {
    Scratch(Carver& carver, const SegmentMemoryTraining& memory, const PackedBatch& batch);
    std::span<KeyRange> visible;     // of every row: its own segment and, with a window, the one before
    std::span<AttentionSlice> slices;
    std::span<SegmentRun> runs;
    std::span<int64_t> first_run;    // [sequences + 1]
    int64_t task_elements = 0;
    Real* task_buffers = nullptr;
    Matrix dread, dgate, dweight, dwrite, dstrength, dread_norm;   // backward only
  };

  // Fills visible, slices and runs.
  void find_runs(const Scratch& scratch, const PackedBatch& batch) const;
  // find_runs(), and the gates of every row. The penalty on what is written, weighted.
  double begin(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const;
  // Fills saved.read.
  void read_and_write(const Saved& saved, const Scratch& scratch, const MemoryRows<const Real>& rows, const Call& call) const;
  // mixed = g read + (1 - g) attended, head by head: [n, heads * dim] each. `read` is saved.read or what the room made of it.
  void mix(Matrix mixed, ConstMatrix attended, ConstMatrix read, const Saved& saved, const Call& call) const;

  // dmixed becomes the gradient of `attended`; dread, of `read`, and the gates' logits' are written.
  void mix_backward(Matrix dmixed, Matrix dread, ConstMatrix attended, ConstMatrix read, const Saved& saved,
                    const Scratch& scratch, const Call& call) const;
  // scratch.dread, the gradient of saved.read -> added to drows.
  void read_and_write_backward(const MemoryRows<Real>& drows, const Saved& saved, const Scratch& scratch,
                               const MemoryRows<const Real>& rows, const Call& call) const;
  // Adds to dx.
  void gates_backward(Matrix dx, const Scratch& scratch, ConstMatrix x, const Call& call) const;

 private:
  // Where each parameter stands; -1: the model has none.
  struct Order {
    int64_t gate_bias = -1, gate = -1, write_gate = -1, write_gate_bias = -1, strength = -1, strength_bias = -1, read_norm = -1;
  };

  static ConstMatrix weight(const Call& call, int64_t place) { return call.weights[static_cast<size_t>(place)]; }
  static Matrix gradient(const Call& call, int64_t place) { return call.gradients[static_cast<size_t>(place)]; }
  static const Real* bias(const Call& call, int64_t place) { return place < 0 ? nullptr : weight(call, place).data; }
  static Real* dbias(const Call& call, int64_t place) { return place < 0 ? nullptr : gradient(call, place).data; }

  // Small products in full precision: what gates decide is kept for ever.
  void logits(Matrix y, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const;
  void logits_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const;
  double write_weights(const Saved& saved, const Call& call) const;
  void write_weights_backward(const Saved& saved, const Scratch& scratch, const Call& call) const;
  MemoryTask<Real> task_of(const Saved& saved, const Scratch& scratch, const MemoryRows<const Real>& rows, const Call& call,
                           int64_t task) const;
  std::span<Real> buffer_of(const Scratch& scratch, int64_t task) const {
    return {scratch.task_buffers + task * scratch.task_elements, static_cast<size_t>(scratch.task_elements)};
  }
  Real mixing_gate(const Saved& saved, const Call& call, int64_t row, int64_t head) const;

  MemorySettings s_;
  int64_t hidden_ = 0;
  Order order_;
};

extern template class SegmentMemoryTraining<float>;
extern template class SegmentMemoryTraining<double>;

}  // namespace quipu
