#include "base/text_file.h"

#include "base/atomic_file.h"
#include "base/mapped_file.h"

namespace quipu {

Result<std::string> read_text_file(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  return std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
}

Result<void> write_text_file(const std::string& path, std::string_view text) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(text));
  return file.commit();
}

}  // namespace quipu
