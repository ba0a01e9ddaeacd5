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
enum Stream : uint64_t { kTrain = 0x70617373, kHeldOut = 0x70617368, kText = 0x70617374 };

std::string needle_text(const std::string& digits) {
  return " The pass key is " + digits + ". Remember it. " + digits + " is the pass key.";
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

class PasskeyTask final : public Task {
 public:
  PasskeyTask(PasskeyText text, const PasskeySettings& settings, const TaskOptions& options)
      : text_(std::move(text)), settings_(settings), options_(options) {}

  TrainSample sample(int64_t index, double progress) const override;
  int64_t vocabulary() const override { return text_.vocabulary(); }
  std::string tokenizer_json() const override { return text_.tokenizer_json(); }
  std::string description() const override {
    return std::string("task passkey over ") + (settings_.bytes ? "bytes" : "words") + ", " +
           std::to_string(settings_.digits) + " digits";
  }

 private:
  int64_t draw_length(RandomStream& random, double progress) const;
  double draw_depth(RandomStream& random, int64_t length) const;
  void append(TrainSample& out, const PasskeyQuestion& question, double repeats) const;

  PasskeyText text_;
  PasskeySettings settings_;
  TaskOptions options_;
};

// The length of the stage that `progress` has reached; a quarter of the questions come from an earlier one.
int64_t PasskeyTask::draw_length(RandomStream& random, double progress) const {
  if (options_.held_out || settings_.start_length == 0) return options_.sequence;
  int64_t stages = 1;
  for (int64_t length = settings_.start_length; length < options_.sequence; length *= 2) ++stages;
  const double reached = settings_.curriculum > 0 ? std::min(progress / settings_.curriculum, 1.0) : 1.0;
  int64_t stage = std::min<int64_t>(static_cast<int64_t>(reached * static_cast<double>(stages)), stages - 1);
  if (stage > 0 && random.uniform() < 0.25) stage = static_cast<int64_t>(random.below(static_cast<uint64_t>(stage)));
  return std::min(settings_.start_length << stage, options_.sequence);
}

double PasskeyTask::draw_depth(RandomStream& random, int64_t length) const {
  const bool early = random.uniform() < settings_.early;
  const double depth = random.uniform();
  if (!early || options_.segment == 0) return depth;
  return depth * std::min(1.0, 2.0 * static_cast<double>(options_.segment) / static_cast<double>(length));
}

void PasskeyTask::append(TrainSample& out, const PasskeyQuestion& q, double repeats) const {
  const int64_t rows = static_cast<int64_t>(q.tokens.size()) - 1, base = out.rows();
  const int64_t first = q.answer_begin - 1;  // the row that predicts the first digit
  const int64_t others = std::max<int64_t>(rows - settings_.digits, 1);
  for (int64_t row = 0; row < rows; ++row) {
    const bool answer = row >= first && row < first + settings_.digits;
    out.tokens.push_back(q.tokens[static_cast<size_t>(row)]);
    out.targets.push_back(q.tokens[static_cast<size_t>(row) + 1]);
    out.weights.push_back(static_cast<float>(answer ? 1.0 / static_cast<double>(settings_.digits)
                                                    : settings_.lm_weight / static_cast<double>(others)));
    if (answer) out.answer_rows.push_back(base + row);
  }
  out.answer_ends.push_back(static_cast<int64_t>(out.answer_rows.size()));
  out.lengths.push_back(rows);
  if (options_.segment == 0 || settings_.repeat_max <= 1) return;
  const int64_t opening_end = static_cast<int64_t>(text_.shortest());  // a bound: the opening is part of it
  for (int64_t begin = 0; begin < rows; begin += options_.segment) {
    const int64_t end = std::min(begin + options_.segment, rows);
    // Whole segments of nothing but filler: not the opening, the needle or the question.
    const bool pure = end == begin + options_.segment && begin >= opening_end &&
                      end <= q.answer_begin - text_.shortest() && (end <= q.needle_begin || begin >= q.needle_end);
    out.write_repeats.insert(out.write_repeats.end(), static_cast<size_t>(end - begin),
                             pure ? static_cast<float>(repeats) : 1.0f);
  }
}

TrainSample PasskeyTask::sample(int64_t index, double progress) const {
  RandomStream random(mix64(static_cast<uint64_t>(options_.seed)) ^ static_cast<uint64_t>(index),
                      options_.held_out ? kHeldOut : kTrain);
  TrainSample out;
  while (true) {
    int64_t length = draw_length(random, progress);
    const int64_t left = options_.sequence - out.rows();
    if (length > left && !out.tokens.empty()) break;
    length = std::min(length, left);
    const double depth = draw_depth(random, length);
    double repeats = 1;
    if (!options_.held_out && settings_.repeat_max > 1 && progress >= settings_.repeat_start &&
        random.uniform() >= settings_.repeat_plain) {
      repeats = std::exp(random.uniform() * std::log(static_cast<double>(settings_.repeat_max)));
    }
    append(out, text_.question(length, depth, random.bits()), repeats);
  }
  return out;
}

}  // namespace

