#include "text/tokenizer_json.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/mapped_file.h"
#include "base/utf8.h"
#include "text/json_fields.h"
#include "text/tokenizer_build.h"
#include "text/tokenizer_json_components.h"
#include "text/tokenizer_parts.h"

namespace quipu {
namespace {

using Element = JsonFields::Element;
constexpr size_t kFileBytes = size_t{256} << 20;
constexpr size_t kConfigBytes = size_t{16} << 20;
constexpr size_t kNesting = 64;
constexpr size_t kAddedTokenBytes = 1024;
constexpr int64_t kUnusedIds = 1 << 16;   // ids may leave this many gaps

// A parsed document and the bytes it points into.
struct Document {
  simdjson::padded_string bytes;
  simdjson::dom::parser parser;
  Element root;
};

Result<void> parse(Document& document, std::string_view bytes, const std::string& name, size_t limit) {
  if (bytes.size() > limit) {
    return bad_input(name + " has " + std::to_string(bytes.size()) + " bytes, limit " + std::to_string(limit));
  }
  document.bytes = simdjson::padded_string(bytes.data(), bytes.size());
  if (document.parser.allocate(std::max<size_t>(bytes.size(), 64), kNesting) != simdjson::SUCCESS) {
    return failed(name + ": no memory to parse " + std::to_string(bytes.size()) + " bytes");
  }
  const auto error = document.parser.parse(document.bytes).get(document.root);
  if (error != simdjson::SUCCESS) return bad_input(name + " is not valid JSON: " + simdjson::error_message(error));
  return {};
}

class JsonLoader {
 public:
  JsonLoader(std::string_view bytes, const TokenizerJsonOptions& options)
      : bytes_(bytes), options_(options), parts_(std::make_unique<TokenizerParts>()) {}

  Result<std::shared_ptr<const Tokenizer>> run() {
    RETURN_IF_ERROR(parse(document_, bytes_, options_.name, kFileBytes));
    ASSIGN_OR_RETURN(const JsonFields root, JsonFields::of(document_.root, options_.name));
    ASSIGN_OR_RETURN(const JsonFields model, root.fields("model"));
    RETURN_IF_ERROR(read_vocabulary(root, model));
    RETURN_IF_ERROR(read_components(root));
    if (unigram_) {
      RETURN_IF_ERROR(build_unigram(model));
    } else {
      RETURN_IF_ERROR(build_bpe_model(model));
    }
    for (size_t id = 0; id < tokens_.size(); ++id) append_output(*parts_, added_at_[id] ? std::string(tokens_[id]) : decoder_.apply(tokens_[id]));
    RETURN_IF_ERROR(read_config());
    Fingerprint hash;
    hash.add("tokenizer.json");
    hash.add(bytes_);
    hash.add(options_.config);
    parts_->fingerprint = hash.value();
    index_added_tokens(*parts_);
    find_end_tokens(*parts_);
    return std::shared_ptr<const Tokenizer>(std::make_shared<Tokenizer>(std::move(parts_)));
  }

 private:
  struct Entry {
    std::string_view token;
    int64_t id;
  };

  // ---- vocabulary and added tokens: tokens_ by id

