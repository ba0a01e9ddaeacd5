#include "formats/state_file/state_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>

#include "base/atomic_file.h"
#include "base/byte_reader.h"
#include "base/check.h"
#include "base/checked.h"
#include "base/utf8.h"
#include "formats/recognise.h"

namespace quipu {
namespace {

constexpr std::string_view kMagic = "QUIPUCTX";
constexpr uint64_t kFixedBytes = 88;
constexpr uint64_t kHashBytes = 16;
constexpr uint64_t kMinEntryBytes = 2 + 1 + 2 + 4 * 8 + kHashBytes;   // no dtype has a name of one letter
constexpr std::array<char, StateFileLimits::kAlignment> kZeros{};

std::string number(uint64_t value) { return std::to_string(value); }

uint64_t padded(uint64_t bytes) {
  return (bytes + StateFileLimits::kAlignment - 1) / StateFileLimits::kAlignment * StateFileLimits::kAlignment;
}

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_hash(std::string& out, const Hash128& hash) {
  append(out, hash.low);
  append(out, hash.high);
}

void append_name(std::string& out, std::string_view name) {
  out += static_cast<char>(static_cast<uint8_t>(name.size()));
  out += name;
}

bool name_is_good(std::string_view name) {
  return !name.empty() && name.size() <= StateFileLimits::kNameBytes && utf8_is_valid(name) &&
         std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

// Bytes of rows x row_elements, or nothing when that is no size.
std::optional<uint64_t> section_bytes(DType dtype, uint64_t rows, uint64_t row_elements) {
  const std::optional<uint64_t> row = checked_row_bytes(dtype, row_elements);
  if (!row) return std::nullopt;
  const CheckedSize bytes = CheckedSize(*row) * CheckedSize(rows);
  return bytes.fits(std::numeric_limits<int64_t>::max()) ? bytes.value() : std::nullopt;
}

uint64_t header_bytes(std::span<const StateSectionSource> sections) {
  uint64_t bytes = kFixedBytes + kHashBytes;
  for (const StateSectionSource& section : sections) {
    bytes += 2 + section.name.size() + dtype_name(section.dtype).size() + 4 * 8 + kHashBytes;
  }
  return bytes;
}

uint64_t checked_bytes(const StateSectionSource& section) {
  CHECK(name_is_good(section.name)) << printable(section.name);
  CHECK(section.rows >= 0 && section.row_elements >= 0) << section.name;
  const auto bytes = section_bytes(section.dtype, static_cast<uint64_t>(section.rows),
                                   static_cast<uint64_t>(section.row_elements));
  uint64_t given = 0;
  for (const auto part : section.parts) given += part.size();
  CHECK(bytes == given) << section.name << ": " << given << " bytes given for " << section.rows << " rows of "
                        << section.row_elements << " " << dtype_name(section.dtype);
  return given;
}

std::string encode_header(const StateFileHeader& header, std::span<const StateSectionSource> sections) {
  CHECK(sections.size() <= StateFileLimits::kSections) << sections.size();
  const uint64_t own_bytes = header_bytes(sections);
  std::string table;
  std::set<std::string_view> seen;
  uint64_t end = own_bytes;
  for (const StateSectionSource& section : sections) {
    CHECK(seen.insert(section.name).second) << "section twice: " << section.name;
    const uint64_t bytes = checked_bytes(section);
    Hasher128 hasher;
    for (const auto part : section.parts) hasher.add(part);
    append_name(table, section.name);
    append_name(table, dtype_name(section.dtype));
    append<uint64_t>(table, static_cast<uint64_t>(section.rows));
    append<uint64_t>(table, static_cast<uint64_t>(section.row_elements));
    append<uint64_t>(table, padded(end));
    append<uint64_t>(table, bytes);
    append_hash(table, hasher.result());
    end = padded(end) + bytes;
  }
  std::string out(kMagic);
  append<uint32_t>(out, StateFileLimits::kVersion);
  append<uint32_t>(out, static_cast<uint32_t>(sections.size()));
  append<uint64_t>(out, end);
  append<uint64_t>(out, own_bytes);
  append<uint64_t>(out, header.tokens);
  for (const Hash128& hash : {header.model, header.layout, header.tokenizer}) append_hash(out, hash);
  out += table;
  append_hash(out, hash128(out));
  CHECK(out.size() == own_bytes) << out.size() << " " << own_bytes;
  return out;
}

class Parser {
 public:
  Parser(const std::string& name, std::span<const std::byte> bytes) : name_(name), bytes_(bytes), reader_(name_, bytes) {}

  Result<StateFile> parse() {
    RETURN_IF_ERROR(read_head());
    RETURN_IF_ERROR(read_sections());
    RETURN_IF_ERROR(check_checksums());
    file_.name = name_;
    return std::move(file_);
  }

 private:
  Result<void> read_head();
  Result<void> read_sections();
  Result<StateSection> read_section(uint32_t index, uint64_t end);
  Result<void> check_checksums();
  Result<Hash128> read_hash(std::string_view field) {
    Hash128 hash;
    ASSIGN_OR_RETURN(hash.low, reader_.number<uint64_t>(field));
    ASSIGN_OR_RETURN(hash.high, reader_.number<uint64_t>(field));
    return hash;
  }
  Result<std::string_view> read_name(std::string_view field) {
    ASSIGN_OR_RETURN(const uint8_t length, reader_.number<uint8_t>(field));
    ASSIGN_OR_RETURN(const auto bytes, reader_.take(field, length));
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  Error error_at(std::string_view field, uint64_t offset, std::string_view what) const {
    return bad_input(std::string(name_) + ": " + printable(field, 160) + " at byte " + number(offset) + ": " +
                     std::string(what));
  }

  std::string name_;
  std::span<const std::byte> bytes_;
  ByteReader reader_;
  uint32_t count_ = 0;
  uint64_t header_bytes_ = 0;
  StateFile file_;
  std::vector<Hash128> hashes_;
};

// Lengths first, then the header's checksum: what follows may be believed to be what was written, and is still bounded.
Result<void> Parser::read_head() {
  auto magic = reader_.take("magic", kMagic.size());
  if (!magic.ok() || std::memcmp(magic->data(), kMagic.data(), kMagic.size()) != 0) {
    return error_at("magic", 0, "not a saved context" + looks_like(bytes_));
  }
  ASSIGN_OR_RETURN(const uint32_t version, reader_.number<uint32_t>("version"));
  if (version != StateFileLimits::kVersion) {
    return error_at("version", 8,
                    "is " + number(version) + ", version " + number(StateFileLimits::kVersion) + " is supported");
  }
  ASSIGN_OR_RETURN(count_, reader_.number<uint32_t>("section count"));
  ASSIGN_OR_RETURN(const uint64_t file_bytes, reader_.number<uint64_t>("file bytes"));
  if (file_bytes != bytes_.size()) {
    return error_at("file bytes", 16, "is " + number(file_bytes) + ", but the file has " + number(bytes_.size()) +
                                          (bytes_.size() < file_bytes ? " (truncated?)" : ""));
  }
  ASSIGN_OR_RETURN(header_bytes_, reader_.number<uint64_t>("header bytes"));
  if (header_bytes_ < kFixedBytes + kHashBytes || header_bytes_ > bytes_.size()) {
    return error_at("header bytes", 24, "is " + number(header_bytes_) + ", expected " + number(kFixedBytes + kHashBytes) +
                                            " to " + number(bytes_.size()));
  }
  const uint64_t room = (header_bytes_ - kFixedBytes - kHashBytes) / kMinEntryBytes;
  if (count_ > room || count_ > StateFileLimits::kSections) {
    return error_at("section count", 12, "is " + number(count_) + ", but the header has room for at most " +
                                             number(std::min<uint64_t>(room, StateFileLimits::kSections)));
  }
  const uint64_t hash_at = header_bytes_ - kHashBytes;
  Hash128 stored;
  std::memcpy(&stored.low, bytes_.data() + hash_at, 8);
  std::memcpy(&stored.high, bytes_.data() + hash_at + 8, 8);
  if (stored != hash128(bytes_.first(hash_at))) {
    return error_at("header checksum", hash_at, "does not match: the header is damaged");
  }
  ASSIGN_OR_RETURN(file_.header.tokens, reader_.number<uint64_t>("token count"));
  if (file_.header.tokens > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return error_at("token count", 32, "is " + number(file_.header.tokens) + ", the limit is 2^63-1");
  }
  ASSIGN_OR_RETURN(file_.header.model, read_hash("model"));
  ASSIGN_OR_RETURN(file_.header.layout, read_hash("layout"));
  ASSIGN_OR_RETURN(file_.header.tokenizer, read_hash("tokenizer"));
  return {};
}

Result<void> Parser::read_sections() {
  std::set<std::string, std::less<>> seen;
  uint64_t end = header_bytes_;
  for (uint32_t i = 0; i < count_; ++i) {
    const uint64_t start = reader_.offset();
    ASSIGN_OR_RETURN(StateSection section, read_section(i, end));
    if (!seen.insert(section.name).second) {
      return error_at("section " + section.name, start, "the name appears twice");
    }
    end = static_cast<uint64_t>(section.bytes.data() + section.bytes.size() - bytes_.data());
    file_.sections.push_back(std::move(section));
  }
  if (reader_.offset() != header_bytes_ - kHashBytes) {
    return reader_.error_here("header", "the sections end here, but the header says " + number(header_bytes_) + " bytes");
  }
  if (end != bytes_.size()) {
    return error_at("file", end, "the sections end here, but the file has " + number(bytes_.size()) + " bytes");
  }
  return {};
}

Result<StateSection> Parser::read_section(uint32_t index, uint64_t end) {
  const std::string place = "section " + number(index + 1) + " of " + number(count_);
  const uint64_t start = reader_.offset();
  ASSIGN_OR_RETURN(const std::string_view name, read_name(place));
  if (!name_is_good(name)) return error_at(place, start, "the name \"" + printable(name) + "\" is not plain UTF-8 text");
  const std::string field = "section " + std::string(name);
  ASSIGN_OR_RETURN(const std::string_view type, read_name(field));
  const std::optional<DType> dtype = dtype_from_name(type);
  if (!dtype || dtype_name(*dtype) != type) {
    return error_at(field, start, "element type \"" + printable(type) + "\" is unknown");
  }
  ASSIGN_OR_RETURN(const uint64_t rows, reader_.number<uint64_t>(field));
  ASSIGN_OR_RETURN(const uint64_t row_elements, reader_.number<uint64_t>(field));
  ASSIGN_OR_RETURN(const uint64_t offset, reader_.number<uint64_t>(field));
  ASSIGN_OR_RETURN(const uint64_t bytes, reader_.number<uint64_t>(field));
  ASSIGN_OR_RETURN(const Hash128 hash, read_hash(field));
  const uint64_t limit = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const std::optional<uint64_t> expected = section_bytes(*dtype, rows, row_elements);
  if (rows > limit || row_elements > limit || expected != bytes) {
    return error_at(field, start, number(rows) + " rows of " + number(row_elements) + " " + std::string(type) + " take " +
                                      (expected ? number(*expected) : "an impossible number of") + " bytes, " +
                                      number(bytes) + " are stated");
  }
  if (offset != padded(end)) {   // end is inside the file, so padding it cannot wrap
    return error_at(field, start, "starts at byte " + number(offset) + ", expected " + number(padded(end)));
  }
  if (offset > bytes_.size() || bytes > bytes_.size() - offset) {
    return error_at(field, start, number(bytes) + " bytes at " + number(offset) + " pass the file's end at " +
                                      number(bytes_.size()));
  }
  const auto gap = bytes_.subspan(end, offset - end);
  if (std::ranges::any_of(gap, [](std::byte b) { return b != std::byte{0}; })) {
    return error_at(field, end, "the padding before it is not zero");
  }
  hashes_.push_back(hash);
  return StateSection{std::string(name), *dtype, static_cast<int64_t>(rows), static_cast<int64_t>(row_elements),
                      bytes_.subspan(offset, bytes)};
}

Result<void> Parser::check_checksums() {
  for (size_t i = 0; i < hashes_.size(); ++i) {
    const StateSection& section = file_.sections[i];
    if (hash128(section.bytes) == hashes_[i]) continue;
    return error_at("section " + section.name, static_cast<uint64_t>(section.bytes.data() - bytes_.data()),
                    "the checksum does not match: its " + number(section.bytes.size()) + " bytes are damaged");
  }
  return {};
}

}  // namespace

const StateSection* StateFile::find(std::string_view section) const {
  const auto at = std::ranges::find(sections, section, &StateSection::name);
  return at == sections.end() ? nullptr : &*at;
}

Result<StateSection> StateFile::require(std::string_view section, DType dtype, int64_t rows, int64_t row_elements) const {
  const StateSection* found = find(section);
  if (found == nullptr) return bad_input(name + ": section " + printable(section) + " is missing");
  if (found->dtype == dtype && found->rows == rows && found->row_elements == row_elements) return *found;
  const auto describe = [](int64_t r, int64_t e, DType d) {
    return std::to_string(r) + " rows of " + std::to_string(e) + " " + std::string(dtype_name(d));
  };
  return bad_input(name + ": section " + printable(section) + " has " +
                   describe(found->rows, found->row_elements, found->dtype) + ", expected " +
                   describe(rows, row_elements, dtype));
}

Result<void> write_state_file(const std::string& path, const StateFileHeader& header,
                              std::span<const StateSectionSource> sections) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(encode_header(header, sections)));
  for (const StateSectionSource& section : sections) {
    RETURN_IF_ERROR(file.write(std::string_view(kZeros.data(), padded(file.bytes_written()) - file.bytes_written())));
    for (const auto part : section.parts) RETURN_IF_ERROR(file.write(part));
  }
  return file.commit();
}

Result<StateFile> read_state_file(const std::string& path) {
  ASSIGN_OR_RETURN(const auto mapped, MappedFile::open(path));
  ASSIGN_OR_RETURN(StateFile file, Parser(printable(path, 400), mapped->bytes()).parse());
  file.file = mapped;
  return file;
}

Result<StateFile> read_state_file_bytes(const std::string& name, std::span<const std::byte> bytes) {
  return Parser(printable(name, 400), bytes).parse();
}

Result<void> require_same_origin(const StateFile& file, const StateFileHeader& expected) {
  struct Part {
    const char* what;
    const Hash128& found;
    const Hash128& wanted;
  };
  const Part parts[] = {{"model", file.header.model, expected.model},
                        {"state layout", file.header.layout, expected.layout},
                        {"tokenizer", file.header.tokenizer, expected.tokenizer}};
  for (const auto& [what, found, wanted] : parts) {
    if (found == wanted) continue;
    return bad_input(file.name + ": was saved with another " + what + " (" + found.text() + ", this one is " +
                     wanted.text() + ")");
  }
  return {};
}

}  // namespace quipu
