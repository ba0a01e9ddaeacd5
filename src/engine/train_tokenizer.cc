#include "engine/train_tokenizer.h"

#include <algorithm>
#include <memory>

#include "base/atomic_file.h"
#include "base/mapped_file.h"

namespace quipu {

Result<TokenizerTrained> train_tokenizer(const TokenizerTraining& request,
                                         const std::function<bool(const char*, uint64_t, uint64_t)>& on_progress) {
  ASSIGN_OR_RETURN(BpeTrainer trainer, BpeTrainer::create(request.options));
  TokenizerTrained out;
  std::vector<std::shared_ptr<const MappedFile>> files;
  uint64_t total = 0;
  for (const std::string& path : request.files) {
    ASSIGN_OR_RETURN(auto file, MappedFile::open(path));
    total += file->bytes().size();
    files.push_back(std::move(file));
  }
  for (const auto& file : files) {
    constexpr size_t kPart = size_t{1} << 20;
    const auto bytes = file->bytes();
    for (size_t at = 0; at < bytes.size(); at += kPart) {
      const auto part = bytes.subspan(at, std::min(kPart, bytes.size() - at));
      RETURN_IF_ERROR(trainer.add({reinterpret_cast<const char*>(part.data()), part.size()}));
      file->drop(part);
      out.bytes += part.size();
      if (on_progress && !on_progress("reading", out.bytes, total))
        return failed("interrupted; no vocabulary was written");
    }
    RETURN_IF_ERROR(trainer.end_text());
  }
  out.words = trainer.words();
  RETURN_IF_ERROR(trainer.learn([&](int64_t done, int64_t wanted) {
    return !on_progress || on_progress("learning", static_cast<uint64_t>(done), static_cast<uint64_t>(wanted));
  }));
  out.vocabulary = trainer.vocabulary();
  out.forgotten_words = trainer.forgotten_words();
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(request.out));
  RETURN_IF_ERROR(file.write(trainer.tokenizer_json()));
  RETURN_IF_ERROR(file.commit());
  return out;
}

}  // namespace quipu
