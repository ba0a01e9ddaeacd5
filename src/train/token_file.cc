#include "train/token_file.h"

#include <cstring>

#include "base/byte_reader.h"
#include "base/check.h"

namespace quipu {
namespace {

constexpr char kMagic[] = "QUIPUTOK";
constexpr uint64_t kHeaderBytes = 16, kFooterBytes = 40;
constexpr size_t kFlushBytes = size_t{1} << 20;
constexpr uint64_t kMaxVocabulary = uint64_t{1} << 24;

template <class T>
void put(std::vector<std::byte>& out, T value) {
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}

}  // namespace

Result<TokenFileWriter> TokenFileWriter::create(const std::string& path, const TokenFileFacts& facts) {
  CHECK(facts.vocabulary >= 1 && facts.vocabulary <= static_cast<int64_t>(kMaxVocabulary)) << facts.vocabulary;
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  TokenFileWriter writer(std::move(file), facts);
  RETURN_IF_ERROR(writer.file_.write(std::string_view(kMagic, 8)));
  const uint32_t numbers[2] = {1, facts.vocabulary <= 65536 ? 2u : 4u};
  RETURN_IF_ERROR(writer.file_.write(std::as_bytes(std::span(numbers))));
  return writer;
}

Result<void> TokenFileWriter::append(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    CHECK(id >= 0 && id < facts_.vocabulary) << id << " of " << facts_.vocabulary;
    if (facts_.vocabulary <= 65536)
      put(pending_, static_cast<uint16_t>(id));
    else
      put(pending_, static_cast<uint32_t>(id));
    if (pending_.size() >= kFlushBytes) RETURN_IF_ERROR(flush());
  }
  tokens_ += static_cast<int64_t>(ids.size());
  return {};
}

void TokenFileWriter::end_document() {
  const uint64_t end = static_cast<uint64_t>(tokens_);
  if (end > (ends_.empty() ? 0 : ends_.back())) ends_.push_back(end);
}

Result<void> TokenFileWriter::flush() {
  RETURN_IF_ERROR(file_.write(pending_));
  pending_.clear();
  return {};
}

Result<void> TokenFileWriter::commit() {
  end_document();
  while ((file_.bytes_written() + pending_.size()) % 8 != 0) pending_.push_back(std::byte{0});
  RETURN_IF_ERROR(flush());
  RETURN_IF_ERROR(file_.write(std::as_bytes(std::span(ends_))));
  put(pending_, static_cast<uint64_t>(tokens_));
  put(pending_, static_cast<uint64_t>(ends_.size()));
  put(pending_, static_cast<uint64_t>(facts_.vocabulary));
  put(pending_, facts_.fingerprint);
  for (int i = 0; i < 8; ++i) pending_.push_back(static_cast<std::byte>(kMagic[i]));
  RETURN_IF_ERROR(flush());
  return file_.commit();
}

bool TokenFile::looks_like_one(std::span<const std::byte> bytes) {
  return bytes.size() >= 8 && std::memcmp(bytes.data(), kMagic, 8) == 0;
}

Result<TokenFile> TokenFile::open(const std::string& path) {
  TokenFile out;
  ASSIGN_OR_RETURN(out.file_, MappedFile::open(path));
  const auto bytes = out.file_->bytes();
  const auto wrong = [&](const std::string& what) { return bad_input(path + ": " + what); };
  if (!looks_like_one(bytes)) return wrong("is no token file: it does not begin with QUIPUTOK");
  if (bytes.size() < kHeaderBytes + kFooterBytes)
    return wrong("token file of " + std::to_string(bytes.size()) + " bytes, cut short");
  ByteReader head(path, bytes.subspan(8));
  ASSIGN_OR_RETURN(const uint32_t version, head.number<uint32_t>("version"));
  ASSIGN_OR_RETURN(const uint32_t width, head.number<uint32_t>("bytes of a token"));
  if (version != 1) return wrong("token file of version " + std::to_string(version) + ", expected 1");
  if (width != 2 && width != 4) return wrong("bytes of a token are " + std::to_string(width) + ", expected 2 or 4");
  ByteReader foot(path, bytes.subspan(bytes.size() - kFooterBytes));
  ASSIGN_OR_RETURN(const uint64_t tokens, foot.number<uint64_t>("tokens"));
  ASSIGN_OR_RETURN(const uint64_t documents, foot.number<uint64_t>("documents"));
  ASSIGN_OR_RETURN(const uint64_t vocabulary, foot.number<uint64_t>("vocabulary"));
  ASSIGN_OR_RETURN(out.facts_.fingerprint, foot.number<uint64_t>("fingerprint"));
  ASSIGN_OR_RETURN(const auto magic, foot.take("end mark", 8));
  if (std::memcmp(magic.data(), kMagic, 8) != 0) return wrong("token file without its end mark: it was cut short");
  const uint64_t room = bytes.size() - kHeaderBytes - kFooterBytes;
  if (tokens > room / width || documents > room / 8 || (tokens * width + 7) / 8 * 8 + documents * 8 != room) {
    return wrong("token file of " + std::to_string(bytes.size()) + " bytes cannot hold " + std::to_string(tokens) +
                 " tokens of " + std::to_string(width) + " bytes in " + std::to_string(documents) + " documents");
  }
  if (vocabulary < 1 || vocabulary > kMaxVocabulary) {
    return wrong("vocabulary is " + std::to_string(vocabulary) + ", expected 1 to " + std::to_string(kMaxVocabulary));
  }
  out.data_ = bytes.data() + kHeaderBytes;
  out.width_ = static_cast<int>(width);
  out.tokens_ = static_cast<int64_t>(tokens);
  out.facts_.vocabulary = static_cast<int64_t>(vocabulary);
  out.ends_.resize(documents);
  if (documents > 0)
    std::memcpy(out.ends_.data(), bytes.data() + bytes.size() - kFooterBytes - documents * 8, documents * 8);
  uint64_t before = 0;
  for (uint64_t i = 0; i < documents; ++i) {
    if (out.ends_[i] <= before || out.ends_[i] > tokens) {
      return wrong("document " + std::to_string(i) + " ends at token " + std::to_string(out.ends_[i]) +
                   ", expected more than " + std::to_string(before) + " and at most " + std::to_string(tokens));
    }
    before = out.ends_[i];
  }
  if (before != tokens)
    return wrong("the last document ends at token " + std::to_string(before) + " of " + std::to_string(tokens));
  // Ids are looked at once, here: later a batch is trusted.
  for (int64_t i = 0; i < out.tokens_; ++i) {
    const uint32_t id = static_cast<uint32_t>(out.token(i));
    if (id >= vocabulary) {
      return wrong("token " + std::to_string(i) + " is " + std::to_string(id) + ", outside the vocabulary of " +
                   std::to_string(vocabulary));
    }
  }
  return out;
}

}  // namespace quipu
