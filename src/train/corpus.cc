#include "train/corpus.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <sstream>

#include "base/byte_reader.h"
#include "base/random.h"
#include "formats/state_file/hash128.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;

constexpr size_t kEncodeBytes = size_t{8} << 20;  // text encoded at once
constexpr size_t kMaxFiles = 10'000'000;
enum Stream : uint64_t { kDocumentOrder = 0x646f63, kRowOrder = 0x726f77, kHeldOut = 0x68656c };

template <class T>
void shuffle(std::vector<T>& items, RandomStream random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

struct TextFile {
  std::string path;
  uint64_t bytes = 0;
  int64_t time = 0;
};

Result<TextFile> text_file(const fs::path& path) {
  std::error_code code;
  TextFile file{path.string(), 0, 0};
  file.bytes = fs::file_size(path, code);
  if (!code) file.time = fs::last_write_time(path, code).time_since_epoch().count();
  if (code) return bad_input(printable(path.string(), 400) + ": " + code.message());
  return file;
}

Result<std::vector<TextFile>> files_of(const std::string& path, const std::vector<std::string>& extensions) {
  std::vector<TextFile> out;
  std::error_code code;
  if (!fs::is_directory(path, code)) {
    ASSIGN_OR_RETURN(TextFile one, text_file(path));
    out.push_back(std::move(one));
    return out;
  }
  for (fs::recursive_directory_iterator at(path, code), end; !code && at != end; at.increment(code)) {
    std::error_code ignored;
    if (!at->is_regular_file(ignored)) continue;
    const std::string extension = at->path().extension().string();
    if (std::find(extensions.begin(), extensions.end(), extension) == extensions.end()) continue;
    ASSIGN_OR_RETURN(TextFile one, text_file(at->path()));
    out.push_back(std::move(one));
    if (out.size() > kMaxFiles)
      return bad_input(printable(path, 400) + ": more than " + std::to_string(kMaxFiles) + " files");
  }
  if (code) return bad_input(printable(path, 400) + ": " + code.message());
  std::sort(out.begin(), out.end(), [](const TextFile& a, const TextFile& b) { return a.path < b.path; });
  if (out.empty()) {
    std::string list;
    for (const std::string& extension : extensions) list += (list.empty() ? "" : ", ") + extension;
    return bad_input(printable(path, 400) + ": the folder has no files named " + list);
  }
  return out;
}

std::string cache_path(const std::string& given, const std::vector<TextFile>& files, const TokeniseOptions& options) {
  Hasher128 hash;
  std::ostringstream key;
  key << "1 " << options.tokenizer->fingerprint() << " " << options.end_token << " "
      << options.document_separator.size() << " " << options.document_separator << "\n";
  for (const TextFile& file : files) key << file.path << " " << file.bytes << " " << file.time << "\n";
  hash.add(key.str());
  std::string name = fs::path(given).lexically_normal().filename().string();
  if (name.empty() || name == ".") name = "corpus";
  return options.cache + "/" + name + "." + hash.result().text().substr(0, 16) + ".tokens";
}

class Tokeniser {
 public:
  Tokeniser(TokenFileWriter& writer, const TokeniseOptions& options, uint64_t total)
      : writer_(writer), options_(options), total_(total) {}

  Result<void> file(const TextFile& file) {
    ASSIGN_OR_RETURN(const auto mapped, MappedFile::open(file.path));
    std::string_view text(reinterpret_cast<const char*>(mapped->bytes().data()), mapped->bytes().size());
    while (!text.empty()) {
      const std::string& separator = options_.document_separator;
      const size_t found = separator.empty() ? std::string_view::npos : text.find(separator);
      RETURN_IF_ERROR(document(text.substr(0, found)));
      const size_t taken = found == std::string_view::npos ? text.size() : found + separator.size();
      if (found != std::string_view::npos) done_ += separator.size();
      text.remove_prefix(taken);
    }
    return {};
  }

 private:
  Result<void> document(std::string_view text) {
    bool any = false;
    while (!text.empty()) {
      size_t part = std::min(text.size(), kEncodeBytes);
      if (part < text.size()) {  // behind a line, where no word goes on
        const size_t line = text.rfind('\n', part - 1);
        if (line != std::string_view::npos && line + 1 > kEncodeBytes / 2) part = line + 1;
      }
      ASSIGN_OR_RETURN(
          const std::vector<int32_t> ids,
          options_.tokenizer->encode(text.substr(0, part), {.add_special = false, .parse_special = false}));
      RETURN_IF_ERROR(writer_.append(ids));
      any = any || !ids.empty();
      done_ += part;
      text.remove_prefix(part);
      if (options_.on_progress && !options_.on_progress(done_, total_))
        return failed("interrupted while tokenising; nothing was written");
    }
    if (any && options_.end_token >= 0) RETURN_IF_ERROR(writer_.append({&options_.end_token, 1}));
    writer_.end_document();
    return {};
  }

  TokenFileWriter& writer_;
  const TokeniseOptions& options_;
  uint64_t total_, done_ = 0;
};

Result<TokenFile> tokenised(const std::string& path, const TokeniseOptions& options) {
  if (options.tokenizer == nullptr) {
    return bad_input(printable(path, 400) +
                     ": is text, and data.tokenizer is missing: the path of a tokenizer.json, or \"bytes\"");
  }
  ASSIGN_OR_RETURN(const std::vector<TextFile> files, files_of(path, options.extensions));
  const std::string cached = cache_path(path, files, options);
  if (std::error_code code; fs::exists(cached, code)) {
    Result<TokenFile> there = TokenFile::open(cached);
    if (there.ok()) return there;  // a damaged one is made anew
  }
  std::error_code code;
  fs::create_directories(options.cache, code);
  if (code) return failed(printable(options.cache, 400) + ": cannot make the folder: " + code.message());
  uint64_t total = 0;
  for (const TextFile& file : files) total += file.bytes;
  ASSIGN_OR_RETURN(TokenFileWriter writer, TokenFileWriter::create(cached, {options.tokenizer->vocab_size(),
                                                                            options.tokenizer->fingerprint()}));
  Tokeniser tokeniser(writer, options, total);
  for (const TextFile& file : files) RETURN_IF_ERROR(tokeniser.file(file));
  RETURN_IF_ERROR(writer.commit());
  return TokenFile::open(cached);
}

Result<bool> is_token_file(const std::string& path) {
  std::error_code code;
  if (fs::is_directory(path, code)) return false;
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  return TokenFile::looks_like_one(file->bytes());
}

}  // namespace