  Result<void> read_vocabulary(const JsonFields& root, const JsonFields& model) {
    std::string type = "BPE";
    ASSIGN_OR_RETURN(const Element vocab, model.element("vocab"));
    if (model.has("type")) {
      ASSIGN_OR_RETURN(type, model.type());
    } else if (vocab.is_array()) {
      type = "Unigram";
    }
    if (type != "BPE" && type != "Unigram") {
      return bad_input(model.where("type") + " is \"" + printable(type) + "\", supported are BPE and Unigram");
    }
    unigram_ = type == "Unigram";
    std::vector<Entry> entries;
    RETURN_IF_ERROR(unigram_ ? read_scored_entries(entries, model) : read_entries(entries, model));
    if (root.has("added_tokens")) RETURN_IF_ERROR(read_added_tokens(root));
    const auto total = static_cast<int64_t>(entries.size() + parts_->added.size());
    if (total == 0) return bad_input(model.where("vocab") + " is empty");
    const int64_t limit = std::min<int64_t>(total + kUnusedIds, std::numeric_limits<int32_t>::max());
    int64_t size = 0;
    for (const Entry& entry : entries) RETURN_IF_ERROR(count_id(size, entry, limit, model.where("vocab")));
    for (const AddedToken& token : parts_->added) {
      RETURN_IF_ERROR(count_id(size, {token.content, token.id}, limit, root.where("added_tokens")));
    }
    tokens_.resize(static_cast<size_t>(size));
    in_model_.resize(tokens_.size());
    added_at_.resize(tokens_.size());
    parts_->special.resize(tokens_.size());
    for (const Entry& entry : entries) {
      if (in_model_[entry.id]) {
        return bad_input(model.where("vocab") + ": id " + std::to_string(entry.id) + " is given to \"" + printable(tokens_[entry.id], 40) +
                         "\" and to \"" + printable(entry.token, 40) + "\"");
      }
      in_model_[entry.id] = true;
      tokens_[entry.id] = entry.token;
    }
    return place_added_tokens(root);
  }

  static Result<void> count_id(int64_t& size, const Entry& entry, int64_t limit, const std::string& where) {
    if (entry.id < 0 || entry.id >= limit) {
      return bad_input(where + ": id of \"" + printable(entry.token, 40) + "\" is " + std::to_string(entry.id) + ", expected 0 to " +
                       std::to_string(limit - 1));
    }
    size = std::max(size, entry.id + 1);
    return {};
  }

  static Result<void> read_entries(std::vector<Entry>& entries, const JsonFields& model) {
    ASSIGN_OR_RETURN(const JsonFields vocab, model.fields("vocab"));
    for (const simdjson::dom::key_value_pair field : vocab.object()) {
      int64_t id = 0;
      if (field.value.get(id) != simdjson::SUCCESS) {
        return bad_input(vocab.where() + ": id of \"" + printable(field.key, 40) + "\" is " + JsonFields::kind(field.value) +
                         " that is not a whole number below 2^63");
      }
      entries.push_back({field.key, id});
    }
    return {};
  }

  Result<void> read_scored_entries(std::vector<Entry>& entries, const JsonFields& model) {
    ASSIGN_OR_RETURN(const simdjson::dom::array vocab, model.array("vocab"));
    for (Element element : vocab) {
      const std::string where = model.where("vocab") + "[" + std::to_string(entries.size()) + "]";
      simdjson::dom::array pair;
      std::string_view token;
      double score = 0;
      if (element.get(pair) != simdjson::SUCCESS || pair.size() != 2 || pair.at(0).get(token) != simdjson::SUCCESS ||
          pair.at(1).get(score) != simdjson::SUCCESS || !std::isfinite(score)) {
        return bad_input(where + ": expected [token, score]");
      }
      entries.push_back({token, static_cast<int64_t>(entries.size())});
      scores_.push_back(score);
    }
    return {};
  }

  Result<void> read_added_tokens(const JsonFields& root) {
    ASSIGN_OR_RETURN(const simdjson::dom::array added, root.array("added_tokens"));
    for (Element element : added) {
      const std::string where = root.where("added_tokens") + "[" + std::to_string(parts_->added.size()) + "]";
      ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(element, where));
      AddedToken token;
      ASSIGN_OR_RETURN(const int64_t id, fields.integer("id"));
      if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
        return bad_input(fields.where("id") + " is " + std::to_string(id) + ", expected 0 to 2^31 - 1");
      }
      token.id = static_cast<int32_t>(id);
      ASSIGN_OR_RETURN(const std::string_view content, fields.string("content"));
      if (content.empty() || content.size() > kAddedTokenBytes) {
        return bad_input(fields.where("content") + " has " + std::to_string(content.size()) + " bytes, expected 1 to " +
                         std::to_string(kAddedTokenBytes));
      }
      token.content = content;
      ASSIGN_OR_RETURN(token.special, fields.boolean_or("special", false));
      ASSIGN_OR_RETURN(token.single_word, fields.boolean_or("single_word", false));
      ASSIGN_OR_RETURN(token.lstrip, fields.boolean_or("lstrip", false));
      ASSIGN_OR_RETURN(token.rstrip, fields.boolean_or("rstrip", false));
      ASSIGN_OR_RETURN(token.normalized, fields.boolean_or("normalized", !token.special));
      parts_->added.push_back(std::move(token));
    }
    return {};
  }