Result<PasskeyText> PasskeyText::create(bool bytes, int64_t digits) {
  PasskeyText text;
  text.digits_ = digits;
  text.tokenizer_json_ = word_tokenizer_json(bytes ? std::vector<std::string>() : words_of_task());
  ASSIGN_OR_RETURN(text.tokenizer_, parse_tokenizer_json(text.tokenizer_json_));
  text.opening_ = text.ids(kOpening);
  for (const char* sentence : kFiller) {
    text.sentence_begins_.push_back(static_cast<int64_t>(text.filler_.size()));
    const std::vector<int32_t> ids = text.ids(sentence);
    text.filler_.insert(text.filler_.end(), ids.begin(), ids.end());
  }
  text.question_ = text.ids(kQuestion);
  return text;
}

std::vector<int32_t> PasskeyText::ids(std::string_view text) const {
  auto encoded = tokenizer_->encode(text, {.add_special = false, .parse_special = false});
  CHECK(encoded.ok()) << "the task's own text does not encode";
  return std::move(encoded).value();
}

int64_t PasskeyText::shortest() const {
  const std::string digits(static_cast<size_t>(digits_), '0');
  return static_cast<int64_t>(opening_.size() + ids(needle_text(digits)).size() + question_.size()) + digits_ - 1;
}

PasskeyQuestion PasskeyText::question(int64_t length, double depth, uint64_t seed) const {
  RandomStream random(seed, kText);
  PasskeyQuestion q;
  for (int64_t i = 0; i < digits_; ++i) q.digits += static_cast<char>('0' + random.below(10));
  const std::vector<int32_t> needle = ids(needle_text(q.digits)), answer = ids(q.digits);
  const int64_t period = filler_period();
  const int64_t filler =
      length + 1 - static_cast<int64_t>(opening_.size() + needle.size() + question_.size() + answer.size());
  CHECK(filler >= 0) << length << " tokens, shortest " << shortest();
  // The filler starts anywhere in its period, so that segments end anywhere in sentences. The needle goes to the
  // sentence boundary (or an end of the filler) nearest to the depth.
  const int64_t phase = static_cast<int64_t>(random.below(static_cast<uint64_t>(period)));
  const double wanted = depth * static_cast<double>(filler);
  int64_t before = wanted < static_cast<double>(filler) / 2 ? 0 : filler;
  const int64_t middle = static_cast<int64_t>(wanted);
  for (int64_t at = std::max<int64_t>(middle - period, 0); at <= std::min(middle + period, filler); ++at) {
    const bool boundary =
        std::find(sentence_begins_.begin(), sentence_begins_.end(), (phase + at) % period) != sentence_begins_.end();
    if (boundary && std::abs(static_cast<double>(at) - wanted) < std::abs(static_cast<double>(before) - wanted))
      before = at;
  }
  q.tokens = opening_;
  q.tokens.reserve(static_cast<size_t>(length) + 1);
  const auto add_filler = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) q.tokens.push_back(filler_[static_cast<size_t>((phase + i) % period)]);
  };
  add_filler(0, before);
  q.needle_begin = static_cast<int64_t>(q.tokens.size());
  q.tokens.insert(q.tokens.end(), needle.begin(), needle.end());
  q.needle_end = static_cast<int64_t>(q.tokens.size());
  add_filler(before, filler);
  q.tokens.insert(q.tokens.end(), question_.begin(), question_.end());
  q.answer_begin = static_cast<int64_t>(q.tokens.size());
  q.tokens.insert(q.tokens.end(), answer.begin(), answer.end());
  return q;
}

Result<std::unique_ptr<Task>> make_passkey_task(SettingsReader settings, const TaskOptions& options) {
  PasskeySettings s;
  std::string vocabulary = "words";
  RETURN_IF_ERROR(settings.choice(vocabulary, "vocabulary", {"words", "bytes"}));
  s.bytes = vocabulary == "bytes";
  RETURN_IF_ERROR(settings.whole(s.digits, "digits", 1, 64));
  RETURN_IF_ERROR(settings.real(s.lm_weight, "lm_weight", 0, 100));
  RETURN_IF_ERROR(settings.real(s.early, "early", 0, 1));
  RETURN_IF_ERROR(settings.whole(s.start_length, "start_length", 0, int64_t{1} << 24));
  RETURN_IF_ERROR(settings.real(s.curriculum, "curriculum", 0, 1));
  RETURN_IF_ERROR(settings.whole(s.repeat_max, "repeat_max", 1, 1000000));
  RETURN_IF_ERROR(settings.real(s.repeat_start, "repeat_start", 0, 1));
  RETURN_IF_ERROR(settings.real(s.repeat_plain, "repeat_plain", 0, 1));
  RETURN_IF_ERROR(settings.nothing_else());
  ASSIGN_OR_RETURN(PasskeyText text, PasskeyText::create(s.bytes, s.digits));
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
