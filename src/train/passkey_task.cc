#include "train/passkey_task.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "text/tokenizer_json.h"

namespace quipu {
namespace {

constexpr char kOpening[] =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "it.";
constexpr const char* kFiller[] = {" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.",
                                   " There and back again."};
constexpr char kQuestion[] = " What is the pass key? The pass key is ";
enum Stream : uint64_t { kTrain = 0x70617373, kHeldOut = 0x70617368, kText = 0x70617374, kHaystack = 0x70617375 };

// Prose: " The <adjective> <noun> <verb> <preposition> the <adjective> <noun>.", parts left out at random.
constexpr const char* kAdjectives[] = {
    "old",   "young",  "small", "large", "quiet", "bright", "dark",  "narrow", "heavy",  "simple", "strange", "gentle",
    "early", "common", "rough", "clear", "empty", "proud",  "brave", "clever", "honest", "patient", "distant", "broken"};
constexpr const char* kNouns[] = {
    "river",   "doctor", "village", "garden", "letter",  "captain", "window", "mountain", "teacher", "bridge", "market", "soldier",
    "forest",  "sister", "engine",  "island", "stranger", "kitchen", "harbour", "merchant", "painter", "valley", "temple", "student",
    "library", "farmer", "castle",  "neighbour", "journey", "winter", "shepherd", "train",    "lawyer",  "story",  "candle", "stone"};
constexpr const char* kVerbs[] = {
    "watched", "followed", "crossed", "remembered", "carried", "described", "visited", "feared", "painted", "ignored", "reached", "left",
    "found",   "loved",    "heard",   "admired",    "built",   "guarded",   "missed",  "needed", "praised", "sold",    "studied", "trusted"};
constexpr const char* kPrepositions[] = {"near", "behind", "before", "after", "without", "beyond", "under", "against"};
constexpr const char* kOpenings[] = {"The", "A", "Every", "That", "Another"};
constexpr const char* kArticles[] = {"the", "a", "every", "that", "another"};

template <size_t kCount>
void add_words(std::vector<std::string>& words, const char* const (&list)[kCount]) {
  for (const char* word : list) {
    const std::string spaced = std::string(" ") + word;
    if (std::find(words.begin(), words.end(), spaced) == words.end()) words.push_back(spaced);
  }
}

constexpr char kNeedleEnd[] = " is the pass key.";
std::string needle_text(const std::string& digits) {
  return " The pass key is " + digits + ". Remember it. " + digits + kNeedleEnd;
}

// The words of all the task's texts, with the space before them, in order of appearance.
std::vector<std::string> words_of_task() {
  std::string all = kOpening;
  for (const char* sentence : kFiller) all += sentence;
  all += needle_text("") + kQuestion;
  std::vector<std::string> words;
  size_t at = 0;
  const auto letter = [&](size_t i) { return i < all.size() && std::isalpha(static_cast<unsigned char>(all[i])) != 0; };
  while (at < all.size()) {
    const size_t begin = all[at] == ' ' && letter(at + 1) ? at : letter(at) ? at : std::string::npos;
    if (begin == std::string::npos) {
      ++at;
      continue;
    }
    at = begin + 1;
    while (letter(at)) ++at;
    const std::string word = all.substr(begin, at - begin);
    if (word.size() > 1 && std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
  }
  return words;
}

std::vector<std::string> words_of(const PasskeyKind& kind) {
  if (kind.bytes) return {};
  std::vector<std::string> words = words_of_task();
  if (!kind.prose) return words;
  add_words(words, kAdjectives);
  add_words(words, kNouns);
  add_words(words, kVerbs);
  add_words(words, kPrepositions);
  add_words(words, kOpenings);
  add_words(words, kArticles);
  return words;
}

class PasskeyTask final : public Task {
 public:
  PasskeyTask(PasskeyText text, const PasskeySettings& settings, const TaskOptions& options)
      : text_(std::move(text)), settings_(settings), options_(options) {}

  TrainSample sample(int64_t index, double progress) const override;
  int64_t vocabulary() const override { return text_.vocabulary(); }
  std::string tokenizer_json() const override { return text_.tokenizer_json(); }
  std::string description() const override {
    const PasskeyKind& kind = settings_.kind;
    return std::string("task passkey over ") + (kind.bytes ? "bytes" : "words") + (kind.prose ? ", prose" : "") + ", " +
           std::to_string(kind.digits) + (kind.identifier ? " hexadecimal digits" : " digits");
  }

 private:
  int64_t draw_length(RandomStream& random, double progress) const;
  double draw_depth(RandomStream& random, int64_t length) const;
  double draw_repeats(RandomStream& random, double progress) const;
  void append(TrainSample& out, const PasskeyQuestion& question, double repeats, RandomStream& random) const;

  PasskeyText text_;
  PasskeySettings settings_;
  TaskOptions options_;
};

// The length of the stage that `progress` has reached, or a shorter one.
int64_t PasskeyTask::draw_length(RandomStream& random, double progress) const {
  if (options_.held_out || settings_.start_length == 0) return options_.sequence;
  int64_t stages = 1;
  for (int64_t length = settings_.start_length; length < options_.sequence; length *= 2) ++stages;
  const double reached = settings_.curriculum > 0 ? std::min(progress / settings_.curriculum, 1.0) : 1.0;
  const int64_t stage = std::min<int64_t>(static_cast<int64_t>(reached * static_cast<double>(stages)), stages - 1);
  const int64_t most = std::min(settings_.start_length << stage, options_.sequence);
  if (random.uniform() >= settings_.shorter) return most;
  const double share = random.uniform();
  const double least = static_cast<double>(settings_.start_length);
  return std::min(static_cast<int64_t>(least * std::pow(static_cast<double>(most) / least, share)), most);
}

double PasskeyTask::draw_repeats(RandomStream& random, double progress) const {
  if (options_.held_out || settings_.repeat_max <= 1 || progress < settings_.repeat_start) return 1;
  if (random.uniform() < settings_.repeat_plain) return 1;
  const double rise = settings_.repeat_full - settings_.repeat_start;
  const double risen = rise > 0 ? std::min((progress - settings_.repeat_start) / rise, 1.0) : 1.0;
  return std::exp(random.uniform() * risen * std::log(static_cast<double>(settings_.repeat_max)));
}

double PasskeyTask::draw_depth(RandomStream& random, int64_t length) const {
  const bool early = random.uniform() < settings_.early;
  const double depth = random.uniform();
  if (!early || options_.segment == 0) return depth;
  return depth * std::min(1.0, 2.0 * static_cast<double>(options_.segment) / static_cast<double>(length));
}

void PasskeyTask::append(TrainSample& out, const PasskeyQuestion& q, double repeats, RandomStream& random) const {
  const int64_t digits = settings_.kind.digits;
  const int64_t rows = static_cast<int64_t>(q.tokens.size()) - 1, base = out.rows();
  const int64_t first = q.answer_begin - 1;  // the row that predicts the first digit
  std::vector<bool> predicted(static_cast<size_t>(rows));
  int64_t others = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const bool answer = row >= first && row < first + digits;
    const bool chosen = settings_.lm_share >= 1 || random.uniform() < settings_.lm_share;
    predicted[static_cast<size_t>(row)] = answer || chosen;
    others += !answer && chosen;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const bool answer = row >= first && row < first + digits;
    const bool copied = row + 1 >= q.copy_begin && row + 1 < q.copy_begin + digits;
    double weight = 0;
    if (answer) {
      weight = 1.0 / static_cast<double>(digits);
      out.answer_rows.push_back(base + row);
    } else if (predicted[static_cast<size_t>(row)]) {
      weight = settings_.lm_weight / static_cast<double>(others);
    }
    if (copied) weight += settings_.copy_weight / static_cast<double>(digits);
    out.tokens.push_back(q.tokens[static_cast<size_t>(row)]);
    out.targets.push_back(weight > 0 ? q.tokens[static_cast<size_t>(row) + 1] : -1);
    out.weights.push_back(static_cast<float>(weight));
  }
  out.answer_ends.push_back(static_cast<int64_t>(out.answer_rows.size()));
  out.lengths.push_back(rows);
  if (options_.segment == 0 || settings_.repeat_max <= 1) return;
  const int64_t opening_end = static_cast<int64_t>(text_.opening().size());
  const int64_t question_begin = q.answer_begin - static_cast<int64_t>(text_.question_text().size());
  for (int64_t begin = 0; begin < rows; begin += options_.segment) {
    const int64_t end = std::min(begin + options_.segment, rows);
    // Whole segments of nothing but filler: not the opening, the needle or the question.
    const bool pure = end == begin + options_.segment && begin >= opening_end && end <= question_begin &&
                      (end <= q.needle_begin || begin >= q.needle_end);
    out.write_repeats.insert(out.write_repeats.end(), static_cast<size_t>(end - begin),
                             pure ? static_cast<float>(repeats) : 1.0f);
  }
}

TrainSample PasskeyTask::sample(int64_t index, double progress) const {
  RandomStream random(mix64(static_cast<uint64_t>(options_.seed)) ^ static_cast<uint64_t>(index),
                      options_.held_out ? kHeldOut : kTrain);
  TrainSample out;
  while (true) {
    int64_t length = std::max(draw_length(random, progress), text_.shortest());
    const int64_t left = options_.sequence - out.rows();
    if (length > left) {
      if (!out.tokens.empty()) break;
      length = left;
    }
    const double depth = draw_depth(random, length);
    const double repeats = draw_repeats(random, progress);
    append(out, text_.question(length, depth, random.bits()), repeats, random);
  }
  return out;
}

}  // namespace

// --- text --------------------------------------------------------------------------------------------------------------

Result<PasskeyText> PasskeyText::create(const PasskeyKind& kind) {
  PasskeyText text;
  text.kind_ = kind;
  text.tokenizer_json_ = word_tokenizer_json(words_of(kind));
  ASSIGN_OR_RETURN(text.tokenizer_, parse_tokenizer_json(text.tokenizer_json_));
  text.opening_ = text.ids(kOpening);
  for (const char* sentence : kFiller) text.sentences_.push_back(text.ids(sentence));
  text.question_ = text.ids(kQuestion);
  text.needle_tokens_ = static_cast<int64_t>(text.needle(std::string(static_cast<size_t>(kind.digits), '0')).size());
  return text;
}

std::vector<int32_t> PasskeyText::ids(std::string_view text) const {
  auto encoded = tokenizer_->encode(text, {.add_special = false, .parse_special = false});
  CHECK(encoded.ok()) << "the task's own text does not encode";
  return std::move(encoded).value();
}

std::vector<int32_t> PasskeyText::needle(const std::string& digits) const { return ids(needle_text(digits)); }

int64_t PasskeyText::shortest() const {
  return static_cast<int64_t>(opening_.size() + question_.size()) + needle_tokens_ + kind_.digits - 1;
}

int64_t PasskeyText::filler_period() const {
  int64_t tokens = 0;
  for (const auto& sentence : sentences_) tokens += static_cast<int64_t>(sentence.size());
  return tokens;
}

// An identifier begins with a decimal digit: " a" would be a word of the vocabulary.
std::string PasskeyText::draw_digits(uint64_t seed) const {
  RandomStream random(seed, kText);
  std::string digits;
  for (int64_t i = 0; i < kind_.digits; ++i) {
    digits += "0123456789abcdef"[random.below(kind_.identifier && i > 0 ? 16 : 10)];
  }
  return digits;
}

std::string PasskeyText::prose_sentence(RandomStream& random) const {
  const auto one_of = [&random](const auto& list) { return std::string(" ") + list[random.below(std::size(list))]; };
  const auto noun = [&](const auto& articles) {
    return one_of(articles) + (random.uniform() < 0.6 ? one_of(kAdjectives) : "") + one_of(kNouns);
  };
  std::string text = noun(kOpenings) + one_of(kVerbs) + noun(kArticles);
  if (random.uniform() < 0.5) text += one_of(kPrepositions) + noun(kArticles);
  return text + ".";
}

PasskeyHaystack::PasskeyHaystack(const PasskeyText& text, uint64_t seed) : text_(&text), random_(seed, kHaystack) {
  if (text.kind_.prose) return;
  // Anywhere in the period, so that segments end anywhere in sentences.
  size_t phase = random_.below(static_cast<uint64_t>(text.filler_period()));
  for (;;) {
    refill();
    if (phase < sentence_.size()) break;
    phase -= sentence_.size();
  }
  at_ = phase;
}

void PasskeyHaystack::refill() {
  at_ = 0;
  if (text_->kind_.prose) {
    sentence_ = text_->ids(text_->prose_sentence(random_));
    return;
  }
  sentence_ = text_->sentences_[next_];
  next_ = (next_ + 1) % text_->sentences_.size();
}

void PasskeyHaystack::take(std::vector<int32_t>& out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (at_ == sentence_.size()) refill();
    out.push_back(sentence_[at_++]);
  }
  taken_ += count;
}

