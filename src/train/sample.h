// SampleSource: where training sequences come from. Sample i is a pure function of the source and i, so the position in
// the data is one number: a run that resumes, or is spread over ranks, sees exactly the samples it would have seen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace quipu {

// One row of a batch: whole sequences (documents) one after the other, at most the run's `sequence` tokens together.
// Position, stride grid and memory begin anew at each of them.
struct TrainSample {
  std::vector<int32_t> tokens;       // [rows]
  std::vector<int32_t> targets;      // [rows], -1: nothing to predict
  std::vector<float> weights;        // [rows] in the loss, before the division by their sum over the step; empty: 1
  std::vector<int64_t> lengths;      // rows of each sequence, > 0, together `rows`
  std::vector<float> write_repeats;  // [rows] or empty: how often a memory takes a row's write (Infini)
  // Rows whose targets are the answer of a task, ascending, and where the rows of each question end in this list: for
  // accuracy, token by token and whole answers.
  std::vector<int64_t> answer_rows;
  std::vector<int64_t> answer_ends;
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

class SampleSource {
 public:
  virtual ~SampleSource() = default;
  // progress: how much of the run is done, 0 to 1: for curricula. Any index >= 0: a corpus starts over, in a new order.
  virtual TrainSample sample(int64_t index, double progress) const = 0;
  // Samples of one pass over the corpus; 0: endless.
  virtual int64_t samples_per_epoch() const = 0;
  // One more than the largest token there can be.
  virtual int64_t vocabulary() const = 0;
  // "corpus of 1,204 documents, 8,123,004 tokens", "task passkey ...".
  virtual std::string description() const = 0;
};

}  // namespace quipu