  Result<void> place_added_tokens(const JsonFields& root) {
    for (const AddedToken& token : parts_->added) {
      if (!tokens_[token.id].empty() && tokens_[token.id] != token.content) {
        return bad_input(root.where("added_tokens") + ": id " + std::to_string(token.id) + " is given to \"" +
                         printable(tokens_[token.id], 40) + "\" and to \"" + printable(token.content, 40) + "\"");
      }
      tokens_[token.id] = token.content;
      added_at_[token.id] = true;
      if (token.special) parts_->special[token.id] = true;
    }
    return {};
  }

  // ---- components

  Result<void> read_components(const JsonFields& root) {
    if (root.has("normalizer")) {
      ASSIGN_OR_RETURN(const Element element, root.element("normalizer"));
      ASSIGN_OR_RETURN(auto steps, normalizer_from_json(element, root.where("normalizer")));
      parts_->normalizer = Normalizer(std::move(steps));
    }
    if (root.has("pre_tokenizer")) {
      ASSIGN_OR_RETURN(const Element element, root.element("pre_tokenizer"));
      ASSIGN_OR_RETURN(PreTokenizerSpec spec, pre_tokenizer_from_json(element, root.where("pre_tokenizer")));
      byte_level_ = spec.byte_level;
      parts_->pre_tokenizer = PreTokenizer(std::move(spec.steps));
    }
    if (root.has("decoder")) {
      ASSIGN_OR_RETURN(const Element element, root.element("decoder"));
      ASSIGN_OR_RETURN(decoder_, decoder_from_json(element, root.where("decoder")));
      parts_->strips_leading_space = decoder_.strips_leading_space;
    } else if (byte_level_) {
      decoder_.steps.emplace_back(DecoderSpec::ByteLevel{});
    }
    if (root.has("post_processor")) {
      ASSIGN_OR_RETURN(const Element element, root.element("post_processor"));
      ASSIGN_OR_RETURN(TemplateSpec spec, post_processor_from_json(element, root.where("post_processor"), static_cast<int64_t>(tokens_.size())));
      parts_->prefix = std::move(spec.prefix);
      parts_->suffix = std::move(spec.suffix);
    }
    return normalize_added_tokens();
  }

  // A token that is searched in normalised text is itself normalised first.
  Result<void> normalize_added_tokens() {
    RegexScratch scratch;
    for (AddedToken& token : parts_->added) {
      if (!token.normalized || parts_->normalizer.empty()) continue;
      ASSIGN_OR_RETURN(std::string normal, parts_->normalizer.apply(token.content, scratch));
      token.searched = std::move(normal);
    }
    return {};
  }

  // ---- models

