// The trainable form of a room: forward and backward over whole packed sequences, without caches.
//
// A room <name> that trains defines create_training_<name>() in <name>/training.cc and stands in trainable_rooms.def.
// It declares its parameters as data; the model owns weights and gradients and hands out views in the order of
// parameters(). What forward keeps for backward is a struct of views carved from one region (tensor/carver.h): the
// function that carves it is the only place that knows its layout, and saved_bytes() is that function walked over nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/attention.h"
#include "attention/hyperparameters.h"
#include "base/result.h"
#include "ops/training.h"
#include "tensor/carver.h"

namespace quipu {

// Groups an optimiser treats alike: its own learning rate, weight decay or none.
enum class ParameterGroup : uint8_t { kMatrix, kEmbedding, kNorm, kBias, kGate, kRouter };
std::string_view parameter_group_name(ParameterGroup group);   // "matrix", "embedding", ...

struct Initialisation {
  enum class Kind : uint8_t {
    kZero,
    kConstant,   // a everywhere
    kNormal,     // mean 0, standard deviation a
    kResidual,   // the same, divided by sqrt(2 * layers of the model): what writes into the residual stream  [GPT-2]
    kUniform,    // uniform in [-a, a]
    kSpread,     // evenly from a to b over all elements, ends included (Infini's gates: -2 .. 2)
  };
  Kind kind = Kind::kZero;
  double a = 0, b = 0;
  static Initialisation constant(double a) { return {Kind::kConstant, a, 0}; }
  static Initialisation normal(double deviation) { return {Kind::kNormal, deviation, 0}; }
  static Initialisation residual(double deviation) { return {Kind::kResidual, deviation, 0}; }
  static Initialisation uniform(double limit) { return {Kind::kUniform, limit, 0}; }
  static Initialisation spread(double a, double b) { return {Kind::kSpread, a, b}; }
};
// The deviation of matrices where nothing else is known.
inline constexpr double kInitialDeviation = 0.02;

// One parameter: a matrix [rows, cols] or a vector [length], whose views are [1, length].
struct ParameterSpec {
  std::string role;                // as in the room's header and the name tables: "query", "query_bias", "gate"
  Shape shape;                     // rank 1 or 2
  Initialisation initial;
  ParameterGroup group = ParameterGroup::kMatrix;
};

// The tokens of a step: whole sequences (documents), one after the other. Every sequence begins with an empty memory
// unless an initial state is given; nothing of one sequence is seen by another.
struct PackedBatch {
  std::span<const int64_t> offsets;     // [sequences + 1], from 0 to rows: sequence i has rows offsets[i] .. offsets[i+1]
  // [rows] tokens since the start of the sequence, rising inside one. 0, 1, 2, ... unless a router left tokens out.
  std::span<const int64_t> positions;
  int64_t rows() const { return offsets.empty() ? 0 : offsets.back(); }
  int64_t sequences() const { return offsets.empty() ? 0 : static_cast<int64_t>(offsets.size()) - 1; }
};

// How far the rule a router will serve with is from the choice it is trained with (Mixture-of-Depths).
struct RoutingCounts {
  int64_t rows = 0;                // that routers have seen
  int64_t let_in = 0;              // by the top k
  int64_t differing = 0;           // let in by exactly one of top k and the serving rule
};

// What a caller may ask of a layer beyond plain training. Everything empty or 0: plain.
template <class Real>
struct LayerOptions {
  // [rows] or empty (1): the memory takes a row's write that many times (Infini's repeat-count augmentation: the same
  // count in every row of a pure-filler segment). Rooms without such a memory ignore it.
  std::span<const float> write_repeats = {};
  // Initial memory of every sequence, [sequences, state_elements()], detached; empty: the room's empty memory.
  std::span<const Real> initial_state = {};
  // Where to put the memory after the last row, same shape; empty: not wanted. Written by forward.
  std::span<Real> final_state = {};
  // Weight of the mean write strength in the loss (Infini's write gates).
  double write_penalty = 0;
  // Weight of the routers' auxiliary losses (Mixture-of-Depths).
  double router_loss = 0;
  // Evaluation: routers decide as they will when serving, not by looking at the whole sequence.
  bool serving = false;
  // Every router's forward adds to it; null: not wanted.
  RoutingCounts* routing = nullptr;
};

// What one layer's forward or backward is given. A room, a feed-forward part and a block all take it.
template <class Real>
struct TrainingCall {
  TrainingOps<Real>& ops;
  const PackedBatch& batch;
  const LayerOptions<Real>& options;
  std::span<const MatrixView<const Real>> weights;     // as parameters(); a vector is [1, length]
  std::span<const MatrixView<Real>> gradients = {};    // backward: added to, but see weight_gradients; data null: frozen
  std::span<std::byte> saved = {};                     // saved_bytes(batch): written by forward, read by backward
  std::span<std::byte> scratch = {};                   // scratch_bytes(batch): anything before and after
  ResidualNorm<Real> norm = {};                        // for parts that take it
  Gradient weight_gradients = Gradient::kAdd;          // kWrite: those that writes_gradient() are written over
};

template <class Real>
class TrainableAttention {
 public:
  virtual ~TrainableAttention() = default;
  virtual std::span<const ParameterSpec> parameters() const = 0;
  // Before anything else, by those that can: what all calls will come with. A room may then use operations that do several of
  // its steps in one piece (TrainingOps::self_attention); memory is planned for them. ops must outlive it.
  virtual void plan_for(const TrainingOps<Real>& ops) { (void)ops; }
  // Whether it does the norm before it and the residual connection around it itself, as call.norm says: out = x + part(norm(x)),
  // and backward's dx is its dout.
  virtual bool takes_norm() const { return false; }
  // Whether backward can write the gradient of parameter `parameter` over, so that it need not be zero before.
  virtual bool writes_gradient(size_t parameter) const { return (void)parameter, false; }
  // Only offsets of the batch matter.
  virtual int64_t saved_bytes(const PackedBatch& batch) const = 0;
  virtual int64_t scratch_bytes(const PackedBatch& batch) const = 0;   // the larger of forward's and backward's
  // Elements of the memory that passes from one stretch of a sequence to the next (LayerOptions::initial_state).
  virtual int64_t state_elements() const { return 0; }

