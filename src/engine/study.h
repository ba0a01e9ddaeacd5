// A study: small models that differ in one thing (their memory of the context, their routing), trained alike on one corpus with
// one tokenizer, and what each of them predicts of documents it has not seen, costs and takes: what `quipu reproduce variants`
// and `depths` measure.
//
// Everything is kept in a work folder, so that a study that was stopped goes on where it was: tokenizer.json, MODEL.json
// (config), MODEL-SEED/ (the training run), and cells, each written once and never computed again: MODEL-SEED.cell.json and
// MODEL.decode.json. Removing a file makes the next run measure it again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/reproduce.h"

namespace quipu {

struct StudyModel {
  std::string name;                // "mtla2": of its files
  std::string label;               // "MTLA s=2"
  std::string attention;           // the attention section of config.json
  std::string mixture_of_depths;   // that section of every other layer, the first one dense; empty: none
  int64_t stride = 1;              // of its temporal latents: losses are also stated by position within a chunk
  int64_t seeds = 1;               // trained so often
  bool shuffled = false;           // control: trained and asked on documents whose tokens are in random order
};

// What all models of a study share.
struct StudyShape {
  std::string name;                // "variants"
  int64_t hidden = 128, layers = 4, inner = 352, vocabulary = 2048;
  int64_t sequence = 2048, batch = 4, steps = 600;
  double learning_rate = 6e-3;
  double deviation = 0.088;        // of random matrices, 1/sqrt(hidden): with 0.02 so narrow a model hardly learns
  int64_t longest = 4096;          // tokens of a held-out document that are asked about
  int64_t least = 512;             // documents that have fewer are not
  std::vector<int64_t> contexts = {4096, 32768};   // of decoding
  bool equal_parameters = true;    // `inner` is changed until every model has as many as the first
  bool equal_operations = false;   // steps are changed until every model's training takes as many as the first's
  std::string corpus;              // folder with train/ and held_out/
};

struct StudySlice {                // of the held-out tokens
  int64_t from = 0, to = 0;        // positions, or the place within a chunk
  double loss = 0;                 // nats a token
  int64_t tokens = 0;
};
struct StudyCell {
  std::string model;
  int64_t seed = 0, parameters = 0, steps = 0, tokens = 0;
  double seconds = 0, loss = 0;    // loss: over the first `sequence` positions
  std::vector<StudySlice> positions, places;
  double unigram_loss = 0;         // what knowing only how often each token occurs gives on the same tokens
  double routed_differing = -1;    // share of rows that the serving rule routes otherwise than top-k; -1: no routers
};
struct StudySpeed {
  int64_t context = 0;
  double tokens_per_second = 0;    // median step of one sequence
  uint64_t state_bytes = 0;        // f16, exact
};
struct StudyModelResult {
  StudyModel model;
  std::vector<StudyCell> cells;    // by seed; those that are finished
  std::vector<StudySpeed> decode;
  double state_bytes_per_token = 0;   // at the longest context
  double training_flops = 0;          // of one token
  double mean_loss() const;
  double spread() const;              // of the losses of its seeds
};

// Trains and measures what is not there yet. `only`: names of models, or "decode" for the speeds alone. on_change is called after
// every cell with everything there is so far.
Result<std::vector<StudyModelResult>> run_study(const StudyShape& shape, const std::vector<StudyModel>& models,
                                                const ReproduceOptions& options);

// results as JSON, with commit, machine, date and command; as a table in Markdown; as a picture: loss against state.
Result<void> write_study(const StudyShape& shape, const std::vector<StudyModelResult>& results, const ReproduceOptions& options);

// Documents of a small made-up language for --quick: words follow each other by rules, and every document keeps some facts of
// its own that it repeats. Written once to FOLDER/train and FOLDER/held_out.
Result<void> write_quick_corpus(const std::string& folder);

}  // namespace quipu