  Result<void> build_bpe_model(const JsonFields& model) {
    for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!model.has(key)) continue;
      ASSIGN_OR_RETURN(const std::string_view affix, model.string(key));
      if (!affix.empty()) return bad_input(model.where(key) + " is \"" + printable(affix) + "\", only an empty one is supported");
    }
    if (model.has("dropout")) {
      ASSIGN_OR_RETURN(const Element dropout, model.element("dropout"));
      double rate = 1;
      if (dropout.get(rate) != simdjson::SUCCESS || rate != 0) return bad_input(model.where("dropout") + " is set, only null or 0 is supported");
    }
    BpeSource source{.where = options_.name, .tokens = tokens_, .producible = in_model_, .merges = {}, .scores = {}, .config = {}};
    source.config.byte_level = byte_level_;
    ASSIGN_OR_RETURN(source.config.byte_fallback, model.boolean_or("byte_fallback", false));
    ASSIGN_OR_RETURN(source.config.fuse_unknown, model.boolean_or("fuse_unk", false));
    ASSIGN_OR_RETURN(source.config.ignore_merges, model.boolean_or("ignore_merges", false));
    if (model.has("unk_token")) {
      ASSIGN_OR_RETURN(const std::string_view unknown, model.string("unk_token"));
      parts_->unknown = id_of(unknown);
      if (parts_->unknown < 0) return bad_input(model.where("unk_token") + " \"" + printable(unknown) + "\" is not in the vocabulary");
    }
    source.config.unknown_id = parts_->unknown;
    RETURN_IF_ERROR(read_merges(source.merges, model));
    ASSIGN_OR_RETURN(BpeModel bpe, build_bpe(std::move(source)));
    parts_->model.emplace<BpeModel>(std::move(bpe));
    return {};
  }

  static Result<void> read_merges(std::vector<std::pair<std::string_view, std::string_view>>& merges, const JsonFields& model) {
    ASSIGN_OR_RETURN(const simdjson::dom::array array, model.array("merges"));
    merges.reserve(array.size());
    for (Element element : array) {
      std::string_view text;
      simdjson::dom::array pair;
      if (element.get(text) == simdjson::SUCCESS) {
        const size_t space = text.find(' ');
        if (space != std::string_view::npos && space > 0 && space + 1 < text.size() && text.find(' ', space + 1) == std::string_view::npos) {
          merges.emplace_back(text.substr(0, space), text.substr(space + 1));
          continue;
        }
      } else if (element.get(pair) == simdjson::SUCCESS && pair.size() == 2) {
        std::string_view left, right;
        if (pair.at(0).get(left) == simdjson::SUCCESS && pair.at(1).get(right) == simdjson::SUCCESS && !left.empty() && !right.empty()) {
          merges.emplace_back(left, right);
          continue;
        }
      }
      return bad_input(model.where("merges") + "[" + std::to_string(merges.size()) + "]: expected \"left right\" or [left, right]");
    }
    return {};
  }

  Result<void> build_unigram(const JsonFields& model) {
    if (byte_level_) return bad_input(options_.name + ": a Unigram model under a ByteLevel pre-tokenizer is not supported");
    UnigramConfig config;
    ASSIGN_OR_RETURN(config.byte_fallback, model.boolean_or("byte_fallback", false));
    if (model.has("unk_id")) {
      ASSIGN_OR_RETURN(const int64_t unknown, model.integer("unk_id"));
      if (unknown < 0 || unknown >= static_cast<int64_t>(scores_.size())) {
        return bad_input(model.where("unk_id") + " is " + std::to_string(unknown) + ", expected 0 to " + std::to_string(scores_.size() - 1));
      }
      config.unknown_id = parts_->unknown = static_cast<int32_t>(unknown);
    }
    const size_t count = scores_.size();   // ids of a Unigram vocabulary are 0 .. count-1, added ones follow
    const std::vector<std::string_view> tokens(tokens_.begin(), tokens_.begin() + static_cast<ptrdiff_t>(count));
    config.byte_ids.fill(-1);
    if (config.byte_fallback) config.byte_ids = byte_token_ids(Vocabulary::build(tokens));
    parts_->model.emplace<UnigramModel>(config, tokens, scores_, std::vector<bool>(count, true));
    return {};
  }

  int32_t id_of(std::string_view token) const {
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (tokens_[id] == token && !token.empty()) return static_cast<int32_t>(id);
    }
    return -1;
  }

  // ---- tokenizer_config.json

  Result<void> read_config() {
    if (!options_.config.empty()) {
      Document config;
      const std::string name = options_.name + " (tokenizer_config.json)";
      RETURN_IF_ERROR(parse(config, options_.config, name, kConfigBytes));
      ASSIGN_OR_RETURN(const JsonFields root, JsonFields::of(config.root, name));
      RETURN_IF_ERROR(read_named_id(parts_->bos, root, "bos_token"));
      RETURN_IF_ERROR(read_named_id(parts_->eos, root, "eos_token"));
      RETURN_IF_ERROR(read_named_id(parts_->unknown, root, "unk_token"));
      RETURN_IF_ERROR(read_named_id(parts_->padding, root, "pad_token"));
      RETURN_IF_ERROR(apply_flag(parts_->prefix, parts_->bos, root, "add_bos_token"));
      RETURN_IF_ERROR(apply_flag(parts_->suffix, parts_->eos, root, "add_eos_token"));
    } else {
      if (!parts_->prefix.empty()) parts_->bos = parts_->prefix.front();
      if (!parts_->suffix.empty()) parts_->eos = parts_->suffix.back();
    }
    for (int32_t id : options_.end_ids) {
      if (id < 0 || id >= static_cast<int32_t>(tokens_.size())) {
        return bad_input(options_.name + ": end of text id " + std::to_string(id) + " is not in 0 to " + std::to_string(tokens_.size() - 1));
      }
      parts_->end_of_generation.push_back(id);
    }
    return {};
  }

  // A token's name, or an object with its name under "content".
  Result<void> read_named_id(int32_t& id, const JsonFields& root, std::string_view key) const {
    if (!root.has(key)) return {};
    ASSIGN_OR_RETURN(const Element element, root.element(key));
    std::string_view name;
    if (element.is_object()) {
      ASSIGN_OR_RETURN(const JsonFields token, root.fields(key));
      ASSIGN_OR_RETURN(name, token.string("content"));
    } else {
      ASSIGN_OR_RETURN(name, root.string(key));
    }
    id = id_of(name);
    if (id < 0) return bad_input(root.where(key) + " \"" + printable(name) + "\" is not in the vocabulary");
    return {};
  }

  // add_bos_token and add_eos_token overrule the template of tokenizer.json, as in the library that wrote both.
  static Result<void> apply_flag(std::vector<int32_t>& side, int32_t id, const JsonFields& root, std::string_view key) {
    if (!root.has(key)) return {};
    ASSIGN_OR_RETURN(const bool wanted, root.boolean(key));
    if (wanted && id < 0) return bad_input(root.where(key) + " is true, but the token is not named");
    const auto at = std::find(side.begin(), side.end(), id);
    if (wanted && at == side.end()) side.insert(side.begin(), id);
    if (!wanted && at != side.end()) side.erase(at);
    return {};
  }

  std::string_view bytes_;
  const TokenizerJsonOptions& options_;
  Document document_;
  std::unique_ptr<TokenizerParts> parts_;
  std::vector<std::string_view> tokens_;   // [vocab size]
  std::vector<bool> in_model_, added_at_;
  std::vector<double> scores_;
  DecoderSpec decoder_;
  bool unigram_ = false, byte_level_ = false;
};

}  // namespace

Result<std::shared_ptr<const Tokenizer>> parse_tokenizer_json(std::string_view bytes, const TokenizerJsonOptions& options) {
  return JsonLoader(bytes, options).run();
}

Result<std::shared_ptr<const Tokenizer>> load_tokenizer_json(const std::string& path, std::vector<int32_t> end_ids) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path file = fs::is_directory(path, ignored) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  ASSIGN_OR_RETURN(const auto mapped, MappedFile::open(file.string()));
  const auto text_of = [](const MappedFile& m) {
    return std::string_view(reinterpret_cast<const char*>(m.bytes().data()), m.bytes().size());
  };
  TokenizerJsonOptions options{.name = file.string(), .end_ids = std::move(end_ids)};
  std::shared_ptr<const MappedFile> config;
  const fs::path beside = file.parent_path() / "tokenizer_config.json";
  if (fs::exists(beside, ignored)) {
    ASSIGN_OR_RETURN(config, MappedFile::open(beside.string()));
    options.config = text_of(*config);
  }
  return parse_tokenizer_json(text_of(*mapped), options);
}

}  // namespace quipu
