// Token files: a tokenised corpus on disk, read in place.
//
//   0   8 bytes  "QUIPUTOK"
//   8   u32      version, 1
//   12  u32      bytes of a token, 2 or 4
//   16           the tokens of all documents, one after the other; zeros up to a multiple of 8
//   ..  u64 x D  where each document ends, in tokens, ascending; the last is the number of tokens
//   end-40       u64 tokens, u64 documents D, u64 vocabulary, u64 fingerprint of the tokenizer (0: unknown), "QUIPUTOK"
//
// Little endian. Counts stand at the end, so that a corpus is written as it is read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/mapped_file.h"
#include "base/result.h"

namespace quipu {

struct TokenFileFacts {
  int64_t vocabulary = 0;    // ids are below it
  uint64_t fingerprint = 0;  // Tokenizer::fingerprint(), or 0
};

class TokenFileWriter {
 public:
  // The file appears whole at commit() or not at all.
  static Result<TokenFileWriter> create(const std::string& path, const TokenFileFacts& facts);
  // One document in parts: append() any number of times, then end_document(). Ids outside the vocabulary are our bug
  // (CHECK).
  Result<void> append(std::span<const int32_t> ids);
  void end_document();  // documents without a token are left out
  Result<void> commit();
  int64_t tokens() const { return tokens_; }

 private:
  TokenFileWriter(AtomicFile file, const TokenFileFacts& facts) : file_(std::move(file)), facts_(facts) {}
  Result<void> flush();
  AtomicFile file_;
  TokenFileFacts facts_;
  std::vector<std::byte> pending_;
  std::vector<uint64_t> ends_;
  int64_t tokens_ = 0;
};

class TokenFile {
 public:
  // Errors (kBadInput) name file, field, value and limit.
  static Result<TokenFile> open(const std::string& path);
  static bool looks_like_one(std::span<const std::byte> bytes);

  const std::string& path() const { return file_->path(); }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(ends_.size()); }
  const TokenFileFacts& facts() const { return facts_; }
  int64_t document_begin(int64_t document) const { return document == 0 ? 0 : document_end(document - 1); }
  int64_t document_end(int64_t document) const { return static_cast<int64_t>(ends_[static_cast<size_t>(document)]); }
  int32_t token(int64_t index) const {
    return width_ == 2 ? static_cast<int32_t>(reinterpret_cast<const uint16_t*>(data_)[index])
                       : static_cast<int32_t>(reinterpret_cast<const uint32_t*>(data_)[index]);
  }

 private:
  std::shared_ptr<const MappedFile> file_;
  const std::byte* data_ = nullptr;
  int width_ = 2;
  int64_t tokens_ = 0;
  std::vector<uint64_t> ends_;
  TokenFileFacts facts_;
};

}  // namespace quipu