int64_t Corpus::tokens() const {
  int64_t sum = 0;
  for (const Document& document : documents) sum += document.tokens();
  return sum;
}

Result<Corpus> open_corpus(const std::vector<std::string>& paths, const TokeniseOptions& options) {
  Corpus corpus;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(const bool ready, is_token_file(path));
    Result<TokenFile> opened = ready ? TokenFile::open(path) : tokenised(path, options);
    if (!opened.ok()) return std::move(opened).error();
    TokenFile file = std::move(opened).value();
    const uint64_t fingerprint = file.facts().fingerprint;
    if (ready && options.tokenizer != nullptr && fingerprint != 0 && fingerprint != options.tokenizer->fingerprint()) {
      return bad_input(printable(path, 400) + ": was made with another tokenizer than data.tokenizer");
    }
    const int32_t index = static_cast<int32_t>(corpus.files.size());
    for (int64_t d = 0; d < file.documents(); ++d)
      corpus.documents.push_back({index, file.document_begin(d), file.document_end(d)});
    corpus.files.push_back(std::move(file));
  }
  if (corpus.documents.size() > INT32_MAX) return bad_input("the corpus has more than 2^31 documents");
  return corpus;
}

Result<Corpus> split_held_out(Corpus& corpus, double fraction, int64_t seed) {
  const size_t count = corpus.documents.size();
  if (count < 2) {
    return bad_input("data.held_out_fraction needs two documents or more, found " + std::to_string(count) +
                     "; give data.held_out, or data.document_separator to cut a file into documents");
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  shuffle(order, RandomStream(static_cast<uint64_t>(seed), kHeldOut));
  const size_t wanted =
      std::clamp<size_t>(static_cast<size_t>(std::llround(fraction * static_cast<double>(count))), 1, count - 1);
  std::vector<bool> out(count, false);
  for (size_t i = 0; i < wanted; ++i) out[order[i]] = true;
  Corpus held{corpus.files, {}};
  std::vector<Document> kept;
  for (size_t i = 0; i < count; ++i) (out[i] ? held.documents : kept).push_back(corpus.documents[i]);
  corpus.documents = std::move(kept);
  return held;
}

Result<std::unique_ptr<CorpusSource>> CorpusSource::create(Corpus corpus, int64_t sequence, int64_t seed,
                                                           const std::string& what) {
  const int64_t tokens = corpus.tokens();
  if (tokens < sequence) {
    return bad_input(what + ": the corpus has " + std::to_string(tokens) +
                     " tokens, fewer than one sequence (train.sequence is " + std::to_string(sequence) + ")");
  }
  std::unique_ptr<CorpusSource> source(new CorpusSource(std::move(corpus), sequence, seed));
  source->rows_ = tokens / sequence;
  for (const TokenFile& file : source->corpus_.files)
    source->vocabulary_ = std::max(source->vocabulary_, file.facts().vocabulary);
  return source;
}

void CorpusSource::lay_out(int64_t epoch) const {
  if (epoch_.number == epoch) return;
  const uint64_t seed = mix64(static_cast<uint64_t>(seed_) ^ mix64(static_cast<uint64_t>(epoch)));
  epoch_.number = epoch;
  epoch_.documents.resize(corpus_.documents.size());
  std::iota(epoch_.documents.begin(), epoch_.documents.end(), 0);
  shuffle(epoch_.documents, RandomStream(seed, kDocumentOrder));
  epoch_.ends.clear();
  int64_t end = 0;
  for (const int32_t document : epoch_.documents)
    epoch_.ends.push_back(end += corpus_.documents[static_cast<size_t>(document)].tokens());
  epoch_.rows.resize(static_cast<size_t>(rows_));
  std::iota(epoch_.rows.begin(), epoch_.rows.end(), int64_t{0});
  shuffle(epoch_.rows, RandomStream(seed, kRowOrder));
}

TrainSample CorpusSource::sample(int64_t index, double) const {
  lay_out(index / rows_);
  TrainSample out;
  out.tokens.reserve(static_cast<size_t>(sequence_));
  out.targets.reserve(static_cast<size_t>(sequence_));
  int64_t at = epoch_.rows[static_cast<size_t>(index % rows_)] * sequence_;
  size_t place =
      static_cast<size_t>(std::upper_bound(epoch_.ends.begin(), epoch_.ends.end(), at) - epoch_.ends.begin());
  int64_t left = sequence_;
  while (left > 0) {
    const Document& document = corpus_.documents[static_cast<size_t>(epoch_.documents[place])];
    const TokenFile& file = corpus_.files[static_cast<size_t>(document.file)];
    const int64_t skipped = document.tokens() - (epoch_.ends[place] - at);
    const int64_t taken = std::min(left, document.tokens() - skipped);
    const int64_t begin = document.begin + skipped;
    for (int64_t i = begin; i < begin + taken; ++i) {
      out.tokens.push_back(file.token(i));
      out.targets.push_back(i + 1 < document.end ? file.token(i + 1) : -1);
    }
    out.lengths.push_back(taken);
    at += taken;
    left -= taken;
    ++place;
  }
  return out;
}

std::string CorpusSource::description() const {
  return "corpus of " + std::to_string(corpus_.documents.size()) + " documents, " + std::to_string(corpus_.tokens()) +
         " tokens";
}

}  // namespace quipu
