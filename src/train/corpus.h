// Corpus: documents in token files, as training sequences.
//
// Every epoch puts the documents into a new seeded order, lays them end to end, cuts the result into rows of `sequence`
// tokens and hands the rows out in a seeded order. A row may hold several documents, each with its own position 0; a
// document cut by the end of a row goes on in another row as a sequence of its own. The target of a token is the next
// token of its document, so nothing is predicted across a boundary.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"
#include "train/sample.h"
#include "train/token_file.h"

namespace quipu {

struct Document {
  int32_t file = 0;
  int64_t begin = 0, end = 0;  // tokens in it
  int64_t tokens() const { return end - begin; }
};

struct Corpus {
  std::vector<TokenFile> files;
  std::vector<Document> documents;
  int64_t tokens() const;
};

// What a text becomes tokens with, and where the result is kept.
struct TokeniseOptions {
  const Tokenizer* tokenizer = nullptr;                             // null: only token files can be read
  int32_t end_token = -1;                                           // behind every document; -1: none
  std::string document_separator;                                   // cuts a file into documents; empty: a file is one
  std::vector<std::string> extensions;                              // ".txt": what is read of a folder
  std::string cache;                                                // folder, made when needed
  std::function<bool(uint64_t bytes, uint64_t total)> on_progress;  // false: stop (Error "interrupted")
};

// paths: token files, text files, folders (read to any depth, in order of name). A text is tokenised once: the token
// file in the cache is named after its path, size, time and everything that decides ids. Errors name the path.
Result<Corpus> open_corpus(const std::vector<std::string>& paths, const TokeniseOptions& options);

// Takes about `fraction` of the documents (at least one) out of `corpus`, chosen by seed. kBadInput when there are
// fewer than two documents.
Result<Corpus> split_held_out(Corpus& corpus, double fraction, int64_t seed);

class CorpusSource final : public SampleSource {
 public:
  // kBadInput when the corpus has fewer tokens than one sequence. what: its name in that message.
  static Result<std::unique_ptr<CorpusSource>> create(Corpus corpus, int64_t sequence, int64_t seed,
                                                      const std::string& what);

  TrainSample sample(int64_t index, double progress) const override;
  int64_t samples_per_epoch() const override { return rows_; }
  int64_t vocabulary() const override { return vocabulary_; }
  std::string description() const override;

 private:
  struct Epoch {
    int64_t number = -1;
    std::vector<int32_t> documents;  // their order
    std::vector<int64_t> ends;       // in the laid-out tokens
    std::vector<int64_t> rows;       // their order
  };
  CorpusSource(Corpus corpus, int64_t sequence, int64_t seed)
      : corpus_(std::move(corpus)), sequence_(sequence), seed_(seed) {}
  void lay_out(int64_t epoch) const;

  Corpus corpus_;
  int64_t sequence_, seed_;
  int64_t rows_ = 0, vocabulary_ = 0;
  mutable Epoch epoch_;  // the last one asked for: work saved, not state
};

}  // namespace quipu