void PasskeyHaystack::take_sentence(std::vector<int32_t>& out, int64_t most) {
  if (at_ > 0) take(out, std::min(static_cast<int64_t>(sentence_.size() - at_), most));
}

PasskeyQuestion PasskeyText::question(int64_t length, double depth, uint64_t seed) const {
  return question(length, depth, draw_digits(seed), seed);
}

PasskeyQuestion PasskeyText::question(int64_t length, double depth, const std::string& digits, uint64_t haystack_seed) const {
  const int64_t filler = filler_tokens(length), before = filler_before(length, depth);
  CHECK(filler >= 0) << length << " tokens, shortest " << shortest();
  PasskeyHaystack hay = haystack(haystack_seed);
  PasskeyQuestion q;
  q.digits = digits;
  q.tokens.reserve(static_cast<size_t>(length) + 1);
  q.tokens = opening_;
  hay.take(q.tokens, before);
  if (before > 0) hay.take_sentence(q.tokens, filler - before);
  const auto add = [&q](const std::vector<int32_t>& tokens) { q.tokens.insert(q.tokens.end(), tokens.begin(), tokens.end()); };
  const auto here = [&q] { return static_cast<int64_t>(q.tokens.size()); };
  q.needle_begin = here();
  add(needle(digits));
  q.needle_end = here();
  q.copy_begin = q.needle_end - static_cast<int64_t>(ids(kNeedleEnd).size()) - kind_.digits;
  hay.take(q.tokens, filler - hay.taken());
  add(question_);
  q.answer_begin = here();
  add(answer(digits));
  return q;
}