  // out [rows, hidden] = attention(x [rows, hidden]); out must not overlap x. Returns what the layer adds to the loss
  // (penalties, already weighted), 0 for most.
  virtual double forward(MatrixView<Real> out, MatrixView<const Real> x, const TrainingCall<Real>& call) const = 0;
  // dx = the gradient of (dout . out + what forward returned) with respect to x; gives call.gradients. Called with the
  // x, batch, options, weights and saved region of its forward. dx overlaps neither dout nor x.
  virtual void backward(MatrixView<Real> dx, MatrixView<const Real> dout, MatrixView<const Real> x,
                        const TrainingCall<Real>& call) const = 0;
  // Multiply-adds times two of one forward over the batch: products and attention, for the share of the roof.
  virtual double forward_flops(const PackedBatch& batch) const = 0;
};

// The trainable form of a room. optional_roles: of the weights the room treats as optional, those this model has
// (LayerConfig::required_roles: "query_bias"). kUsage for a room that has none, naming those that do. Real: float, double.
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training(std::string_view room, const AttentionShape& shape,
                                                                  const HyperParameters& parameters,
                                                                  std::span<const std::string> optional_roles);

// For create_training_<name>(), which registry.cc declares for every room of trainable_rooms.def:
//   template <class Real> Result<std::unique_ptr<TrainableAttention<Real>>> create_training_<name>(
//       const AttentionShape& shape, const HyperParameters& parameters, std::span<const std::string> optional_roles);
// instantiated for float and double.

// Fills visible[row] for rows of the batch: causal within the sequence, and the last `window` rows only when window > 0.
// Positions do not matter: a routed layer's keys are the rows it was given.
void causal_ranges(std::span<KeyRange> visible, const PackedBatch& batch, int64_t window);
// The slices of self-attention over a batch. slices: [batch.sequences()].
void sequence_slices(std::span<AttentionSlice> slices, const PackedBatch& batch);

}  // namespace quipu