Result<std::unique_ptr<Task>> make_passkey_task(SettingsReader settings, const TaskOptions& options) {
  PasskeySettings s;
  std::string vocabulary = "words", haystack = "repeated", needle = "number";
  RETURN_IF_ERROR(settings.choice(vocabulary, "vocabulary", {"words", "bytes"}));
  RETURN_IF_ERROR(settings.choice(haystack, "haystack", {"repeated", "prose"}));
  RETURN_IF_ERROR(settings.choice(needle, "needle", {"number", "identifier"}));
  s.kind.bytes = vocabulary == "bytes";
  s.kind.prose = haystack == "prose";
  s.kind.identifier = needle == "identifier";
  RETURN_IF_ERROR(settings.whole(s.kind.digits, "digits", 1, 64));
  RETURN_IF_ERROR(settings.real(s.lm_weight, "lm_weight", 0, 100));
  RETURN_IF_ERROR(settings.real(s.lm_share, "lm_share", 0, 1));
  RETURN_IF_ERROR(settings.real(s.copy_weight, "copy_weight", 0, 100));
  RETURN_IF_ERROR(settings.real(s.early, "early", 0, 1));
  RETURN_IF_ERROR(settings.whole(s.start_length, "start_length", 0, int64_t{1} << 24));
  RETURN_IF_ERROR(settings.real(s.curriculum, "curriculum", 0, 1));
  RETURN_IF_ERROR(settings.real(s.shorter, "shorter", 0, 1));
  RETURN_IF_ERROR(settings.whole(s.repeat_max, "repeat_max", 1, 100000000));
  RETURN_IF_ERROR(settings.real(s.repeat_start, "repeat_start", 0, 1));
  RETURN_IF_ERROR(settings.real(s.repeat_full, "repeat_full", 0, 1));
  RETURN_IF_ERROR(settings.real(s.repeat_plain, "repeat_plain", 0, 1));
  RETURN_IF_ERROR(settings.nothing_else());
  ASSIGN_OR_RETURN(PasskeyText text, PasskeyText::create(s.kind));
  const int64_t shortest = text.shortest();
  if (s.start_length > 0 && s.start_length < shortest) {
    return settings.wrong("start_length", "is " + std::to_string(s.start_length) + ", expected 0 or at least the " +
                                              std::to_string(shortest) + " tokens of a question without filler");
  }
  if (options.sequence < shortest) {
    return bad_input(options.file + ": train.sequence is " + std::to_string(options.sequence) +
                     ", shorter than a passkey question without filler, " + std::to_string(shortest) + " tokens");
  }
  if (s.repeat_max > 1 && options.segment == 0) {
    return settings.wrong("repeat_max", "needs a model whose memory is written segment by segment (room infini)");
  }
  return std::unique_ptr<Task>(std::make_unique<PasskeyTask>(std::move(text), s, options));
}

}  // namespace quipu
